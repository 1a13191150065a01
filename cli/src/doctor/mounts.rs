//! Whether the state directory can be shared with a machine: really tried, in
//! namespaces that are gone at once.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use runtime::dirs::Dirs;
use runtime::rootless::is_rootless;
use runtime::sandbox::{share, uids};
use runtime::sys::process::{Held, Program, spawn_isolated};

use super::Finding;

const SUBJECT: &str = "id-mapped mounts";

pub(super) fn id_mapped() -> Finding {
    let directory = Dirs::from_env().lib;
    if let Err(error) = std::fs::create_dir_all(&directory) {
        let advice = "the directory must be writable; BULKHEAD_LIB_DIR names another";
        return Finding::fail(SUBJECT, format!("{}: {error}", directory.display()), advice);
    }
    if is_rootless() {
        return unmapped(&directory);
    }
    let held = match held() {
        Ok(held) => held,
        Err(error) => {
            let advice = "needs root, and a kernel with user, pid, network, ipc and uts namespaces";
            return Finding::fail(SUBJECT, format!("cannot make namespaces: {error}"), advice);
        }
    };
    let finding = attempt(&held, &directory);
    held.abandon();
    finding
}

/// Without root nothing is mapped.
fn unmapped(directory: &Path) -> Finding {
    let shared = File::open("/dev/null").map(|null| share::try_share(directory, null.as_fd()));
    let advice = "put the state directory elsewhere (BULKHEAD_LIB_DIR)";
    match shared {
        Ok(Ok(())) => {
            let detail = format!("not needed without root; {} can be shared", directory.display());
            Finding::ok(SUBJECT, detail)
        }
        Ok(Err(error)) => Finding::fail(SUBJECT, runtime::container::chain(&error), advice),
        Err(error) => Finding::fail(SUBJECT, format!("/dev/null: {error}"), advice),
    }
}

/// A process in new namespaces that never executes anything.
fn held() -> std::io::Result<Held> {
    let null = File::open("/dev/null")?;
    let program = Program {
        executable: null.as_fd(),
        name: c"bulkhead-doctor",
        control: null.as_fd(),
        stderr: null.as_fd(),
        cgroup: None,
    };
    Ok(spawn_isolated(&program)?)
}

fn attempt(held: &Held, directory: &Path) -> Finding {
    let map = format!("0 {} {}\n", uids::FIRST, uids::RANGE);
    let userns = held.map_ids(&map, &map).and_then(|()| held.user_namespace());
    let userns = match userns {
        Ok(userns) => userns,
        Err(error) => {
            let advice = "user namespaces are restricted on this host; see its security modules";
            return Finding::fail(SUBJECT, format!("cannot map ids: {error}"), advice);
        }
    };
    match share::try_share(directory, userns.as_fd()) {
        Ok(()) => Finding::ok(SUBJECT, format!("work on {}", directory.display())),
        Err(error) => {
            let advice = "put the state directory on ext4, xfs or btrfs (BULKHEAD_LIB_DIR)";
            Finding::fail(SUBJECT, runtime::container::chain(&error), advice)
        }
    }
}
