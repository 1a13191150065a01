//! A person without root: commands as a user that no file of the host knows of.

use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::program::{Finished, run};

/// Number of the user, and of its group.
pub const ID: u32 = 42_420;
/// First of its subordinate ids.
pub const FIRST: u32 = 1_600_000_000;

/// A user with a home and subordinate ids.
pub struct Person {
    home: TempDir,
}

impl Person {
    /// Makes one.
    ///
    /// # Panics
    /// When the files cannot be written.
    pub fn new() -> Person {
        Person::with(&format!("person:{FIRST}:65536\n"))
    }

    /// One whose subuid(5) is `subordinate`.
    ///
    /// # Panics
    /// As above.
    pub fn with(subordinate: &str) -> Person {
        // A disk: an overlay takes none as its upper layer. What is above it all may enter.
        let homes = Path::new("/var/lib/containers/bulkhead-tests");
        std::fs::create_dir_all(homes).expect("a directory");
        let home = tempfile::tempdir_in(homes).expect("a home");
        let passwd = std::fs::read_to_string("/etc/passwd").expect("/etc/passwd");
        let path = home.path().display().to_string();
        let passwd = format!("{passwd}person:x:{ID}:{ID}::{path}:/bin/sh\n");
        for (name, text) in [("passwd", &*passwd), ("subordinate", subordinate)] {
            std::fs::write(home.path().join(name), text).expect("a file");
        }
        chown(home.path(), Some(ID), Some(ID)).expect("chown as root");
        Person { home }
    }

    /// The home.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// A command of theirs. What the host's files do not say is mounted over them, for this
    /// process alone.
    pub fn command(&self, words: &[&str]) -> Command {
        let home = self.home().display().to_string();
        let kvm = std::fs::metadata("/dev/kvm").expect("/dev/kvm").gid();
        let script = format!(
            "set -e
             mount --bind {home}/passwd /etc/passwd
             for file in subuid subgid; do
                 [ -e /etc/$file ] || : >/etc/$file
                 mount --bind {home}/subordinate /etc/$file
             done
             cd {home}
             exec setpriv --reuid {ID} --regid {ID} --groups {kvm} \"$@\""
        );
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", &script, "sh"]).args(words);
        command.env("HOME", &home);
        for name in ["BULKHEAD_NETWORK", "TMPDIR", "XDG_DATA_HOME", "XDG_RUNTIME_DIR"] {
            command.env_remove(name);
        }
        command
    }

    /// `bulkhead` with `arguments`, run by them.
    #[track_caller]
    pub fn bulkhead(&self, arguments: &[&str]) -> Finished {
        run(self.command(&[&["bulkhead"], arguments].concat()))
    }
}

impl Default for Person {
    fn default() -> Person {
        Person::new()
    }
}
