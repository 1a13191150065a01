//! `delete`.

use clap::Args;
use runtime::oci::verbs;

use crate::args::Global;

/// Options of `delete`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Kill it first if it lives, and be content if it is not there
    #[arg(short, long)]
    pub force: bool,
    /// Id of the container
    pub id: String,
}

/// Deletes the container.
pub fn run(global: &Global, arguments: &Arguments) -> anyhow::Result<u8> {
    verbs::delete(&super::root(global), &arguments.id, arguments.force)?;
    Ok(0)
}
