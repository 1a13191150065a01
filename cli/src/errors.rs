//! What a person reads when a command fails, and its exit code.

use std::process::ExitCode;

use runtime::container::ContainerError;

/// Exit code of a failure of bulkhead itself in `run` and `exec`, as docker's.
pub const OWN: u8 = 125;

/// A failure with an exit code of its own.
#[derive(Debug)]
pub struct WithCode {
    code: u8,
    error: anyhow::Error,
}

impl WithCode {
    /// `error` shall end the command with `code`.
    pub fn wrap(code: u8, error: impl Into<anyhow::Error>) -> anyhow::Error {
        anyhow::Error::new(WithCode { code, error: error.into() })
    }
}

impl std::fmt::Display for WithCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for WithCode {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

/// For `run` and `exec`: failures of ours are 125, of the command 126 and 127.
pub fn like_docker(error: anyhow::Error) -> anyhow::Error {
    if error.is::<WithCode>() {
        return error;
    }
    let code = error.downcast_ref().map_or(OWN, ContainerError::exit_code);
    WithCode::wrap(code, error)
}

/// Prints the error with its causes, and gives the exit code.
pub fn report(error: &anyhow::Error) -> ExitCode {
    say(&chain(error));
    ExitCode::from(code(error))
}

/// Its exit code.
pub fn code(error: &anyhow::Error) -> u8 {
    error.downcast_ref::<WithCode>().map_or(1, |error| error.code)
}

/// Prints an error on stderr. Part of it may be a guest's words.
pub fn say(error: &str) {
    runtime::say(&format!("bulkhead: error: {}", runtime::sandbox::ended::tame(error)));
}

/// Prints on stderr what does not stop the command.
pub fn warn(text: &str) {
    runtime::say(&format!("bulkhead: warning: {}", runtime::sandbox::ended::tame(text)));
}

/// The error and its causes in one line.
pub fn chain(error: &anyhow::Error) -> String {
    runtime::container::chain(error.as_ref())
}

/// Wrong usage: clap's message; 0 for help and version, 125 as docker's.
pub fn usage(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(OWN) } else { ExitCode::SUCCESS }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn causes_come_in_one_line_and_once() {
        let error = anyhow::anyhow!("no space left").context("cannot write x");
        assert_eq!(chain(&error), "cannot write x: no space left");
        let same: anyhow::Result<()> = Err(anyhow::anyhow!("a: b"));
        assert_eq!(chain(&same.context("c: a: b").unwrap_err()), "c: a: b");
    }

    #[test]
    fn codes_survive_wrapping() {
        let error = like_docker(ContainerError::Interrupted(2).into());
        assert_eq!(error.downcast_ref::<WithCode>().unwrap().code, 130);
        let error = like_docker(like_docker(anyhow::anyhow!("x")));
        assert_eq!(error.downcast_ref::<WithCode>().unwrap().code, OWN);
        assert_eq!(error.to_string(), "x");
    }
}
