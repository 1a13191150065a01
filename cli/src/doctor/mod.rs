//! What a host needs to run containers, checked by trying.

mod host;
pub mod kvm;
mod mounts;

use serde::Serialize;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Containers run, but something will be missed.
    Warn,
    /// Containers cannot run.
    Fail,
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub subject: &'static str,
    /// How bad it is.
    pub verdict: Verdict,
    /// What was found.
    pub detail: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Finding {
    fn ok(subject: &'static str, detail: impl Into<String>) -> Finding {
        Finding { subject, verdict: Verdict::Ok, detail: detail.into(), advice: None }
    }

    fn warn(subject: &'static str, detail: impl Into<String>, advice: &str) -> Finding {
        let advice = Some(advice.into());
        Finding { subject, verdict: Verdict::Warn, detail: detail.into(), advice }
    }

    fn fail(subject: &'static str, detail: impl Into<String>, advice: &str) -> Finding {
        Finding { verdict: Verdict::Fail, ..Finding::warn(subject, detail, advice) }
    }
}

/// All checks.
pub fn examine() -> Vec<Finding> {
    vec![
        host::root(),
        kvm::check(),
        host::kernel(),
        host::cgroup(),
        host::user_namespaces(),
        mounts::id_mapped(),
        host::tun(),
        host::networks(),
        host::memory(),
        host::huge_pages(),
        host::assets(),
    ]
}
