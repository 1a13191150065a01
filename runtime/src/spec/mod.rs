//! OCI runtime specification from an image's configuration and options.
//!
//! What an option does not say is as docker has it, with two differences: there
//! is no seccomp profile, since the machine is the wall and the kernel behind it
//! is the container's own; and no AppArmor profile, for the same reason.

pub mod caps;
mod defaults;
mod etc;
pub mod mounts;
pub mod rlimits;

use std::collections::BTreeMap;

use oci_spec::image::{Config, ImageConfiguration};
use protocol::agent::SeedFile;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::limits::{Bytes, CPU_PERIOD_US, Cpus, Limits};
use crate::user::ResolvedUser;
use mounts::{Tmpfs, Volume};
use rlimits::Rlimit;

pub use etc::passable_resolv_conf;

/// Why no specification can be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Neither image nor options say what to run.
    #[error("no command specified: the image has none, so name one after the image")]
    NoCommand,
    /// Not absolute.
    #[error("the working directory {0:?} is invalid: it must be an absolute path")]
    WorkDir(String),
    /// `=x`, or with a NUL.
    #[error("invalid environment variable: {0:?}")]
    Env(String),
    /// Capabilities.
    #[error(transparent)]
    Capability(#[from] caps::CapabilityError),
    /// Two mounts at the same place.
    #[error("duplicate mount point: {0}")]
    DuplicateMount(String),
    /// Not a host name.
    #[error("invalid host name: {0:?}")]
    Hostname(String),
}

/// What the person asks of a process.
#[derive(Debug, Clone, Default)]
pub struct ProcessOptions {
    /// Command and arguments; empty means the image's.
    pub args: Vec<String>,
    /// Instead of the image's entry point; empty string means none.
    pub entrypoint: Option<String>,
    /// `NAME=value`, over the image's.
    pub env: Vec<String>,
    /// Instead of the image's working directory.
    pub cwd: Option<String>,
    /// With a terminal.
    pub tty: bool,
    /// Rows and columns that the terminal has from the start.
    pub size: Option<(u16, u16)>,
    /// Capabilities beyond docker's default; `ALL` means all.
    pub cap_add: Vec<String>,
    /// Capabilities taken away; `ALL` means all.
    pub cap_drop: Vec<String>,
    /// Resource limits of the process.
    pub rlimits: Vec<Rlimit>,
}

/// What the person asks of a container.
#[derive(Debug, Clone, Default)]
pub struct SpecOptions {
    /// Of its process.
    pub process: ProcessOptions,
    /// Host name.
    pub hostname: String,
    /// The root file system cannot be written.
    pub read_only: bool,
    /// Directories and files of the host.
    pub volumes: Vec<Volume>,
    /// File systems in memory.
    pub tmpfs: Vec<Tmpfs>,
    /// Limits.
    pub limits: Limits,
    /// Annotations.
    pub labels: BTreeMap<String, String>,
}

/// A specification and what belongs to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// `config.json`.
    pub spec: Value,
    /// Mount source -> path in the share tree.
    pub sources: BTreeMap<String, String>,
    /// Files for /etc.
    pub files: Vec<SeedFile>,
}

/// Makes the specification.
///
/// # Errors
/// As [`SpecError`].
pub fn build(
    image: &ImageConfiguration,
    options: &SpecOptions,
    user: &ResolvedUser,
) -> Result<ContainerSpec, SpecError> {
    if !etc::valid_hostname(&options.hostname) {
        return Err(SpecError::Hostname(options.hostname.clone()));
    }
    let empty = Config::default();
    let config = image.config().as_ref().unwrap_or(&empty);
    let args = command(config, &options.process)?;
    let process = process(config, &options.process, user, &options.hostname, args)?;
    let (extra, sources) = mounts::place(&options.volumes, &options.tmpfs)?;
    let mut mounts = defaults::mounts();
    let mounted = |place: &Value| extra.iter().any(|new| new["destination"] == *place);
    mounts.retain(|mount| !mounted(&mount["destination"]));
    let mut files = etc::files(&options.hostname);
    files.retain(|file| !mounted(&json!(file.path)));
    mounts.extend(extra);
    let spec = json!({
        "ociVersion": "1.2.0",
        "process": process,
        "root": { "path": "rootfs", "readonly": options.read_only },
        "hostname": options.hostname,
        "mounts": mounts,
        "annotations": options.labels,
        "linux": {
            "namespaces": defaults::namespaces(),
            "resources": resources(&options.limits),
            "maskedPaths": defaults::MASKED,
            "readonlyPaths": defaults::READ_ONLY,
        },
    });
    Ok(ContainerSpec { spec, sources, files })
}

/// `process` of the specification for a further process in the container whose
/// own is `base`: its environment, and its working directory unless another is
/// asked for.
///
/// # Errors
/// As [`SpecError`].
pub fn exec_process(
    base: &Value,
    options: &ProcessOptions,
    user: Option<&ResolvedUser>,
) -> Result<Value, SpecError> {
    if options.args.is_empty() {
        return Err(SpecError::NoCommand);
    }
    let mut process = base.clone();
    let inherited = base["env"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let mut env = Env::default();
    env.extend(inherited)?;
    if let Some(user) = user {
        process["user"] = user_value(user);
        env.set("HOME", &user.home);
    }
    if options.tty {
        env.set("TERM", "xterm");
    }
    env.extend(options.env.iter().map(String::as_str))?;
    process["env"] = json!(env.0);
    process["args"] = json!(options.args);
    process["terminal"] = json!(options.tty);
    set_size(&mut process, options.size);
    if let Some(cwd) = &options.cwd {
        process["cwd"] = json!(absolute(cwd)?);
    }
    Ok(process)
}

/// Entry point and command, as docker combines them.
fn command(config: &Config, options: &ProcessOptions) -> Result<Vec<String>, SpecError> {
    let image_cmd = config.cmd().clone().unwrap_or_default();
    let mut args = match &options.entrypoint {
        // Another entry point makes the image's command meaningless.
        Some(entrypoint) => {
            let entrypoint = Some(entrypoint.clone()).filter(|entry| !entry.is_empty());
            entrypoint.into_iter().collect::<Vec<_>>()
        }
        None => config.entrypoint().clone().unwrap_or_default(),
    };
    if !options.args.is_empty() {
        args.extend(options.args.iter().cloned());
    } else if options.entrypoint.is_none() {
        args.extend(image_cmd);
    }
    if args.first().is_none_or(String::is_empty) { Err(SpecError::NoCommand) } else { Ok(args) }
}

fn process(
    config: &Config,
    options: &ProcessOptions,
    user: &ResolvedUser,
    hostname: &str,
    args: Vec<String>,
) -> Result<Value, SpecError> {
    let mut env = Env::default();
    env.set("PATH", defaults::PATH);
    env.set("HOSTNAME", hostname);
    env.set("HOME", &user.home);
    if options.tty {
        env.set("TERM", "xterm");
    }
    // What an image says is taken as it is; nonsense in it is left out.
    for variable in config.env().iter().flatten() {
        let _ = env.extend([variable.as_str()]);
    }
    env.extend(options.env.iter().map(String::as_str))?;
    let image_cwd = config.working_dir().as_deref().filter(|dir| !dir.is_empty());
    let cwd = absolute(options.cwd.as_deref().or(image_cwd).unwrap_or("/"))?;
    let bounding = caps::select(&options.cap_add, &options.cap_drop)?;
    // Only root has them at once; others by what they execute, as in docker.
    let held: &[String] = if user.uid == 0 { &bounding } else { &[] };
    let mut process = json!({
        "terminal": options.tty,
        "user": user_value(user),
        "args": args,
        "env": env.0,
        "cwd": cwd,
        "capabilities": { "bounding": bounding, "permitted": held, "effective": held },
        "rlimits": options.rlimits.iter().map(Rlimit::to_value).collect::<Vec<_>>(),
        "noNewPrivileges": false,
    });
    set_size(&mut process, options.size);
    Ok(process)
}

fn set_size(process: &mut Value, size: Option<(u16, u16)>) {
    match (size, process.as_object_mut()) {
        (Some((height, width)), _) => {
            process["consoleSize"] = json!({ "height": height, "width": width });
        }
        // A further process does not inherit the first one's.
        (None, Some(fields)) => drop(fields.remove("consoleSize")),
        (None, None) => {}
    }
}

fn user_value(user: &ResolvedUser) -> Value {
    json!({ "uid": user.uid, "gid": user.gid, "additionalGids": user.additional_gids })
}

fn absolute(path: &str) -> Result<&str, SpecError> {
    let valid = path.starts_with('/') && !path.contains('\0');
    if valid { Ok(path) } else { Err(SpecError::WorkDir(path.into())) }
}

fn resources(limits: &Limits) -> Value {
    let mut resources = json!({ "devices": [{ "allow": false, "access": "rwm" }] });
    if let Some(Bytes(bytes)) = limits.memory {
        resources["memory"] = json!({ "limit": bytes });
    }
    if let Some(cpus) = limits.cpus {
        resources["cpu"] = json!({ "quota": Cpus::quota_us(cpus), "period": CPU_PERIOD_US });
    }
    if let Some(pids) = limits.pids {
        resources["pids"] = json!({ "limit": pids });
    }
    resources
}

/// An environment in order, each name once; the last value wins.
#[derive(Default)]
struct Env(Vec<String>);

impl Env {
    fn set(&mut self, name: &str, value: &str) {
        let same = |old: &String| old.split_once('=').is_some_and(|(old, _)| old == name);
        let entry = format!("{name}={value}");
        match self.0.iter_mut().find(|old| same(old)) {
            Some(old) => *old = entry,
            None => self.0.push(entry),
        }
    }

    fn extend<'a>(&mut self, entries: impl IntoIterator<Item = &'a str>) -> Result<(), SpecError> {
        for entry in entries {
            match entry.split_once('=') {
                Some((name, value)) if !name.is_empty() && !entry.contains('\0') => {
                    self.set(name, value);
                }
                _ => return Err(SpecError::Env(entry.into())),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
