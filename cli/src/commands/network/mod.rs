//! `bulkhead network`: one verb per file.

mod create;
mod inspect;
mod ls;
mod rm;

use clap::Subcommand;
use runtime::dirs::Dirs;
use runtime::networks::Networks;

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List networks
    Ls(ls::Arguments),
    /// Make a network
    Create(create::Arguments),
    /// Remove networks
    Rm(rm::Arguments),
    /// Show everything about networks, as JSON
    Inspect(inspect::Arguments),
}

/// Runs the verb.
pub fn run(command: &Command) -> anyhow::Result<u8> {
    match command {
        Command::Ls(arguments) => ls::run(arguments),
        Command::Create(arguments) => create::run(arguments),
        Command::Rm(arguments) => rm::run(arguments),
        Command::Inspect(arguments) => inspect::run(arguments),
    }
}

fn networks() -> Networks {
    Networks::new(Dirs::from_env())
}

/// Names of the containers that are configured for a network.
fn users(network: &str) -> anyhow::Result<Vec<String>> {
    let all = super::containers().all()?;
    super::warn_of(&all.damaged);
    let of = |container: &runtime::container::Container| {
        container.config.network.as_ref().is_some_and(|options| options.network == network)
    };
    Ok(all.sound.into_iter().filter(of).map(|container| container.config.name).collect())
}
