//! `bulkhead network ls`

use clap::Args;
use serde_json::json;

use crate::commands::ps::Format;
use crate::output::{line, table};

/// Options of `network ls`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Names only
    #[arg(short, long)]
    quiet: bool,
    /// Table, or one JSON object per line
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

/// Lists networks. The default one is there once a container has used it.
pub fn run(arguments: &Arguments) -> anyhow::Result<u8> {
    let mut rows = Vec::new();
    for known in super::networks().all()? {
        let subnets: Vec<String> = known.subnets().iter().map(ToString::to_string).collect();
        let (name, driver) = (known.list.name.clone(), known.driver().to_owned());
        match (arguments.quiet, arguments.format) {
            (true, _) => line(&name)?,
            (false, Format::Json) => {
                let internal = known.internal();
                let row = json!({ "Name": name, "Driver": driver, "Subnets": subnets,
                    "Internal": internal, "File": known.path });
                line(&row.to_string())?;
            }
            (false, Format::Table) => {
                let internal = if known.internal() { "yes" } else { "" };
                let file = if known.ours { "" } else { &known.path.to_string_lossy() };
                rows.push(vec![name, driver, subnets.join(", "), internal.into(), file.into()]);
            }
        }
    }
    if !arguments.quiet && arguments.format == Format::Table {
        table(&["NAME", "DRIVER", "SUBNETS", "INTERNAL", "FILE"], rows)?;
    }
    Ok(0)
}
