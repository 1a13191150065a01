//! `bulkhead network inspect`

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};

use crate::{errors, output};

/// Options of `network inspect`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Names
    #[arg(required = true)]
    networks: Vec<String>,
}

/// Prints a JSON array with an object for each.
pub fn run(arguments: &Arguments) -> anyhow::Result<u8> {
    let all = super::networks().all()?;
    let mut found = Vec::new();
    let mut code = 0;
    for name in &arguments.networks {
        let Some(known) = all.iter().find(|known| known.list.name == *name) else {
            errors::say(&format!("no such network: {name}"));
            code = 1;
            continue;
        };
        let list = serde_json::to_value(&known.list).context("cannot write JSON")?;
        found.push(json!({
            "Name": name,
            "Driver": known.driver(),
            "Bridge": known.bridge(),
            "Subnets": known.subnets(),
            "Internal": known.internal(),
            "Containers": super::users(name)?,
            "File": known.path,
            "List": list,
        }));
    }
    output::json(&Value::Array(found))?;
    Ok(code)
}
