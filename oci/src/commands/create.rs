//! `create`.

use std::path::PathBuf;

use clap::Args;
use runtime::oci::create::{CreateOptions, create};
use runtime::oci::preserved::Preserved;
use runtime::oci::verbs;

use crate::args::Global;

/// Options of `create`.
#[derive(Debug, Args)]
#[group(id = "create-arguments")]
pub struct Arguments {
    /// The bundle
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// Socket that gets the terminal
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// File for the pid of the process that stands for the container
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Taken for the sake of callers of runc: the guest always pivots
    #[arg(long)]
    pub no_pivot: bool,
    /// Taken for the sake of callers of runc: the guest has no session keyring
    #[arg(long)]
    pub no_new_keyring: bool,
    /// Pass on this many descriptors, from 3
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub preserve_fds: u32,
    /// Id of the container
    pub id: String,
}

impl Arguments {
    /// For the library.
    pub fn options(&self, global: &Global, preserved: Preserved) -> CreateOptions {
        CreateOptions {
            bundle: self.bundle.clone(),
            console_socket: self.console_socket.clone(),
            console: None,
            globals: global.words(),
            preserved,
            systemd: global.systemd_cgroup,
        }
    }
}

/// Creates the container.
pub fn run(global: &Global, arguments: &Arguments, preserved: Preserved) -> anyhow::Result<u8> {
    let root = super::root(global);
    let pid = create(&root, &arguments.id, &arguments.options(global, preserved))?;
    if let Some(path) = &arguments.pid_file
        && let Err(error) = verbs::write_pid_file(path, pid)
    {
        let _ = verbs::delete(&root, &arguments.id, true);
        return Err(error.into());
    }
    Ok(0)
}
