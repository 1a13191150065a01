//! Runs the hooks of the container's namespace, see config.md of the runtime
//! specification, "startContainer".

use std::io::{Seek, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{Context, RoleError};
use crate::plan::HookPlan;

/// Runs them in their order; the first that fails ends it. `state` lacks the pid,
/// which only this process knows.
///
/// # Errors
/// Names the hook.
pub fn run(hooks: &[HookPlan], state: &serde_json::Value) -> Result<(), RoleError> {
    let mut state = state.clone();
    if let Some(state) = state.as_object_mut() {
        state.insert("pid".into(), std::process::id().into());
    }
    let state = state.to_string();
    hooks.iter().try_for_each(|hook| {
        let what = || format!("running the startContainer hook {}", hook.path);
        one(hook, &state).context(what)
    })
}

fn one(hook: &HookPlan, state: &str) -> Result<(), Errno> {
    let errno = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
    let mut command = Command::new(&hook.path);
    if let Some(name) = hook.args.first() {
        command.arg0(name);
    }
    command.args(hook.args.iter().skip(1)).env_clear();
    command.envs(hook.env.iter().filter_map(|entry| entry.split_once('=')));
    // A file, not a pipe: a hook that does not read its state must not stop us.
    let input = memfd_create(c"state", MFdFlags::MFD_CLOEXEC)?;
    let mut input = std::fs::File::from(input);
    input.write_all(state.as_bytes()).and_then(|()| input.rewind()).map_err(errno)?;
    command.stdin(input).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(errno)?;
    let begin = Instant::now();
    loop {
        match child.try_wait().map_err(errno)? {
            Some(status) if status.success() => return Ok(()),
            // There is no number for "it said no".
            Some(_) => return Err(Errno::ECANCELED),
            None => {}
        }
        if hook.timeout.is_some_and(|limit| begin.elapsed().as_secs() >= limit) {
            let _ = child.kill();
            let _ = child.wait();
            return Err(Errno::ETIMEDOUT);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
