//! `bulkhead logs`: what a container wrote.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufReader, ErrorKind, Write};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use runtime::container::Container;
use runtime::log_file::{Entry, LogReader};

/// How often the log is looked at for more.
const LOOK: Duration = Duration::from_millis(100);

/// Options of `logs`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Go on until the container ends
    #[arg(short, long)]
    follow: bool,
    /// Only the last lines ("all" for all)
    #[arg(short = 'n', long, default_value = "all", value_name = "NUMBER")]
    tail: Tail,
    /// With the time of each line
    #[arg(short, long)]
    timestamps: bool,
    /// Name or id
    container: String,
}

/// How many of the last lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tail(usize);

impl std::str::FromStr for Tail {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Tail, Self::Err> {
        if text == "all" { Ok(Tail(usize::MAX)) } else { text.parse().map(Tail) }
    }
}

/// Prints the log.
pub fn run(arguments: &Arguments) -> anyhow::Result<u8> {
    let container = super::containers().find(&arguments.container)?;
    match print(&container, arguments) {
        Err(error) if is_broken_pipe(&error) => Ok(0),
        Err(error) => Err(error),
        Ok(()) => Ok(0),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

fn print(container: &Container, arguments: &Arguments) -> anyhow::Result<()> {
    let path = container.log_path();
    let Some(file) = open(container, arguments.follow)? else { return Ok(()) };
    let mut reader = LogReader::new(BufReader::new(file));
    let mut next =
        || reader.next_entry().with_context(|| format!("cannot read {}", path.display()));
    let mut last = VecDeque::new();
    while let Some(entry) = next()? {
        if arguments.tail == Tail(usize::MAX) {
            write(&entry, arguments.timestamps)?;
            continue;
        }
        last.push_back(entry);
        while complete_lines(&last) > arguments.tail.0 {
            last.pop_front();
        }
    }
    for entry in &last {
        write(entry, arguments.timestamps)?;
    }
    let mut goes_on = arguments.follow;
    while goes_on {
        // Asked before the log is read to its end, so that nothing is missed.
        goes_on = container.has_supervisor();
        while let Some(entry) = next()? {
            write(&entry, arguments.timestamps)?;
        }
        if goes_on {
            std::thread::sleep(LOOK);
        }
    }
    Ok(())
}

/// Lines that `entries` make up; a cut line is one with its rest.
fn complete_lines(entries: &VecDeque<Entry>) -> usize {
    let ended = entries.iter().filter(|entry| entry.log.ends_with('\n')).count();
    let open = entries.back().is_some_and(|entry| !entry.log.ends_with('\n'));
    ended + usize::from(open)
}

/// The log; when following, waits until there is one.
fn open(container: &Container, follow: bool) -> anyhow::Result<Option<File>> {
    let path = container.log_path();
    loop {
        match File::open(&path) {
            Ok(file) => return Ok(Some(file)),
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot open {}", path.display()));
            }
            Err(_) if !follow || !container.has_supervisor() => return Ok(None),
            Err(_) => std::thread::sleep(LOOK),
        }
    }
}

fn write(entry: &Entry, timestamps: bool) -> std::io::Result<()> {
    let text = if timestamps { format!("{} {}", entry.time, entry.log) } else { entry.log.clone() };
    if entry.stream == "stderr" {
        std::io::stderr().write_all(text.as_bytes())
    } else {
        let mut stdout = std::io::stdout();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_line_counts_once() {
        let entry = |log: &str| Entry {
            log: log.into(),
            stream: "stdout".into(),
            time: runtime::time::Timestamp(0),
        };
        let entries = |logs: &[&str]| logs.iter().map(|log| entry(log)).collect::<VecDeque<_>>();
        assert_eq!(complete_lines(&entries(&["a\n", "b\n"])), 2);
        assert_eq!(complete_lines(&entries(&["a\n", "b", "c\n"])), 2);
        assert_eq!(complete_lines(&entries(&["a\n", "b"])), 2);
        assert_eq!("all".parse(), Ok(Tail(usize::MAX)));
        assert!("-1".parse::<Tail>().is_err());
    }
}
