//! AppArmor profiles of the host's kernel, for a case.

use std::io::Cursor;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::program::feed;

/// A loaded profile with a name of its own. Dropped, it is unloaded.
#[derive(Debug)]
pub struct Profile {
    /// Its name.
    pub name: String,
}

impl Profile {
    /// One that allows everything but what `rules` deny.
    ///
    /// # Panics
    /// When the host has no AppArmor, or the rules are wrong.
    #[track_caller]
    pub fn load(rules: &str) -> Profile {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let profile = Profile { name: format!("bulkhead-e2e-{}-{number}", std::process::id()) };
        profile.replace(rules);
        profile
    }

    /// Gives it other rules.
    ///
    /// # Panics
    /// As [`Profile::load`].
    #[track_caller]
    pub fn replace(&self, rules: &str) {
        self.parser("--replace", rules).ok();
    }

    #[track_caller]
    fn parser(&self, verb: &str, rules: &str) -> crate::Finished {
        let text = format!(
            "profile {} flags=(attach_disconnected,mediate_deleted) {{\n\
             file,\ncapability,\nnetwork,\nmount,\numount,\nsignal,\nptrace,\nunix,\n{rules}\n}}\n",
            self.name
        );
        let mut parser = Command::new("apparmor_parser");
        parser.args([verb, "--skip-cache", "--quiet"]);
        feed(parser, Box::new(Cursor::new(text.into_bytes())))
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        let _ = self.parser("--remove", "");
    }
}
