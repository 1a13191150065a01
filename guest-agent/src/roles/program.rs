//! Finds and executes the program, with the words that people know from runc.

use std::convert::Infallible;
use std::ffi::CString;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{AccessFlags, access, execve};
use protocol::agent::ErrorKind;

use crate::plan::ProcessPlan;

/// Why a program cannot be executed.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// Not in any directory of PATH.
    #[error("exec: {0:?}: executable file not found in $PATH")]
    NotInPath(String),
    /// A name with a slash that leads nowhere.
    #[error("exec: {0:?}: stat {0}: no such file or directory")]
    Missing(String),
    /// There, but not executable.
    #[error("exec: {0:?}: permission denied")]
    Denied(String),
    /// There, but a directory.
    #[error("exec: {0:?}: is a directory")]
    Directory(String),
    /// The working directory is not accessible.
    #[error("chdir to cwd ({0:?}) set in config.json failed")]
    Cwd(String, #[source] Errno),
    /// execve failed.
    #[error("exec {0}")]
    Exec(String, #[source] Errno),
}

impl ProgramError {
    /// Its class: the exit codes 127 and 126 come of it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            ProgramError::NotInPath(_)
            | ProgramError::Missing(_)
            | ProgramError::Exec(_, Errno::ENOENT) => ErrorKind::CommandNotFound,
            _ => ErrorKind::NotExecutable,
        }
    }
}

/// Changes into `process.cwd`.
///
/// # Errors
/// When it cannot be entered.
pub fn enter_cwd(plan: &ProcessPlan) -> Result<(), ProgramError> {
    nix::unistd::chdir(plan.cwd.as_str())
        .map_err(|errno| ProgramError::Cwd(plan.cwd.clone(), errno))
}

/// The path of the program, as the process itself (its ids, its working
/// directory, its PATH) finds it.
///
/// # Errors
/// As a shell would say it.
pub fn find(name: &str, env: &[String]) -> Result<String, ProgramError> {
    if name.contains('/') {
        return executable(name).map(|()| name.to_owned());
    }
    let path = env.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or_default();
    let mut denied = None;
    for directory in path.split(':').filter(|_| !name.is_empty()) {
        let directory = if directory.is_empty() { "." } else { directory };
        let candidate = format!("{}/{name}", directory.trim_end_matches('/'));
        match executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(ProgramError::Denied(_)) => denied = Some(ProgramError::Denied(name.to_owned())),
            Err(_) => {}
        }
    }
    Err(denied.unwrap_or_else(|| ProgramError::NotInPath(name.to_owned())))
}

fn executable(path: &str) -> Result<(), ProgramError> {
    let Ok(stat) = std::fs::metadata(path) else {
        return Err(match access(path, AccessFlags::F_OK) {
            Err(Errno::EACCES) => ProgramError::Denied(path.to_owned()),
            _ => ProgramError::Missing(path.to_owned()),
        });
    };
    if stat.is_dir() {
        return Err(ProgramError::Directory(path.to_owned()));
    }
    let permitted = access(path, AccessFlags::X_OK).is_ok() && stat.mode() & 0o111 != 0;
    if permitted { Ok(()) } else { Err(ProgramError::Denied(path.to_owned())) }
}

/// The environment, with HOME from the container's passwd file when it is
/// missing, as runc has it.
pub fn environment(plan: &ProcessPlan, passwd: &str) -> Vec<String> {
    let mut env = plan.env.clone();
    if !env.iter().any(|entry| entry.starts_with("HOME=") && entry.len() > 5) {
        env.retain(|entry| !entry.starts_with("HOME="));
        env.push(format!("HOME={}", home(passwd, plan.uid).unwrap_or("/")));
    }
    env
}

/// The home directory of `uid`. No NSS: a static program has none to load.
fn home(passwd: &str, uid: u32) -> Option<&str> {
    let uid = uid.to_string();
    passwd.lines().find_map(|line| {
        let mut words = line.split(':').skip(2);
        (words.next()? == uid).then(|| words.nth(2))?.filter(|home| !home.is_empty())
    })
}

/// Reads a file of the container, at most 1 MiB of it.
pub fn read_passwd() -> String {
    use std::io::Read;
    let mut text = Vec::new();
    // A FIFO named /etc/passwd would block the open.
    let is_file = std::fs::metadata("/etc/passwd").is_ok_and(|stat| stat.is_file());
    if let (true, Ok(file)) = (is_file, std::fs::File::open(Path::new("/etc/passwd"))) {
        let _ = file.take(1 << 20).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Executes `path`.
///
/// # Errors
/// The kernel's; on success it does not return.
pub fn execute(path: &str, args: &[String], env: &[String]) -> Result<Infallible, ProgramError> {
    let failed = |errno| ProgramError::Exec(path.to_owned(), errno);
    let strings = |words: &[String]| {
        words.iter().map(|word| CString::new(word.as_str())).collect::<Result<Vec<_>, _>>()
    };
    let (Ok(program), Ok(args), Ok(env)) = (CString::new(path), strings(args), strings(env)) else {
        return Err(failed(Errno::EINVAL));
    };
    execve(&program, &args, &env).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_looked_up_in_the_process_s_path() {
        let env = ["PATH=/nowhere:/bin".to_owned()];
        assert_eq!(find("sh", &env).unwrap(), "/bin/sh");
        let missing = find("no-such-command", &env).unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::CommandNotFound);
        assert_eq!(
            missing.to_string(),
            "exec: \"no-such-command\": executable file not found in $PATH"
        );
        assert_eq!(find("sh", &[]).unwrap_err().kind(), ErrorKind::CommandNotFound);
        assert_eq!(find("", &env).unwrap_err().kind(), ErrorKind::CommandNotFound);
    }

    #[test]
    fn a_path_must_lead_to_a_program() {
        assert_eq!(find("/no/such", &[]).unwrap_err().kind(), ErrorKind::CommandNotFound);
        assert_eq!(find("/etc", &[]).unwrap_err().kind(), ErrorKind::NotExecutable);
        assert_eq!(find("/etc/passwd", &[]).unwrap_err().kind(), ErrorKind::NotExecutable);
    }

    #[test]
    fn home_comes_from_passwd() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nx:x:7:7::/srv/x:/bin/sh\ny:x:8:8:::\n";
        assert_eq!(home(passwd, 0), Some("/root"));
        assert_eq!(home(passwd, 7), Some("/srv/x"));
        assert_eq!(home(passwd, 8), None);
        assert_eq!(home(passwd, 9), None);
    }
}
