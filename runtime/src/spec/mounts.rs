//! `-v` and `--tmpfs`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use protocol::machine::ShareKind;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::SpecError;
use crate::sandbox::{ShareConfig, ShareIds};

/// Why it is no volume.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VolumeError {
    /// The form is wrong.
    #[error("invalid volume specification: {0:?} (HOST-PATH:CONTAINER-PATH[:ro])")]
    Form(String),
    /// Not absolute, or the root.
    #[error("invalid mount path: {0:?} must be an absolute path other than /")]
    Destination(String),
    /// A name instead of a path.
    #[error("named volumes are not supported yet: write {0:?} as a path, such as ./{0}")]
    Named(String),
    /// An option that is unknown.
    #[error("invalid option {0:?}: ro, rw, z, Z and propagation are understood")]
    Option(String),
}

/// A directory or file of the host in the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Path on the host.
    pub host: PathBuf,
    /// Path in the container.
    pub guest: String,
    /// Cannot be written.
    pub read_only: bool,
}

impl FromStr for Volume {
    type Err = VolumeError;

    fn from_str(text: &str) -> Result<Volume, VolumeError> {
        let form = || VolumeError::Form(text.into());
        let mut parts = text.split(':');
        let host = parts.next().filter(|part| !part.is_empty()).ok_or_else(form)?;
        let guest = parts.next().filter(|part| !part.is_empty()).ok_or_else(form)?;
        let options = parts.next();
        if parts.next().is_some() || text.contains('\0') {
            return Err(form());
        }
        if !host.starts_with(['/', '.', '~']) {
            return Err(VolumeError::Named(host.into()));
        }
        let mut read_only = false;
        for option in options.into_iter().flat_map(|list| list.split(',')) {
            match option {
                "ro" => read_only = true,
                // No SELinux here, and nothing to propagate between two kernels.
                "rw" | "z" | "Z" | "rprivate" | "private" | "rslave" | "slave" | "rshared"
                | "shared" => {}
                other => return Err(VolumeError::Option(other.into())),
            }
        }
        Ok(Volume { host: host.into(), guest: destination(guest)?, read_only })
    }
}

/// `path` without `.`, `..` and double slashes.
fn destination(path: &str) -> Result<String, VolumeError> {
    let bad = || VolumeError::Destination(path.into());
    if !path.starts_with('/') {
        return Err(bad());
    }
    let mut parts: Vec<&str> = Vec::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str().ok_or_else(bad)?),
            Component::ParentDir => drop(parts.pop()),
            _ => {}
        }
    }
    if parts.is_empty() { Err(bad()) } else { Ok(format!("/{}", parts.join("/"))) }
}

/// A file system in memory: `PATH[:option,...]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Path in the container.
    pub guest: String,
    /// Mount options.
    pub options: Vec<String>,
}

impl FromStr for Tmpfs {
    type Err = VolumeError;

    fn from_str(text: &str) -> Result<Tmpfs, VolumeError> {
        let (path, options) = text.split_once(':').unwrap_or((text, ""));
        let mut all: Vec<String> = ["nosuid", "nodev", "noexec"].map(String::from).into();
        for option in options.split(',').filter(|option| !option.is_empty()) {
            let known = ["size=", "mode=", "uid=", "gid=", "nr_inodes="];
            match option {
                // A later one takes back what is there by default.
                "exec" | "suid" | "dev" => all.retain(|old| old.strip_prefix("no") != Some(option)),
                "ro" | "rw" | "noexec" | "nosuid" | "nodev" => all.push(option.into()),
                _ if known.iter().any(|name| option.starts_with(name)) => all.push(option.into()),
                other => return Err(VolumeError::Option(other.into())),
            }
        }
        Ok(Tmpfs { guest: destination(path)?, options: all })
    }
}

/// The shares that volumes need, in their order.
pub fn shares(volumes: &[Volume]) -> Vec<ShareConfig> {
    let share = |(index, volume): (usize, &Volume)| ShareConfig {
        name: format!("v{index}"),
        kind: ShareKind::Live,
        source: volume.host.clone(),
        read_only: volume.read_only,
        ids: ShareIds::Machine,
    };
    volumes.iter().enumerate().map(share).collect()
}

/// Entries of `mounts`, outer ones first, and where their sources are shared.
pub(super) fn place(
    volumes: &[Volume],
    tmpfs: &[Tmpfs],
) -> Result<(Vec<Value>, BTreeMap<String, String>), SpecError> {
    let mut sources = BTreeMap::new();
    let mut places: Vec<(&str, Value)> = Vec::new();
    for (volume, share) in volumes.iter().zip(shares(volumes)) {
        // The share's path is the mount's source: unlike the host's path it is
        // unique, and it tells the guest nothing of the host.
        let source = share.guest_path();
        let mode = if volume.read_only { "ro" } else { "rw" };
        let options = ["rbind", "rprivate", mode];
        let mount = json!({ "destination": volume.guest, "type": "bind", "source": source, "options": options });
        sources.insert(source.clone(), source);
        places.push((&volume.guest, mount));
    }
    for tmpfs in tmpfs {
        let mount = json!({
            "destination": tmpfs.guest, "type": "tmpfs", "source": "tmpfs", "options": tmpfs.options,
        });
        places.push((&tmpfs.guest, mount));
    }
    let mut seen = BTreeSet::new();
    if let Some((twice, _)) = places.iter().find(|(place, _)| !seen.insert(*place)) {
        return Err(SpecError::DuplicateMount((*twice).into()));
    }
    places.sort_by_key(|(place, _)| place.split('/').count());
    Ok((places.into_iter().map(|(_, mount)| mount).collect(), sources))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn volumes() {
        let volume: Volume = "/data:/mnt//x/../y/:ro".parse().unwrap();
        let expected = Volume { host: "/data".into(), guest: "/mnt/y".into(), read_only: true };
        assert_eq!(volume, expected);
        assert!(!"./here:/x:rw,Z".parse::<Volume>().unwrap().read_only);
        let named = "data:/x".parse::<Volume>().unwrap_err();
        assert_eq!(named, VolumeError::Named("data".into()));
        for bad in ["", "/x", ":/x", "/x:", "/x:y", "/x:/", "/x:/..", "/x:/y:zz", "/a:/b:ro:rw"] {
            assert!(bad.parse::<Volume>().is_err(), "{bad}");
        }
    }

    #[test]
    fn memory_file_systems() {
        let tmpfs: Tmpfs = "/run:size=64m,exec".parse().unwrap();
        assert_eq!(tmpfs.options, ["nosuid", "nodev", "size=64m"]);
        assert!("/run:evil=1".parse::<Tmpfs>().is_err());
    }

    #[test]
    fn outer_mounts_come_first_and_none_twice() {
        let volumes = ["/h:/a/b/c".parse().unwrap(), "/h:/a".parse().unwrap()];
        let tmpfs = ["/a/b".parse().unwrap()];
        let (mounts, sources) = place(&volumes, &tmpfs).unwrap();
        let order: Vec<_> = mounts.iter().map(|mount| mount["destination"].clone()).collect();
        assert_eq!(order, ["/a", "/a/b", "/a/b/c"]);
        assert_eq!(sources["live/v1"], "live/v1");
        let twice = ["/a".parse().unwrap()];
        assert_eq!(place(&volumes, &twice).unwrap_err(), SpecError::DuplicateMount("/a".into()));
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_clean(text in "[./a~:]{0,12}") {
            if let Ok(volume) = text.parse::<Volume>() {
                prop_assert!(volume.guest.starts_with('/') && volume.guest.len() > 1);
                prop_assert!(!volume.guest.split('/').any(|part| part == ".." || part == "."));
            }
            let _ = text.parse::<Tmpfs>();
        }
    }
}
