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
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::ShareConfig;
use super::owner::{MapError, Mapper, Owner};
use crate::sys::mounts;

mod info;

use info::{Overlay, find};

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
    /// Its owners cannot be mapped.
    #[error(transparent)]
    Map(#[from] MapError),
    /// A system call.
    #[error("cannot {what}")]
    System {
        /// What failed.
        what: String,
        /// Why.
        source: std::io::Error,
    },
}

/// Another mount of what `config.source` shows, its ids mapped for `owner`.
pub(super) fn remount(
    config: &ShareConfig,
    id: &str,
    owner: &Owner,
) -> Result<OwnedFd, OverlayError> {
    let source = std::fs::canonicalize(&config.source).map_err(system("resolve the path"))?;
    let info = std::fs::read_to_string("/proc/self/mountinfo").map_err(system("read mounts"))?;
    let overlay = find(&info, &source).ok_or(OverlayError::Unlisted)?;
    let below = source.strip_prefix(&overlay.point).map_err(|_| OverlayError::Unlisted)?;
    let inner = overlay.root.strip_prefix("/").unwrap_or(&overlay.root).join(below);
    if !config.read_only && !inner.as_os_str().is_empty() {
        return Err(OverlayError::Part);
    }
    let mapper = owner.mapper(&config.ids)?;
    let layers = Layers::map(&overlay, config, owner, &mapper)?;
    let work = std::thread::scope(|scope| {
        let writer = mapper.writer;
        let (layers, inner) = (&layers, &inner);
        scope.spawn(move || layers.stack(inner, &work_of(id), writer)).join()
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

/// Layer `path`, which is open, mapped by `mapper`.
fn detach(
    path: &Path,
    layer: &File,
    mapper: &Mapper,
    read_only: bool,
) -> Result<OwnedFd, OverlayError> {
    let failed = |errno: nix::Error| OverlayError::System {
        what: format!("map the ids of its layer {}", path.display()),
        source: errno.into(),
    };
    let mount = mounts::clone_detached(layer.as_fd()).map_err(failed)?;
    mounts::restrict_and_map(mount.as_fd(), mapper.as_fd(), read_only).map_err(failed)?;
    Ok(mount)
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
    fn map(
        overlay: &Overlay,
        config: &ShareConfig,
        owner: &Owner,
        mapper: &Mapper,
    ) -> Result<Layers, OverlayError> {
        let map = |path: &Path, read_only: bool| match overlay.open(path) {
            Some(layer) => detach(path, &layer, mapper, read_only),
            None => Err(OverlayError::Layer(path.display().to_string())),
        };
        let lower = |path: &PathBuf| match (overlay.open(path), overlay.open_mapped(path)) {
            (None, Some(layer)) => detach(path, &layer, &*owner.engines(&config.ids)?, true),
            _ => map(path, true),
        };
        let mut lower: Vec<OwnedFd> =
            overlay.lower.iter().map(lower).collect::<Result<_, OverlayError>>()?;
        let mut upper = None;
        match &overlay.upper {
            Some(path) if config.read_only => lower.insert(0, map(path, true)?),
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
    fn stack(&self, inner: &Path, work: &str, writer: (u32, u32)) -> Result<OwnedFd, OverlayError> {
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
        write_as(writer)?;
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

/// Gives files that this thread makes to this user and group, and keeps its capabilities.
fn write_as((uid, gid): (u32, u32)) -> Result<(), OverlayError> {
    let failed = |error: caps::errors::CapsError| {
        system("keep the capabilities")(std::io::Error::other(error))
    };
    let all = caps::read(None, caps::CapSet::Permitted).map_err(failed)?;
    nix::unistd::setfsgid(gid.into());
    nix::unistd::setfsuid(uid.into());
    // The kernel took those that are about files with the id.
    caps::set(None, caps::CapSet::Effective, &all).map_err(failed)
}
