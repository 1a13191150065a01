//! `hooks.startContainer`: those that run in the container, just before its process.

use oci_spec::runtime::Hook;
use serde::{Deserialize, Serialize};

use super::{PlanError, field};

/// One hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookPlan {
    /// In the container.
    pub path: String,
    /// With argv[0]; empty for the path alone.
    pub args: Vec<String>,
    /// All of its environment.
    pub env: Vec<String>,
    /// Seconds.
    pub timeout: Option<u64>,
}

/// Validates the hooks.
///
/// # Errors
/// Names the field.
pub fn plan(hooks: &[Hook]) -> Result<Vec<HookPlan>, PlanError> {
    let one = |hook: &Hook| {
        let wrong = |reason: &str| field("hooks.startContainer", reason);
        let path = hook.path().to_str().ok_or_else(|| wrong("a path is not UTF-8"))?;
        if !path.starts_with('/') {
            return Err(wrong("a path is not absolute"));
        }
        let timeout = match hook.timeout() {
            None => None,
            Some(seconds @ 1..) => Some(seconds.unsigned_abs()),
            Some(_) => return Err(wrong("a timeout is not greater than zero")),
        };
        Ok(HookPlan {
            path: path.to_owned(),
            args: hook.args().clone().unwrap_or_default(),
            env: hook.env().clone().unwrap_or_default(),
            timeout,
        })
    };
    hooks.iter().map(one).collect()
}
