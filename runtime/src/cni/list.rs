//! Network lists, as they lie in files.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::CniError;

/// Versions of the specification that we speak.
const VERSIONS: [&str; 3] = ["0.4.0", "1.0.0", "1.1.0"];
/// Longest file that is read.
const MAX_FILE: u64 = 1 << 20;
/// Most plugins of a list.
const MAX_PLUGINS: usize = 32;

/// A network: plugins in their order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkList {
    /// Version of the specification.
    pub cni_version: String,
    /// Name of the network.
    pub name: String,
    /// Whether CHECK is not to be called.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub disable_check: bool,
    /// Configuration of each plugin.
    pub plugins: Vec<Map<String, Value>>,
    /// What else is there: ours has its own settings here.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl NetworkList {
    /// Reads one.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn read(path: &Path) -> Result<NetworkList, CniError> {
        let failed = |source| CniError::Read { path: path.into(), source };
        let bytes = std::fs::metadata(path)
            .and_then(|file| match file.len() {
                0..=MAX_FILE => std::fs::read(path),
                _ => Err(std::io::Error::other("it is too large")),
            })
            .map_err(failed)?;
        let wrong = |what: String| CniError::List { path: path.into(), what };
        let list: NetworkList =
            serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
        list.check().map_err(wrong)?;
        Ok(list)
    }

    fn check(&self) -> Result<(), String> {
        if !VERSIONS.contains(&self.cni_version.as_str()) {
            let known = VERSIONS.join(", ");
            return Err(format!("cniVersion {:?} is none of {known}", self.cni_version));
        }
        if !is_name(&self.name) {
            return Err(format!("{:?} is no name of a network", self.name));
        }
        if self.plugins.is_empty() || self.plugins.len() > MAX_PLUGINS {
            return Err(format!("it must have 1 to {MAX_PLUGINS} plugins"));
        }
        self.plugins.iter().try_for_each(|plugin| kind(plugin).map(drop))
    }
}

/// The name of a plugin's program.
pub(super) fn kind(plugin: &Map<String, Value>) -> Result<&str, String> {
    let kind = plugin.get("type").and_then(Value::as_str).unwrap_or_default();
    let plain = !kind.is_empty() && !kind.starts_with('.') && !kind.contains(['/', '\0']);
    if plain { Ok(kind) } else { Err(format!("{kind:?} is no type of a plugin")) }
}

/// Whether `name` can be that of a network: as the specification has it, and no longer
/// than a file's name may be.
pub fn is_name(name: &str) -> bool {
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let rest = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    first && name.len() <= 64 && name.bytes().all(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<NetworkList, CniError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        NetworkList::read(file.path())
    }

    #[test]
    fn a_list_keeps_what_it_does_not_know() {
        let text = r#"{"cniVersion":"0.4.0","name":"a","plugins":[{"type":"x","y":[1]}],"z":{}}"#;
        let list = read(text).unwrap();
        assert_eq!(
            (list.plugins[0]["y"][0].as_u64(), list.other["z"].is_object()),
            (Some(1), true)
        );
        assert_eq!(serde_json::from_str::<Value>(text).unwrap(), serde_json::json!(list));
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (text, words) in [
            ("{", "EOF"),
            (
                r#"{"cniVersion":"0.2.0","name":"a","plugins":[{"type":"x"}]}"#,
                "cniVersion \"0.2.0\"",
            ),
            (r#"{"cniVersion":"1.0.0","name":"../a","plugins":[{"type":"x"}]}"#, "no name"),
            (r#"{"cniVersion":"1.0.0","name":"a","plugins":[]}"#, "1 to 32"),
            (r#"{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"../x"}]}"#, "no type"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        assert!(is_name("a_b.c-1") && !is_name("") && !is_name("-a") && !is_name("a b"));
    }
}
