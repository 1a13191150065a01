//! `bulkhead rm`: containers and all their files.

use clap::Args;
use runtime::container::ContainerError;

use crate::errors::WithCode;

/// Options of `rm`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Also running and damaged ones; one that is not there does not fail the command
    #[arg(short, long)]
    force: bool,
    /// Names or ids
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Removes containers.
pub fn run(arguments: &Arguments) -> anyhow::Result<u8> {
    let all = super::containers();
    super::for_each(&arguments.containers, async |reference| {
        all.remove(reference, arguments.force).await.map_err(|error| match error {
            // As docker's: it says so, and has what was wanted.
            ContainerError::NotFound(_) if arguments.force => WithCode::wrap(0, error),
            error => error.into(),
        })
    })
}
