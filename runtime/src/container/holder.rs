//! Who holds a file's lock, by the kernel's word.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::stat::{major, minor};

/// Number of the process that has locked `path` for itself.
pub(super) fn of(path: &Path) -> Option<i32> {
    let file = std::fs::metadata(path).ok()?;
    let (major, minor) = (major(file.dev()), minor(file.dev()));
    let file = format!("{major:02x}:{minor:02x}:{}", file.ino());
    find(&std::fs::read_to_string("/proc/locks").ok()?, &file)
}

/// Who has the flock of `file` in the text of /proc/locks, see proc_locks(5).
fn find(locks: &str, file: &str) -> Option<i32> {
    locks.lines().find_map(|line| {
        // One who waits has an arrow in the second place.
        let [_, "FLOCK", _, "WRITE", pid, its_file, ..] =
            line.split_whitespace().collect::<Vec<_>>()[..]
        else {
            return None;
        };
        if its_file == file { pid.parse().ok() } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_told_from_those_who_wait_or_look() {
        let text = "1: POSIX  ADVISORY  WRITE 7 00:18:5 0 EOF\n\
                    2: FLOCK  ADVISORY  READ 8 00:18:5 0 EOF\n\
                    3: FLOCK  ADVISORY  WRITE 9 00:18:55 0 EOF\n\
                    4: FLOCK  ADVISORY  WRITE 10 00:18:5 0 EOF\n\
                    4: -> FLOCK  ADVISORY  WRITE 11 00:18:5 0 EOF\n";
        assert_eq!(find(text, "00:18:5"), Some(10));
        assert_eq!(find(text, "00:19:5"), None);
    }

    #[test]
    fn the_kernel_names_us() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(of(file.path()), None);
        file.as_file().lock().unwrap();
        assert_eq!(of(file.path()), Some(std::process::id() as i32));
    }
}
