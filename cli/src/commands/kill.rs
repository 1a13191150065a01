//! `bulkhead kill`: a signal for the container's process.

use clap::Args;
use runtime::signals::SignalNumber;

/// Options of `kill`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Name or number
    #[arg(short, long, default_value = "KILL")]
    signal: SignalNumber,
    /// Names or ids
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Sends a signal to containers.
pub fn run(arguments: &Arguments) -> anyhow::Result<u8> {
    let all = super::containers();
    super::for_each(&arguments.containers, async |reference| {
        Ok(all.find(reference)?.kill(arguments.signal).await?)
    })
}
