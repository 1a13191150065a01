//! The OCI command line. Each case is written from the specification and runs with
//! runc and with ours, so that every difference is seen.

mod fields;
mod lifecycle;
mod pods;
mod processes;
mod users;

/// A case for both runtimes.
macro_rules! both {
    ($name:ident, $case:expr) => {
        mod $name {
            use super::*;

            #[test]
            fn with_runc() {
                let _turn = bulkhead_tests::turn::shared();
                let case: fn(&'static str) = $case;
                case(bulkhead_tests::bundle::RUNC);
            }

            #[test]
            fn with_ours() {
                let _turn = bulkhead_tests::turn::shared();
                let case: fn(&'static str) = $case;
                case(bulkhead_tests::bundle::OURS);
            }
        }
    };
}
use both;
