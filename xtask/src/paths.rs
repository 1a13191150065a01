//! Where things lie in the work tree. Nothing else in xtask spells a path of it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};

use crate::sh::note;

/// The work tree.
#[derive(Debug, Clone)]
pub struct Tree {
    root: PathBuf,
}

impl Tree {
    /// Finds the work tree: cargo says where this crate is; a copied binary
    /// looks upwards from the current directory.
    pub fn find() -> Result<Self> {
        let start = match std::env::var_os("CARGO_MANIFEST_DIR") {
            Some(dir) => PathBuf::from(dir),
            None => std::env::current_dir().context("no current directory")?,
        };
        for dir in start.ancestors() {
            if dir.join("kernel-config/kernel.lock").is_file() && dir.join("xtask").is_dir() {
                return Ok(Self { root: dir.to_owned() });
            }
        }
        bail!("{} is not inside a bulkhead work tree", start.display())
    }

    /// The root of the work tree.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A path below the root.
    pub fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path)
    }

    /// `build/`: everything that tasks make, apart from cargo's own target.
    pub fn build(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join("build").join(path)
    }

    /// cargo's target directory.
    pub fn target(&self) -> PathBuf {
        match std::env::var_os("CARGO_TARGET_DIR") {
            Some(dir) => self.root.join(dir),
            None => self.root.join("target"),
        }
    }

    /// The directory of the installed layout (`bin/`, `share/bulkhead/`).
    pub fn dist(&self) -> PathBuf {
        self.build("root")
    }

    /// The directory of our binaries that is put first on PATH.
    pub fn bin(&self) -> PathBuf {
        match std::env::var_os("BULKHEAD_BIN_DIR") {
            Some(dir) => self.root.join(dir),
            None => self.dist().join("bin"),
        }
    }

    /// Keeps other tasks out of what `name` stands for while the value lives;
    /// waits for one that is at it already.
    pub fn lock(&self, name: &str) -> Result<Flock<File>> {
        let path = self.build(format!("{name}.lock"));
        fs::create_dir_all(self.build(""))?;
        let file =
            File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((file, _)) => file,
        };
        note(format!("waiting for another task that builds the {name}"));
        Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, error)| error)
            .with_context(|| format!("cannot lock {}", path.display()))
    }
}
