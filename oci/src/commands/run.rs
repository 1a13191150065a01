//! `run`: create, start, wait, delete.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use runtime::oci::create::create;
use runtime::oci::foreground::Foreground;
use runtime::oci::preserved::Preserved;
use runtime::oci::verbs;

use super::create as create_verb;
use crate::args::Global;

/// Options of `run`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Those of `create`
    #[command(flatten)]
    pub create: create_verb::Arguments,
    /// Do not wait for it
    #[arg(short, long)]
    detach: bool,
    /// Leave the container to `delete` when it ends
    #[arg(long)]
    keep: bool,
    /// Taken for the sake of callers of runc
    #[arg(long)]
    no_subreaper: bool,
}

/// Runs the container.
pub fn run(global: &Global, arguments: &Arguments, preserved: Preserved) -> anyhow::Result<u8> {
    let root = super::root(global);
    let id = &arguments.create.id;
    let mut options = arguments.create.options(global, preserved);
    let terminal = (!arguments.detach && options.console_socket.is_none())
        .then(|| Foreground::terminal(&options.bundle))
        .transpose()?
        .flatten();
    let master = match terminal {
        Some((socket, master)) => {
            options.console = Some(socket);
            Some(master)
        }
        None => None,
    };
    let pid = create(&root, id, &options)?;
    let started = begin(&root, arguments, pid);
    if let Err(error) = started {
        let _ = verbs::delete(&root, id, true);
        return Err(error);
    }
    if arguments.detach {
        return Ok(0);
    }
    let code = Foreground::new(pid, master)
        .and_then(Foreground::wait)
        .with_context(|| format!("cannot wait for container {id}"));
    if !arguments.keep {
        verbs::delete(&root, id, true)?;
    }
    code
}

fn begin(root: &runtime::oci::Root, arguments: &Arguments, pid: i32) -> anyhow::Result<()> {
    if let Some(path) = &arguments.create.pid_file {
        let path: &PathBuf = path;
        verbs::write_pid_file(path, pid)?;
    }
    verbs::start(&root.find(&arguments.create.id)?)?;
    Ok(())
}
