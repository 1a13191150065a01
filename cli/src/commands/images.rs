//! `bulkhead images`: what is in the store.

use clap::Args;
use images::{Image, Reference};
use runtime::time::Timestamp;
use serde_json::json;

use super::ps::Format;
use crate::image_store::{self, short};
use crate::output::{age, line, size, table};

/// Options of `images`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Ids only
    #[arg(short, long)]
    quiet: bool,
    /// Whole ids
    #[arg(long)]
    no_trunc: bool,
    /// Table, or one JSON object per line
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

/// Lists images.
pub fn run(arguments: &Arguments) -> anyhow::Result<u8> {
    let mut rows = Vec::new();
    for image in image_store::open()?.list()? {
        let id = if arguments.no_trunc { image.id.to_string() } else { short(&image.id) };
        if arguments.quiet {
            line(&id)?;
            continue;
        }
        for (repository, tag) in names(&image) {
            let created = created(&image);
            match arguments.format {
                Format::Table => {
                    rows.push(vec![repository, tag, id.clone(), created, size(image.size)]);
                }
                Format::Json => line(
                    &json!({
                        "Repository": repository,
                        "Tag": tag,
                        "ID": id,
                        "CreatedAt": image.created,
                        "CreatedSince": created,
                        "Size": size(image.size),
                    })
                    .to_string(),
                )?,
            }
        }
    }
    if !arguments.quiet && arguments.format == Format::Table {
        table(&["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"], rows)?;
    }
    Ok(0)
}

/// (repository, tag) of all names of an image.
fn names(image: &Image) -> Vec<(String, String)> {
    let none = || "<none>".to_string();
    let split = |reference: &Reference| {
        let familiar = reference.familiar();
        let tag = reference.tag().map_or_else(none, String::from);
        let bare = familiar.split('@').next().unwrap_or(&familiar);
        let repository = bare.strip_suffix(&format!(":{tag}")).unwrap_or(bare);
        (repository.to_owned(), tag)
    };
    if image.references.is_empty() {
        return vec![(none(), none())];
    }
    image.references.iter().map(split).collect()
}

fn created(image: &Image) -> String {
    let time = image.created.as_deref().and_then(|text| text.parse::<Timestamp>().ok());
    match (time, &image.created) {
        (Some(time), _) => format!("{} ago", age(time.elapsed())),
        (None, Some(text)) => crate::output::printable(text),
        (None, None) => "N/A".into(),
    }
}
