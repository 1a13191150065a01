//! Overlays in /proc/self/mountinfo, see proc_pid_mountinfo(5).

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// An overlay in /proc/self/mountinfo.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Overlay {
    /// Where it is mounted.
    pub(super) point: PathBuf,
    /// Which of its directories is.
    pub(super) root: PathBuf,
    /// Uppermost first.
    pub(super) lower: Vec<PathBuf>,
    pub(super) upper: Option<PathBuf>,
    /// Options that change how layers are read.
    pub(super) kept: Vec<String>,
}

impl Overlay {
    /// A layer by its name.
    pub(super) fn open(&self, path: &Path) -> Option<File> {
        if path.is_absolute() {
            return open(path);
        }
        // It is one from the directory where the engine mounted, of which only this is
        // known: the layers lie below it, and so does the upper.
        let of_upper = self.upper.iter().flat_map(|upper| upper.ancestors().skip(1));
        of_upper.chain(self.point.ancestors()).find_map(|place| open(&place.join(path)))
    }

    /// A layer by the name of an id-mapped mount of it that is gone: podman and buildah
    /// (containers/storage, drivers/overlay) have one of their store at `ID/mapped/N`,
    /// beside the `ID/merged` of a container in a user namespace, only while they mount
    /// that.
    pub(super) fn open_mapped(&self, path: &Path) -> Option<File> {
        let container = self.point.parent()?;
        let mut below = path.strip_prefix(container).ok()?.iter();
        let (mapped, number) = (below.next()?, below.next()?.to_str()?);
        let rest = below.as_path();
        let is_one = mapped == "mapped" && number.parse::<u16>().is_ok();
        // Of the store, or of a container without layers: an empty directory of its own.
        let places = [container.parent()?, container].map(|place| place.join(rest));
        places.iter().filter(|_| is_one && rest != Path::new("")).find_map(|path| open(path))
    }
}

fn open(path: &Path) -> Option<File> {
    let mut options = File::options();
    options.read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY);
    options.open(path).ok()
}

/// The overlay that `path` lies on, if it lies on one: the longest mount point that
/// it begins with, and of several there the uppermost.
pub(super) fn find(info: &str, path: &Path) -> Option<Overlay> {
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
    fn a_layer_is_found_behind_a_mount_that_is_gone() {
        let store = tempfile::tempdir().unwrap();
        let at = |name: &str| store.path().join(name);
        for name in ["l", "layer/diff", "box/merged", "box/mapped/0", "box/empty"] {
            std::fs::create_dir_all(at(name)).unwrap();
        }
        std::os::unix::fs::symlink("../layer/diff", at("l/ABC")).unwrap();
        let overlay = Overlay { point: at("box/merged"), ..Overlay::default() };
        assert!(overlay.open(&at("box/mapped/0/l/ABC")).is_none());
        assert!(overlay.open_mapped(&at("box/mapped/0/l/ABC")).is_some());
        assert!(overlay.open_mapped(&at("box/mapped/1/empty")).is_some());
        for other in ["box/mapped/0", "box/mapped/x/l/ABC", "box/mapped/0/l/DEF", "layer/diff"] {
            assert!(overlay.open_mapped(&at(other)).is_none(), "{other}");
        }
    }

    #[test]
    fn escapes_are_undone() {
        assert_eq!(unescape("a\\040b\\134\\9"), Path::new("a b\\\\9"));
        assert_eq!(unescape("end\\04"), Path::new("end\\04"));
    }
}
