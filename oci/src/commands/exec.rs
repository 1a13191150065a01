//! `exec`.

use std::path::PathBuf;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use runtime::oci::bundle;
use runtime::oci::exec::{ExecOptions, detached, foreground};
use runtime::oci::preserved::Preserved;
use runtime::oci::store::Container;
use runtime::oci::verbs;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::args::Global;

/// Options of `exec`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// File with a `process` object of the runtime specification
    #[arg(short, long, value_name = "FILE")]
    process: Option<PathBuf>,
    /// With a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Do not wait for the process
    #[arg(short, long)]
    detach: bool,
    /// File for the pid of the process that stands for it on the host
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Socket that gets the terminal
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// User and group id (UID[:GID])
    #[arg(short, long, value_name = "UID[:GID]")]
    user: Option<String>,
    /// Further group ids
    #[arg(short = 'g', long, value_name = "GID")]
    additional_gids: Vec<u32>,
    /// Working directory
    #[arg(long, value_name = "PATH")]
    cwd: Option<String>,
    /// Set an environment variable
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Give the process a capability
    #[arg(short, long, value_name = "NAME")]
    cap: Vec<String>,
    /// Set no_new_privs
    #[arg(long)]
    no_new_privs: bool,
    /// AppArmor profile
    #[arg(long, value_name = "PROFILE")]
    apparmor: Option<String>,
    /// SELinux label
    #[arg(long, value_name = "LABEL")]
    process_label: Option<String>,
    /// Pass on this many descriptors, from 3
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub preserve_fds: u32,
    /// A cgroup below the container's
    #[arg(long, value_name = "PATH")]
    cgroup: Vec<String>,
    /// Also in a paused container
    #[arg(long)]
    ignore_paused: bool,
    /// Id of the container
    pub id: String,
    /// The command and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// The process was not run.
#[derive(Debug)]
pub struct NotRun;

impl NotRun {
    /// runc's exit code for it.
    pub const CODE: u8 = 255;
}

impl std::fmt::Display for NotRun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("exec failed")
    }
}

/// Runs the process.
pub fn run(global: &Global, arguments: &Arguments, preserved: Preserved) -> anyhow::Result<u8> {
    attempt(global, arguments, preserved).context(NotRun)
}

fn attempt(global: &Global, arguments: &Arguments, preserved: Preserved) -> anyhow::Result<u8> {
    let cgroup = match arguments.cgroup.as_slice() {
        [] => None,
        [path] if !path.contains(':') => Some(path.clone()),
        // As runc on such a host. A controller's name before the path is cgroup v1's.
        _ => bail!("--cgroup takes one path below the container's cgroup: the guest has cgroup v2"),
    };
    let container = super::find(global, &arguments.id)?;
    let process = match &arguments.process {
        Some(path) => from_file(path)?,
        None => from_options(&container, arguments)?,
    };
    let options = ExecOptions {
        process,
        console_socket: arguments.console_socket.clone(),
        globals: global.words(),
        preserved,
        cgroup,
    };
    let write_pid = |pid| match &arguments.pid_file {
        Some(path) => verbs::write_pid_file(path, pid),
        None => Ok(()),
    };
    if arguments.detach {
        write_pid(detached(&container, &options)?)?;
        return Ok(0);
    }
    write_pid(std::process::id() as i32)?;
    let event_loop = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let fate = event_loop.block_on(foreground(&container, options));
    event_loop.shutdown_background();
    Ok(super::code_of_fate(fate?))
}

fn from_file(path: &PathBuf) -> anyhow::Result<Value> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let wrong = || format!("{} is no process object", path.display());
    let mut raw: Value = serde_json::from_slice(&text).with_context(wrong)?;
    bundle::spell(&mut raw);
    let process = oci_spec::runtime::Process::deserialize(&raw).with_context(wrong)?;
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        bail!("{}: process.args is empty", path.display());
    }
    Ok(raw)
}

/// The container's own process with what the options change.
fn from_options(container: &Container, arguments: &Arguments) -> anyhow::Result<Value> {
    if arguments.command.is_empty() {
        bail!("process args cannot be empty: name a command after the id, or use --process");
    }
    let mut process = container.record.plan.spec["process"].clone();
    process["args"] = json!(arguments.command);
    process["terminal"] = json!(arguments.tty);
    if let Some(object) = process.as_object_mut() {
        // That of the container's own terminal.
        object.remove("consoleSize");
    }
    if let Some(cwd) = &arguments.cwd {
        process["cwd"] = json!(cwd);
    }
    if let Some(user) = &arguments.user {
        let (uid, gid) = user.split_once(':').unwrap_or((user, "0"));
        let number = |text: &str| {
            text.parse::<u32>().map_err(|_| anyhow!("--user {user}: {text:?} is no number"))
        };
        process["user"]["uid"] = json!(number(uid)?);
        if user.contains(':') {
            process["user"]["gid"] = json!(number(gid)?);
        }
    }
    extend(
        &mut process["user"]["additionalGids"],
        arguments.additional_gids.iter().map(|g| json!(g)),
    );
    extend(&mut process["env"], arguments.env.iter().map(|entry| json!(entry)));
    for name in &arguments.cap {
        for set in ["bounding", "effective", "permitted", "ambient"] {
            extend(&mut process["capabilities"][set], std::iter::once(json!(name)));
        }
    }
    if arguments.no_new_privs {
        process["noNewPrivileges"] = json!(true);
    }
    for (key, value) in
        [("apparmorProfile", &arguments.apparmor), ("selinuxLabel", &arguments.process_label)]
    {
        if let Some(value) = value {
            process[key] = json!(value);
        }
    }
    Ok(process)
}

fn extend(list: &mut Value, more: impl Iterator<Item = Value>) {
    let mut more = more.peekable();
    if more.peek().is_none() {
        return;
    }
    match list.as_array_mut() {
        Some(list) => list.extend(more),
        None => *list = Value::Array(more.collect()),
    }
}
