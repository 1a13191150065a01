//! The files that a machine is started from, and /dev/kvm.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Why one is missing.
#[derive(Debug, thiserror::Error)]
pub enum AssetError {
    /// None of the places has it.
    #[error(
        "the {what} is not installed; looked for it in {}; build it with `make build`, or name it with {variable}",
        join(searched)
    )]
    Missing {
        /// Which.
        what: &'static str,
        /// Environment variable that names it.
        variable: &'static str,
        /// Where it was looked for.
        searched: Vec<PathBuf>,
    },
    /// It cannot be opened.
    #[error("cannot open the {what} {}", path.display())]
    Open {
        /// Which.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// /dev/kvm cannot be opened.
    #[error(
        "cannot open /dev/kvm: this machine has no KVM, or the module is not loaded, or this \
         user may not use it; `bulkhead doctor` tells what to do"
    )]
    Kvm(#[source] std::io::Error),
}

fn join(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// One kind of file.
struct Kind {
    what: &'static str,
    variable: &'static str,
    /// Relative to the directory of the running program.
    beside: &'static str,
    system: &'static str,
}

const VMM: Kind = Kind {
    what: "VMM",
    variable: "BULKHEAD_VMM",
    beside: "bulkhead-vmm",
    system: "/usr/libexec/bulkhead/bulkhead-vmm",
};
const KERNEL: Kind = Kind {
    what: "guest kernel",
    variable: "BULKHEAD_KERNEL",
    beside: "../share/bulkhead/vmlinux",
    system: "/usr/share/bulkhead/vmlinux",
};
const INITRD: Kind = Kind {
    what: "guest initramfs",
    variable: "BULKHEAD_INITRD",
    beside: "../share/bulkhead/initramfs.cpio",
    system: "/usr/share/bulkhead/initramfs.cpio",
};

impl Kind {
    fn find(&self, named: Option<PathBuf>, program: &Path) -> Result<PathBuf, AssetError> {
        let candidates = match named {
            // Whoever names one means that one.
            Some(path) => vec![path],
            None => {
                let beside = program.parent().unwrap_or(Path::new("/")).join(self.beside);
                vec![beside, self.system.into()]
            }
        };
        candidates.iter().find(|path| path.is_file()).cloned().ok_or(AssetError::Missing {
            what: self.what,
            variable: self.variable,
            searched: candidates,
        })
    }

    fn find_by_env(&self) -> Result<PathBuf, AssetError> {
        let program = std::env::current_exe().unwrap_or_default();
        self.find(std::env::var_os(self.variable).map(PathBuf::from), &program)
    }

    fn open(&self, path: &Path) -> Result<OwnedFd, AssetError> {
        let file = File::open(path).map_err(|source| AssetError::Open {
            what: self.what,
            path: path.into(),
            source,
        })?;
        Ok(file.into())
    }
}

/// Paths of the files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assets {
    /// bulkhead-vmm.
    pub vmm: PathBuf,
    /// The kernel.
    pub kernel: PathBuf,
    /// The initramfs with the agent.
    pub initrd: PathBuf,
}

/// The files, opened, and /dev/kvm.
#[derive(Debug)]
pub struct OpenAssets {
    /// bulkhead-vmm.
    pub vmm: OwnedFd,
    /// The kernel.
    pub kernel: OwnedFd,
    /// The initramfs with the agent.
    pub initrd: OwnedFd,
    /// /dev/kvm.
    pub kvm: OwnedFd,
}

impl Assets {
    /// Looks for the files.
    ///
    /// # Errors
    /// Names the first that is missing and where it was looked for.
    pub fn find() -> Result<Assets, AssetError> {
        Ok(Assets {
            vmm: VMM.find_by_env()?,
            kernel: KERNEL.find_by_env()?,
            initrd: INITRD.find_by_env()?,
        })
    }

    /// Opens them.
    ///
    /// # Errors
    /// Names what cannot be opened.
    pub fn open(&self) -> Result<OpenAssets, AssetError> {
        let mut options = File::options();
        let kvm = options.read(true).write(true).open("/dev/kvm").map_err(AssetError::Kvm)?;
        debug_assert!(kvm.as_raw_fd() > 2);
        Ok(OpenAssets {
            vmm: VMM.open(&self.vmm)?,
            kernel: KERNEL.open(&self.kernel)?,
            initrd: INITRD.open(&self.initrd)?,
            kvm: kvm.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_is_named_with_all_places() {
        let error = KERNEL.find(None, Path::new("/opt/b/bin/bulkhead")).unwrap_err();
        let text = error.to_string();
        for part in ["guest kernel", "/opt/b/bin/../share/bulkhead/vmlinux", "BULKHEAD_KERNEL"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn a_named_file_is_the_only_candidate() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("bin")).unwrap();
        let program = dir.path().join("bin/bulkhead");
        std::fs::write(dir.path().join("bin/bulkhead-vmm"), "").unwrap();
        assert_eq!(VMM.find(None, &program).unwrap(), dir.path().join("bin/bulkhead-vmm"));
        assert!(VMM.find(Some("/no/such".into()), &program).is_err());
    }
}
