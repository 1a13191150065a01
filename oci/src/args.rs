//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::commands::{
    create, delete, events, exec, kill, list, pause, ps, run, spec, state, update,
};

/// Runs OCI bundles, each in a virtual machine of its own.
#[derive(Debug, Parser)]
#[command(name = "bulkhead-runtime", version, max_term_width = 100, disable_version_flag = true)]
pub struct Arguments {
    /// Options of all verbs
    #[command(flatten)]
    pub global: Global,
    /// The verb
    #[command(subcommand)]
    pub command: Command,
}

/// Options before the verb.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Log more
    #[arg(long, global = true)]
    pub debug: bool,
    /// File for the log instead of stderr
    #[arg(long, value_name = "FILE", global = true)]
    pub log: Option<PathBuf>,
    /// Form of the log
    #[arg(long, value_enum, default_value = "text", global = true)]
    pub log_format: LogFormat,
    /// Directory for the state of containers
    #[arg(long, value_name = "DIR", default_value = "/run/bulkhead-runtime", global = true)]
    pub root: PathBuf,
    /// systemd makes the cgroup, as a scope; cgroupsPath is of the form slice:prefix:name
    #[arg(long, global = true)]
    pub systemd_cgroup: bool,
    /// Taken for the sake of callers of runc; the runtime needs root. Before the verb alone:
    /// `spec` has one of its own
    #[arg(long, value_name = "WORD", hide = true)]
    pub rootless: Option<String>,
    /// Taken for the sake of callers of runc
    #[arg(long, value_name = "FILE", hide = true, global = true)]
    pub criu: Option<String>,
    /// Print the version
    #[arg(short = 'v', long, action = clap::ArgAction::Version)]
    version: Option<bool>,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One object in each line, as engines read it
    Json,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a container from a bundle
    Create(create::Arguments),
    /// Execute the process of a created container
    Start(commands_id::Arguments),
    /// Create a container, start it, wait for it and delete it
    Run(run::Arguments),
    /// Print the state of a container
    State(state::Arguments),
    /// Send a signal to the process of a container
    Kill(kill::Arguments),
    /// Delete a container
    Delete(delete::Arguments),
    /// Execute a further process in a running container
    Exec(Box<exec::Arguments>),
    /// List the containers below --root
    List(list::Arguments),
    /// List the processes of a container
    Ps(ps::Arguments),
    /// Freeze all processes of a container
    Pause(pause::Arguments),
    /// Thaw them
    Resume(pause::Arguments),
    /// Change the limits of a container
    Update(update::Arguments),
    /// Print figures of a container
    Events(events::Arguments),
    /// Write a config.json to start from
    Spec(spec::Arguments),
    /// Print what this runtime can do
    Features,
    /// Not there yet
    Checkpoint(Anything),
    /// Not there yet
    Restore(Anything),
    /// The process that stands for a container
    #[command(hide = true)]
    Monitor(Monitor),
    /// The process that stands for a detached exec
    #[command(hide = true)]
    ExecMonitor(Monitor),
    /// A process to be killed
    #[command(hide = true, name = runtime::oci::oom::VICTIM)]
    OomVictim,
}

/// Options of a monitor.
#[derive(Debug, Args)]
#[group(id = "monitor-arguments")]
pub struct Monitor {
    /// It has a console socket
    #[arg(long)]
    pub console: bool,
    /// How many descriptors the process gets beside its stdio
    #[arg(long, default_value_t = 0)]
    pub descriptors: u16,
    /// Id of the container
    pub id: String,
}

/// Whatever somebody writes.
#[derive(Debug, Args)]
pub struct Anything {
    /// All of it
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

/// Verbs that want an id alone.
pub mod commands_id {
    use clap::Args;

    /// Options of such a verb.
    #[derive(Debug, Args)]
    pub struct Arguments {
        /// Id of the container
        pub id: String,
    }
}

impl Global {
    /// The same options for a process of ours.
    pub fn words(&self) -> Vec<String> {
        let root = std::path::absolute(&self.root).unwrap_or_else(|_| self.root.clone());
        let mut words = vec![format!("--root={}", root.display())];
        if let Some(log) = &self.log {
            let log = std::path::absolute(log).unwrap_or_else(|_| log.clone());
            words.push(format!("--log={}", log.display()));
        }
        if self.log_format == LogFormat::Json {
            words.push("--log-format=json".into());
        }
        if self.debug {
            words.push("--debug".into());
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }

    /// Options of all verbs and of one that have the same name are a panic at run time.
    #[test]
    fn each_verb_is_read() {
        for verb in [
            "spec",
            "spec --rootless",
            "features",
            "list -q",
            "create c1",
            "start c1",
            "run c1",
            "state c1",
            "kill c1",
            "delete c1",
            "exec c1 true",
            "ps c1",
            "pause c1",
            "resume c1",
            "update c1",
            "events c1",
            "checkpoint c1",
            "restore c1",
            "monitor c1",
        ] {
            for options in ["", "--rootless auto --criu x ", "--debug --root /x "] {
                let line = format!("r {options}{verb}");
                let parsed = Arguments::try_parse_from(line.split(' '));
                assert!(parsed.is_ok(), "{line}: {parsed:?}");
            }
        }
    }

    #[test]
    fn options_stand_before_and_after_the_id() {
        let parse = |line: &str| {
            Arguments::try_parse_from(line.split(' ')).unwrap_or_else(|e| panic!("{line}: {e}"))
        };
        for line in [
            "r --root /x delete --force c1",
            "r delete c1 --force --root /x",
            "r --root=/x --log /l --log-format json delete -f c1",
        ] {
            let arguments = parse(line);
            assert_eq!(arguments.global.root, PathBuf::from("/x"));
            let Command::Delete(delete) = arguments.command else { panic!("{line}") };
            assert!(delete.force && delete.id == "c1");
        }
        for line in ["r exec -t --user 5 c1 ls -l", "r exec c1 --user 5 -t ls -l"] {
            let Command::Exec(exec) = parse(line).command else { panic!("{line}") };
            assert_eq!((exec.id.as_str(), exec.tty), ("c1", true));
            assert_eq!(exec.command, ["ls", "-l"]);
        }
        let Command::Kill(kill) = parse("r kill c1 TERM --all").command else { panic!() };
        assert!(kill.all && kill.signal == "TERM");
        let Command::Kill(kill) = parse("r kill --all c1 9").command else { panic!() };
        assert_eq!(kill.signal, "9");
    }
}
