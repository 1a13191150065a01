//! `bulkhead run`: create, start, attach; exit as the container does.
//!
//! In the foreground this process is the supervisor: if it is killed, the
//! container ends. With `-d` a background process is (see `monitor`).

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use images::Image;
use runtime::container::create::{CreateOptions, ImageSource};
use runtime::container::supervise::{self, Attachment};
use runtime::container::{Container, ContainerError, Writable, handover};
use runtime::limits::{Bytes, Cpus, Limits};
use runtime::networks::options::Networking;
use runtime::signals::SignalNumber;
use runtime::spec::mounts::{Tmpfs, Volume};
use runtime::spec::rlimits::Rlimit;
use runtime::spec::{ProcessOptions, SpecOptions};
use runtime::streams::forward::Caught;

use crate::image_store::{self, PullPolicy};
use crate::network_flags::NetworkFlags;
use crate::stdio::AttachFlags;

/// Options of `run`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// -i and -t
    #[command(flatten)]
    pub attach: AttachFlags,
    /// Run in the background and print the container's id
    #[arg(short, long)]
    pub detach: bool,
    /// Remove the container when it ends
    #[arg(long)]
    pub rm: bool,
    /// Name of the container; a random one otherwise
    #[arg(long)]
    name: Option<String>,
    /// Set an environment variable (NAME=value, or NAME to pass on ours)
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Read environment variables from a file
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Share a directory or file of the host
    #[arg(short, long, value_name = "HOST:CONTAINER[:ro]")]
    volume: Vec<Volume>,
    /// Mount a file system in memory
    #[arg(long, value_name = "PATH[:OPTIONS]")]
    tmpfs: Vec<Tmpfs>,
    /// Working directory in the container
    #[arg(short, long, value_name = "PATH")]
    workdir: Option<String>,
    /// User and group (name|uid[:group|gid])
    #[arg(short, long)]
    user: Option<String>,
    /// Run this instead of the image's entry point
    #[arg(long, value_name = "COMMAND")]
    entrypoint: Option<String>,
    /// Host name of the container
    #[arg(long)]
    hostname: Option<String>,
    /// Processor time, in CPUs; also decides the number of vCPUs
    #[arg(long, value_name = "NUMBER")]
    cpus: Option<Cpus>,
    /// Memory of the container, such as 256m
    #[arg(short, long, value_name = "BYTES")]
    memory: Option<Bytes>,
    /// Most processes and threads (-1 for no limit)
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pids_limit: Option<i64>,
    /// Forbid writes to the root file system
    #[arg(long)]
    read_only: bool,
    /// Where changes to the root file system go
    #[arg(long, value_enum, default_value = "host", value_name = "WHERE")]
    writable: WritableArgument,
    /// When to pull the image
    #[arg(long, value_enum, default_value = "missing", value_name = "WHEN")]
    pull: PullPolicy,
    /// Do not show the progress of a pull
    #[arg(short, long)]
    quiet: bool,
    /// Limit a resource of the process
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    ulimit: Vec<Rlimit>,
    /// Attach a label
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    label: Vec<String>,
    /// Give the process a further capability
    #[arg(long, value_name = "NAME")]
    cap_add: Vec<String>,
    /// Take a capability from the process
    #[arg(long, value_name = "NAME")]
    cap_drop: Vec<String>,
    /// Signal that `stop` sends instead of SIGTERM
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<SignalNumber>,
    /// --network and what belongs to it
    #[command(flatten)]
    network: NetworkFlags,
    /// The image
    pub image: String,
    /// The command and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// [`Writable`] on the command line.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum WritableArgument {
    /// A directory of the host
    Host,
    /// The machine's memory: faster, and gone when the container ends
    Memory,
}

/// Runs a container.
pub fn run(arguments: Arguments) -> anyhow::Result<u8> {
    if !arguments.detach {
        arguments.attach.check()?;
    }
    // Before anything is pulled.
    let network = arguments.network.options()?;
    super::block_on(async {
        let store = image_store::open()?;
        let image = image_store::obtain(&store, &arguments.image, arguments.pull).await?;
        let container = create(&arguments, network, &image)?;
        if arguments.detach {
            detached(&container)
        } else {
            foreground(&container, arguments.attach, arguments.rm).await
        }
    })
}

fn create(
    arguments: &Arguments,
    network: Option<Networking>,
    image: &Image,
) -> anyhow::Result<Container> {
    let image_signal =
        image.config.config().as_ref().and_then(|config| config.stop_signal().clone());
    // Nonsense in an image is no reason not to run it.
    let image_signal = image_signal.and_then(|text| text.parse().ok());
    let options = CreateOptions {
        name: arguments.name.clone(),
        user: arguments.user.clone(),
        spec: spec_options(arguments)?,
        network,
        writable: match arguments.writable {
            WritableArgument::Host => Writable::Host,
            WritableArgument::Memory => Writable::Memory,
        },
        stdin: arguments.attach.interactive,
        auto_remove: arguments.rm,
        stop_signal: arguments.stop_signal.or(image_signal).map(|signal: SignalNumber| signal.0),
    };
    let source = ImageSource {
        name: arguments.image.clone(),
        id: image.id.to_string(),
        config: &image.config,
        layers: image.layers.clone(),
    };
    Ok(super::containers().create(&source, options)?)
}

fn spec_options(arguments: &Arguments) -> anyhow::Result<SpecOptions> {
    let here = std::env::current_dir().context("cannot tell the working directory")?;
    let volumes = arguments.volume.iter().map(|volume| Volume {
        host: here.join(&volume.host).components().collect(),
        ..volume.clone()
    });
    Ok(SpecOptions {
        process: ProcessOptions {
            args: arguments.command.clone(),
            entrypoint: arguments.entrypoint.clone(),
            env: environment(&arguments.env_file, &arguments.env)?,
            cwd: arguments.workdir.clone(),
            tty: arguments.attach.tty,
            size: arguments.attach.size(),
            cap_add: arguments.cap_add.clone(),
            cap_drop: arguments.cap_drop.clone(),
            rlimits: arguments.ulimit.clone(),
        },
        hostname: arguments.hostname.clone().unwrap_or_default(),
        read_only: arguments.read_only,
        volumes: volumes.collect(),
        tmpfs: arguments.tmpfs.clone(),
        limits: Limits {
            memory: arguments.memory,
            cpus: arguments.cpus,
            pids: arguments.pids_limit.filter(|&limit| limit > 0),
        },
        labels: labels(&arguments.label),
    })
}

/// Variables of files, then those of options; a bare name passes ours on.
pub fn environment(files: &[PathBuf], options: &[String]) -> anyhow::Result<Vec<String>> {
    let mut all = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("cannot read the environment file {}", file.display()))?;
        let lines = text.lines().map(str::trim_start);
        let wanted = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        all.extend(wanted.filter_map(with_ours));
    }
    all.extend(options.iter().filter_map(|option| with_ours(option)));
    Ok(all)
}

fn with_ours(entry: &str) -> Option<String> {
    if entry.contains('=') {
        return Some(entry.into());
    }
    std::env::var(entry).ok().map(|value| format!("{entry}={value}"))
}

fn labels(options: &[String]) -> BTreeMap<String, String> {
    let split = |label: &String| {
        let (key, value) = label.split_once('=').unwrap_or((label, ""));
        (key.to_owned(), value.to_owned())
    };
    options.iter().map(split).collect()
}

/// Hands the container to a background process.
fn detached(container: &Container) -> anyhow::Result<u8> {
    start_in_background(container)?;
    crate::output::line(container.id())?;
    Ok(0)
}

/// Starts the container's monitor and waits until the process runs.
pub fn start_in_background(container: &Container) -> Result<(), ContainerError> {
    let log = container.lib_dir().join("monitor.log");
    // The log of one that removes itself is gone with it.
    handover::spawn(&["monitor", container.id()], &log)
}

async fn foreground(container: &Container, flags: AttachFlags, rm: bool) -> anyhow::Result<u8> {
    let attachment = attachment(container, flags, rm)?;
    let outcome = supervise::run(container, attachment, || {}).await?;
    if let Some(note) = outcome.cut_note() {
        crate::errors::warn(&note);
    }
    if let Some(error) = outcome.error {
        crate::errors::say(&error);
    }
    Ok(outcome.exit_code)
}

fn attachment(container: &Container, flags: AttachFlags, rm: bool) -> anyhow::Result<Attachment> {
    let (mut stdio, terminal) = flags.foreground()?;
    // Nobody can read the log of a container that removes itself.
    if !rm {
        stdio.stdout.log = Some(container.open_log("stdout")?);
        if !flags.tty {
            stdio.stderr.log = Some(container.open_log("stderr")?);
        }
    }
    let signals = Caught::begin().context("cannot catch signals")?;
    Ok(Attachment { stdio, terminal, signals: Some(signals) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_files_and_options() {
        let path = std::env::temp_dir().join(format!("bulkhead-env-{}", std::process::id()));
        std::fs::write(&path, "# comment\n\nA=1\n  B=two words\nNO_SUCH_VARIABLE_XYZ\n").unwrap();
        let env = environment(std::slice::from_ref(&path), &["A=2".into(), "PATH".into()]).unwrap();
        std::fs::remove_file(path).unwrap();
        assert_eq!(env[..3], ["A=1", "B=two words", "A=2"]);
        assert!(env[3].starts_with("PATH=") && env.len() == 4);
        let error = environment(&["/no/such/file".into()], &[]).unwrap_err();
        assert!(error.to_string().contains("/no/such/file"));
    }

    #[test]
    fn labels_may_lack_a_value() {
        let labels = labels(&["a=b=c".into(), "d".into()]);
        assert_eq!((labels["a"].as_str(), labels["d"].as_str()), ("b=c", ""));
    }
}
