//! One plugin, run once.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::CniError;
use crate::programs;

/// Longest that a plugin may take. Those that call iptables wait for its lock.
const LIMIT: Duration = Duration::from_secs(90);
/// Where plugins are, unless CNI_PATH says otherwise: CNI's own directory, Debian's, Fedora's.
const DIRECTORIES: &str = "/opt/cni/bin:/usr/lib/cni:/usr/libexec/cni";
/// Most of a plugin's words that are told.
const MAX_WORDS: usize = 2048;

/// Directories of plugins, in the order in which they are searched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginPath(PathBuf);

impl PluginPath {
    /// `CNI_PATH`, or the usual ones.
    pub fn from_env() -> PluginPath {
        PluginPath(std::env::var_os("CNI_PATH").map_or_else(|| DIRECTORIES.into(), PathBuf::from))
    }

    #[cfg(test)]
    pub(super) fn of(directory: &Path) -> PluginPath {
        PluginPath(directory.into())
    }

    /// The program of the plugin `kind`.
    ///
    /// # Errors
    /// Says what to install.
    pub fn find(&self, kind: &str) -> Result<PathBuf, CniError> {
        let executable = |path: &PathBuf| {
            let file = std::fs::metadata(path);
            file.is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
        };
        let found = std::env::split_paths(&self.0).map(|dir| dir.join(kind)).find(executable);
        found.ok_or_else(|| CniError::Missing {
            plugin: kind.into(),
            path: self.0.to_string_lossy().into_owned(),
        })
    }
}

/// What a plugin is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Put the namespace into the network.
    Add,
    /// Take it out, as far as it is in it.
    Del,
    /// Say whether all is as ADD made it.
    Check,
}

impl std::fmt::Display for Verb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Verb::Add => "ADD",
            Verb::Del => "DEL",
            Verb::Check => "CHECK",
        })
    }
}

/// What all plugins of a list are told.
pub(super) struct Attachment<'a> {
    pub(super) container: &'a str,
    pub(super) interface: &'a str,
    pub(super) namespace: Option<&'a Path>,
    pub(super) path: &'a PluginPath,
    pub(super) log: &'a File,
}

/// CNI's form of an error.
#[derive(Deserialize)]
struct Refusal {
    code: u64,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

impl Attachment<'_> {
    /// Runs the plugin `kind`; what it printed.
    pub(super) fn run(&self, kind: &str, verb: Verb, input: &Value) -> Result<Vec<u8>, CniError> {
        let program = self.path.find(kind)?;
        let failed = |source| CniError::Run { plugin: kind.into(), verb, source };
        let mut command = Command::new(program);
        command.env_clear().env("PATH", search_path()).env("CNI_PATH", &self.path.0);
        command.env("CNI_COMMAND", verb.to_string()).env("CNI_CONTAINERID", self.container);
        command.env("CNI_IFNAME", self.interface).env("CNI_ARGS", "");
        command.env("CNI_NETNS", self.namespace.unwrap_or(Path::new("")));
        let log = self.log.try_clone().map_err(failed)?;
        let ended =
            programs::run(command, input.to_string().as_bytes(), log, LIMIT).map_err(failed)?;
        if ended.status.success() {
            return Ok(ended.stdout);
        }
        Err(match serde_json::from_slice::<Refusal>(&ended.stdout) {
            Ok(Refusal { code, msg, details }) => {
                let message = if details.is_empty() { msg } else { format!("{msg}: {details}") };
                CniError::Refused { plugin: kind.into(), verb, code, message: words(&message) }
            }
            Err(_) => {
                let said = words(&String::from_utf8_lossy(&ended.stdout));
                let said = if said.is_empty() { said } else { format!(": {said}") };
                CniError::Failed { plugin: kind.into(), verb, status: ended.status, said }
            }
        })
    }
}

/// Where plugins find iptables and the like, also under a sparse environment.
fn search_path() -> OsString {
    let ours = std::env::var_os("PATH").unwrap_or_default();
    let system = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";
    let all = std::env::split_paths(&ours).chain(std::env::split_paths(system));
    std::env::join_paths(all.filter(|dir| dir.is_absolute())).unwrap_or_else(|_| system.into())
}

fn words(text: &str) -> String {
    text.trim().chars().take(MAX_WORDS).collect()
}
