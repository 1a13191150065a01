//! The OCI command line. Each case is written from the specification and runs with
//! runc and with ours, so that every difference is seen.

mod apparmor;
mod cgroup1;
mod fields;
mod growth;
mod killed;
mod lifecycle;
mod pods;
mod processes;
mod systemd;
mod users;

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
