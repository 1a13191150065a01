//! `mounts`: the option words of mount(8) -> what the kernel is asked for.

use std::collections::BTreeMap;
use std::path::PathBuf;

use oci_spec::runtime::Mount;
use serde::{Deserialize, Serialize};

use super::{PlanError, field, share};

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPlan {
    /// Absolute path in the container.
    pub destination: PathBuf,
    /// What is mounted.
    pub source: Source,
    /// Flags of the mount itself.
    pub flags: Flags,
    /// Flags of it and all mounts below it.
    pub recursive: Flags,
    /// MS_* and whether it is recursive, in order.
    pub propagation: Vec<(u64, bool)>,
    /// Fill a new tmpfs with what the image has there.
    pub copy_up: bool,
}

/// MOUNT_ATTR_* to set and to clear.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flags {
    /// To set.
    pub set: u64,
    /// To clear.
    pub clear: u64,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// A file or directory of the share tree.
    Bind {
        /// Absolute path in the guest.
        path: PathBuf,
        /// With the mounts below it.
        recursive: bool,
    },
    /// The container's part of the cgroup tree.
    Cgroup,
    /// A new file system.
    New {
        /// Its type.
        kind: String,
        /// `source`, for those that have one.
        source: String,
        /// Its own options.
        options: Vec<(String, Option<String>)>,
    },
}

/// Word, bits to set, bits to clear. The second name is the opposite.
const FLAGS: [(&str, &str, u64); 6] = [
    ("ro", "rw", libc::MOUNT_ATTR_RDONLY),
    ("nosuid", "suid", libc::MOUNT_ATTR_NOSUID),
    ("nodev", "dev", libc::MOUNT_ATTR_NODEV),
    ("noexec", "exec", libc::MOUNT_ATTR_NOEXEC),
    ("nodiratime", "diratime", libc::MOUNT_ATTR_NODIRATIME),
    ("nosymfollow", "symfollow", libc::MOUNT_ATTR_NOSYMFOLLOW),
];

/// Words that choose the time-stamp mode: exactly one of three values.
const ATIME: [(&str, u64); 6] = [
    ("noatime", libc::MOUNT_ATTR_NOATIME),
    ("strictatime", libc::MOUNT_ATTR_STRICTATIME),
    ("relatime", libc::MOUNT_ATTR_RELATIME),
    ("atime", libc::MOUNT_ATTR_RELATIME),
    ("norelatime", libc::MOUNT_ATTR_STRICTATIME),
    ("nostrictatime", libc::MOUNT_ATTR_RELATIME),
];

impl Flags {
    /// Applies one option word; `false` when it is none.
    fn word(&mut self, word: &str) -> bool {
        for (on, off, bit) in FLAGS {
            if word == on {
                self.set |= bit;
                self.clear &= !bit;
                return true;
            }
            if word == off {
                self.clear |= bit;
                self.set &= !bit;
                return true;
            }
        }
        let Some((_, mode)) = ATIME.iter().find(|(name, _)| *name == word) else {
            return false;
        };
        self.set = (self.set & !libc::MOUNT_ATTR__ATIME) | mode;
        self.clear |= libc::MOUNT_ATTR__ATIME;
        true
    }
}

/// MS_* and whether it is recursive, of a propagation word.
pub fn propagation(word: &str) -> Option<(u64, bool)> {
    let flag = match word.strip_prefix('r').unwrap_or(word) {
        "private" => libc::MS_PRIVATE,
        "shared" => libc::MS_SHARED,
        "slave" => libc::MS_SLAVE,
        "unbindable" => libc::MS_UNBINDABLE,
        _ => return None,
    };
    Some((flag, word.starts_with('r')))
}

/// Validates all mounts.
///
/// # Errors
/// Names the field.
pub fn plan(
    mounts: &[Mount],
    sources: &BTreeMap<String, String>,
) -> Result<Vec<MountPlan>, PlanError> {
    mounts.iter().map(|mount| one(mount, sources)).collect()
}

fn one(mount: &Mount, sources: &BTreeMap<String, String>) -> Result<MountPlan, PlanError> {
    let wrong =
        |reason: String| field(format!("mounts[{}]", mount.destination().display()), reason);
    if mount.uid_mappings().is_some() || mount.gid_mappings().is_some() {
        return Err(wrong("id-mapped mounts are made on the host, not in the guest".into()));
    }
    let words = Words::parse(mount.options().as_deref().unwrap_or_default());
    let kind = mount.typ().as_deref().unwrap_or_default();
    let named = mount.source().as_ref().map(|path| path.to_string_lossy().into_owned());
    let source = match kind {
        _ if words.bind.is_some() || kind == "bind" => {
            if let Some((option, _)) = words.options.first() {
                return Err(wrong(format!("option {option:?} is none of a bind mount")));
            }
            let named = named.ok_or_else(|| wrong("a bind mount needs a source".into()))?;
            let Some(path) = sources.get(&named) else {
                return Err(wrong(format!("source {named:?} was not shared with the machine")));
            };
            Source::Bind { path: share(path)?, recursive: words.bind.unwrap_or(true) }
        }
        "" => return Err(wrong("has neither type nor bind option".into())),
        "cgroup" | "cgroup2" => match words.options.first() {
            Some((option, _)) => return Err(wrong(format!("option {option:?} is unknown"))),
            None => Source::Cgroup,
        },
        kind => Source::New {
            kind: kind.to_owned(),
            source: named.unwrap_or_else(|| kind.to_owned()),
            options: words.options,
        },
    };
    if words.copy_up && kind != "tmpfs" {
        return Err(wrong("tmpcopyup is an option of tmpfs".into()));
    }
    if let Some(word) = words.refused {
        return Err(wrong(format!("option {word:?} is not supported")));
    }
    Ok(MountPlan {
        // Relative destinations are deprecated, and runc takes them from "/".
        destination: PathBuf::from("/").join(mount.destination()),
        source,
        flags: words.flags,
        recursive: words.recursive,
        propagation: words.propagation,
        copy_up: words.copy_up,
    })
}

#[derive(Default)]
struct Words {
    flags: Flags,
    recursive: Flags,
    propagation: Vec<(u64, bool)>,
    bind: Option<bool>,
    copy_up: bool,
    options: Vec<(String, Option<String>)>,
    refused: Option<String>,
}

impl Words {
    fn parse(options: &[String]) -> Self {
        let mut words = Words::default();
        options.iter().flat_map(|option| option.split(',')).for_each(|word| words.word(word));
        words
    }

    fn word(&mut self, word: &str) {
        match word {
            "" | "defaults" | "async" | "nomand" | "loud" | "nolazytime" | "noiversion" => {}
            "bind" => self.bind = Some(self.bind.unwrap_or(false)),
            "rbind" => self.bind = Some(true),
            "tmpcopyup" => self.copy_up = true,
            "remount" | "idmap" | "ridmap" | "iversion" | "silent" => {
                self.refused = Some(word.to_owned());
            }
            _ if self.flags.word(word) => {}
            _ if word.strip_prefix('r').is_some_and(|word| self.recursive.word(word)) => {}
            _ => match (propagation(word), word.split_once('=')) {
                (Some(propagation), _) => self.propagation.push(propagation),
                (None, Some((key, value))) => {
                    self.options.push((key.to_owned(), Some(value.to_owned())));
                }
                (None, None) => self.options.push((word.to_owned(), None)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(value: serde_json::Value) -> Result<MountPlan, PlanError> {
        let sources = BTreeMap::from([("/host/dir".to_owned(), "live/vol0".to_owned())]);
        one(&serde_json::from_value(value).unwrap(), &sources)
    }

    #[test]
    fn a_tmpfs_keeps_its_own_options() {
        let plan = parse(json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}))
        .unwrap();
        assert_eq!(plan.flags.set, libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_STRICTATIME);
        let Source::New { options, .. } = plan.source else { panic!() };
        assert_eq!(options[0], ("mode".into(), Some("755".into())));
    }

    #[test]
    fn a_bind_is_taken_from_its_share() {
        let plan = parse(json!({"destination": "/data", "source": "/host/dir",
            "options": ["rbind", "rro", "ro", "rprivate", "nodev", "dev"]}))
        .unwrap();
        let path = PathBuf::from(crate::boot::SHARES).join("live/vol0");
        assert_eq!(plan.source, Source::Bind { path, recursive: true });
        assert_eq!(plan.recursive.set, libc::MOUNT_ATTR_RDONLY);
        assert_eq!((plan.flags.set, plan.flags.clear), (1, libc::MOUNT_ATTR_NODEV));
        assert_eq!(plan.propagation, [(libc::MS_PRIVATE, true)]);
    }

    #[test]
    fn what_is_not_honoured_is_named() {
        let cases = [
            (json!({"destination": "/a", "type": "bind", "source": "/etc"}), "was not shared"),
            (json!({"destination": "/a", "type": "tmpfs", "options": ["idmap"]}), "\"idmap\""),
            (json!({"destination": "/a", "type": "proc", "options": ["tmpcopyup"]}), "tmpfs"),
            (
                json!({"destination": "/a", "source": "/host/dir", "options": ["bind", "mode=1"]}),
                "\"mode\"",
            ),
            (json!({"destination": "/a"}), "neither"),
        ];
        for (value, word) in cases {
            let error = parse(value).unwrap_err().to_string();
            assert!(error.starts_with("mounts[/a]: ") && error.contains(word), "{error}");
        }
    }
}
