//! `bulkhead stop`: the stop signal, and SIGKILL after a while.

use std::time::Duration;

use clap::Args;

/// Options of `stop`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Seconds until SIGKILL
    #[arg(short, long, default_value_t = 10, value_name = "SECONDS")]
    time: u64,
    /// Names or ids
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Stops containers.
pub fn run(arguments: &Arguments) -> anyhow::Result<u8> {
    let all = super::containers();
    super::for_each(&arguments.containers, async |reference| {
        Ok(all.find(reference)?.stop(Duration::from_secs(arguments.time)).await?)
    })
}
