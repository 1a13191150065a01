//! One verb per file.

pub mod doctor;
pub mod exec;
pub mod images;
pub mod import;
pub mod inspect;
pub mod kill;
pub mod load;
pub mod logs;
pub mod metrics;
pub mod monitor;
pub mod network;
pub mod ps;
pub mod pull;
pub mod rm;
pub mod rmi;
pub mod run;
pub mod start;
pub mod stop;

use std::future::Future;

use anyhow::Context;
use runtime::container::list::States;
use runtime::container::{Containers, Damaged, chain};
use runtime::dirs::Dirs;
use runtime::rootless;

use crate::args::{Arguments, Command};
use crate::errors::like_docker;

/// Runs the verb; gives the exit code.
pub fn dispatch(arguments: Arguments) -> anyhow::Result<u8> {
    match (rootless::enter(), &arguments.command) {
        // It says itself what is missing.
        (Ok(()), _) | (Err(_), Command::Doctor(_)) => {}
        (Err(error), Command::Run(_) | Command::Exec(_)) => return Err(like_docker(error.into())),
        (Err(error), _) => return Err(error.into()),
    }
    match arguments.command {
        Command::Run(arguments) => run::run(*arguments).map_err(like_docker),
        Command::Exec(arguments) => exec::run(arguments).map_err(like_docker),
        Command::Ps(arguments) => ps::run(&arguments),
        Command::Logs(arguments) => logs::run(&arguments),
        Command::Start(arguments) => start::run(&arguments),
        Command::Stop(arguments) => stop::run(&arguments),
        Command::Kill(arguments) => kill::run(&arguments),
        Command::Rm(arguments) => rm::run(&arguments),
        Command::Inspect(arguments) => inspect::run(&arguments),
        Command::Metrics(arguments) => metrics::run(&arguments),
        Command::Network(command) => network::run(&command),
        Command::Pull(arguments) => pull::run(&arguments),
        Command::Images(arguments) => images::run(&arguments),
        Command::Rmi(arguments) => rmi::run(&arguments),
        Command::Load(arguments) => load::run(arguments),
        Command::Import(arguments) => import::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Monitor(arguments) => monitor::run(&arguments),
    }
}

/// The containers of this host.
pub fn containers() -> Containers {
    Containers::new(Dirs::from_env())
}

/// Tells of containers that are left out because they cannot be read.
pub fn warn_of(damaged: &[Damaged]) {
    for container in damaged {
        crate::errors::warn(&chain(container));
    }
}

/// The same, and of those whose state could not be found out, which is a failure: the exit
/// code of a verb that goes on without them.
pub fn tell_of_missing(list: &States) -> u8 {
    warn_of(&list.damaged);
    for container in &list.uncertain {
        crate::errors::say(&chain(container));
    }
    u8::from(!list.uncertain.is_empty())
}

/// Runs `future` to its end on this thread.
pub fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    let result = runtime.block_on(future);
    // A thread that waits for a stdin that never comes must not hold us up.
    runtime.shutdown_background();
    result
}

/// Does the same to several containers: one failure does not stop the others.
/// Prints the name of each success and the error of each failure.
pub fn for_each<F>(references: &[String], mut verb: F) -> anyhow::Result<u8>
where
    F: AsyncFnMut(&str) -> anyhow::Result<()>,
{
    block_on(async {
        let mut code = 0;
        for reference in references {
            match verb(reference).await {
                Ok(()) => crate::output::line(reference)?,
                Err(error) => {
                    crate::errors::say(&crate::errors::chain(&error));
                    code = code.max(crate::errors::code(&error));
                }
            }
        }
        Ok(code)
    })
}
