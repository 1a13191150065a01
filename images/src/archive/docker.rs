//! `docker save`: manifest.json lists configuration and layers by file name.

use serde::Deserialize;

use super::source::Content;
use super::{ArchiveError, Loaded, Loader, oci_manifest};
use crate::digest::Digest;
use crate::reference::Reference;

/// One image of manifest.json.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Listed {
    pub(super) config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

impl Listed {
    /// The image's names; those that are none are left out.
    pub(super) fn names(&self) -> Vec<Reference> {
        let tags = self.repo_tags.iter().flatten();
        tags.filter_map(|tag| tag.parse().ok()).collect()
    }
}

impl Loader<'_> {
    /// Parses manifest.json.
    pub(super) fn listed(&self, list: Content) -> Result<Vec<Listed>, ArchiveError> {
        let text = self.source.text(list, "manifest.json")?;
        serde_json::from_slice(&text).map_err(|source| ArchiveError::Json {
            path: self.source.path().to_owned(),
            name: "manifest.json".to_owned(),
            source,
        })
    }

    pub(super) fn docker(&mut self, list: Content) -> Result<Vec<Loaded>, ArchiveError> {
        let listed = self.listed(list)?;
        listed.iter().map(|image| self.docker_image(image)).collect()
    }

    fn docker_image(&mut self, image: &Listed) -> Result<Loaded, ArchiveError> {
        let content = self.source.need(&image.config)?;
        let config = self.source.text(content, &image.config)?;
        let config_digest = self.put(&config)?;
        let mut blobs = Vec::new();
        for name in &image.layers {
            let content = self.source.need(name)?;
            blobs.push(self.copy(content, None, name)?);
        }
        let manifest = oci_manifest(self.store, &config_digest, config.len() as u64, &blobs)?;
        let manifest: Digest = self.put(&manifest)?;
        Ok(Loaded {
            config,
            config_digest,
            documents: vec![manifest.clone()],
            manifest,
            blobs,
            names: image.names(),
        })
    }
}
