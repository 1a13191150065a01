//! `bulkhead ps`: containers and what became of them.

use clap::Args;
use runtime::container::{Container, State};
use runtime::id::short;
use serde_json::json;

use crate::output::{age, line, printable, shorten, table};

/// Options of `ps`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Show stopped ones as well
    #[arg(short, long)]
    all: bool,
    /// Ids only
    #[arg(short, long)]
    quiet: bool,
    /// Whole ids and commands
    #[arg(long)]
    no_trunc: bool,
    /// Table, or one JSON object per line
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

/// Output of lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// For programs
    Json,
}

/// Lists containers.
pub fn run(arguments: &Arguments) -> anyhow::Result<u8> {
    let mut rows = Vec::new();
    let list = super::containers().list()?;
    let code = super::tell_of_missing(&list);
    for (container, state) in list.known {
        if !arguments.all && !state.needs_supervisor() {
            continue;
        }
        let row = Row::new(&container, &state, arguments.no_trunc);
        match (arguments.quiet, arguments.format) {
            (true, _) => line(&row.id)?,
            (false, Format::Json) => line(&row.json(&container, &state).to_string())?,
            (false, Format::Table) => rows.push(row.cells()),
        }
    }
    if !arguments.quiet && arguments.format == Format::Table {
        table(&["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "NAMES"], rows)?;
    }
    Ok(code)
}

struct Row {
    id: String,
    image: String,
    command: String,
    created: String,
    status: String,
    name: String,
}

impl Row {
    fn new(container: &Container, state: &State, whole: bool) -> Row {
        let config = &container.config;
        let command = printable(&config.command());
        Row {
            id: if whole { config.id.clone() } else { short(&config.id).into() },
            image: config.image.clone(),
            command: format!("\"{}\"", if whole { command } else { shorten(&command, 20) }),
            created: format!("{} ago", age(config.created.elapsed())),
            status: status(state),
            name: config.name.clone(),
        }
    }

    fn cells(self) -> Vec<String> {
        vec![self.id, self.image, self.command, self.created, self.status, self.name]
    }

    fn json(&self, container: &Container, state: &State) -> serde_json::Value {
        json!({
            "ID": self.id,
            "Image": self.image,
            "Command": self.command,
            "CreatedAt": container.config.created,
            "RunningFor": self.created,
            "State": state.name(),
            "Status": self.status,
            "Names": self.name,
            "Labels": container.config.labels,
        })
    }
}

/// The state in words, as docker's.
fn status(state: &State) -> String {
    match state {
        State::Created => "Created".into(),
        State::Ready { .. } => "Starting".into(),
        State::Running { started, .. } => format!("Up {}", age(started.elapsed())),
        State::Paused { started, .. } => format!("Up {} (Paused)", age(started.elapsed())),
        State::Stopped(stopped) => {
            let ago = age(stopped.finished.elapsed());
            let what = match (stopped.oom, &stopped.error) {
                (true, _) => ", out of memory",
                (false, Some(_)) => ", see inspect",
                (false, None) => "",
            };
            format!("Exited ({}{what}) {ago} ago", stopped.exit_code)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_tells_its_code() {
        let stopped = State::Created.stopped(137, true, None);
        assert_eq!(status(&stopped), "Exited (137, out of memory) Less than a second ago");
        assert_eq!(status(&State::Created), "Created");
    }
}
