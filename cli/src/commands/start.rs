//! `bulkhead start`: stopped containers run again, with their writable layer.

use clap::Args;

/// Options of `start`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Names or ids
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Starts containers in the background.
pub fn run(arguments: &Arguments) -> anyhow::Result<u8> {
    let all = super::containers();
    super::for_each(&arguments.containers, async |reference| {
        let container = all.find(reference)?;
        // A running one is what was asked for.
        if container.state()?.is_some_and(|state| state.needs_supervisor()) {
            return Ok(());
        }
        Ok(super::run::start_in_background(&container)?)
    })
}
