//! The image store, as the verbs use it.

use std::collections::HashSet;
use std::sync::Arc;

use anyhow::Context;
use images::{Digest, Image, PullOptions, Reference, SharedProgress, Store, StoreError};
use runtime::container::Containers;
use runtime::dirs::Dirs;

use crate::progress::Bars;

/// When `run` pulls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum PullPolicy {
    /// If the image is not there
    Missing,
    /// In any case
    Always,
    /// Not at all
    Never,
}

/// Opens the store.
pub fn open() -> anyhow::Result<Store> {
    Ok(Store::open(Dirs::from_env().lib)?)
}

/// The image `name`, pulled if the policy wants it.
pub async fn obtain(store: &Store, name: &str, policy: PullPolicy) -> anyhow::Result<Image> {
    if policy == PullPolicy::Always {
        return pull(store, name, false).await;
    }
    match store.resolve(name) {
        Err(StoreError::NotFound { .. }) if policy == PullPolicy::Missing => {
            runtime::say(&format!("Unable to find image '{name}' locally"));
            pull(store, name, false).await
        }
        other => Ok(other?),
    }
}

/// Pulls an image with bars on stderr.
pub async fn pull(store: &Store, name: &str, quiet: bool) -> anyhow::Result<Image> {
    let reference: Reference = name.parse().with_context(|| format!("invalid image {name:?}"))?;
    Ok(store.pull(&reference, PullOptions::default(), progress(quiet)).await?)
}

/// Where progress is shown.
pub fn progress(quiet: bool) -> SharedProgress {
    if quiet { Arc::new(()) } else { Arc::new(Bars::new()) }
}

/// Ids of the images that containers run from. One that cannot be read keeps
/// no image: it can only be removed.
pub fn in_use(containers: &Containers) -> anyhow::Result<HashSet<Digest>> {
    let all = containers.all()?;
    crate::commands::warn_of(&all.damaged);
    Ok(all.sound.iter().filter_map(|container| container.config.image_id.parse().ok()).collect())
}

/// Digest without its algorithm, as it is shown.
pub fn short(digest: &Digest) -> String {
    let text = digest.to_string();
    let hex = text.split_once(':').map_or(text.as_str(), |(_, hex)| hex);
    runtime::id::short(hex).to_owned()
}
