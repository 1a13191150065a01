//! The network of a machine is that of its namespace.

use bulkhead_tests::bundle::{Bundle, OURS};
use bulkhead_tests::program::eventually;
use bulkhead_tests::script;
use bulkhead_tests::turn::shared;
use serde_json::json;

mod engines;
