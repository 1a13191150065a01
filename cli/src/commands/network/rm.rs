//! `bulkhead network rm`

use clap::Args;

/// Options of `network rm`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Names
    #[arg(required = true)]
    networks: Vec<String>,
}

/// Removes networks.
pub fn run(arguments: &Arguments) -> anyhow::Result<u8> {
    let networks = super::networks();
    crate::commands::for_each(&arguments.networks, async |name| {
        networks.remove(name, || super::users(name))
    })
}
