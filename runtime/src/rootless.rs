//! Without root: a user namespace in which this process is.
//!
//! ```text
//! bulkhead (a user)
//!   | a held child in a new user namespace
//!   | newuidmap, newgidmap: 0 is the user, 1..65535 are the user's subordinate ids
//!   | joins it, with a mount namespace of its own
//!   ` executes itself anew, as root in there
//! ```
//!
//! Each command makes one; all of a user's have the same map, so that what one has written is
//! the other's. As in the namespaces of podman, root of a machine is the user itself on the
//! disk: a file that the user may read or write is one that the machine may, if it is shared.

use std::convert::Infallible;
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{Gid, Uid, User, setresgid, setresuid};

use crate::dirs::{self, Dirs};
use crate::sandbox::uids::LOW;
use crate::sys::process;

/// How many ids beside the user's own the namespace has.
const SUBORDINATE: u32 = LOW - 1;

/// Why a command cannot run without root.
#[derive(Debug, thiserror::Error)]
pub enum RootlessError {
    /// Who is this?
    #[error("the user {0} is not known (/etc/passwd), and so has no subordinate ids")]
    Unknown(Uid),
    /// Too few ids.
    #[error(
        "the user {user} has {has} subordinate ids in {file}, and a container needs {SUBORDINATE}: \
         `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}` as root adds \
         some (ids that no other user has); or run it with sudo"
    )]
    Ids {
        /// Whose.
        user: String,
        /// In which file.
        file: &'static str,
        /// How many there are.
        has: u32,
    },
    /// No namespace.
    #[error(
        "cannot make a user namespace: see user.max_user_namespaces, \
         kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns; or run \
         it with sudo"
    )]
    Namespace(#[source] std::io::Error),
    /// No program.
    #[error(
        "cannot run {program}, which maps the user's subordinate ids: install uidmap (Debian's \
         package), or shadow-utils"
    )]
    Program {
        /// Which.
        program: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// It does not want to.
    #[error("{program} refuses: {said}")]
    Refused {
        /// Which.
        program: &'static str,
        /// Its words.
        said: String,
    },
    /// A namespace that somebody else made.
    #[error(
        "this user namespace has too few ids: a container needs 0 to {SUBORDINATE} of users and \
         groups, and setgroups; run it as a user outside of it"
    )]
    Poor,
    /// Of another group than at the login.
    #[error(
        "the group is {0}, and not the user's own: newuidmap takes no other; log in anew instead \
         of newgrp or sg"
    )]
    Group(Gid),
    /// Open to others.
    #[error(
        "{} must be a directory that nobody but its owner, who runs this, may change",
        .0.display()
    )]
    Shared(PathBuf),
    /// Not to be had.
    #[error("cannot keep state in {}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The program itself.
    #[error("cannot execute bulkhead in its user namespace")]
    Execute(#[source] std::io::Error),
}

/// Whether this process is in a user namespace of somebody, and so without a privilege on the
/// host, whoever it is in there.
pub fn is_rootless() -> bool {
    static ROOTLESS: OnceLock<bool> = OnceLock::new();
    *ROOTLESS.get_or_init(|| {
        let map = std::fs::read_to_string("/proc/self/uid_map");
        // Without /proc there is nothing to be told, and nothing that could be started.
        map.is_ok_and(|map| map.split_whitespace().ne(["0", "0", "4294967295"]))
    })
}

/// The user of the host who this is: outside of the namespace, if it is in one.
pub fn user() -> u32 {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let outside =
        map.lines().find_map(|line| match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["0", outside, _] => outside.parse().ok(),
            _ => None,
        });
    outside.filter(|_| is_rootless()).unwrap_or_else(|| Uid::effective().as_raw())
}

/// The ranges of ids (first, how many) that this process's namespace has: `uid_map` or
/// `gid_map`.
pub(crate) fn ranges(file: &str) -> Vec<(u32, u32)> {
    let map = std::fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_default();
    let range = |line: &str| match line.split_whitespace().collect::<Vec<_>>()[..] {
        [first, _, count] => Some((first.parse().ok()?, count.parse().ok()?)),
        _ => None,
    };
    map.lines().filter_map(range).collect()
}

/// Makes this process root, in a user namespace of its own where it is none: then it executes
/// itself anew. Only before there is a second thread.
///
/// # Errors
/// What is missing, and what to do.
pub fn enter() -> Result<(), RootlessError> {
    if Uid::effective().is_root() {
        if is_rootless() {
            check_namespace()?;
            check_directories()?;
        }
        return Ok(());
    }
    match become_root()? {}
}

fn become_root() -> Result<Infallible, RootlessError> {
    let (uid, gid) = (Uid::effective(), Gid::effective());
    let user = User::from_uid(uid).ok().flatten().ok_or(RootlessError::Unknown(uid))?;
    if user.gid != gid {
        return Err(RootlessError::Group(gid));
    }
    let user = user.name;
    let uids = arguments(&user, uid, uid.as_raw(), "/etc/subuid")?;
    let gids = arguments(&user, uid, gid.as_raw(), "/etc/subgid")?;
    let namespace = process::user_namespace_by(|pid| {
        map("newuidmap", pid, &uids)?;
        map("newgidmap", pid, &gids)
    });
    let namespace = namespace.map_err(RootlessError::Namespace)??;
    let join = || -> nix::Result<()> {
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWUSER)?;
        unshare(CloneFlags::CLONE_NEWNS)?;
        let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
        // The further groups stay: one of them may open /dev/kvm.
        setresgid(gid, gid, gid)?;
        setresuid(uid, uid, uid)
    };
    join().map_err(|errno| RootlessError::Namespace(errno.into()))?;
    let mut words = std::env::args_os();
    let name = words.next().unwrap_or_else(|| OsString::from("bulkhead"));
    Err(RootlessError::Execute(Command::new("/proc/self/exe").arg0(name).args(words).exec()))
}

/// What newuidmap or newgidmap is told after the process: own id, then `file`'s.
fn arguments(
    user: &str,
    uid: Uid,
    own: u32,
    file: &'static str,
) -> Result<Vec<String>, RootlessError> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let extents = subordinate(&text, user, uid.as_raw());
    let has = extents.iter().map(|(_, count)| count).sum();
    if has < SUBORDINATE {
        return Err(RootlessError::Ids { user: user.into(), file, has });
    }
    let mut inside = 1;
    let mut words = vec![(0, own, 1)];
    for (first, count) in extents {
        words.push((inside, first, count));
        inside += count;
    }
    Ok(words.iter().flat_map(|(a, b, c)| [a, b, c].map(u32::to_string)).collect())
}

/// The first ids of subuid(5) that are enough.
fn subordinate(text: &str, user: &str, uid: u32) -> Vec<(u32, u32)> {
    let of_user = |line: &str| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let (first, count) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        (owner == user || owner.parse() == Ok(uid)).then_some((first, count))
    };
    let mut left = SUBORDINATE;
    let mut extents: Vec<(u32, u32)> = text.lines().filter_map(of_user).collect();
    for (_, count) in &mut extents {
        *count = left.min(*count);
        left -= *count;
    }
    extents.retain(|(_, count)| *count > 0);
    extents
}

fn map(program: &'static str, pid: i32, words: &[String]) -> Result<(), RootlessError> {
    let output = Command::new(program).arg(pid.to_string()).args(words).output();
    let output = output.map_err(|source| RootlessError::Program { program, source })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(RootlessError::Refused { program, said })
}

/// Where a user's state lies, as (volatile, lasting): see the XDG base directory
/// specification. Both are in the home, since a session's directory is gone before a container
/// that outlives the session, and with it would be the locks that keep a second machine off its
/// files. What no live process holds is taken for the past's, after a reboot as well.
pub(crate) fn directories() -> (PathBuf, PathBuf) {
    let from = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = from("HOME").unwrap_or_else(|| PathBuf::from("/"));
    let lib = from("XDG_DATA_HOME").unwrap_or_else(|| home.join(".local/share")).join("bulkhead");
    (lib.join("run"), lib)
}

/// Makes the directories, and refuses those that others may change.
fn check_directories() -> Result<(), RootlessError> {
    let Dirs { run, lib } = Dirs::from_env();
    for path in [lib, run] {
        let check = || -> std::io::Result<bool> {
            dirs::make_private(&path)?;
            let found = std::fs::symlink_metadata(&path)?;
            Ok(found.is_dir() && found.uid() == 0 && found.mode() & 0o022 == 0)
        };
        match check() {
            Ok(true) => {}
            Ok(false) => return Err(RootlessError::Shared(path)),
            Err(source) => return Err(RootlessError::Directory { path, source }),
        }
    }
    Ok(())
}

/// Whether this namespace has what a machine needs.
fn check_namespace() -> Result<(), RootlessError> {
    let whole = |file| {
        let mut ranges = ranges(file);
        ranges.sort_unstable();
        let end = |next: u64, (first, count): (u32, u32)| match u64::from(first) <= next {
            true => next.max(u64::from(first) + u64::from(count)),
            false => next,
        };
        ranges.into_iter().fold(0, end) >= u64::from(LOW)
    };
    let groups = std::fs::read_to_string("/proc/self/setgroups").unwrap_or_default();
    match whole("uid_map") && whole("gid_map") && groups.trim() != "deny" {
        true => Ok(()),
        false => Err(RootlessError::Poor),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_of_the_user_by_name_or_number() {
        let text = "other:1:65535\nme:100000:60000\n# me:7:7\n1000:300000:65536\nme:x:1\n";
        assert_eq!(subordinate(text, "me", 1000), [(100_000, 60_000), (300_000, 5535)]);
        assert_eq!(subordinate(text, "me", 1), [(100_000, 60_000)]);
        assert_eq!(subordinate(text, "nobody", 65534), []);
        assert_eq!(subordinate("me:1:4294967295", "me", 1), [(1, SUBORDINATE)]);
    }

    #[test]
    fn what_is_missing_is_told() {
        let error = arguments("me", Uid::from_raw(1), 1, "/no/such").unwrap_err().to_string();
        assert!(error.contains("has 0 subordinate ids in /no/such"), "{error}");
        assert!(error.contains("usermod --add-subuids"), "{error}");
    }
}
