//! `cargo xtask kernel`: the guest's kernel, from Debian's source package and
//! kernel-config/bulkhead.config. kernel-config/README.md has the reasoning.

mod fragment;
mod lock;
mod upstream;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::apt::{self, Source};
use crate::paths::Tree;
use crate::sh::{self, cmd, note};
use fragment::Fragment;
use lock::{Lock, Version};

/// Options of `cargo xtask kernel`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Options {
    /// Take the version that the archive offers and write it into kernel.lock
    #[arg(long)]
    pub update_lock: bool,
    /// Fail when the archive no longer has a version that kernel.lock names
    #[arg(long, conflicts_with = "update_lock")]
    pub locked: bool,
    /// Build even if nothing has changed
    #[arg(long)]
    pub force: bool,
}

/// Builds `build/kernel/vmlinux`, unless it is there and up to date.
pub fn run(tree: &Tree, options: &Options) -> Result<()> {
    let _alone = tree.lock("kernel")?;
    let lock_path = tree.at("kernel-config/kernel.lock");
    let lock = Lock::read(&lock_path)?;
    let fragment_path = tree.at("kernel-config/bulkhead.config");
    let text = fs::read_to_string(&fragment_path)?;
    let fragment =
        Fragment::parse(&text).with_context(|| format!("in {}", fragment_path.display()))?;

    let build = tree.build("kernel");
    fs::create_dir_all(&build)?;
    let stamp = build.join("stamp");
    let key = sum(format!("{:?}\n{}", lock.versions, fragment.text()).as_bytes());
    let fresh =
        fs::read_to_string(&stamp).is_ok_and(|old| old == key) && build.join("vmlinux").is_file();
    if fresh && !options.force && !options.update_lock {
        return Ok(());
    }

    let source = Origin::find(&lock, options, &build)?;
    if options.update_lock {
        fs::write(&lock_path, lock.with_wanted(&source.version))?;
        note(format!("kernel.lock now wants {}", source.version.package));
        if source.version == *lock.wanted() && fresh && !options.force {
            return Ok(());
        }
    }
    let sources = unpack(&source, &build)?;
    configure(&sources, &build, &fragment)?;
    compile(&sources, &build, &source.version)?;
    install(&build)?;
    let lock = Lock::read(&lock_path)?;
    fs::write(stamp, sum(format!("{:?}\n{}", lock.versions, fragment.text()).as_bytes()))?;
    Ok(())
}

/// A tarball whose checksum has been seen to.
struct Origin {
    version: Version,
    tarball: PathBuf,
}

impl Origin {
    /// The wanted version where it can be had; otherwise, unless `--locked`, the
    /// same release from kernel.org, or else what the signed archive offers
    /// instead, either with a notice.
    fn find(lock: &Lock, options: &Options, build: &Path) -> Result<Self> {
        let installed = Path::new("/").join(&lock.tarball);
        // Not every machine has apt.
        let offered = candidate(&lock.package);
        let wanted = match &offered {
            Ok(offered) if options.update_lock => offered.clone(),
            Err(error) if options.update_lock => bail!("{error:#}"),
            _ => lock.wanted().package.clone(),
        };
        let here = installed_version(&lock.package);
        if here.as_ref() == Some(&wanted) && installed.is_file() {
            return Self::check(lock, options, &wanted, installed);
        }
        if let Ok(tarball) = fetch(lock, &wanted, build) {
            return Self::check(lock, options, &wanted, tarball);
        }
        if options.locked {
            let offered = offered.unwrap_or_else(|_| "none".into());
            bail!(
                "the archive no longer has {} {wanted} (it offers {offered}); run `cargo xtask kernel --update-lock` and commit kernel.lock",
                lock.package
            );
        }
        match upstream::fetch(&wanted, build) {
            Ok(upstream::Tarball { version, path, sha256 }) => {
                note(format!(
                    "notice: {} {wanted} is not to be had, building kernel.org's {version} without Debian's patches",
                    lock.package
                ));
                let version = Version { package: format!("{version} of kernel.org"), sha256 };
                return Ok(Self { version, tarball: path });
            }
            Err(error) if offered.is_err() => return Err(error.context(offered.unwrap_err())),
            Err(error) => note(format!("notice: {error:#}")),
        }
        let offered = offered?;
        let tarball =
            if here.as_ref() == Some(&offered) { installed } else { fetch(lock, &offered, build)? };
        Self::check(lock, options, &offered, tarball)
    }

    /// A known version must have the known checksum. One that is not known is
    /// vouched for by apt's signature check alone, and that is said.
    fn check(lock: &Lock, options: &Options, version: &str, tarball: PathBuf) -> Result<Self> {
        let sha256 = sh::step("checking the kernel source", || {
            Ok(sum(&fs::read(&tarball)
                .with_context(|| format!("cannot read {}", tarball.display()))?))
        })?;
        match lock.known(version) {
            Some(known) if known != sha256 => bail!(
                "{} of {} {version} has the SHA-256 {sha256}, kernel.lock says {known}: do not build from it, fetch it again",
                tarball.display(),
                lock.package
            ),
            Some(_) => {}
            None if options.update_lock => {}
            None => note(format!(
                "notice: {} {} is not in the archive any more, building {version} instead (sha256 {sha256}); `cargo xtask kernel --update-lock` pins it",
                lock.package,
                lock.wanted().package
            )),
        }
        Ok(Self { version: Version { package: version.to_owned(), sha256 }, tarball })
    }
}

/// The version that apt would install.
fn candidate(package: &str) -> Result<String> {
    let policy = sh::output(&mut cmd("apt-cache", ["policy", package]))?;
    policy
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate: "))
        .filter(|version| *version != "(none)")
        .map(str::to_owned)
        .with_context(|| format!("apt knows no package {package}; run `apt-get update`"))
}

fn installed_version(package: &str) -> Option<String> {
    let output = sh::output(&mut cmd("dpkg-query", ["-W", "-f", "${Version}", package])).ok()?;
    (!output.is_empty()).then_some(output)
}

/// Fetches one version of the source package and takes the tarball out of it.
fn fetch(lock: &Lock, version: &str, build: &Path) -> Result<PathBuf> {
    let package = format!("{}={version}", lock.package);
    sh::step(&format!("fetching {package}"), || {
        let root = build.join("package");
        let _ = fs::remove_dir_all(&root);
        let files = Source::Machine.download(&[&package], &root.join("deb"))?;
        apt::unpack(&files, &root)?;
        fs::remove_dir_all(root.join("deb"))?;
        Ok(root.join(&lock.tarball))
    })
}

/// Unpacks the tarball to `src/`, unless it is there already.
fn unpack(source: &Origin, build: &Path) -> Result<PathBuf> {
    let sources = build.join("src");
    let mark = build.join("src.sha256");
    if fs::read_to_string(&mark).is_ok_and(|old| old == source.version.sha256) {
        return Ok(sources);
    }
    sh::step(&format!("unpacking the kernel source {}", source.version.package), || {
        for old in ["src", "out"] {
            let _ = fs::remove_dir_all(build.join(old));
        }
        fs::create_dir_all(&sources)?;
        let mut tar = cmd("tar", ["--strip-components=1", "-C"]);
        sh::output(
            tar.arg(&sources).args(["--use-compress-program=xz -T0", "-xf"]).arg(&source.tarball),
        )?;
        fs::write(&mark, &source.version.sha256)?;
        Ok(())
    })?;
    Ok(sources)
}

/// `make` in the kernel's tree, reproducible: no user, host or time in it.
fn make(sources: &Path, build: &Path) -> Command {
    let mut command = Command::new("make");
    command.arg("-C").arg(sources).arg(format!("O={}", build.join("out").display()));
    command.args(["-s", "ARCH=x86_64"]);
    for (name, value) in [
        ("KBUILD_BUILD_USER", "bulkhead"),
        ("KBUILD_BUILD_HOST", "bulkhead"),
        ("KBUILD_BUILD_TIMESTAMP", "Thu Jan  1 00:00:00 UTC 1970"),
        ("LC_ALL", "C"),
    ] {
        command.env(name, value);
    }
    // Variables of cargo and of an outer make change what the kernel's does.
    for name in ["MAKEFLAGS", "MFLAGS", "MAKELEVEL", "CARGO_MAKEFLAGS", "CC", "CFLAGS", "LDFLAGS"] {
        command.env_remove(name);
    }
    command
}

fn configure(sources: &Path, build: &Path, fragment: &Fragment) -> Result<()> {
    let out = build.join("out");
    fs::create_dir_all(&out)?;
    let answers = build.join("answers.config");
    fs::write(&answers, fragment.text())?;
    sh::output(make(sources, build).arg("allnoconfig").env("KCONFIG_ALLCONFIG", &answers))
        .context("cannot configure the kernel (flex, bison and a compiler come with `cargo xtask setup`)")?;
    let differences = fragment.differences(&fs::read_to_string(out.join(".config"))?);
    if !differences.is_empty() {
        bail!(
            "kernel-config/bulkhead.config asks for what Kconfig does not give (a dependency is missing, or the name has changed):\n  {}",
            differences.join("\n  ")
        );
    }
    Ok(())
}

fn compile(sources: &Path, build: &Path, version: &Version) -> Result<()> {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let what = format!("building the guest kernel {} (3-8 minutes on two cores)", version.package);
    let mut command = make(sources, build);
    sh::logged(&what, command.arg(format!("-j{jobs}")).arg("vmlinux"), &build.join("build.log"))
}

/// Puts the stripped image, the one with symbols and the symbol table in place.
fn install(build: &Path) -> Result<()> {
    let out = build.join("out");
    let new = build.join("vmlinux.new");
    sh::output(cmd("strip", ["-s", "-o"]).arg(&new).arg(out.join("vmlinux")))?;
    fs::copy(out.join("System.map"), build.join("System.map"))?;
    fs::copy(out.join(".config"), build.join("config"))?;
    fs::rename(&new, build.join("vmlinux"))?;
    Ok(())
}

/// SHA-256 in hexadecimal.
fn sum(data: &[u8]) -> String {
    hex::encode(Sha256::digest(data))
}
