//! `bulkhead inspect`: everything about containers and images.

use clap::Args;
use images::Image;
use runtime::container::{Container, ContainerError, State};
use runtime::networks::{self, bandwidth::Bandwidth};
use runtime::rootless::is_rootless;
use runtime::sandbox::cgroup;
use serde_json::{Value, json};

use crate::{errors, image_store, output};

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
            Ok(container) => match container.state()? {
                Some(state) => Some(of_container(&container, &state)?),
                None => None,
            },
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
                errors::say(&format!("no such container or image: {name}"));
                code = 1;
            }
        }
    }
    output::json(&Value::Array(found))?;
    Ok(code)
}

fn of_container(container: &Container, state: &State) -> anyhow::Result<Value> {
    let config = &container.config;
    let spec = &config.spec.spec;
    let process = &spec["process"];
    let etc = networks::paths(&container.lib_dir());
    let asked = |volume: &&runtime::spec::mounts::Volume| {
        etc.places().iter().all(|(path, _)| *path != volume.host)
    };
    Ok(json!({
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
        "Mounts": config.volumes.iter().filter(asked).map(|volume| json!({
            "Type": "bind",
            "Source": volume.host,
            "Destination": volume.guest,
            "RW": !volume.read_only,
        })).collect::<Vec<_>>(),
        "NetworkSettings": of_network(container, state)?,
        "LogPath": container.log_path(),
        "Layers": config.layers,
        "Machine": {
            "MemoryMiB": config.shape.memory_mib,
            "Vcpus": config.shape.vcpus,
            // Without root it has none: what it spends is its supervisor's.
            "CgroupPath": (!is_rootless()).then(|| cgroup::path_of(&config.id)),
            "HostMemoryMax": (!is_rootless()).then_some(config.shape.host_memory_max),
            "Directory": container.sandbox_dir(),
            "Live": state.machine(),
        },
        "Spec": spec,
    }))
}

/// As docker's, with what was refused; null, where nobody can tell at this moment.
fn of_network(container: &Container, state: &State) -> anyhow::Result<Value> {
    let Some(options) = &container.config.network else {
        return Ok(json!({ "Networks": {}, "Ports": {} }));
    };
    let standing = networks::standing(&container.lib_dir())?;
    let of = |ipv4: bool| standing.addresses.iter().find(|(own, _)| own.is_ipv4() == ipv4);
    let gateway = |ipv4: bool| standing.gateways.iter().find(|way| way.is_ipv4() == ipv4);
    let address = |ipv4: bool| of(ipv4).map(|(address, _)| address);
    let length = |ipv4: bool| of(ipv4).map_or(0, |(_, length)| *length);
    let mut ports = serde_json::Map::new();
    for port in &standing.ports {
        let host = port.address.map_or("0.0.0.0".into(), |address| address.to_string());
        let entry = json!({ "HostIp": host, "HostPort": port.host.to_string() });
        let key = format!("{}/{}", port.guest, port.protocol);
        if let Some(all) = ports.entry(key).or_insert_with(|| json!([])).as_array_mut() {
            all.push(entry);
        }
    }
    let whose = networks::Whose { id: &container.config.id, ended: !state.needs_supervisor() };
    let counted = networks::counted(container.dirs(), whose)?;
    Ok(json!({
        "Networks": { &options.network: {
            "IPAddress": address(true),
            "IPPrefixLen": length(true),
            "Gateway": gateway(true),
            "GlobalIPv6Address": address(false),
            "GlobalIPv6PrefixLen": length(false),
            "IPv6Gateway": gateway(false),
            "MacAddress": standing.mac,
            "Aliases": options.aliases,
        } },
        "Ports": ports,
        "Egress": options.egress,
        "AllowHost": options.allow_host,
        "Bandwidth": of_bandwidth(&options.bandwidth),
        "Refused": counted.refused,
    }))
}

/// Bits and packets in a second, bytes of a burst; null where there is no limit.
fn of_bandwidth(bandwidth: &Bandwidth) -> Value {
    let Bandwidth { ingress, egress } = bandwidth;
    if bandwidth.is_free() {
        return Value::Null;
    }
    json!({
        "IngressRate": ingress.rate,
        "IngressBurst": ingress.burst,
        "IngressPackets": ingress.packets,
        "EgressRate": egress.rate,
        "EgressBurst": egress.burst,
        "EgressPackets": egress.packets,
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
