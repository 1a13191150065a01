//! OCI layouts written by hand.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// An image to be written.
#[derive(Debug, Default)]
pub struct Recipe {
    /// An OCI layout whose first image's layers come first.
    pub base: Option<PathBuf>,
    /// Uncompressed archives, bottom first.
    pub layers: Vec<Vec<u8>>,
    /// Above them, layers that are compressed already, each with its diff id.
    pub packed: Vec<(Vec<u8>, String)>,
    /// `config` of the image configuration; the base's if null.
    pub config: Value,
}

/// Digest of `content`, as images name it.
pub fn digest(content: &[u8]) -> String {
    let hash = Sha256::digest(content);
    format!("sha256:{}", hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

/// Path of a blob in a layout.
pub fn blob(layout: &Path, digest: &str) -> PathBuf {
    layout.join("blobs/sha256").join(digest.trim_start_matches("sha256:"))
}

fn read(path: &Path) -> Value {
    let text = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).expect("JSON")
}

/// The manifest of the first image of a layout.
pub fn manifest(layout: &Path) -> Value {
    let index = read(&layout.join("index.json"));
    read(&blob(layout, index["manifests"][0]["digest"].as_str().expect("a digest")))
}

impl Recipe {
    /// Writes the layout; layers with an odd index are compressed.
    pub fn write(&self, layout: &Path) {
        fs::create_dir_all(layout.join("blobs/sha256")).expect("a directory");
        fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("a file");
        let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
        let mut config = self.config.clone();
        if let Some(base) = &self.base {
            let manifest = manifest(base);
            let base_config = read(&blob(base, manifest["config"]["digest"].as_str().expect("it")));
            for layer in manifest["layers"].as_array().expect("layers") {
                let digest = layer["digest"].as_str().expect("a digest");
                // A copy: links that lead out of a layout are refused.
                fs::copy(blob(base, digest), blob(layout, digest)).expect("a blob");
                layers.push(layer.clone());
            }
            diff_ids.extend(base_config["rootfs"]["diff_ids"].as_array().expect("ids").clone());
            if config.is_null() {
                config = base_config["config"].clone();
            }
        }
        for (index, archive) in self.layers.iter().enumerate() {
            diff_ids.push(json!(digest(archive)));
            let media = "application/vnd.oci.image.layer.v1.tar";
            layers.push(if index % 2 == 1 {
                put(
                    layout,
                    &compress(archive, flate2::Compression::fast()),
                    &format!("{media}+gzip"),
                )
            } else {
                put(layout, archive, media)
            });
        }
        for (blob, diff_id) in &self.packed {
            diff_ids.push(json!(diff_id));
            layers.push(put(layout, blob, "application/vnd.oci.image.layer.v1.tar+gzip"));
        }
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = put_json(layout, &config, "application/vnd.oci.image.config.v1+json");
        let media = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media, "config": config, "layers": layers,
        });
        let manifest = put_json(layout, &manifest, media);
        let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
        fs::write(layout.join("index.json"), index.to_string()).expect("a file");
    }
}

fn put_json(layout: &Path, value: &Value, media: &str) -> Value {
    put(layout, value.to_string().as_bytes(), media)
}

/// Writes a blob and gives its descriptor.
fn put(layout: &Path, content: &[u8], media: &str) -> Value {
    let digest = digest(content);
    fs::write(blob(layout, &digest), content).expect("a blob");
    json!({ "mediaType": media, "digest": digest, "size": content.len() })
}

/// `content` by gzip.
pub fn compress(content: &[u8], level: flate2::Compression) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
    encoder.write_all(content).expect("memory takes everything");
    encoder.finish().expect("memory takes everything")
}
