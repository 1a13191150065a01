//! OCI image layouts: index.json and blobs by digest.

use std::collections::HashMap;

use oci_spec::image::Descriptor;

use super::source::Content;
use super::{ArchiveError, Loaded, Loader};
use crate::digest::Digest;
use crate::manifest::{self, Document, Manifest, ManifestError};
use crate::platform;
use crate::reference::Reference;

/// Where tools put the image's name; containerd's is the full one.
const NAME_ANNOTATIONS: [&str; 2] =
    ["io.containerd.image.name", "org.opencontainers.image.ref.name"];
/// The list at the top of a layout.
const INDEX: &str = "index.json";
const MAX_NESTING: usize = 4;

impl Loader<'_> {
    pub(super) fn oci(&mut self, index: Content) -> Result<Vec<Loaded>, ArchiveError> {
        let text = self.source.text(index, INDEX)?;
        let unusable = |source| self.unusable(INDEX, source);
        let entries = match manifest::parse(&text).map_err(unusable)? {
            Document::Index(entries) => entries,
            Document::Manifest(_) => {
                let what = "a manifest in the place of an index".to_owned();
                return Err(unusable(ManifestError::NotAnImage(what)));
            }
        };
        // Several platforms side by side, or several images: those with a
        // platform have to be for this machine.
        let usable = entries.iter().filter(|entry| {
            entry.platform().is_none() || platform::choose(std::slice::from_ref(entry)).is_some()
        });
        let usable: Vec<&Descriptor> = usable.collect();
        if usable.is_empty() {
            return Err(unusable(ManifestError::NoPlatform {
                host: platform::host_arch().to_string(),
                offered: platform::offered(&entries),
            }));
        }
        let tags = self.tags()?;
        usable.into_iter().map(|entry| self.oci_image(entry, &tags)).collect()
    }

    /// Names by the digest of the configuration: archives of docker 25 and
    /// later have manifest.json as well.
    fn tags(&self) -> Result<HashMap<String, Vec<Reference>>, ArchiveError> {
        let Some(list) = self.source.get("manifest.json")? else {
            return Ok(HashMap::new());
        };
        let listed = self.listed(list)?.into_iter();
        Ok(listed
            .map(|image| {
                let hex = image.config.rsplit('/').next().unwrap_or_default();
                (hex.trim_end_matches(".json").to_owned(), image.names())
            })
            .collect())
    }

    fn oci_image(
        &mut self,
        entry: &Descriptor,
        tags: &HashMap<String, Vec<Reference>>,
    ) -> Result<Loaded, ArchiveError> {
        let (documents, manifest) = self.oci_manifest(entry)?;
        let config = self.document(&manifest.config.digest)?;
        let mut blobs = Vec::new();
        for part in &manifest.layers {
            let content = self.source.need(&blob_name(&part.digest))?;
            blobs.push(self.copy(content, Some(&part.digest), &part.digest.to_string())?);
        }
        let mut names: Vec<Reference> = name(entry).into_iter().collect();
        if names.is_empty() {
            let known = tags.get(manifest.config.digest.hex());
            names = known.cloned().unwrap_or_default();
        }
        Ok(Loaded {
            config,
            config_digest: manifest.config.digest,
            manifest: documents[documents.len() - 1].clone(),
            documents,
            blobs,
            names,
        })
    }

    /// The manifest for this machine and the digests of all documents on the
    /// way to it, itself last.
    fn oci_manifest(
        &mut self,
        entry: &Descriptor,
    ) -> Result<(Vec<Digest>, Manifest), ArchiveError> {
        let mut documents = Vec::new();
        let mut entry = entry.clone();
        // What names the entry.
        let mut list = INDEX.to_owned();
        for _ in 0..MAX_NESTING {
            let part = manifest::part(&entry).map_err(|source| self.unusable(&list, source))?;
            let text = self.document(&part.digest)?;
            list = blob_name(&part.digest);
            documents.push(part.digest);
            match manifest::parse(&text).map_err(|source| self.unusable(&list, source))? {
                Document::Manifest(manifest) => return Ok((documents, manifest)),
                Document::Index(entries) => {
                    let chosen = manifest::choose(&entries);
                    entry = chosen.map_err(|source| self.unusable(&list, source))?.clone();
                }
            }
        }
        Err(self.unusable(&list, ManifestError::NotAnImage("index of indexes".to_owned())))
    }

    /// Copies a small blob into the store and reads it.
    fn document(&mut self, digest: &Digest) -> Result<Vec<u8>, ArchiveError> {
        let name = blob_name(digest);
        let content = self.source.need(&name)?;
        manifest::check_size("document", content.size)
            .map_err(|source| self.unusable(&name, source))?;
        self.copy(content, Some(digest), &digest.to_string())?;
        Ok(self.store.read_blob(digest)?)
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The name in the annotations. A bare word is a tag without a repository
/// (skopeo, umoci write those) and names nothing by itself.
fn name(entry: &Descriptor) -> Option<Reference> {
    let annotations = entry.annotations().as_ref()?;
    NAME_ANNOTATIONS.iter().find_map(|key| {
        let name = annotations.get(*key)?;
        match name.contains(['/', ':']) {
            true => name.parse().ok(),
            false => None,
        }
    })
}
