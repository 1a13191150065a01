//! `bulkhead doctor`: can this host run containers?

use clap::Args;
use serde_json::json;

use crate::doctor::{self, Finding, Verdict};
use crate::output;

/// Options of `doctor`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Only whether KVM is usable
    #[arg(long)]
    kvm_only: bool,
}

/// Prints the findings; 0 if containers can run.
pub fn run(arguments: &Arguments) -> anyhow::Result<u8> {
    let findings = if arguments.kvm_only { vec![doctor::kvm::check()] } else { doctor::examine() };
    let runnable = findings.iter().all(|finding| finding.verdict != Verdict::Fail);
    if arguments.json {
        output::json(&json!({ "runnable": runnable, "findings": findings }))?;
    } else {
        findings.iter().try_for_each(|finding| output::line(&text(finding)))?;
    }
    Ok(u8::from(!runnable))
}

fn text(finding: &Finding) -> String {
    let verdict = match finding.verdict {
        Verdict::Ok => "ok  ",
        Verdict::Warn => "warn",
        Verdict::Fail => "FAIL",
    };
    let mut text = format!("{verdict}  {:<16} {}", finding.subject, finding.detail);
    if let Some(advice) = &finding.advice {
        text.push_str(&format!("\n      -> {advice}"));
    }
    text
}
