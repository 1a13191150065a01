//! `bulkhead rm`: containers and all their files.

use clap::Args;
use runtime::container::ContainerError;

/// Options of `rm`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Also running ones, and no error for one that is not there
    #[arg(short, long)]
    force: bool,
    /// Names or ids
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Removes containers.
pub fn run(arguments: &Arguments) -> anyhow::Result<u8> {
    let all = super::containers();
    super::for_each(&arguments.containers, async |reference| match all.find(reference) {
        Err(ContainerError::NotFound(_)) if arguments.force => Ok(()),
        found => Ok(found?.remove(arguments.force).await?),
    })
}
