//! `ps`: for people the processes of the container, as the guest's kernel numbers
//! them; for programs the processes of ours that stand for them on the host.

use clap::Args;
use runtime::oci::verbs;

use super::list::{Format, columns};
use crate::args::Global;

/// Options of `ps`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// How it is printed
    #[arg(short, long, value_enum, default_value = "table")]
    format: Format,
    /// Id of the container
    id: String,
    /// Options of ps(1): taken for the sake of callers of runc
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

/// Lists them.
pub fn run(global: &Global, arguments: &Arguments) -> anyhow::Result<u8> {
    let container = super::find(global, &arguments.id)?;
    let list = verbs::processes(&container)?;
    let text = match arguments.format {
        Format::Json => {
            // Programs take these for pids of the host, and look them up there.
            serde_json::to_string(&verbs::monitors(&container)?)? + "\n"
        }
        Format::Table => {
            let head = ["UID", "PID", "PPID", "CMD"].map(str::to_owned);
            let row = |process: protocol::agent::Process| {
                let command = runtime::sandbox::ended::tame(&process.command);
                // A line and a column is the table's to begin.
                let command = command.replace(['\n', '\t'], " ");
                [
                    process.uid.to_string(),
                    process.pid.to_string(),
                    process.ppid.to_string(),
                    command,
                ]
            };
            columns(std::iter::once(head).chain(list.into_iter().map(row)).collect())
        }
    };
    super::print(&text)?;
    Ok(0)
}
