//! Ids, capabilities, limits.

use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use super::{JailError, step, sys};

/// What a file server needs inside its own user namespace, over files that are
/// owned by this sandbox's ids: to create and change files in the name of the
/// guest's users.
const FILE_SERVER: &[Capability] = &[
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_MKNOD,
    Capability::CAP_SETFCAP,
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
];

/// Ids 0 of the own namespace, no supplementary groups.
pub fn become_namespace_root() -> Result<(), JailError> {
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    setgroups(&[]).map_err(step("cannot drop supplementary groups"))?;
    setresgid(gid, gid, gid).map_err(step("cannot take the sandbox's group id"))?;
    setresuid(uid, uid, uid).map_err(step("cannot take the sandbox's user id"))
}

/// No core dumps (they would hold guest memory; a limit alone does not hold for one
/// that is piped to a program), no realtime policies, as many descriptors as the
/// host allows (each inode that the guest knows is one).
pub fn limit_resources() -> Result<(), JailError> {
    let what = "cannot set resource limits";
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(step(what))?;
    sys::prctl(libc::PR_SET_DUMPABLE, 0).map_err(step("cannot forbid core dumps"))?;
    setrlimit(Resource::RLIMIT_RTPRIO, 0, 0).map_err(step(what))?;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(step(what))?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(step(what))
}

fn failed(error: caps::errors::CapsError) -> JailError {
    JailError::Capabilities(error.to_string())
}

/// Reduces every capability set to [`FILE_SERVER`].
pub fn keep_file_server_capabilities() -> Result<(), JailError> {
    let keep: CapsHashSet = FILE_SERVER.iter().copied().collect();
    for capability in caps::all() {
        // An error means that this kernel does not know the capability.
        let held = caps::has_cap(None, CapSet::Bounding, capability).unwrap_or(false);
        if held && !keep.contains(&capability) {
            caps::drop(None, CapSet::Bounding, capability).map_err(failed)?;
        }
    }
    caps::clear(None, CapSet::Ambient).map_err(failed)?;
    caps::set(None, CapSet::Effective, &keep).map_err(failed)?;
    caps::set(None, CapSet::Permitted, &keep).map_err(failed)?;
    caps::clear(None, CapSet::Inheritable).map_err(failed)
}

/// Takes everything from the calling thread.
pub fn drop_all_capabilities() -> Result<(), JailError> {
    caps::clear(None, CapSet::Effective).map_err(failed)?;
    caps::clear(None, CapSet::Permitted).map_err(failed)
}

/// Nothing that this process executes can gain privileges; seccomp wants it too.
pub fn no_new_privileges() -> Result<(), JailError> {
    sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).map_err(step("cannot set no_new_privs"))
}
