//! `bulkhead load`: images from an archive or an OCI layout.

use std::path::PathBuf;

use clap::Args;
use images::{LoadOptions, Reference};

use crate::{image_store, output};

/// Options of `load`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The archive, or the directory of an OCI layout; stdin without it
    #[arg(short, long, value_name = "PATH")]
    input: Option<PathBuf>,
    /// Name for the image instead of those in the archive
    #[arg(long, value_name = "IMAGE")]
    name: Option<Reference>,
    /// Do not show progress
    #[arg(short, long)]
    quiet: bool,
    /// The same as --input
    #[arg(value_name = "PATH", conflicts_with = "input")]
    path: Option<PathBuf>,
}

/// Loads images and prints their names.
pub fn run(arguments: Arguments) -> anyhow::Result<u8> {
    let path = arguments.input.or(arguments.path).filter(|path| path.as_os_str() != "-");
    let path = path.unwrap_or_else(|| "/dev/stdin".into());
    let options = LoadOptions { name: arguments.name, ..LoadOptions::default() };
    let progress = image_store::progress(arguments.quiet);
    for loaded in image_store::open()?.load(&path, &options, &*progress)? {
        for name in &loaded.names {
            output::line(&format!("Loaded image: {}", name.familiar()))?;
        }
        if loaded.names.is_empty() {
            output::line(&format!("Loaded image ID: {}", loaded.image.id))?;
        }
    }
    Ok(0)
}
