//! A list of plugins, run in its order.

use std::fs::File;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::list::kind;
use super::plugin::Attachment;
use super::{CniError, NetworkList, PluginPath, Verb};

/// A namespace and the network that it is to be in, or to leave.
#[derive(Debug)]
pub struct Client<'a> {
    /// The network.
    pub list: &'a NetworkList,
    /// Where plugins are.
    pub path: &'a PluginPath,
    /// Whose namespace it is.
    pub container: &'a str,
    /// Name of the interface in it.
    pub interface: &'a str,
    /// What `capabilities` of plugins ask for, by capability.
    pub settings: &'a Map<String, Value>,
    /// Standard error of plugins.
    pub log: &'a File,
}

impl Client<'_> {
    /// Whether all plugins are installed.
    ///
    /// # Errors
    /// Names the first one that is not, and says what to install.
    pub fn find_all(&self) -> Result<(), CniError> {
        self.plugins().try_for_each(|plugin| self.path.find(name(plugin)).map(drop))
    }

    /// Puts the namespace into the network. After an error, part of it may be: see
    /// [`Client::del`]. `note` gets the result so far after each plugin.
    ///
    /// # Errors
    /// The first plugin's that fails, or that of `note`.
    pub fn add<E: From<CniError>>(
        &self,
        namespace: &Path,
        mut note: impl FnMut(&Value) -> Result<(), E>,
    ) -> Result<Value, E> {
        let mut result = None;
        for plugin in self.plugins() {
            let input = self.input(plugin, result.as_ref());
            let output = self.attachment(Some(namespace)).run(name(plugin), Verb::Add, &input)?;
            let answer = |source| CniError::Answer { plugin: name(plugin).into(), source };
            note(result.insert(serde_json::from_slice(&output).map_err(answer)?))?;
        }
        Ok(result.unwrap_or_default())
    }

    /// Takes the namespace out, as far as it is in it; it may be gone. All plugins are
    /// asked, whatever one of them says.
    ///
    /// # Errors
    /// The first one.
    pub fn del(&self, namespace: Option<&Path>, result: Option<&Value>) -> Result<(), CniError> {
        let mut outcome = Ok(());
        let plugins: Vec<_> = self.plugins().collect();
        for plugin in plugins.into_iter().rev() {
            let input = self.input(plugin, result);
            let ran = self.attachment(namespace).run(name(plugin), Verb::Del, &input);
            outcome = outcome.and(ran.map(drop));
        }
        outcome
    }

    /// Whether all is as [`Client::add`] made it.
    ///
    /// # Errors
    /// What is not.
    pub fn check(&self, namespace: &Path, result: &Value) -> Result<(), CniError> {
        if self.list.disable_check {
            return Ok(());
        }
        self.plugins().try_for_each(|plugin| {
            let input = self.input(plugin, Some(result));
            self.attachment(Some(namespace)).run(name(plugin), Verb::Check, &input).map(drop)
        })
    }

    /// Plugins that have something to do. Without ports, portmap gives back what it was
    /// given, for the price of a program.
    fn plugins(&self) -> impl Iterator<Item = &Map<String, Value>> {
        let ports = self.settings.contains_key("portMappings");
        self.list.plugins.iter().filter(move |plugin| ports || name(plugin) != "portmap")
    }

    fn attachment<'a>(&'a self, namespace: Option<&'a Path>) -> Attachment<'a> {
        let Client { path, container, interface, log, .. } = *self;
        Attachment { container, interface, namespace, path, log }
    }

    /// What a plugin reads.
    fn input(&self, plugin: &Map<String, Value>, result: Option<&Value>) -> Value {
        let mut input = plugin.clone();
        let capabilities = input.remove("capabilities").unwrap_or_default();
        input.insert("cniVersion".into(), json!(self.list.cni_version));
        input.insert("name".into(), json!(self.list.name));
        let asked = self.settings.iter().filter(|(name, _)| capabilities[name.as_str()] == true);
        let settings: Map<_, _> =
            asked.map(|(name, value)| (name.clone(), value.clone())).collect();
        if !settings.is_empty() {
            input.insert("runtimeConfig".into(), Value::Object(settings));
        }
        if let Some(result) = result {
            input.insert("prevResult".into(), result.clone());
        }
        Value::Object(input)
    }
}

fn name(plugin: &Map<String, Value>) -> &str {
    // Checked when the list was read.
    kind(plugin).unwrap_or_default()
}

#[cfg(test)]
mod tests;
