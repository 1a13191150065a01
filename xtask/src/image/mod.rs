//! `cargo xtask image`: a real Debian image of three layers as an OCI layout in
//! `build/images/debian-oci`: debootstrap's minimal system, Python on top by
//! apt, and demonstration files with what layers can be difficult about: a
//! removed file, a replaced directory, hard links, setuid bits, odd names.

mod layout;
pub mod servers;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::paths::Tree;
use crate::sh::{self, cmd};

/// Goes up when what is built here changes.
const RECIPE: &str = "3";

/// The name that the image is given in the layout.
const REFERENCE: &str = "debian:demo";

/// Options of `cargo xtask image`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Options {
    /// Build it again even if it is there
    #[arg(long)]
    pub force: bool,
    /// Build the file system of servers instead: build/images/servers.ext4
    #[arg(long, conflicts_with = "force")]
    pub servers: bool,
}

/// Builds the image, unless it is there, and returns the layout's directory.
pub fn run(tree: &Tree, options: &Options) -> Result<PathBuf> {
    if options.servers {
        return servers::run(tree);
    }
    let _alone = tree.lock("image")?;
    let layout = tree.build("images/debian-oci");
    let mark = tree.build("images/debian-oci.recipe");
    if !options.force
        && fs::read_to_string(&mark).is_ok_and(|r| r == RECIPE)
        && layout.join("index.json").is_file()
    {
        return Ok(layout);
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("building an image needs root (debootstrap, overlay mounts, device nodes)");
    }
    let work = Work::make(tree.build("images/work"))?;
    // Everything is mounted in a namespace of this process alone.
    unshare(CloneFlags::CLONE_NEWNS).context("cannot have a mount namespace of our own")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;

    base(&work)?;
    python(&work)?;
    files(&work)?;
    sh::step("packing three layers", || {
        let mut image = layout::Writer::new(&layout)?;
        image.layer(&work.at("base"), "gzip", "debootstrap --variant=minbase bookworm")?;
        image.layer(&work.at("python"), "gzip", "apt-get install python3-minimal")?;
        image.layer(
            &work.at("files"),
            "",
            "demonstration files, a whiteout, an opaque directory",
        )?;
        image.finish(REFERENCE)
    })?;
    fs::write(mark, RECIPE)?;
    Ok(layout)
}

/// The working directory: one directory per layer. Its overlay mounts are in
/// our own namespace, but it is cleared through a fresh look at the mounts.
struct Work(PathBuf);

impl Work {
    fn make(path: PathBuf) -> Result<Self> {
        if path.exists() {
            fs::remove_dir_all(&path)
                .with_context(|| format!("cannot clear {}", path.display()))?;
        }
        for name in ["base", "python", "files", "merged", "overlay"] {
            fs::create_dir_all(path.join(name))?;
        }
        Ok(Self(path))
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Mounts `upper` over `lowers` (top first) for as long as `work` runs.
    fn overlaid(
        &self,
        lowers: &[&str],
        upper: &str,
        work: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        let merged = self.at("merged");
        let overlay = self.at(&format!("overlay/{upper}"));
        fs::create_dir_all(&overlay)?;
        let lowers: Vec<String> =
            lowers.iter().map(|name| self.at(name).display().to_string()).collect();
        let data = format!(
            "lowerdir={},upperdir={},workdir={},redirect_dir=off,metacopy=off,index=off",
            lowers.join(":"),
            self.at(upper).display(),
            overlay.display()
        );
        mount(Some("overlay"), &merged, Some("overlay"), MsFlags::empty(), Some(data.as_str()))
            .context("cannot mount an overlay; is build/ on a file system that overlayfs takes as upper layer?")?;
        let result = work(&merged);
        nix::mount::umount2(&merged, nix::mount::MntFlags::MNT_DETACH)
            .context("cannot unmount the overlay")?;
        result
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let busy = fs::read_to_string("/proc/self/mountinfo")
            .is_ok_and(|table| table.contains(&*self.0.to_string_lossy()));
        if !busy {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// Layer 1: debootstrap, without what differs from build to build.
fn base(work: &Work) -> Result<()> {
    let root = work.at("base");
    let log = work.0.with_extension("log");
    let mut command = cmd("debootstrap", ["--variant=minbase", "bookworm"]);
    command.arg(&root);
    if let Some(mirror) = mirror() {
        command.arg(mirror);
    }
    sh::logged("debootstrap of Debian 12 (about a minute)", &mut command, &log)?;
    tidy(&root)
}

/// Layer 2: what `RUN apt-get install` makes.
fn python(work: &Work) -> Result<()> {
    let log = work.0.with_extension("log");
    work.overlaid(&["base"], "python", |root| {
        mount(Some("/proc"), &root.join("proc"), None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        let script = "apt-get update -q && apt-get install -q -y --no-install-recommends python3-minimal \
            && apt-get clean && rm -rf /var/lib/apt/lists/*";
        let mut command = cmd("chroot", [root]);
        command.args(["/bin/sh", "-ec", script]).env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C.UTF-8");
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        fs::copy("/etc/resolv.conf", root.join("etc/resolv.conf")).context("cannot give the image a resolv.conf")?;
        let done = sh::logged("installing Python in the image", &mut command, &log);
        nix::mount::umount2(&root.join("proc"), nix::mount::MntFlags::MNT_DETACH)?;
        fs::write(root.join("etc/resolv.conf"), "")?;
        done?;
        tidy(root)
    })?;
    let _ = fs::remove_file(log);
    Ok(())
}

/// Layer 3: files of our own.
fn files(work: &Work) -> Result<()> {
    work.overlaid(&["python", "base"], "files", |root| {
        // A whiteout: a file of layer 1 is gone.
        fs::remove_file(root.join("etc/issue.net"))?;
        // An opaque directory: made anew over one of layer 1.
        fs::remove_dir_all(root.join("usr/share/doc"))?;
        fs::create_dir_all(root.join("usr/share/doc"))?;
        fs::write(
            root.join("usr/share/doc/README"),
            "All other documents were left out by layer 3.\n",
        )?;
        let demo = root.join("opt/demo");
        fs::create_dir_all(&demo)?;
        fs::write(
            demo.join("hello.py"),
            "import platform\nprint('hello from', platform.platform())\n",
        )?;
        fs::write(demo.join("name with blanks, ä and \\"), "odd\n")?;
        fs::hard_link(demo.join("hello.py"), demo.join("hello-again.py"))?;
        std::os::unix::fs::symlink("hello.py", demo.join("link"))?;
        fs::File::create(demo.join("sparse"))?.set_len(4 << 20)?;
        std::os::unix::fs::lchown(demo.join("link"), Some(1000), Some(1000))?;
        sh::output(cmd("setfattr", ["-n", "user.demo", "-v", "yes"]).arg(demo.join("hello.py")))?;
        Ok(())
    })
}

/// Removes what differs between two builds of the same packages.
fn tidy(root: &Path) -> Result<()> {
    for file in [
        "var/log/bootstrap.log",
        "var/log/dpkg.log",
        "var/log/alternatives.log",
        "var/cache/ldconfig/aux-cache",
    ] {
        let _ = fs::remove_file(root.join(file));
    }
    for directory in ["var/log/apt", "var/cache/apt", "var/lib/apt/lists"] {
        let path = root.join(directory);
        if path.is_dir() {
            sh::output(cmd("find", [&path]).args(["-type", "f", "-delete"]))?;
        }
    }
    fs::write(root.join("etc/hostname"), "")?;
    fs::write(root.join("etc/resolv.conf"), "")?;
    Ok(())
}

/// The Debian mirror that this machine uses, for debootstrap.
fn mirror() -> Option<String> {
    crate::apt::machine_archive().ok().map(|(uri, _)| uri)
}
