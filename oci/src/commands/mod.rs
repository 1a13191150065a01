//! One verb per file.

pub mod create;
pub mod delete;
pub mod events;
pub mod exec;
pub mod features;
pub mod kill;
pub mod list;
pub mod pause;
pub mod ps;
pub mod run;
pub mod spec;
pub mod state;
pub mod update;

use std::io::Write;

use anyhow::{Context, bail};
use runtime::oci::create::Inherited;
use runtime::oci::monitor::{self, Fate};
use runtime::oci::preserved::Preserved;
use runtime::oci::store::Container;
use runtime::oci::{OciError, Root, exec as exec_lib, oom, verbs};

use crate::args::{Arguments, Command, Global};

/// What this process was started with, taken before it opens a file.
pub struct Given {
    /// A monitor.
    inherited: Result<Option<Inherited>, OciError>,
    /// A verb, for the process that it makes.
    preserved: Result<Preserved, OciError>,
}

impl Given {
    /// Takes it over.
    pub fn take(command: &Command) -> Given {
        let inherited = match command {
            Command::Monitor(m) => Inherited::take(m.console, false, m.descriptors).map(Some),
            Command::ExecMonitor(m) => Inherited::take(m.console, true, m.descriptors).map(Some),
            _ => Ok(None),
        };
        let preserved = match command {
            Command::Create(options) => Preserved::take(true, options.preserve_fds),
            Command::Run(options) => Preserved::take(true, options.create.preserve_fds),
            Command::Exec(options) => Preserved::take(false, options.preserve_fds),
            _ => Ok(Preserved::default()),
        };
        Given { inherited, preserved }
    }
}

/// Carries out the verb; the exit code.
pub fn dispatch(arguments: &Arguments, given: Given) -> anyhow::Result<u8> {
    let global = &arguments.global;
    let Given { inherited, preserved } = given;
    match &arguments.command {
        Command::Create(options) => create::run(global, options, preserved?),
        Command::Start(options) => {
            verbs::start(&find(global, &options.id)?)?;
            Ok(0)
        }
        Command::Run(options) => run::run(global, options, preserved?),
        Command::State(options) => state::run(global, options),
        Command::Kill(options) => kill::run(global, options),
        Command::Delete(options) => delete::run(global, options),
        Command::Exec(options) => exec::run(global, options, preserved?),
        Command::List(options) => list::run(global, options),
        Command::Ps(options) => ps::run(global, options),
        Command::Pause(options) => pause::run(global, options, true),
        Command::Resume(options) => pause::run(global, options, false),
        Command::Update(options) => update::run(global, options),
        Command::Events(options) => events::run(global, options),
        Command::Spec(options) => spec::run(options),
        Command::Features => features::run(),
        Command::Checkpoint(_) => bail!("checkpoint is not supported yet"),
        Command::Restore(_) => bail!("restore is not supported yet"),
        Command::Monitor(options) => {
            let inherited = inherited?.context("a monitor's descriptors")?;
            let fate = monitor::run(&root(global), &options.id, &verbs::uids_dir(), inherited)?;
            Ok(meet(fate))
        }
        Command::OomVictim => Ok(oom::victim().map(|()| 0)?),
        Command::ExecMonitor(options) => {
            let inherited = inherited?.context("a monitor's descriptors")?;
            Ok(meet(exec_lib::monitor(&root(global), &options.id, inherited)?))
        }
    }
}

/// Exit code of a verb that failed.
pub fn code_of(error: &anyhow::Error) -> u8 {
    error.downcast_ref::<exec::NotRun>().map_or(1, |_| exec::NotRun::CODE)
}

fn root(global: &Global) -> Root {
    // A monitor leaves our working directory.
    Root::new(std::path::absolute(&global.root).unwrap_or_else(|_| global.root.clone()))
}

fn find(global: &Global, id: &str) -> anyhow::Result<Container> {
    Ok(root(global).find(id)?)
}

/// The exit code of a process as shells count it.
fn code_of_fate(fate: Fate) -> u8 {
    match fate {
        Fate::Like(exit) => exit.status(),
        Fate::Lost => 137,
        Fate::Failed => 255,
    }
}

/// Ends this process as the container's process did.
fn meet(fate: Fate) -> u8 {
    u8::try_from(monitor::meet(fate) & 0xff).unwrap_or(255)
}

/// Prints text on stdout; a reader that is gone is an error of its own.
fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .context("cannot write to stdout")
}
