//! AppArmor in the guest's kernel: the profiles that `process.apparmorProfile` names
//! come from the host's kernel, along with the call, and are loaded here.
//!
//! The kernel takes policy by a file of securityfs, which is mounted for the moment and
//! attached nowhere. A container that may do so (CAP_MAC_ADMIN in the machine's own user
//! namespace) can mount it for itself, and change what is loaded: as it could on a host.

use std::cell::RefCell;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::write;
use protocol::agent::{AgentError, ErrorKind};
use protocol::apparmor::{MAX_BYTES, MAX_PROFILES, Policy};

use crate::error::{SystemContext, error};
use crate::plan::{PlanError, field};
use crate::sys::mount::Context;

/// Takes policy, and replaces that of profiles which are loaded already
/// (`security/apparmor/apparmorfs.c`).
const REPLACE: &str = "apparmor/.replace";

/// The profile that a process is to have, of those whose policy came along.
///
/// # Errors
/// When the policy did not.
pub fn profile(name: Option<&str>, policies: &[Policy]) -> Result<Option<String>, PlanError> {
    match name {
        // "unconfined" asks for nothing: the roles are.
        None | Some("" | "unconfined") => Ok(None),
        Some(name) if policies.is_empty() => {
            let reason = format!("the policy of {name:?} did not come along from the host");
            Err(field("process.apparmorProfile", reason))
        }
        Some(name) => Ok(Some(name.to_owned())),
    }
}

/// Most profiles, and most bytes of policy, of one machine.
const MOST: (usize, usize) = (4 * MAX_PROFILES, 4 * MAX_BYTES);

/// What is loaded.
#[derive(Debug, Default)]
pub struct Loaded(RefCell<Vec<Policy>>);

impl Loaded {
    /// Loads those of a call, but for what is loaded already: what changed on the host
    /// since then is replaced for all processes of the machine, as it is there.
    ///
    /// A policy brings the profiles along that were loaded with it, which the host may have
    /// replaced since. So what is loaded of later revisions is loaded once more after it.
    ///
    /// # Errors
    /// When there are too many, or the kernel does not take one.
    pub fn load(&self, policies: &[Policy]) -> Result<(), AgentError> {
        let bytes: usize = policies.iter().map(|policy| policy.binary.len()).sum();
        if policies.len() > MAX_PROFILES || bytes > MAX_BYTES {
            let message = format!(
                "{} AppArmor profiles of {bytes} bytes: the limits are {MAX_PROFILES} and {MAX_BYTES}",
                policies.len()
            );
            return Err(error(ErrorKind::Invalid, message));
        }
        let (all, begin) = joined(&self.0.borrow(), policies);
        let bytes: usize = all.iter().map(|policy| policy.binary.len()).sum();
        if all.len() > MOST.0 || bytes > MOST.1 {
            let message = format!(
                "{} AppArmor profiles of {bytes} bytes in one machine: the limits are {} and {}",
                all.len(),
                MOST.0,
                MOST.1
            );
            return Err(error(ErrorKind::Invalid, message));
        }
        // What is not loaded again, because one before it fails, is not what is in force.
        let again = &all[begin..];
        let is_again = |other: &Policy| again.iter().any(|policy| policy.profile == other.profile);
        self.0.borrow_mut().retain(|other| !is_again(other));
        for policy in again {
            load(policy)?;
            self.0.borrow_mut().push(policy.clone());
        }
        Ok(())
    }
}

/// What is to be loaded when `new` comes to what is, by revisions, and how many of them
/// can stay as they are.
fn joined(loaded: &[Policy], new: &[Policy]) -> (Vec<Policy>, usize) {
    // One that was read on the host before another was loaded there may come after it.
    let is_old = |policy: &Policy| {
        let later =
            |other: &Policy| other.profile == policy.profile && other.revision > policy.revision;
        loaded.contains(policy) || loaded.iter().any(later)
    };
    let fresh: Vec<_> = new.iter().filter(|policy| !is_old(policy)).collect();
    let replaced = |old: &&Policy| !fresh.iter().any(|policy| policy.profile == old.profile);
    let mut all: Vec<_> = loaded.iter().filter(replaced).chain(fresh.iter().copied()).collect();
    // Stable: of two that came with one revision, which are the same policy, either goes.
    all.sort_by_key(|policy| policy.revision);
    let begin = all.iter().position(|policy| fresh.contains(policy)).unwrap_or(all.len());
    (all.into_iter().cloned().collect(), begin)
}

fn load(policy: &Policy) -> Result<(), AgentError> {
    let name = &policy.profile;
    let file = match open() {
        Err(Errno::ENOENT) => {
            let message = format!(
                "process.apparmorProfile: {name:?} cannot be loaded: the machine was started \
                 without AppArmor, which the host did not have then"
            );
            return Err(error(ErrorKind::Invalid, message));
        }
        file => file.system(|| format!("opening {REPLACE} of securityfs"))?,
    };
    // In one piece: the kernel takes each write for a policy of its own.
    match write(file, &policy.binary) {
        Ok(_) => Ok(()),
        Err(errno) => {
            let release = nix::sys::utsname::uname();
            let release = release.as_ref().map(|uname| uname.release().to_string_lossy());
            let message = format!(
                "process.apparmorProfile: the guest's kernel ({}) does not take the policy of \
                 {name:?} that the host's kernel has, which may be of a newer ABI: {errno}. Load \
                 it there for an older one (apparmor_parser --policy-features), or name no profile \
                 (--security-opt apparmor=unconfined)",
                release.as_deref().unwrap_or_default()
            );
            Err(error(ErrorKind::Invalid, message))
        }
    }
}

fn open() -> Result<OwnedFd, Errno> {
    let safe = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    let tree = Context::new("securityfs")?.mount(safe)?;
    openat(tree.fd(), REPLACE, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(profile: &str, revision: u64, binary: &[u8]) -> Policy {
        Policy { profile: profile.into(), revision, binary: binary.into() }
    }

    #[test]
    fn what_the_host_loaded_later_stays_in_force() {
        let names = |loaded: &[Policy], new: &[Policy]| {
            let (all, begin) = joined(loaded, new);
            let name = |policy: &Policy| format!("{}{}", policy.profile, policy.revision);
            all[begin..].iter().map(name).collect::<Vec<_>>().join(" ")
        };
        // The policy of `a` has an old `b` in it.
        let (a, b) = (policy("a", 3, b"ab"), policy("b", 5, b"b"));
        assert_eq!(names(std::slice::from_ref(&b), std::slice::from_ref(&a)), "a3 b5");
        assert_eq!(names(std::slice::from_ref(&a), std::slice::from_ref(&b)), "b5");
        assert_eq!(names(&[], &[b.clone(), a.clone()]), "a3 b5");
        assert_eq!(names(&[a.clone(), b.clone()], &[b.clone(), a.clone()]), "");
        assert_eq!(names(&[a, b.clone()], &[policy("a", 9, b"a")]), "a9");
        assert_eq!(names(&[b], &[policy("b", 4, b"b4")]), "");
    }

    #[test]
    fn a_profile_needs_its_policy() {
        let policy = policy("a", 1, &[1]);
        for nothing in [None, Some(""), Some("unconfined")] {
            assert_eq!(profile(nothing, &[]).unwrap(), None);
        }
        let error = profile(Some("a"), &[]).unwrap_err().to_string();
        assert!(error.starts_with("process.apparmorProfile: ") && error.contains("\"a\""));
        assert_eq!(profile(Some("a"), &[policy]).unwrap().as_deref(), Some("a"));
    }

    #[test]
    fn too_much_policy_is_refused() {
        let policy = |bytes| policy("a", 0, &vec![0; bytes]);
        for policies in [vec![policy(MAX_BYTES), policy(1)], vec![policy(0); MAX_PROFILES + 1]] {
            let error = Loaded::default().load(&policies).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Invalid);
        }
    }
}
