//! Hooks that run in the runtime's namespaces, see config.md of the runtime
//! specification, "POSIX-platform Hooks".

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use oci_spec::runtime::Hook;
use serde_json::Value;

/// What a failed hook wrote that is repeated, in bytes.
const WORDS: usize = 2048;

/// Why a hook failed.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// It cannot be executed.
    #[error("cannot execute the {kind} hook {}", path.display())]
    Execute {
        /// Of which kind.
        kind: &'static str,
        /// Its path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It ended otherwise than with 0.
    #[error("the {kind} hook {} ended with {how}{words}", path.display())]
    Failed {
        /// Of which kind.
        kind: &'static str,
        /// Its path.
        path: PathBuf,
        /// Its status.
        how: String,
        /// What it wrote to stderr.
        words: String,
    },
    /// It took longer than its `timeout`.
    #[error("the {kind} hook {} did not end within {seconds} s, and was killed", path.display())]
    TimedOut {
        /// Of which kind.
        kind: &'static str,
        /// Its path.
        path: PathBuf,
        /// Its limit.
        seconds: u64,
    },
}

/// Runs hooks in their order; the first that fails ends it.
///
/// # Errors
/// As [`HookError`].
pub fn run(kind: &'static str, hooks: Option<&Vec<Hook>>, state: &Value) -> Result<(), HookError> {
    hooks.into_iter().flatten().try_for_each(|hook| one(kind, hook, state))
}

/// Runs all hooks, and tells of those that fail.
pub fn run_all(kind: &'static str, hooks: Option<&Vec<Hook>>, state: &Value) {
    for hook in hooks.into_iter().flatten() {
        if let Err(error) = one(kind, hook, state) {
            tracing::warn!("{}", crate::container::chain(&error));
        }
    }
}

fn one(kind: &'static str, hook: &Hook, state: &Value) -> Result<(), HookError> {
    let path = hook.path().clone();
    let execute = |source| HookError::Execute { kind, path: path.clone(), source };
    let mut command = Command::new(&path);
    let args = hook.args().as_deref().unwrap_or_default();
    if let Some(name) = args.first() {
        command.arg0(name);
    }
    // The environment is the hook's alone: ours is none of its business.
    command.args(args.iter().skip(1)).env_clear();
    for entry in hook.env().iter().flatten() {
        if let Some((name, value)) = entry.split_once('=') {
            command.env(name, value);
        }
    }
    // Into files: whatever the hook leaves running cannot make us wait for a pipe.
    let words = tempfile_for_words().map_err(execute)?;
    let copy = words.try_clone().map_err(execute)?;
    // A file as well: a hook that does not read its state must not stop us.
    let input = told(state).map_err(execute)?;
    command.stdin(input).stdout(Stdio::null()).stderr(copy);
    let mut child = command.spawn().map_err(execute)?;
    let limit = hook.timeout().and_then(|seconds| u64::try_from(seconds).ok());
    let begin = Instant::now();
    let mut pause = Duration::from_millis(1);
    let status = loop {
        if let Some(status) = child.try_wait().map_err(execute)? {
            break status;
        }
        if let Some(seconds) = limit.filter(|&seconds| begin.elapsed().as_secs() >= seconds) {
            let _ = child.kill();
            let _ = child.wait();
            return Err(HookError::TimedOut { kind, path, seconds });
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    };
    if status.success() {
        return Ok(());
    }
    let words = said(words);
    Err(HookError::Failed { kind, path, how: status.to_string(), words })
}

fn told(state: &Value) -> std::io::Result<std::fs::File> {
    use std::io::Seek;
    let mut file = tempfile_for_words()?;
    file.write_all(state.to_string().as_bytes())?;
    file.rewind()?;
    Ok(file)
}

fn tempfile_for_words() -> std::io::Result<std::fs::File> {
    let fd = nix::sys::memfd::memfd_create(c"hook", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
    Ok(fd.into())
}

fn said(mut file: std::fs::File) -> String {
    use std::io::{Read, Seek};
    let mut text = Vec::new();
    let read = file.rewind().and_then(|()| file.take(WORDS as u64).read_to_end(&mut text));
    let text = String::from_utf8_lossy(&text);
    match (read, text.trim()) {
        (Err(_), _) | (_, "") => String::new(),
        (_, text) => format!(": {text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn hook(value: Value) -> Vec<Hook> {
        vec![serde_json::from_value(value).unwrap()]
    }

    fn sh(script: &str, more: &Value) -> Vec<Hook> {
        let mut value = json!({"path": "/bin/sh", "args": ["sh", "-c", script]});
        for (key, entry) in more.as_object().unwrap() {
            value[key] = entry.clone();
        }
        hook(value)
    }

    #[test]
    fn it_gets_the_state_and_its_own_environment() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let script = format!("cat > {0}; echo \" $A ${{HOME-none}}\" >> {0}", out.display());
        let hooks = sh(&script, &json!({"env": ["A=b"]}));
        run("prestart", Some(&hooks), &json!({"id": "c"})).unwrap();
        assert_eq!(std::fs::read_to_string(out).unwrap(), "{\"id\":\"c\"} b none\n");
    }

    #[test]
    fn failures_are_told() {
        let failed = sh("echo oops >&2; exit 3", &json!({}));
        let error = run("prestart", Some(&failed), &json!({})).unwrap_err().to_string();
        assert_eq!(error, "the prestart hook /bin/sh ended with exit status: 3: oops");
        let slow = sh("exec sleep 5", &json!({"timeout": 1}));
        let error = run("poststop", Some(&slow), &json!({})).unwrap_err();
        assert!(matches!(error, HookError::TimedOut { seconds: 1, .. }));
        let absent = hook(json!({"path": "/no/such"}));
        let error = run("prestart", Some(&absent), &json!({})).unwrap_err();
        assert!(matches!(error, HookError::Execute { .. }));
    }
}
