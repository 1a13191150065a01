//! `bulkhead import`: an image of one layer from a root file system.

use std::path::PathBuf;

use clap::Args;
use images::{LoadOptions, Reference};

use crate::{image_store, output};

/// Options of `import`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Do not show progress
    #[arg(short, long)]
    quiet: bool,
    /// The tar archive, maybe compressed; - for stdin
    path: PathBuf,
    /// Name of the image
    image: Reference,
}

/// Imports the archive and prints the image's id.
pub fn run(arguments: &Arguments) -> anyhow::Result<u8> {
    let stdin = arguments.path.as_os_str() == "-";
    let path = if stdin { "/dev/stdin".into() } else { arguments.path.clone() };
    let progress = image_store::progress(arguments.quiet);
    let image = image_store::open()?.import_rootfs(
        &path,
        &arguments.image,
        None,
        &LoadOptions::default(),
        &*progress,
    )?;
    output::line(&image.id.to_string())?;
    Ok(0)
}
