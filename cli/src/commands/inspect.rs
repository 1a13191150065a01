//! `bulkhead inspect`: everything about containers and images.

use clap::Args;
use images::Image;
use runtime::container::{Container, ContainerError, State};
use runtime::sandbox::cgroup;
use serde_json::{Value, json};

use crate::{image_store, output};

/// Options of `inspect`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Names or ids of containers or images
    #[arg(required = true)]
    names: Vec<String>,
}

/// Prints a JSON array with an object for each.
pub fn run(arguments: &Arguments) -> anyhow::Result<u8> {
    let all = super::containers();
    let mut found = Vec::new();
    let mut code = 0;
    for name in &arguments.names {
        let value = match all.find(name) {
            Ok(container) => container.state()?.map(|state| of_container(&container, &state)),
            Err(ContainerError::NotFound(_)) => match image_store::open()?.resolve(name) {
                Ok(image) => Some(of_image(&image)),
                Err(images::StoreError::NotFound { .. }) => None,
                Err(error) => return Err(error.into()),
            },
            Err(error) => return Err(error.into()),
        };
        match value {
            Some(value) => found.push(value),
            None => {
                eprintln!("bulkhead: error: no such container or image: {name}");
                code = 1;
            }
        }
    }
    output::json(&Value::Array(found))?;
    Ok(code)
}

fn of_container(container: &Container, state: &State) -> Value {
    let config = &container.config;
    let spec = &config.spec.spec;
    let process = &spec["process"];
    json!({
        "Id": config.id,
        "Name": config.name,
        "Created": config.created,
        "Image": config.image_id,
        "State": of_state(state),
        "Config": {
            "Image": config.image,
            "Hostname": spec["hostname"],
            "Cmd": process["args"],
            "Env": process["env"],
            "WorkingDir": process["cwd"],
            "User": process["user"],
            "Tty": config.tty,
            "OpenStdin": config.stdin,
            "StopSignal": config.stop_signal,
            "Labels": config.labels,
        },
        "HostConfig": {
            "Memory": config.limits.memory,
            "NanoCpus": config.limits.cpus.map(|cpus| cpus.0 * 1000),
            "PidsLimit": config.limits.pids,
            "ReadonlyRootfs": spec["root"]["readonly"],
            "AutoRemove": config.auto_remove,
            "Writable": config.writable,
        },
        "Mounts": config.volumes.iter().map(|volume| json!({
            "Type": "bind",
            "Source": volume.host,
            "Destination": volume.guest,
            "RW": !volume.read_only,
        })).collect::<Vec<_>>(),
        "LogPath": container.log_path(),
        "Layers": config.layers,
        "Machine": {
            "MemoryMiB": config.shape.memory_mib,
            "Vcpus": config.shape.vcpus,
            "CgroupPath": cgroup::path_of(&config.id),
            "HostMemoryMax": config.shape.host_memory_max,
            "Directory": container.sandbox_dir(),
            "Live": state.machine(),
        },
        "Spec": spec,
    })
}

fn of_state(state: &State) -> Value {
    let stopped = match state {
        State::Stopped(stopped) => Some(stopped),
        _ => None,
    };
    json!({
        "Status": state.name(),
        "Running": matches!(state, State::Running { .. } | State::Paused { .. }),
        "Paused": matches!(state, State::Paused { .. }),
        "Pid": state.machine().filter(|_| state.needs_supervisor()).map_or(0, |m| m.supervisor),
        "ExitCode": stopped.map_or(0, |stopped| stopped.exit_code),
        "OOMKilled": stopped.is_some_and(|stopped| stopped.oom),
        "Error": stopped.and_then(|stopped| stopped.error.clone()).unwrap_or_default(),
        "StartedAt": state.started(),
        "FinishedAt": stopped.map(|stopped| stopped.finished),
    })
}

fn of_image(image: &Image) -> Value {
    let names: Vec<_> = image.references.iter().map(images::Reference::familiar).collect();
    json!({
        "Id": image.id.to_string(),
        "RepoTags": names,
        "RepoDigests": image.repo_digests,
        "Created": image.created,
        "Size": image.size,
        "Layers": image.layers,
        "Config": image.config,
    })
}
