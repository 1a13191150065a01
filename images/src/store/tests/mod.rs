//! Loads, names, sweeping and crashes, on stores in temporary directories.

mod crash;
mod images;

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::*;
use crate::archive::LoadOptions;
use crate::platform::host_arch;

/// A store and room for archives beside it.
pub(super) struct Bench {
    pub(super) dir: TempDir,
    pub(super) store: Store,
}

impl Bench {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store")).unwrap();
        Self { dir, store }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn load(&self, archive: &Path) -> Vec<Image> {
        let loaded = self.store.load(archive, &LoadOptions::default(), &()).unwrap();
        loaded.into_iter().map(|loaded| loaded.image).collect()
    }

    /// Writes a docker archive with one image.
    pub(super) fn docker(&self, name: &str, tags: &[&str], layers: &[Vec<u8>]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, docker_archive(tags, layers)).unwrap();
        path
    }

    /// Files in a part of the store.
    pub(super) fn count(&self, dir: &str) -> usize {
        fs::read_dir(self.store.root().join(dir)).unwrap().count()
    }

    /// There is nothing in the store, and nobody works on it.
    pub(super) fn assert_empty(&self) {
        for dir in ["blobs/sha256", "blobs/partial", "layers", "leases", "locks", "tmp"] {
            let left: Vec<_> = fs::read_dir(self.store.root().join(dir))
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .filter(|name| name != "tmp")
                .collect();
            assert!(left.is_empty(), "{dir}: {left:?}");
        }
        assert!(self.store.list().unwrap().is_empty());
    }
}

/// A layer with these files.
pub(super) fn layer(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = ::tar::Builder::new(Vec::new());
    for (name, data) in files {
        append(&mut tar, name, data);
    }
    tar.into_inner().unwrap()
}

pub(super) fn append(tar: &mut ::tar::Builder<Vec<u8>>, name: &str, data: &[u8]) {
    let mut header = ::tar::Header::new_gnu();
    header.set_size(data.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, data).unwrap();
}

pub(super) fn config(layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|tar| Digest::of(tar).to_string()).collect();
    serde_json::json!({
        "os": "linux",
        "architecture": host_arch().to_string(),
        "created": "2024-01-02T03:04:05Z",
        "config": {"Cmd": ["/bin/true"], "Env": ["A=b"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
    .to_string()
    .into_bytes()
}

pub(super) fn docker_archive(tags: &[&str], layers: &[Vec<u8>]) -> Vec<u8> {
    let mut tar = ::tar::Builder::new(Vec::new());
    let config = config(layers);
    let names: Vec<String> = (0..layers.len()).map(|n| format!("{n}/layer.tar")).collect();
    for (name, layer) in names.iter().zip(layers) {
        append(&mut tar, name, layer);
    }
    append(&mut tar, "config.json", &config);
    let list = serde_json::json!([{
        "Config": "config.json", "RepoTags": tags, "Layers": names,
    }]);
    append(&mut tar, "manifest.json", list.to_string().as_bytes());
    tar.into_inner().unwrap()
}

/// Writes an OCI layout into `dir`, layers compressed with gzip.
pub(super) fn oci_layout(dir: &Path, name: Option<&str>, layers: &[Vec<u8>]) {
    use std::io::Write;
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |data: &[u8], kind: &str| {
        let digest = Digest::of(data);
        fs::write(blobs.join(digest.hex()), data).unwrap();
        serde_json::json!({
            "mediaType": format!("application/vnd.oci.image.{kind}"),
            "digest": digest.to_string(),
            "size": data.len(),
        })
    };
    let packed: Vec<_> = layers
        .iter()
        .map(|layer| {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(layer).unwrap();
            put(&gzip.finish().unwrap(), "layer.v1.tar+gzip")
        })
        .collect();
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "config": put(&config(layers), "config.v1+json"),
        "layers": packed,
    });
    let mut entry = put(manifest.to_string().as_bytes(), "manifest.v1+json");
    if let Some(name) = name {
        entry["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": name});
    }
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [entry]});
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}
