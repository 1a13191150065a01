//! The same source without Debian: linux-X.Y.Z.tar.xz from kernel.org.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::sh::{self, cmd};

/// Where it is looked for, unless BULKHEAD_KERNEL_MIRROR names another place.
const MIRROR: &str = "https://cdn.kernel.org/pub/linux/kernel";

/// A tarball whose checksum is that of kernel.org's list.
pub struct Tarball {
    /// As `6.12.117`.
    pub version: String,
    pub path: PathBuf,
    pub sha256: String,
}

/// Fetches the release that Debian's `package_version` is made from.
pub fn fetch(package_version: &str, build: &Path) -> Result<Tarball> {
    let version = release(package_version)?;
    let name = format!("linux-{version}.tar.xz");
    let major = version.split('.').next().unwrap_or(version);
    let mirror = std::env::var("BULKHEAD_KERNEL_MIRROR").unwrap_or_else(|_| MIRROR.into());
    let directory = format!("{mirror}/v{major}.x");
    let path = build.join(&name);
    sh::step(&format!("fetching {name} from {mirror}"), || {
        let sums = build.join("sha256sums.asc");
        download(&format!("{directory}/sha256sums.asc"), &sums)?;
        let expected = listed(&fs::read_to_string(&sums)?, &name)
            .with_context(|| format!("{directory}/sha256sums.asc does not list {name}"))?;
        download(&format!("{directory}/{name}"), &path)?;
        let sha256 = super::sum(&fs::read(&path)?);
        if sha256 != expected {
            bail!(
                "{directory}/{name} has the SHA-256 {sha256}, the list beside it says {expected}"
            );
        }
        Ok(Tarball { version: version.to_owned(), path: path.clone(), sha256 })
    })
}

fn download(url: &str, to: &Path) -> Result<()> {
    let mut curl = cmd("curl", ["--fail", "--location", "--silent", "--show-error"]);
    curl.args(["--connect-timeout", "10", "--max-time", "1800", "--output"]).arg(to).arg(url);
    sh::output(&mut curl).map(drop)
}

/// `6.12.117` of `6.12.117-1~deb12u1`.
fn release(package_version: &str) -> Result<&str> {
    let release = package_version.split('-').next().unwrap_or_default();
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if release.split('.').count() < 2 || !release.split('.').all(digits) {
        bail!("{package_version} names no release of Linux");
    }
    // The first release of a series is called X.Y, not X.Y.0.
    Ok(release.strip_suffix(".0").unwrap_or(release))
}

/// The checksum of `name` in a signed list.
fn listed(sums: &str, name: &str) -> Option<String> {
    sums.lines().find_map(|line| match line.split_whitespace().collect::<Vec<_>>()[..] {
        [sum, file] if file == name && sum.len() == 64 => Some(sum.to_ascii_lowercase()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debians_version_names_the_release() {
        assert_eq!(release("6.12.117-1~deb12u1").unwrap(), "6.12.117");
        assert_eq!(release("6.12.0-1").unwrap(), "6.12");
        assert!(release("1:2").is_err() && release("6.12.x-1").is_err() && release("").is_err());
    }

    #[test]
    fn the_list_is_read_by_whole_names() {
        let sum = "ab".repeat(32);
        let list = format!(
            "-----BEGIN PGP SIGNED MESSAGE-----\n{}  linux-6.12.1.tar.gz\n{sum}  linux-6.12.1.tar.xz\n",
            "cd".repeat(32)
        );
        assert_eq!(listed(&list, "linux-6.12.1.tar.xz"), Some(sum));
        assert_eq!(listed(&list, "linux-6.12.tar.xz"), None);
    }
}
