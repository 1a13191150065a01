//! kernel-config/bulkhead.config: options of Kconfig with their reasons.

use anyhow::{Result, bail};

/// The options, without the reasons.
#[derive(Debug)]
pub struct Fragment(Vec<(String, String)>);

impl Fragment {
    /// Takes the reasons off; an option without one is an error.
    pub fn parse(text: &str) -> Result<Self> {
        let mut options: Vec<(String, String)> = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let number = number + 1;
            let Some((option, reason)) = line.split_once(" #") else {
                bail!("line {number}: no reason beside the option: {line}");
            };
            let Some((name, value)) = option.trim().split_once('=') else {
                bail!("line {number}: expected CONFIG_NAME=VALUE: {line}");
            };
            if reason.trim().is_empty() || !name.starts_with("CONFIG_") || value.is_empty() {
                bail!("line {number}: expected CONFIG_NAME=VALUE # REASON: {line}");
            }
            if options.iter().any(|(known, _)| known == name) {
                bail!("line {number}: {name} stands here twice");
            }
            options.push((name.to_owned(), value.to_owned()));
        }
        Ok(Self(options))
    }

    /// The fragment as Kconfig reads it.
    pub fn text(&self) -> String {
        self.0.iter().map(|(name, value)| format!("{name}={value}\n")).collect()
    }

    /// What a finished `.config` has otherwise than it stands here.
    pub fn differences(&self, config: &str) -> Vec<String> {
        let value_of = |name: &str| {
            config
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
                .unwrap_or("n")
        };
        self.0
            .iter()
            .filter(|(name, value)| value_of(name) != value)
            .map(|(name, value)| format!("{name}={value} became {}", value_of(name)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_taken_off_and_asked_for() {
        let text =
            "# head\nCONFIG_A=y   # because\nCONFIG_B=\"x\" # why\n                 # more\n";
        let fragment = Fragment::parse(text).unwrap();
        assert_eq!(fragment.text(), "CONFIG_A=y\nCONFIG_B=\"x\"\n");
        assert!(Fragment::parse("CONFIG_A=y\n").unwrap_err().to_string().contains("no reason"));
        assert!(Fragment::parse("CONFIG_A=y # a\nCONFIG_A=n # b\n").is_err());
    }

    #[test]
    fn an_option_that_kconfig_dropped_is_found() {
        let fragment = Fragment::parse("CONFIG_A=y # a\nCONFIG_B=n # b\nCONFIG_C=y # c\n").unwrap();
        let config = "CONFIG_A=y\n# CONFIG_B is not set\n# CONFIG_C is not set\nCONFIG_AB=y\n";
        assert_eq!(fragment.differences(config), ["CONFIG_C=y became n"]);
        assert_eq!(
            fragment.differences("CONFIG_A=y\nCONFIG_B=y\nCONFIG_C=y\n"),
            ["CONFIG_B=n became y"]
        );
    }

    #[test]
    fn the_real_fragment_is_sound() {
        Fragment::parse(include_str!("../../../kernel-config/bulkhead.config")).unwrap();
    }
}
