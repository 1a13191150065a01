//! The command line.

use clap::{Parser, Subcommand};

use crate::commands::{
    doctor, exec, images, import, inspect, kill, load, logs, metrics, monitor, network, ps, pull,
    rm, rmi, run, start, stop,
};

/// Runs each container in a virtual machine of its own.
#[derive(Debug, Parser)]
#[command(name = "bulkhead", version, max_term_width = 100)]
pub struct Arguments {
    /// The verb.
    #[command(subcommand)]
    pub command: Command,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a container from an image and run it
    Run(Box<run::Arguments>),
    /// Run a further command in a running container
    Exec(exec::Arguments),
    /// List containers
    Ps(ps::Arguments),
    /// Show the output of a container
    Logs(logs::Arguments),
    /// Start stopped containers again, in the background
    Start(start::Arguments),
    /// Stop running containers
    Stop(stop::Arguments),
    /// Send a signal to running containers
    Kill(kill::Arguments),
    /// Remove containers
    Rm(rm::Arguments),
    /// Show everything about containers or images, as JSON
    Inspect(inspect::Arguments),
    /// Print figures of all containers in Prometheus' text format
    Metrics(metrics::Arguments),
    /// Make, remove and show networks
    #[command(subcommand)]
    Network(network::Command),
    /// Download an image from a registry
    Pull(pull::Arguments),
    /// List images
    Images(images::Arguments),
    /// Remove images
    Rmi(rmi::Arguments),
    /// Load images from an archive (docker save, OCI layout)
    Load(load::Arguments),
    /// Make an image of a root file system in a tar archive
    Import(import::Arguments),
    /// Check whether this host can run containers, and say what to do if not
    Doctor(doctor::Arguments),
    /// The background process of a container
    #[command(hide = true)]
    Monitor(monitor::Arguments),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn options_after_the_image_belong_to_the_command() {
        let line = ["bulkhead", "run", "-it", "--rm", "-m", "64m", "img", "ls", "-l", "--rm"];
        let Command::Run(run) = Arguments::try_parse_from(line).unwrap().command else { panic!() };
        assert_eq!(run.image, "img");
        assert_eq!(run.command, ["ls", "-l", "--rm"]);
        assert!(run.attach.tty && run.attach.interactive && run.rm);
    }

    #[test]
    fn wrong_values_are_refused_before_anything_happens() {
        for bad in [
            &["-m", "lots"][..],
            &["--cpus", "0"],
            &["-v", "nowhere"],
            &["--pull", "maybe"],
            &["--ulimit", "x=1"],
            &["--network", "host"],
            &["-p", "80"],
            &["--dns", "name"],
            &["--add-host", "name"],
            &["-d", "--rm", "--writable", "tape"],
        ] {
            let line = [&["bulkhead", "run"], bad, &["img"]].concat();
            assert!(Arguments::try_parse_from(line).is_err(), "{bad:?}");
        }
    }
}
