//! Reading a file out of stacked layers, as overlayfs would show it.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat, major, minor};

use crate::sys::descriptors::small_xattr;

/// Largest file that is read.
const MAX_FILE: u64 = 4 << 20;
/// Most symbolic links that are followed, as in the kernel.
const MAX_LINKS: usize = 40;
/// Most components of one lookup, links included.
const MAX_STEPS: usize = 512;

/// The layers of an image, top first.
#[derive(Debug)]
pub struct Layers(Vec<PathBuf>);

/// One directory of the merged tree: its part in each layer, top first.
type Merged = Vec<OwnedFd>;

enum Found {
    Directory(Merged),
    Link(Vec<u8>),
    File(File),
}

impl Layers {
    /// `layers` bottom first, as images list them.
    pub fn bottom_first(layers: &[PathBuf]) -> Layers {
        Layers(layers.iter().rev().cloned().collect())
    }

    /// Puts a layer on top.
    pub fn with_top(mut self, layer: PathBuf) -> Layers {
        self.0.insert(0, layer);
        self
    }

    /// The contents of a regular file; `None` when there is none, it is too
    /// large, or the layers cannot be read.
    pub fn read(&self, path: &str) -> Option<Vec<u8>> {
        let file = self.find(path).ok()??;
        let mut bytes = Vec::new();
        file.take(MAX_FILE + 1).read_to_end(&mut bytes).ok()?;
        (bytes.len() as u64 <= MAX_FILE).then_some(bytes)
    }

    fn find(&self, path: &str) -> nix::Result<Option<File>> {
        // The directories from the root to where we are; `..` pops one.
        let mut trail: Vec<Merged> = vec![self.roots()];
        let mut todo: VecDeque<Vec<u8>> = components(path.as_bytes()).collect();
        let mut links = 0;
        for _ in 0..MAX_STEPS {
            let Some(name) = todo.pop_front() else { return Ok(None) };
            if name == b".." {
                if trail.len() > 1 {
                    trail.pop();
                }
                continue;
            }
            let here = trail.last().ok_or(Errno::ENOENT)?;
            match lookup(here, OsStr::from_bytes(&name))? {
                None => return Ok(None),
                Some(Found::Directory(directory)) => trail.push(directory),
                Some(Found::File(file)) => return Ok(todo.is_empty().then_some(file)),
                Some(Found::Link(target)) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::ELOOP);
                    }
                    if target.first() == Some(&b'/') {
                        trail.truncate(1);
                    }
                    for part in components(&target).collect::<Vec<_>>().into_iter().rev() {
                        todo.push_front(part);
                    }
                }
            }
        }
        Err(Errno::ELOOP)
    }

    fn roots(&self) -> Merged {
        // The guest can put anything in the place of its own.
        let options = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut roots = Merged::new();
        for path in &self.0 {
            let Ok(root) = nix::fcntl::open(path, options, Mode::empty()) else { continue };
            let opaque = is_opaque(&root);
            roots.push(root);
            if opaque {
                break;
            }
        }
        roots
    }
}

fn components(path: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    path.split(|&byte| byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
        .map(<[u8]>::to_vec)
}

/// What `name` is in a merged directory.
fn lookup(directory: &Merged, name: &OsStr) -> nix::Result<Option<Found>> {
    let mut merged = Merged::new();
    let options = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    for layer in directory {
        let stat = match fstatat(layer, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => continue,
            other => other?,
        };
        let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
        if kind == SFlag::S_IFDIR {
            let part = openat(layer, name, options | OFlag::O_DIRECTORY, Mode::empty())?;
            let opaque = is_opaque(&part);
            merged.push(part);
            if opaque {
                break;
            }
            continue;
        }
        // Below a directory, anything else ends the merge.
        if !merged.is_empty() || is_whiteout(&stat, kind) {
            break;
        }
        return match kind {
            SFlag::S_IFLNK => Ok(Some(Found::Link(readlinkat(layer, name)?.into_encoded_bytes()))),
            SFlag::S_IFREG => {
                let file = File::from(openat(layer, name, options, Mode::empty())?);
                let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
                Ok(is_file.then_some(Found::File(file)))
            }
            _ => Ok(None),
        };
    }
    Ok((!merged.is_empty()).then_some(Found::Directory(merged)))
}

fn is_whiteout(stat: &FileStat, kind: SFlag) -> bool {
    kind == SFlag::S_IFCHR && (major(stat.st_rdev), minor(stat.st_rdev)) == (0, 0)
}

fn is_opaque(directory: &OwnedFd) -> bool {
    [c"trusted.overlay.opaque", c"user.overlay.opaque"]
        .iter()
        .any(|name| small_xattr(directory.as_fd(), name).is_some_and(|value| value == b"y"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, contents) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            match contents.strip_prefix("-> ") {
                Some(target) => symlink(target, path).unwrap(),
                None => fs::write(path, contents).unwrap(),
            }
        }
        dir
    }

    fn read(layers: &[&Path], path: &str) -> Option<String> {
        let layers: Vec<_> = layers.iter().map(|path| path.to_path_buf()).collect();
        let bytes = Layers::bottom_first(&layers).read(path)?;
        Some(String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn the_top_layer_wins_and_directories_merge() {
        let low = tree(&[("etc/passwd", "low"), ("etc/group", "low")]);
        let top = tree(&[("etc/passwd", "top")]);
        let layers = [low.path(), top.path()];
        assert_eq!(read(&layers, "/etc/passwd").unwrap(), "top");
        assert_eq!(read(&layers, "/etc/group").unwrap(), "low");
        assert_eq!(read(&layers, "/etc/shadow"), None);
        assert_eq!(read(&layers, "/etc"), None);
    }

    #[test]
    fn a_file_over_a_directory_hides_it() {
        let low = tree(&[("etc/passwd", "low")]);
        let top = tree(&[("etc", "a file")]);
        assert_eq!(read(&[low.path(), top.path()], "/etc/passwd"), None);
    }

    #[test]
    fn links_cross_layers_and_stay_inside() {
        let low = tree(&[("usr/lib/passwd", "inside"), ("up", "-> ../../../../usr/lib")]);
        let top = tree(&[
            ("etc/passwd", "-> /usr/lib/passwd"),
            ("etc/group", "-> ../up/passwd"),
            ("etc/out", "-> ../../../../../../../../etc/hostname"),
            ("etc/loop", "-> loop"),
        ]);
        let layers = [low.path(), top.path()];
        assert_eq!(read(&layers, "/etc/passwd").unwrap(), "inside");
        assert_eq!(read(&layers, "/etc/group").unwrap(), "inside");
        assert_eq!(read(&layers, "/etc/out"), None);
        assert_eq!(read(&layers, "/etc/loop"), None);
    }

    #[test]
    fn special_and_huge_files_are_refused() {
        let dir = tree(&[("etc/x", "")]);
        let fifo = dir.path().join("etc/passwd");
        nix::unistd::mkfifo(&fifo, Mode::S_IRUSR).unwrap();
        assert_eq!(read(&[dir.path()], "/etc/passwd"), None);
        let huge = File::create(dir.path().join("etc/group")).unwrap();
        huge.set_len(MAX_FILE + 1).unwrap();
        assert_eq!(read(&[dir.path()], "/etc/group"), None);
    }
}
