//! A client of CNI (github.com/containernetworking/cni, SPEC.md 1.0 and 0.4): plugins are
//! programs that put a network namespace into a network, and take it out again.
//!
//! ```text
//! NetworkList (a *.conflist)        plugins in order; ADD hands each the result so far,
//!   -> Client.add(namespace)        DEL goes backwards with the last one
//!   -> CniResult                    which the caller keeps for DEL
//! ```

mod client;
mod list;
mod plugin;
mod result;

pub use client::Client;
pub use list::{NetworkList, is_name};
pub use plugin::{PluginPath, Verb};
pub use result::{CniResult, Interface, Ip};

use std::path::PathBuf;

/// Why a plugin's work was not done.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// The list cannot be read.
    #[error("cannot read the network list {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no list.
    #[error("{}: not a network list of CNI: {what}", path.display())]
    List {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A plugin is not installed.
    #[error(
        "the CNI plugin {plugin:?} is not in {path}; install containernetworking-plugins \
         (Debian's package), name its directory by CNI_PATH, or use --network none"
    )]
    Missing {
        /// Its name.
        plugin: String,
        /// Where it was looked for.
        path: String,
    },
    /// It cannot be run, or does not end.
    #[error("CNI plugin {plugin}, {verb}")]
    Run {
        /// Its name.
        plugin: String,
        /// For what.
        verb: Verb,
        /// Why.
        source: std::io::Error,
    },
    /// It said no.
    #[error("CNI plugin {plugin} refused {verb}: {message} (code {code}{})", advice(*code))]
    Refused {
        /// Its name.
        plugin: String,
        /// What was asked.
        verb: Verb,
        /// CNI's or its own number.
        code: u64,
        /// Its words.
        message: String,
    },
    /// It failed without CNI's form of an error.
    #[error("CNI plugin {plugin} failed at {verb} ({status}){said}")]
    Failed {
        /// Its name.
        plugin: String,
        /// At what.
        verb: Verb,
        /// Exit status.
        status: std::process::ExitStatus,
        /// What it printed.
        said: String,
    },
    /// Its answer makes no sense.
    #[error("CNI plugin {plugin} gave a result that cannot be understood")]
    Answer {
        /// Its name.
        plugin: String,
        /// Why.
        source: serde_json::Error,
    },
}

/// What to do, by the numbers of the specification.
fn advice(code: u64) -> &'static str {
    match code {
        1 => ": the plugin does not know the list's cniVersion",
        2 => ": the plugin does not know a field of the list",
        7 => ": correct the network list",
        11 => ": try again later",
        _ => "",
    }
}
