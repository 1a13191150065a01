//! Capabilities: docker's default set, with additions and removals.

/// A name that is no capability.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown capability: {0:?} (examples: NET_ADMIN, CAP_SYS_TIME, ALL)")]
pub struct CapabilityError(pub String);

/// All of Linux 6.12, without their prefix, by number.
pub const ALL: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Docker's default.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// The default set with `add` and without `drop`, as `CAP_` names. `ALL` in one
/// of them is weaker than a name in the other, as in docker.
///
/// # Errors
/// Names what is no capability.
pub fn select(add: &[String], drop: &[String]) -> Result<Vec<String>, CapabilityError> {
    let (add_all, add) = parse(add)?;
    let (drop_all, drop) = parse(drop)?;
    let chosen = ALL.iter().filter(|cap| {
        let base = if add_all { true } else { !drop_all && DEFAULT.contains(cap) };
        (base || add.contains(cap)) && !drop.contains(cap)
    });
    Ok(chosen.map(|cap| format!("CAP_{cap}")).collect())
}

fn parse(names: &[String]) -> Result<(bool, Vec<&'static str>), CapabilityError> {
    let (mut all, mut known) = (false, Vec::new());
    for name in names {
        let upper = name.to_ascii_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        match ALL.iter().find(|cap| **cap == bare) {
            Some(cap) => known.push(*cap),
            None if bare == "ALL" => all = true,
            None => return Err(CapabilityError(name.clone())),
        }
    }
    Ok((all, known))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(add: &[&str], drop: &[&str]) -> usize {
        let own = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
        select(&own(add), &own(drop)).unwrap().len()
    }

    #[test]
    fn additions_and_removals() {
        assert_eq!(count(&[], &[]), 14);
        assert_eq!(count(&["net_admin"], &["CAP_MKNOD", "KILL"]), 13);
        assert_eq!(count(&["ALL"], &[]), 41);
        assert_eq!(count(&["ALL"], &["SYS_ADMIN"]), 40);
        assert_eq!(count(&["CHOWN"], &["all"]), 1);
        assert!(select(&["NOPE".into()], &[]).is_err());
    }
}
