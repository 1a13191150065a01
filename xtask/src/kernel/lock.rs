//! kernel-config/kernel.lock: which source the guest kernel is built from.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// A version of the source package and the checksum of its tarball.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// Debian's version of the package.
    pub package: String,
    /// SHA-256 of the tarball in it, in lower-case hexadecimal.
    pub sha256: String,
}

/// The parsed file.
#[derive(Debug, PartialEq, Eq)]
pub struct Lock {
    /// The Debian package with the source.
    pub package: String,
    /// The tarball's path in the package.
    pub tarball: String,
    /// The wanted version, then the ones that are known to be good.
    pub versions: Vec<Version>,
    comment: String,
}

impl Lock {
    /// Reads and checks the file.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("in {}", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let (mut package, mut tarball) = (None, None);
        let mut versions: Vec<Version> = Vec::new();
        let mut comment = String::new();
        for (number, line) in text.lines().enumerate() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                [] => {}
                [first, ..] if first.starts_with('#') => _ = writeln!(comment, "{line}"),
                ["package", name] => package = Some(name.to_owned()),
                ["tarball", path] => tarball = Some(path.to_owned()),
                ["version", version, sha256] => {
                    if sha256.len() != 64 || !sha256.bytes().all(|b| b.is_ascii_hexdigit()) {
                        bail!("line {}: not a SHA-256: {sha256}", number + 1);
                    }
                    versions.push(Version {
                        package: version.into(),
                        sha256: sha256.to_ascii_lowercase(),
                    });
                }
                _ => {
                    bail!("line {}: expected `package`, `tarball` or `version`: {line}", number + 1)
                }
            }
        }
        let (Some(package), Some(tarball)) = (package, tarball) else {
            bail!("a line with `package` or `tarball` is missing");
        };
        if versions.is_empty() {
            bail!("a line with `version` is missing");
        }
        Ok(Self { package, tarball, versions, comment })
    }

    /// The wanted version.
    pub fn wanted(&self) -> &Version {
        &self.versions[0]
    }

    /// The checksum that is known for a version of the package.
    pub fn known(&self, package_version: &str) -> Option<&str> {
        self.versions.iter().find(|v| v.package == package_version).map(|v| v.sha256.as_str())
    }

    /// The file with `version` on top.
    pub fn with_wanted(&self, version: &Version) -> String {
        let mut text = self.comment.clone();
        _ = writeln!(text, "package {}\ntarball {}", self.package, self.tarball);
        let others = self.versions.iter().filter(|v| v.package != version.package);
        for version in std::iter::once(version).chain(others) {
            _ = writeln!(text, "version {} {}", version.package, version.sha256);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUM: &str = "585a4a074597aefa2b1a68ada83a3184ba351c127544dea80618bbcceaa3961f";

    #[test]
    fn an_update_goes_on_top_and_the_rest_stays() {
        let text = format!("# why\npackage p\ntarball usr/src/p.tar.xz\nversion 6.12.1 {SUM}\n");
        let lock = Lock::parse(&text).unwrap();
        assert_eq!(lock.wanted().package, "6.12.1");
        let newer = Version { package: "6.12.2".into(), sha256: SUM.replace('5', "6") };
        let lock = Lock::parse(&lock.with_wanted(&newer)).unwrap();
        assert_eq!(lock.wanted(), &newer);
        assert_eq!(lock.known("6.12.1"), Some(SUM));
        assert_eq!(lock.comment, "# why\n");
    }

    #[test]
    fn damage_is_named_with_its_line() {
        let error = Lock::parse("package p\nversion 6.12.1 12345\n").unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
        let error = Lock::parse("package p\nsource x\n").unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
        assert!(Lock::parse("package p\ntarball t\n").is_err());
    }
}
