//! Writes an OCI image layout: layers from directories in overlayfs's form,
//! a configuration, a manifest and an index. Reproducible.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::sh::{self, cmd};

/// The time of everything in the image (2025-01-01).
const TAR_TIME: &str = "@1735689600";
/// The same for JSON.
const JSON_TIME: &str = "2025-01-01T00:00:00Z";

/// A layer that is in the layout.
struct Layer {
    descriptor: Value,
    diff_id: String,
    why: String,
}

/// An image in the making.
pub struct Writer {
    root: PathBuf,
    layers: Vec<Layer>,
}

impl Writer {
    /// An empty layout at `root`, which is cleared.
    pub fn new(root: &Path) -> Result<Self> {
        if root.exists() {
            fs::remove_dir_all(root)?;
        }
        fs::create_dir_all(root.join("blobs/sha256"))?;
        Ok(Self { root: root.to_owned(), layers: Vec::new() })
    }

    /// Adds `directory` as the next layer, compressed with `program` ("" for
    /// none). overlayfs's marks in it are turned into those of OCI.
    pub fn layer(&mut self, directory: &Path, program: &str, why: &str) -> Result<()> {
        translate_marks(directory)?;
        let plain = self.root.join("layer.tar");
        let mut tar = cmd("tar", ["--create", "--format=posix", "--sort=name", "--numeric-owner"]);
        tar.args(["--xattrs", "--xattrs-include=user.*", "--xattrs-include=security.capability"]);
        tar.arg("--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime");
        tar.arg(format!("--mtime={TAR_TIME}")).arg("--clamp-mtime").arg("--file").arg(&plain);
        sh::output(tar.arg("--directory").arg(directory).arg("."))?;
        let diff_id = digest(&plain)?;

        let (file, suffix) = match program {
            "" => (plain.clone(), String::new()),
            _ => {
                let packed = self.root.join("layer.packed");
                let quiet = if program == "gzip" { "-n6c" } else { "-q6c" };
                let out = fs::File::create(&packed)?;
                let mut command = cmd(program, [quiet]);
                sh::run(command.arg(&plain).stdout(out))?;
                fs::remove_file(&plain)?;
                (packed, format!("+{program}"))
            }
        };
        let media = format!("application/vnd.oci.image.layer.v1.tar{suffix}");
        let descriptor = self.adopt(&file, &media)?;
        self.layers.push(Layer { descriptor, diff_id, why: why.to_owned() });
        Ok(())
    }

    /// Writes configuration, manifest and index.
    pub fn finish(self, reference: &str) -> Result<()> {
        let history: Vec<Value> = self
            .layers
            .iter()
            .map(|l| json!({ "created": JSON_TIME, "created_by": l.why }))
            .collect();
        let config = json!({
            "created": JSON_TIME,
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"],
                "Cmd": ["bash"],
                "WorkingDir": "/",
                "Labels": { "org.opencontainers.image.title": reference }
            },
            "rootfs": {
                "type": "layers",
                "diff_ids": self.layers.iter().map(|l| l.diff_id.as_str()).collect::<Vec<_>>()
            },
            "history": history
        });
        let config = self.blob(&config, "application/vnd.oci.image.config.v1+json")?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config,
            "layers": self.layers.iter().map(|l| &l.descriptor).collect::<Vec<_>>()
        });
        let mut manifest = self.blob(&manifest, "application/vnd.oci.image.manifest.v1+json")?;
        manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": reference });
        manifest["platform"] = json!({ "architecture": "amd64", "os": "linux" });
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [manifest]
        });
        fs::write(self.root.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        fs::write(self.root.join("index.json"), serde_json::to_vec_pretty(&index)?)?;
        Ok(())
    }

    fn blob(&self, value: &Value, media: &str) -> Result<Value> {
        let file = self.root.join("blob.json");
        fs::write(&file, serde_json::to_vec_pretty(value)?)?;
        self.adopt(&file, media)
    }

    /// Moves a file to its digest's name and returns its descriptor.
    fn adopt(&self, file: &Path, media: &str) -> Result<Value> {
        let digest = digest(file)?;
        let size = fs::metadata(file)?.len();
        let name = digest.trim_start_matches("sha256:");
        fs::rename(file, self.root.join("blobs/sha256").join(name))?;
        Ok(json!({ "mediaType": media, "digest": digest, "size": size }))
    }
}

fn digest(path: &Path) -> Result<String> {
    let mut hasher = Sha256::new();
    let mut file =
        fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    std::io::copy(&mut file, &mut hasher)?;
    Ok(format!("sha256:{}", hex::encode(hasher.finalize())))
}

/// Device 0:0 becomes `.wh.NAME`, an opaque directory holds `.wh..wh..opq`.
fn translate_marks(directory: &Path) -> Result<()> {
    let mut pending = vec![directory.to_owned()];
    while let Some(current) = pending.pop() {
        for entry in fs::read_dir(&current)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                pending.push(entry.path());
            } else if metadata.file_type().is_char_device() && metadata.rdev() == 0 {
                let mut name = std::ffi::OsString::from(".wh.");
                name.push(entry.file_name());
                fs::remove_file(entry.path())?;
                fs::write(current.join(name), b"")?;
            }
        }
    }
    let mut command =
        cmd("getfattr", ["-R", "-h", "-P", "--absolute-names", "-m", "^trusted.overlay.opaque$"]);
    for path in opaque(&sh::output(command.arg(directory))?) {
        fs::write(path.join(".wh..wh..opq"), b"")?;
    }
    Ok(())
}

/// The files that getfattr(1) names; it writes odd bytes as `\ooo`.
fn opaque(listing: &str) -> Vec<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    let mut found = Vec::new();
    for line in listing.lines().filter_map(|line| line.strip_prefix("# file: ")) {
        let mut bytes = Vec::new();
        let mut rest = line.as_bytes();
        while let Some((&first, after)) = rest.split_first() {
            let octal = after.get(..3).and_then(|d| std::str::from_utf8(d).ok());
            match octal.and_then(|d| u8::from_str_radix(d, 8).ok()).filter(|_| first == b'\\') {
                Some(byte) => {
                    bytes.push(byte);
                    rest = &after[3..];
                }
                None => {
                    bytes.push(first);
                    rest = after;
                }
            }
        }
        found.push(PathBuf::from(std::ffi::OsString::from_vec(bytes)));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn getfattr_names_are_read() {
        let listing = "# file: /a/b\ntrusted.overlay.opaque\n\n# file: /with\\040blank\\134\nx\n";
        assert_eq!(opaque(listing), [PathBuf::from("/a/b"), PathBuf::from("/with blank\\")]);
    }
}
