//! Manifests and indexes: from JSON of strangers to what a pull or load needs.

use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest};
use serde::Deserialize;

use crate::digest::{Digest, DigestError};
use crate::platform;

/// overlayfs stacks at most 500 layers.
const MAX_LAYERS: usize = 500;
/// Manifests and configurations are kept in memory; registries refuse larger
/// ones too. In bytes.
pub(crate) const MAX_JSON: u64 = 8 << 20;

/// Metadata that does not describe an image we can run.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not the JSON that the image format asks for.
    #[error("the {what} is not valid")]
    Json {
        /// Which document.
        what: &'static str,
        /// Where it breaks.
        source: serde_json::Error,
    },
    /// A digest that is not sha256.
    #[error("the manifest has an unusable digest")]
    Digest(#[from] DigestError),
    /// Docker's format of before 2016.
    #[error(
        "the image has the old manifest format \"schema 1\"; push it again with a current tool"
    )]
    Schema1,
    /// Neither a manifest nor an index.
    #[error("it is not a container image (media type {0:?})")]
    NotAnImage(String),
    /// More layers than overlayfs can stack.
    #[error("the image has {0} layers; at most {MAX_LAYERS} are possible")]
    TooManyLayers(usize),
    /// Manifest and configuration disagree.
    #[error("the manifest has {manifest} layers and the configuration {config}")]
    LayerCount {
        /// Layers in the manifest.
        manifest: usize,
        /// Diff ids in the configuration.
        config: usize,
    },
    /// An index without an entry for this machine.
    #[error("no image for linux/{host}; there are: {offered}")]
    NoPlatform {
        /// This machine's architecture.
        host: String,
        /// What the index has.
        offered: String,
    },
    /// A single image for another machine.
    #[error("the image is for {platform}, this machine runs linux/{host}")]
    Foreign {
        /// The image's platform.
        platform: String,
        /// This machine's architecture.
        host: String,
    },
    /// A document beyond the size limit.
    #[error("the {what} has {size} bytes, which is too large")]
    TooLarge {
        /// Which document.
        what: &'static str,
        /// Its size in bytes.
        size: u64,
    },
}

/// A blob as a manifest names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) digest: Digest,
    /// In bytes.
    pub(crate) size: u64,
}

/// An image manifest.
#[derive(Debug, Clone)]
pub(crate) struct Manifest {
    pub(crate) config: Part,
    pub(crate) layers: Vec<Part>,
}

/// What a name may stand for.
#[derive(Debug)]
pub(crate) enum Document {
    Index(Vec<Descriptor>),
    Manifest(Manifest),
}

/// A layer's blob and the diff id that it must unpack to.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    pub(crate) blob: Part,
    pub(crate) diff_id: Digest,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    schema_version: Option<u32>,
    media_type: Option<String>,
    manifests: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
    config: Option<serde::de::IgnoredAny>,
}

fn json<'a, T: Deserialize<'a>>(what: &'static str, text: &'a [u8]) -> Result<T, ManifestError> {
    serde_json::from_slice(text).map_err(|source| ManifestError::Json { what, source })
}

/// Parses a manifest or an index, by its content: media types are optional.
pub(crate) fn parse(text: &[u8]) -> Result<Document, ManifestError> {
    let shape: Shape = json("manifest", text)?;
    if shape.schema_version == Some(1) {
        return Err(ManifestError::Schema1);
    }
    if shape.manifests.is_some() {
        let index: ImageIndex = json("index", text)?;
        return Ok(Document::Index(index.manifests().clone()));
    }
    if shape.layers.is_none() || shape.config.is_none() {
        let media_type = shape.media_type.unwrap_or_default();
        return Err(ManifestError::NotAnImage(media_type));
    }
    let manifest: ImageManifest = json("manifest", text)?;
    let layers = manifest.layers();
    if layers.len() > MAX_LAYERS {
        return Err(ManifestError::TooManyLayers(layers.len()));
    }
    Ok(Document::Manifest(Manifest {
        config: part(manifest.config())?,
        layers: layers.iter().map(part).collect::<Result<_, _>>()?,
    }))
}

/// Digest and size of a descriptor.
pub(crate) fn part(descriptor: &Descriptor) -> Result<Part, ManifestError> {
    Ok(Part { digest: descriptor.digest().to_string().parse()?, size: descriptor.size() })
}

/// The entry of an index for this machine.
pub(crate) fn choose(entries: &[Descriptor]) -> Result<&Descriptor, ManifestError> {
    platform::choose(entries).ok_or_else(|| ManifestError::NoPlatform {
        host: platform::host_arch().to_string(),
        offered: platform::offered(entries),
    })
}

/// Parses a configuration and pairs its diff ids with the blobs.
pub(crate) fn layers(config: &[u8], blobs: &[Part]) -> Result<Vec<Layer>, ManifestError> {
    let config: ImageConfiguration = json("image configuration", config)?;
    if let Some(platform) = platform::foreign(&config) {
        return Err(ManifestError::Foreign { platform, host: platform::host_arch().to_string() });
    }
    let diff_ids = config.rootfs().diff_ids();
    if diff_ids.len() != blobs.len() {
        return Err(ManifestError::LayerCount { manifest: blobs.len(), config: diff_ids.len() });
    }
    diff_ids
        .iter()
        .zip(blobs)
        .map(|(diff_id, blob)| Ok(Layer { blob: blob.clone(), diff_id: diff_id.parse()? }))
        .collect()
}

/// Refuses a document too large for memory.
pub(crate) fn check_size(what: &'static str, size: u64) -> Result<(), ManifestError> {
    match size > MAX_JSON {
        true => Err(ManifestError::TooLarge { what, size }),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(size: u64) -> serde_json::Value {
        serde_json::json!({
            "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "digest": Digest::of(b"x").to_string(),
            "size": size,
        })
    }

    #[test]
    fn documents_are_told_by_content() {
        let manifest = serde_json::json!({
            "schemaVersion": 2, "config": descriptor(2), "layers": [descriptor(3)],
        });
        let Document::Manifest(manifest) = parse(manifest.to_string().as_bytes()).unwrap() else {
            panic!("not a manifest");
        };
        assert_eq!(manifest.layers[0].size, 3);
        let index = serde_json::json!({"schemaVersion": 2, "manifests": [descriptor(1)]});
        let parsed = parse(index.to_string().as_bytes());
        assert!(matches!(parsed, Ok(Document::Index(list)) if list.len() == 1));
    }

    #[test]
    fn what_is_no_image_is_named() {
        assert!(matches!(parse(b"{"), Err(ManifestError::Json { .. })));
        let schema1 = br#"{"schemaVersion":1,"fsLayers":[]}"#;
        assert!(matches!(parse(schema1), Err(ManifestError::Schema1)));
        let other = br#"{"schemaVersion":2,"mediaType":"application/x"}"#;
        assert!(matches!(parse(other), Err(ManifestError::NotAnImage(t)) if t.ends_with("/x")));
        let many: Vec<_> = (0..501).map(descriptor).collect();
        let many = serde_json::json!({"schemaVersion":2,"config":descriptor(1),"layers":many});
        let many = parse(many.to_string().as_bytes());
        assert!(matches!(many, Err(ManifestError::TooManyLayers(501))));
    }

    #[test]
    fn configuration_and_manifest_must_agree() {
        let arch = platform::host_arch().to_string();
        let config = |arch: &str| {
            serde_json::json!({
                "os": "linux", "architecture": arch,
                "rootfs": {"type": "layers", "diff_ids": [Digest::of(b"d").to_string()]},
            })
            .to_string()
        };
        let blob = Part { digest: Digest::of(b"b"), size: 1 };
        let config_here = config(&arch);
        assert_eq!(layers(config_here.as_bytes(), std::slice::from_ref(&blob)).unwrap().len(), 1);
        assert!(matches!(
            layers(config_here.as_bytes(), &[]),
            Err(ManifestError::LayerCount { manifest: 0, config: 1 })
        ));
        assert!(matches!(
            layers(config("s390x").as_bytes(), &[blob]),
            Err(ManifestError::Foreign { .. })
        ));
    }
}
