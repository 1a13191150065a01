//! Packages from the Debian archive, taken without installing them.
//!
//! apt checks the archive's signatures; nothing here bypasses that. What is
//! fetched is unpacked with `dpkg -x` beside the machine's own files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::sh::{self, cmd};

/// Debian's own keys, where its package debian-archive-keyring has them.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Which archive packages come from.
pub enum Source {
    /// What this machine's apt is set up with.
    Machine,
    /// Backports of Debian 12, in an apt state of its own below this directory:
    /// the machine's own apt does not learn of it.
    Backports(PathBuf),
}

impl Source {
    /// Prepares the backports source and fetches its package list.
    pub fn backports(state: &Path) -> Result<Self> {
        fs::create_dir_all(state.join("lists/partial"))?;
        fs::create_dir_all(state.join("cache/archives/partial"))?;
        let (uri, keyring) = machine_archive()?;
        let text = format!(
            "Types: deb\nURIs: {uri}\nSuites: bookworm-backports\nComponents: main\nSigned-By: {keyring}\n"
        );
        fs::write(state.join("backports.sources"), text)?;
        let source = Self::Backports(state.to_owned());
        sh::output(source.apt("apt-get").arg("update"))
            .context("cannot read the package list of bookworm-backports")?;
        Ok(source)
    }

    /// `apt-get` or `apt-cache` with the options that select this source.
    pub fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("--quiet=2");
        // As root, apt downloads as user _apt, who may not write in our directory.
        command.args(["-o", "APT::Sandbox::User=root"]);
        if let Self::Backports(state) = self {
            for (key, value) in [
                ("Dir::Etc::sourcelist", state.join("backports.sources")),
                ("Dir::Etc::sourceparts", PathBuf::from("/dev/null")),
                ("Dir::State::lists", state.join("lists")),
                ("Dir::Cache", state.join("cache")),
            ] {
                command.arg("-o").arg(format!("{key}={}", value.display()));
            }
        }
        command
    }

    /// Fetches `packages` (each `name` or `name=version`) into `directory`.
    pub fn download(&self, packages: &[&str], directory: &Path) -> Result<Vec<PathBuf>> {
        fs::create_dir_all(directory)?;
        let before = debs(directory)?;
        for old in before {
            fs::remove_file(old)?;
        }
        sh::output(self.apt("apt-get").arg("download").args(packages).current_dir(directory))
            .with_context(|| {
                format!("cannot fetch {} from the Debian archive; is the network up, and has `apt-get update` been run?", packages.join(", "))
            })?;
        let files = debs(directory)?;
        if files.len() != packages.len() {
            bail!("apt-get download of {} left {} files", packages.join(", "), files.len());
        }
        Ok(files)
    }
}

/// Unpacks packages below `root`, as files only: no script of theirs is run.
pub fn unpack(packages: &[PathBuf], root: &Path) -> Result<()> {
    fs::create_dir_all(root)?;
    for package in packages {
        sh::output(cmd("dpkg", ["-x"]).arg(package).arg(root))?;
    }
    Ok(())
}

fn debs(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "deb") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The address and the keyring of the Debian archive that this machine uses.
pub fn machine_archive() -> Result<(String, String)> {
    let listing = sh::output(&mut cmd(
        "apt-get",
        [
            "indextargets",
            "--format",
            "$(CREATED_BY) $(SUITE) $(CODENAME) $(LABEL) $(REPO_URI) $(SIGNED_BY)",
        ],
    ))?;
    for line in listing.lines() {
        let mut words = line.split_whitespace();
        let fields = (words.next(), words.next(), words.next(), words.next(), words.next());
        if let (Some("Packages"), _, Some("bookworm"), Some("Debian"), Some(uri)) = fields {
            let keyring = words.next().filter(|w| w.starts_with('/')).unwrap_or(KEYRING);
            return Ok((uri.trim_end_matches('/').to_owned(), keyring.to_owned()));
        }
    }
    bail!(
        "apt on this machine has no source for Debian 12 (bookworm); `apt-get update` may not have been run yet"
    )
}
