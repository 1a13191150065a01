//! A bundle: a directory with `config.json` and, mostly, the root file system.

use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use serde::Deserialize;
use serde_json::Value;

/// Largest config.json that is read, in bytes.
const MAX_CONFIG: u64 = 16 << 20;

/// Why a bundle cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// Its config.json cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// config.json is larger than anybody's.
    #[error("{} is larger than {} MiB", .0.display(), MAX_CONFIG >> 20)]
    TooLarge(PathBuf),
    /// It is no specification.
    #[error("{} is no configuration of the OCI runtime specification", path.display())]
    Json {
        /// Which.
        path: PathBuf,
        /// Where, and why.
        source: serde_json::Error,
    },
    /// A field that is wrong, or that cannot be honoured.
    #[error("{field}: {reason}")]
    Field {
        /// As in config.json.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// An error that names `field`.
pub(super) fn field(field: impl Into<String>, reason: impl Into<String>) -> BundleError {
    BundleError::Field { field: field.into(), reason: reason.into() }
}

/// Writes flags of a `process` object as oci-spec 0.10 does, which spells two of
/// `scheduler.flags` otherwise than the specification.
pub fn spell(process: &mut Value) {
    let flags = process.pointer_mut("/scheduler/flags").and_then(Value::as_array_mut);
    for flag in flags.into_iter().flatten() {
        match flag.as_str() {
            Some("SCHED_FLAG_RESET_ON_FORK") => *flag = "SCHED_RESET_ON_FORK".into(),
            Some("SCHED_FLAG_DL_OVERRUN") => *flag = "SCHED_FLAG_D_L_OVERRUN".into(),
            _ => {}
        }
    }
}

/// A bundle whose config.json is a specification.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// Its directory, absolute.
    pub path: PathBuf,
    /// As it was read: what the guest gets is made from this, so that nothing is lost.
    pub raw: Value,
    /// The same by fields.
    pub spec: Spec,
}

impl Bundle {
    /// Reads `config.json` in `path`.
    ///
    /// # Errors
    /// As [`BundleError`].
    pub fn load(path: &Path) -> Result<Bundle, BundleError> {
        let path = std::path::absolute(path)
            .map_err(|source| BundleError::Read { path: path.into(), source })?;
        let config = path.join("config.json");
        let read = |source| BundleError::Read { path: config.clone(), source };
        let size = std::fs::metadata(&config).map_err(read)?.len();
        if size > MAX_CONFIG {
            return Err(BundleError::TooLarge(config));
        }
        let bytes = std::fs::read(&config).map_err(read)?;
        Bundle::parse(path, &config, &bytes)
    }

    fn parse(path: PathBuf, config: &Path, bytes: &[u8]) -> Result<Bundle, BundleError> {
        let json = |source| BundleError::Json { path: config.into(), source };
        let mut raw: Value = serde_json::from_slice(bytes).map_err(json)?;
        if let Some(process) = raw.get_mut("process") {
            spell(process);
        }
        let spec = Spec::deserialize(&raw).map_err(json)?;
        let version = spec.version();
        if !version.starts_with("1.") {
            let reason = format!("{version:?} is not supported: 1.0 to 1.2 are");
            return Err(field("ociVersion", reason));
        }
        Ok(Bundle { path, raw, spec })
    }

    /// The root file system.
    ///
    /// # Errors
    /// When the specification names none, or it is no directory.
    pub fn rootfs(&self) -> Result<PathBuf, BundleError> {
        let root = self.spec.root().as_ref().ok_or_else(|| field("root", "is missing"))?;
        let path = self.path.join(root.path());
        let resolved = std::fs::canonicalize(&path)
            .map_err(|error| field("root.path", format!("{}: {error}", path.display())))?;
        if !resolved.is_dir() {
            return Err(field("root.path", format!("{} is not a directory", path.display())));
        }
        Ok(resolved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_bundle_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let error = Bundle::load(dir.path()).unwrap_err();
        assert!(error.to_string().contains("config.json"), "{error}");
        let write = |text: &str| std::fs::write(dir.path().join("config.json"), text).unwrap();
        write("{");
        assert!(matches!(Bundle::load(dir.path()), Err(BundleError::Json { .. })));
        write(r#"{"ociVersion":"3.0.0"}"#);
        assert!(Bundle::load(dir.path()).unwrap_err().to_string().starts_with("ociVersion: "));
        write(r#"{"ociVersion":"1.0.2","root":{"path":"rootfs"}}"#);
        let bundle = Bundle::load(dir.path()).unwrap();
        assert!(bundle.rootfs().unwrap_err().to_string().starts_with("root.path: "));
        std::fs::create_dir(dir.path().join("rootfs")).unwrap();
        assert!(bundle.rootfs().unwrap().ends_with("rootfs"));
    }
}
