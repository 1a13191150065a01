//! `bulkhead exec`: a further process in a running container.

use std::path::PathBuf;

use clap::Args;
use runtime::container::exec::ExecOptions;
use runtime::spec::ProcessOptions;
use runtime::streams::forward::Caught;

use crate::stdio::AttachFlags;

/// Options of `exec`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// -i and -t
    #[command(flatten)]
    attach: AttachFlags,
    /// Do not wait for the process
    #[arg(short, long)]
    detach: bool,
    /// Set an environment variable
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Read environment variables from a file
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// User and group (name|uid[:group|gid])
    #[arg(short, long)]
    user: Option<String>,
    /// Working directory in the container
    #[arg(short, long, value_name = "PATH")]
    workdir: Option<String>,
    /// Name or id of the container
    container: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Runs a process; gives its exit code.
pub fn run(arguments: Arguments) -> anyhow::Result<u8> {
    if !arguments.detach {
        arguments.attach.check()?;
    }
    super::block_on(async {
        let container = super::containers().find(&arguments.container)?;
        let process = ProcessOptions {
            args: arguments.command,
            env: super::run::environment(&arguments.env_file, &arguments.env)?,
            cwd: arguments.workdir,
            tty: arguments.attach.tty,
            size: arguments.attach.size(),
            ..ProcessOptions::default()
        };
        let mut options = ExecOptions {
            process,
            user: arguments.user,
            detach: arguments.detach,
            ..ExecOptions::default()
        };
        if !options.detach {
            (options.stdio, options.terminal) = arguments.attach.foreground()?;
            options.signals = Some(Caught::begin()?);
        }
        Ok(container.exec(options).await?)
    })
}
