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
