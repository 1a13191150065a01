//! Fields of the specification which the guest does not honour.
//!
//! Left out here because the host carries them out: `annotations`, `root.path`,
//! `linux.cgroupsPath`, and the hooks that run in the runtime's namespaces
//! (prestart, createRuntime, poststart, poststop).

use oci_spec::runtime::{Hooks, Linux, Spec};

use super::{PlanError, field};

/// Names the first field of `spec` that is set and not honoured.
pub fn spec(spec: &Spec) -> Result<(), PlanError> {
    let platforms = [
        ("solaris", spec.solaris().is_some()),
        ("windows", spec.windows().is_some()),
        ("vm", spec.vm().is_some()),
        ("zos", spec.zos().is_some()),
    ];
    refuse(&platforms, "is of another platform")?;
    if let Some(hooks) = spec.hooks() {
        container_hooks(hooks)?;
    }
    spec.linux().as_ref().map_or(Ok(()), linux)
}

fn container_hooks(hooks: &Hooks) -> Result<(), PlanError> {
    let any = |list: &Option<Vec<_>>| list.as_ref().is_some_and(|list| !list.is_empty());
    let list = [("hooks.createContainer", any(hooks.create_container()))];
    refuse(&list, "is the host's to run: its paths are there")
}

fn linux(linux: &Linux) -> Result<(), PlanError> {
    let text = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    refuse(&[("linux.intelRdt", linux.intel_rdt().is_some())], "does not exist in a guest")?;
    refuse(&[("linux.mountLabel", text(linux.mount_label()))], "the guest kernel has no SELinux")?;
    let unsupported = [
        ("linux.memoryPolicy", linux.memory_policy().is_some()),
        ("linux.netDevices", linux.net_devices().as_ref().is_some_and(|list| !list.is_empty())),
    ];
    refuse(&unsupported, "is not supported")
}

fn refuse(list: &[(&str, bool)], reason: &str) -> Result<(), PlanError> {
    match list.iter().find(|(_, set)| *set) {
        Some((name, _)) => Err(field(*name, reason)),
        None => Ok(()),
    }
}
