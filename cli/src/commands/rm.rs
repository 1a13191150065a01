//! `bulkhead rm`: containers and all their files.

use clap::Args;

/// Options of `rm`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Also running and damaged ones, and no error for one that is not there
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
        Ok(all.remove(reference, arguments.force).await?)
    })
}
