//! AppArmor in the guest's kernel: the profiles that `process.apparmorProfile` names
//! come from the host's kernel, along with the call, and are loaded here.
//!
//! The kernel takes policy by a file of securityfs, which is mounted for the moment and
//! attached nowhere. A container that may do so (CAP_MAC_ADMIN in the machine's own user
//! namespace) can mount it for itself, and change what is loaded: as it could on a host.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
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

/// The profiles that are loaded, with a hash of their policy.
#[derive(Debug, Default)]
pub struct Loaded(RefCell<HashMap<String, u64>>);

impl Loaded {
    /// Loads those of a call, but for what is loaded already: what changed on the host
    /// since then is replaced for all processes of the machine, as it is there.
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
        for policy in policies {
            let mut hasher = DefaultHasher::new();
            policy.binary.hash(&mut hasher);
            let hash = hasher.finish();
            if self.0.borrow().get(&policy.profile) != Some(&hash) {
                load(policy)?;
                self.0.borrow_mut().insert(policy.profile.clone(), hash);
            }
        }
        Ok(())
    }
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

    #[test]
    fn a_profile_needs_its_policy() {
        let policy = Policy { profile: "a".into(), binary: vec![1] };
        for nothing in [None, Some(""), Some("unconfined")] {
            assert_eq!(profile(nothing, &[]).unwrap(), None);
        }
        let error = profile(Some("a"), &[]).unwrap_err().to_string();
        assert!(error.starts_with("process.apparmorProfile: ") && error.contains("\"a\""));
        assert_eq!(profile(Some("a"), &[policy]).unwrap().as_deref(), Some("a"));
    }

    #[test]
    fn too_much_policy_is_refused() {
        let policy = |bytes| Policy { profile: "a".into(), binary: vec![0; bytes] };
        for policies in [vec![policy(MAX_BYTES), policy(1)], vec![policy(0); MAX_PROFILES + 1]] {
            let error = Loaded::default().load(&policies).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Invalid);
        }
    }
}
