//! `pause` and `resume`.

use clap::Args;
use runtime::oci::verbs;

use crate::args::Global;

/// Options of both.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Id of the container
    id: String,
}

/// Freezes or thaws the container.
pub fn run(global: &Global, arguments: &Arguments, frozen: bool) -> anyhow::Result<u8> {
    verbs::freeze(&super::find(global, &arguments.id)?, frozen)?;
    Ok(0)
}
