//! `bulkhead pull`: an image from a registry.

use clap::Args;

use crate::image_store;

/// Options of `pull`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Do not show progress
    #[arg(short, long)]
    quiet: bool,
    /// The image
    image: String,
}

/// Pulls an image and prints its digest.
pub fn run(arguments: &Arguments) -> anyhow::Result<u8> {
    super::block_on(async {
        let store = image_store::open()?;
        let image = image_store::pull(&store, &arguments.image, arguments.quiet).await?;
        crate::output::line(&image.id.to_string())?;
        Ok(0)
    })
}
