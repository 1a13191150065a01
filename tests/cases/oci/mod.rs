//! The OCI command line. Each case is written from the specification and runs with
//! runc and with ours, so that every difference is seen.

mod apparmor;
mod attributes;
mod cgroup1;
mod fields;
mod growth;
mod hooks;
mod killed;
mod lifecycle;
mod paths;
mod pods;
mod processes;
mod resources;
mod systemd;
mod upgrade;
mod users;

use bulkhead_tests::bundle::{Bundle, OURS, RUNC};

/// What `script` prints with each runtime, under a configuration that `change` made.
#[track_caller]
fn same(script: &str, change: impl Fn(&mut Bundle)) -> String {
    let run = |runtime| {
        let mut bundle = Bundle::new(runtime, script);
        change(&mut bundle);
        let finished = bundle.run();
        (finished.status, finished.text(), finished.stderr)
    };
    let (theirs, ours) = (run(RUNC), run(OURS));
    assert_eq!(ours, theirs, "left is ours, right is runc's");
    ours.1
}

/// What a case does to a configuration.
type Change = fn(&mut serde_json::Value);

/// Each change is refused with the name of its field, in one line, and nothing is left.
#[track_caller]
fn each_is_named(cases: &[(&str, Change)]) {
    let mut bundle = Bundle::new(OURS, "true");
    let sound = bundle.config.clone();
    for (name, change) in cases {
        bundle.config = sound.clone();
        change(&mut bundle.config);
        let failed = bundle.verb(&["create", &bundle.id]);
        assert_eq!(failed.status, 1, "{name}");
        assert!(failed.stderr.contains(name), "{name} in: {}", failed.stderr);
        assert_eq!(failed.stderr.lines().count(), 1, "{}", failed.stderr);
        assert!(bundle.verb(&["state", &bundle.id]).stderr.contains("does not exist"));
    }
}

/// A case for both runtimes.
macro_rules! both {
    ($(#[$attribute:meta])* $name:ident, $case:expr) => {
        mod $name {
            use super::*;

            #[test]
            $(#[$attribute])*
            fn with_runc() {
                let _turn = bulkhead_tests::turn::shared();
                let case: fn(&'static str) = $case;
                case(bulkhead_tests::bundle::RUNC);
            }

            #[test]
            $(#[$attribute])*
            fn with_ours() {
                let _turn = bulkhead_tests::turn::shared();
                let case: fn(&'static str) = $case;
                case(bulkhead_tests::bundle::OURS);
            }
        }
    };
}
use both;
