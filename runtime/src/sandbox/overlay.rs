//! A directory on an overlay (a container's root file system, as engines mount
//! it) as an id-mapped mount.
//!
//! The kernel does not map the ids of an overlay, but those of its layers. So the
//! same layers are mapped one by one, and stacked once more:
//!
//! ```text
//! lowerdir  -> id-mapped clone -> 0, 1, 2 ...  \
//! upperdir's parent -> clone   -> u/            > overlay -> detached clone of it
//! a work directory beside the engine's own     /
//! ```
//!
//! A thread with a mount namespace of its own does so; what is left when it ends
//! is the detached mount. Changes go to the engine's own upper directory in the
//! form that the engine expects (`trusted.overlay.*`, character devices 0:0 for
//! what was removed), so that its `diff`, `commit` and `cp` work. The engine's own
//! mount of the same layers stays: it must not have `index=on`, and what it has
//! cached of a directory may be old.

use std::ffi::CString;
use std::fs::{DirBuilder, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::ShareConfig;
use crate::sys::mounts;

/// Our work directory beside the upper one, of sandbox `id`.
fn work_of(id: &str) -> String {
    format!("bulkhead-work-{id}")
}

/// What mount(2) takes as options.
const PAGE: usize = 4096;

/// Why an overlay cannot be mounted once more.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// Not in the list of mounts.
    #[error("/proc/self/mountinfo does not list the mount that it is on")]
    Unlisted,
    /// Changing a part of an overlay that others use.
    #[error(
        "only the root of an overlay can be shared writable, because its layers would be \
         changed behind its back: share it read-only, or use a path on another file system"
    )]
    Part,
    /// A layer by a name that leads nowhere.
    #[error("its layer {0:?} was not found")]
    Layer(String),
    /// A system call.
    #[error("cannot {what}")]
    System {
        /// What failed.
        what: String,
        /// Why.
        source: std::io::Error,
    },
}

/// An overlay in /proc/self/mountinfo.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Overlay {
    /// Where it is mounted.
    point: PathBuf,
    /// Which of its directories is.
    root: PathBuf,
    /// Uppermost first.
    lower: Vec<PathBuf>,
    upper: Option<PathBuf>,
    /// Options that change how layers are read.
    kept: Vec<String>,
}

/// Another mount of what `config.source` shows, its ids mapped by `userns`, whose
/// id 0 is `base` on the host.
pub(super) fn remount(
    config: &ShareConfig,
    id: &str,
    userns: BorrowedFd,
    base: u32,
) -> Result<OwnedFd, OverlayError> {
    let source = std::fs::canonicalize(&config.source).map_err(system("resolve the path"))?;
    let info = std::fs::read_to_string("/proc/self/mountinfo").map_err(system("read mounts"))?;
    let overlay = find(&info, &source).ok_or(OverlayError::Unlisted)?;
    let below = source.strip_prefix(&overlay.point).map_err(|_| OverlayError::Unlisted)?;
    let inner = overlay.root.strip_prefix("/").unwrap_or(&overlay.root).join(below);
    if !config.read_only && !inner.as_os_str().is_empty() {
        return Err(OverlayError::Part);
    }
    let layers = Layers::map(&overlay, config.read_only, userns)?;
    let work = std::thread::scope(|scope| {
        let thread = scope.spawn(|| layers.stack(&inner, &work_of(id), base));
        thread.join()
    });
    // It has no way to panic, but for a lack of memory.
    work.unwrap_or_else(|_| Err(system("stack the layers")(std::io::ErrorKind::Other.into())))
}

/// Removes the work directory that a writable overlay at `root` was given for
/// sandbox `id`.
pub fn clean(root: &Path, id: &str) {
    let info = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let upper = find(&info, root).filter(|overlay| overlay.point == root).and_then(|o| o.upper);
    if let Some(parent) = upper.as_deref().and_then(Path::parent)
        && let Err(error) = crate::dirs::remove_tree(&parent.join(work_of(id)))
    {
        tracing::warn!("cannot remove the work directory of an overlay: {error}");
    }
}

fn system(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> OverlayError {
    move |source| OverlayError::System { what: what.into(), source }
}

/// The layers as detached, id-mapped mounts: only the mount namespace that has a
/// mount may clone it, which the one where they are stacked does not.
struct Layers {
    /// Uppermost first.
    lower: Vec<OwnedFd>,
    /// The parent of the upper directory, and that one's name.
    upper: Option<(OwnedFd, CString)>,
    kept: Vec<String>,
}

impl Layers {
    fn map(overlay: &Overlay, read_only: bool, userns: BorrowedFd) -> Result<Layers, OverlayError> {
        // A relative name is one from the directory where the engine mounted, of
        // which only this is known: the layers lie below it, and so does the upper.
        let places: Vec<&Path> = overlay
            .upper
            .iter()
            .flat_map(|upper| upper.ancestors().skip(1))
            .chain(overlay.point.ancestors())
            .collect();
        let map = |path: &Path, read_only: bool| {
            let mut options = File::options();
            options.read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY);
            let mut candidates: Vec<PathBuf> = vec![path.into()];
            if path.is_relative() {
                candidates = places.iter().map(|place| place.join(path)).collect();
            }
            let found = candidates.iter().find_map(|path| options.open(path).ok());
            let found = found.ok_or_else(|| OverlayError::Layer(path.display().to_string()))?;
            let failed = |errno: nix::Error| OverlayError::System {
                what: format!("map the ids of its layer {}", path.display()),
                source: errno.into(),
            };
            let layer = mounts::clone_detached(found.as_fd()).map_err(failed)?;
            mounts::restrict_and_map(layer.as_fd(), userns, read_only).map_err(failed)?;
            Ok(layer)
        };
        let mut lower: Vec<OwnedFd> =
            overlay.lower.iter().map(|path| map(path, true)).collect::<Result<_, _>>()?;
        let mut upper = None;
        match &overlay.upper {
            Some(path) if read_only => lower.insert(0, map(path, true)?),
            Some(path) => {
                let missing = || OverlayError::Layer(path.display().to_string());
                let parent = map(path.parent().ok_or_else(missing)?, false)?;
                let name = path.file_name().ok_or_else(missing)?;
                let name = CString::new(name.as_encoded_bytes()).map_err(|_| missing())?;
                upper = Some((parent, name));
            }
            None => {}
        }
        Ok(Layers { lower, upper, kept: overlay.kept.clone() })
    }

    /// In a thread of its own: leaves the mount namespace of the process, and its
    /// working directory.
    fn stack(&self, inner: &Path, work: &str, base: u32) -> Result<OwnedFd, OverlayError> {
        let errno = |what: &str| {
            let what = what.to_owned();
            move |errno: nix::Error| OverlayError::System { what, source: errno.into() }
        };
        unshare(CloneFlags::CLONE_NEWNS).map_err(errno("make a mount namespace"))?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
            .map_err(errno("make the mounts private"))?;
        // Anywhere: nobody else sees it, and no path is needed any more.
        let stage = "/proc";
        mount(Some("tmpfs"), stage, Some("tmpfs"), MsFlags::empty(), none)
            .map_err(errno("mount a tmpfs"))?;
        nix::unistd::chdir(stage).map_err(errno("enter the tmpfs"))?;

        let place = |layer: &OwnedFd, name: &str| {
            std::fs::create_dir(name).map_err(system("make a mount point"))?;
            let name = CString::new(name).map_err(|_| OverlayError::Unlisted)?;
            mounts::attach(layer.as_fd(), &name).map_err(errno("attach a layer"))
        };
        let names: Vec<String> = (0..self.lower.len()).map(|index| index.to_string()).collect();
        for (layer, name) in self.lower.iter().zip(&names) {
            place(layer, name)?;
        }
        let mut options = vec![format!("lowerdir={}", names.join(":")), "index=off".to_owned()];
        options.extend(self.kept.iter().cloned());
        if let Some((parent, name)) = &self.upper {
            place(parent, "u")?;
            std::fs::create_dir("m").map_err(system("make a mount point"))?;
            let name = name.to_str().map_err(|_| OverlayError::Layer(format!("{name:?}")))?;
            if name.contains([',', ':', '\\']) {
                return Err(OverlayError::Layer(name.into()));
            }
            options.push(format!("upperdir=u/{name},workdir=u/{work}"));
        } else {
            std::fs::create_dir("m").map_err(system("make a mount point"))?;
        }
        // Whoever mounts an overlay makes its work directory and what marks removed
        // files: by an id that the layers' map knows, with root's power all the same.
        become_owner(base)?;
        if self.upper.is_some() {
            let made = DirBuilder::new().mode(0o700).create(format!("u/{work}"));
            if let Err(error) = made
                && error.kind() != std::io::ErrorKind::AlreadyExists
            {
                return Err(system("make a work directory")(error));
            }
        }
        let options = options.join(",");
        if options.len() >= PAGE {
            let error = std::io::ErrorKind::ArgumentListTooLong.into();
            return Err(system("stack so many layers")(error));
        }
        let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
        mount(Some("overlay"), "m", Some("overlay"), flags, Some(options.as_str()))
            .map_err(errno("stack the layers"))?;
        let mut path_only = File::options();
        path_only.read(true).custom_flags(libc::O_PATH);
        let shown = path_only.open(Path::new("m").join(inner)).map_err(system("open it"))?;
        let mount = mounts::clone_detached(shown.as_fd()).map_err(errno("clone the mount"))?;
        mounts::restrict(mount.as_fd(), self.upper.is_none()).map_err(errno("restrict it"))?;
        Ok(mount)
    }
}

/// Gives files that this thread makes to id `base`, and keeps its capabilities.
fn become_owner(base: u32) -> Result<(), OverlayError> {
    let failed = |error: caps::errors::CapsError| {
        system("keep the capabilities")(std::io::Error::other(error))
    };
    let all = caps::read(None, caps::CapSet::Permitted).map_err(failed)?;
    nix::unistd::setfsgid(base.into());
    nix::unistd::setfsuid(base.into());
    // The kernel took those that are about files with the id.
    caps::set(None, caps::CapSet::Effective, &all).map_err(failed)
}

/// The overlay that `path` lies on, if it lies on one: the longest mount point that
/// it begins with, and of several there the uppermost.
fn find(info: &str, path: &Path) -> Option<Overlay> {
    let mut best: Option<(PathBuf, &str)> = None;
    for line in info.lines() {
        let Some(point) = line.split(' ').nth(4).map(unescape) else { continue };
        let longer = best.as_ref().is_none_or(|(other, _)| point.starts_with(other));
        if path.starts_with(&point) && longer {
            best = Some((point, line));
        }
    }
    parse(best?.1)
}

fn parse(line: &str) -> Option<Overlay> {
    let (mount, super_block) = line.split_once(" - ")?;
    let mut words = super_block.split(' ');
    if words.next()? != "overlay" {
        return None;
    }
    let options = words.nth(1)?;
    let mut mount = mount.split(' ').skip(3);
    let mut overlay = Overlay {
        root: unescape(mount.next()?),
        point: unescape(mount.next()?),
        ..Overlay::default()
    };
    for option in options.split(',') {
        match option.split_once('=') {
            Some(("lowerdir", list)) => overlay.lower.extend(split_layers(list)),
            Some(("lowerdir+", path)) => overlay.lower.push(unescape(path)),
            Some(("upperdir", path)) => overlay.upper = Some(unescape(path)),
            Some(("metacopy" | "redirect_dir", _)) => overlay.kept.push(option.to_owned()),
            // Others without a value do not change how layers are read.
            None if option == "userxattr" => overlay.kept.push(option.to_owned()),
            _ => {}
        }
    }
    (!overlay.lower.is_empty()).then_some(overlay)
}

/// Splits at colons, but for those behind a backslash.
fn split_layers(list: &str) -> Vec<PathBuf> {
    let list = unescape(list).to_string_lossy().into_owned();
    let mut layers = vec![String::new()];
    let mut chars = list.chars();
    while let Some(char) = chars.next() {
        let last = layers.last_mut().expect("it begins with one");
        match char {
            '\\' => last.extend(chars.next()),
            ':' => layers.push(String::new()),
            char => last.push(char),
        }
    }
    layers.into_iter().filter(|layer| !layer.is_empty()).map(PathBuf::from).collect()
}

/// Undoes the kernel's `\ooo`.
fn unescape(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let digits =
            tail.get(..3).filter(|d| byte == b'\\' && d.iter().all(|d| (b'0'..b'8').contains(d)));
        match digits {
            Some(digits) => {
                let value =
                    digits.iter().fold(0u32, |sum, digit| sum * 8 + u32::from(digit - b'0'));
                bytes.push(value as u8);
                rest = &tail[3..];
            }
            None => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "22 1 0:21 / / rw shared:1 - ext4 /dev/vda rw\n\
        90 22 0:50 / /var/lib/c/merged rw,relatime shared:9 - overlay overlay \
        rw,lowerdir=l/ABC:l/D\\134:E,upperdir=/var/lib/c/a\\040b/diff,workdir=/var/lib/c/work,\
        redirect_dir=on,index=off,metacopy=on,volatile\n\
        91 22 0:51 /sub /mnt rw - overlay overlay ro,lowerdir=/x:/y,userxattr\n";

    #[test]
    fn an_overlay_is_found_by_a_path_on_it() {
        let overlay = find(INFO, Path::new("/var/lib/c/merged/etc")).unwrap();
        assert_eq!(overlay.point, Path::new("/var/lib/c/merged"));
        assert_eq!(overlay.lower, [Path::new("l/ABC"), Path::new("l/D:E")]);
        assert_eq!(overlay.upper.as_deref(), Some(Path::new("/var/lib/c/a b/diff")));
        assert_eq!(overlay.kept, ["redirect_dir=on", "metacopy=on"]);
        let part = find(INFO, Path::new("/mnt")).unwrap();
        assert_eq!((part.root.as_path(), part.upper), (Path::new("/sub"), None));
        assert_eq!(part.kept, ["userxattr"]);
        assert_eq!(find(INFO, Path::new("/var/lib/c")), None);
    }

    #[test]
    fn escapes_are_undone() {
        assert_eq!(unescape("a\\040b\\134\\9"), Path::new("a b\\\\9"));
        assert_eq!(unescape("end\\04"), Path::new("end\\04"));
    }
}
