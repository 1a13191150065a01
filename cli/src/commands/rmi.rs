//! `bulkhead rmi`: images out of the store.

use clap::Args;

use crate::{image_store, output};

/// Options of `rmi`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Also an image that containers run from, or that has several names
    #[arg(short, long)]
    force: bool,
    /// Names or ids
    #[arg(required = true)]
    images: Vec<String>,
}

/// Removes images.
pub fn run(arguments: &Arguments) -> anyhow::Result<u8> {
    let store = image_store::open()?;
    let in_use = image_store::in_use(&super::containers())?;
    let mut code = 0;
    for name in &arguments.images {
        match store.remove(name, arguments.force, &in_use) {
            Ok(report) => report.iter().try_for_each(|text| output::line(text))?,
            Err(error) => {
                crate::errors::say(&crate::errors::chain(&error.into()));
                code = 1;
            }
        }
    }
    Ok(code)
}
