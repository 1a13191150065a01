//! A container in the background, removed when the case ends.

use serde_json::Value;

use crate::program::{Finished, bulkhead};
use crate::small;

/// A container started by `run -d`.
#[derive(Debug)]
pub struct Background {
    /// Its id.
    pub id: String,
}

impl Background {
    /// `bulkhead run -d OPTIONS small COMMAND`.
    #[track_caller]
    pub fn start(options: &[&str], command: &[&str]) -> Background {
        let id = bulkhead(&[&["run", "-d"], options, &[small()], command].concat()).ok();
        assert_eq!(id.len(), 64, "`run -d` prints an id: {id}");
        Background { id }
    }

    /// One that idles.
    #[track_caller]
    pub fn idle(options: &[&str]) -> Background {
        Background::start(options, &["sleep", "100000"])
    }

    /// `bulkhead exec ID sh -c SCRIPT`.
    #[track_caller]
    pub fn exec(&self, script: &str) -> Finished {
        bulkhead(&["exec", &self.id, "sh", "-c", script])
    }

    /// What `inspect` says.
    #[track_caller]
    pub fn inspect(&self) -> Value {
        let text = bulkhead(&["inspect", &self.id]).ok();
        let mut all: Value = serde_json::from_str(&text).expect("inspect prints JSON");
        all[0].take()
    }

    /// Pid of its VMM.
    #[track_caller]
    pub fn vmm(&self) -> i32 {
        let pid = self.inspect()["Machine"]["Live"]["vmm"].as_i64();
        pid.and_then(|pid| i32::try_from(pid).ok()).expect("a live machine has a VMM")
    }

    /// Pid of its supervisor.
    #[track_caller]
    pub fn supervisor(&self) -> i32 {
        let pid = self.inspect()["State"]["Pid"].as_i64();
        pid.and_then(|pid| i32::try_from(pid).ok()).expect("a live container has a supervisor")
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let removed = bulkhead(&["rm", "-f", &self.id]);
        if !std::thread::panicking() {
            removed.expect(0);
        }
    }
}
