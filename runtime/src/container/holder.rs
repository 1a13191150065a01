//! Who holds a file's lock, by the kernel's word.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Number of the process that has locked `path` for itself.
pub(super) fn of(path: &Path) -> Option<i32> {
    let file = File::open(path).ok()?;
    let (major, minor) = device(&file)?;
    let file = format!("{major:02x}:{minor:02x}:{}", file.metadata().ok()?.ino());
    find(&std::fs::read_to_string("/proc/locks").ok()?, &file)
}

/// Device of the file system, as /proc/locks has it: stat(2) tells another one on btrfs.
fn device(file: &File) -> Option<(u32, u32)> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
    let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    device_of(&mounts, mount)
}

/// Of a mount by its number, see proc_pid_mountinfo(5).
fn device_of(mounts: &str, mount: &str) -> Option<(u32, u32)> {
    mounts.lines().find_map(|line| {
        let [number, _, device, ..] = line.split(' ').collect::<Vec<_>>()[..] else { return None };
        let (major, minor) = device.split_once(':').filter(|_| number == mount)?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    })
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
    fn a_file_systems_device_is_its_mounts() {
        let text =
            "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n35 21 0:30 /@ /home rw - btrfs /dev/sdb rw\n";
        assert_eq!(device_of(text, "35"), Some((0, 30)));
        assert_eq!(device_of(text, "3"), None);
    }

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
