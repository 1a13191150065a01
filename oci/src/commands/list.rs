//! `list`.

use clap::{Args, ValueEnum};
use runtime::oci::OciError;

use super::state::{self, Printed};
use crate::args::Global;

/// Options of `list`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// How it is printed
    #[arg(short, long, value_enum, default_value = "table")]
    format: Format,
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
}

/// How lists are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// One array
    Json,
}

/// Lists the containers.
pub fn run(global: &Global, arguments: &Arguments) -> anyhow::Result<u8> {
    let root = super::root(global);
    let ids = root.ids()?;
    if arguments.quiet {
        let lines: String = ids.iter().map(|id| format!("{id}\n")).collect();
        super::print(&lines)?;
        return Ok(0);
    }
    let mut states = Vec::new();
    for id in ids {
        let state = root.find(&id).map_err(anyhow::Error::from);
        match state.and_then(|container| state::of(&container)) {
            Ok(mut state) => {
                state.owner = owner(&root.path().join(&id));
                states.push(state);
            }
            // Deleted meanwhile.
            Err(error) if matches!(error.downcast_ref(), Some(OciError::NotFound(_))) => {}
            Err(error) => tracing::warn!("{}", runtime::container::chain(error.as_ref())),
        }
    }
    let text = match arguments.format {
        Format::Json => serde_json::to_string(&states)? + "\n",
        Format::Table => table(&states),
    };
    super::print(&text)?;
    Ok(0)
}

fn owner(path: &std::path::Path) -> String {
    use std::os::unix::fs::MetadataExt;
    let uid = std::fs::metadata(path).map_or(0, |metadata| metadata.uid());
    let user = nix::unistd::User::from_uid(uid.into()).ok().flatten();
    user.map_or_else(|| format!("#{uid}"), |user| user.name)
}

fn table(states: &[Printed]) -> String {
    let head = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
    let row = |state: &Printed| {
        [
            state.id.clone(),
            state.pid.to_string(),
            state.status.to_owned(),
            state.bundle.display().to_string(),
            state.created.clone(),
            state.owner.clone(),
        ]
    };
    columns(std::iter::once(head).chain(states.iter().map(row)).collect())
}

/// Rows with their columns aligned, as Go's tabwriter does it for runc.
pub fn columns<const N: usize>(rows: Vec<[String; N]>) -> String {
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count() + 3).max(12);
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (index, (cell, width)) in row.iter().zip(widths).enumerate() {
            let last = index + 1 == N;
            line += &if last { cell.clone() } else { format!("{cell:width$}") };
        }
        text += &line;
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows =
            vec![["ID".to_owned(), "PID".to_owned()], ["a-long-identifier".into(), "7".into()]];
        assert_eq!(columns(rows), "ID                  PID\na-long-identifier   7\n");
    }
}
