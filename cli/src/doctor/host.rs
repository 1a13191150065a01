//! Kernel, cgroups, namespaces, devices, memory, our own files.

use std::path::Path;

use runtime::container::chain;
use runtime::limits::{DEFAULT_GUEST_MIB, VMM_HEADROOM_MIB};
use runtime::networks::passt;
use runtime::rootless;
use runtime::sandbox::assets::Assets;
use runtime::sandbox::{available_mib, cgroup};

use super::Finding;

/// First kernel with id-mapped mounts.
const OLDEST: (u32, u32) = (5, 12);
/// First that is supported: cgroup.kill came with 5.14, and 5.15 is the next LTS.
const SUPPORTED: (u32, u32) = (5, 15);

pub(super) fn root() -> Finding {
    let subject = "user";
    if !nix::unistd::geteuid().is_root() {
        let why = rootless::enter().err().map_or("not root".into(), |error| chain(&error));
        let advice = "run it with sudo, or give the user what is missing; the machines themselves \
                      run without any privilege";
        return Finding::fail(subject, why, advice);
    }
    if rootless::is_rootless() {
        let detail = format!("{}, with subordinate ids, without root", rootless::user());
        return Finding::ok(subject, detail);
    }
    Finding::ok(subject, "root")
}

pub(super) fn kernel() -> Finding {
    let subject = "kernel";
    let release = nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    match version(&release) {
        Some(version) if version < OLDEST => {
            let advice = "boot Linux 5.12 or later: id-mapped mounts are needed";
            Finding::fail(subject, format!("Linux {release} is too old"), advice)
        }
        Some(version) if version < SUPPORTED => {
            let advice = "Linux 5.15 or later is supported: it can kill a whole cgroup at once";
            Finding::warn(subject, format!("Linux {release}"), advice)
        }
        Some(_) => Finding::ok(subject, format!("Linux {release}")),
        None => Finding::warn(subject, format!("unknown release {release:?}"), "check it"),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

pub(super) fn cgroup() -> Finding {
    if rootless::is_rootless() {
        return Finding::ok("cgroups", "not used without root: a machine's size is its limit");
    }
    let available = match cgroup::controllers() {
        Ok(available) => available,
        Err(error) => {
            let advice = "boot with systemd.unified_cgroup_hierarchy=1, or \
                          `mount -t cgroup2 none /sys/fs/cgroup`";
            return Finding::fail("cgroups", error.to_string(), advice);
        }
    };
    let has = |name: &&str| available.iter().any(|available| available == name);
    let missing: Vec<_> = cgroup::CONTROLLERS.into_iter().filter(|name| !has(name)).collect();
    let (subject, advice) = match cgroup::Version::of_host() {
        cgroup::Version::V2 => (
            "cgroup v2",
            "they must not be mounted as cgroup v1, nor be disabled on the kernel's command line \
             (cgroup_disable=, cgroup_enable=memory)",
        ),
        cgroup::Version::V1 => (
            "cgroup v1",
            "mount a hierarchy for each below /sys/fs/cgroup, with a kernel that has them \
             (CONFIG_MEMCG_V1), or boot with systemd.unified_cgroup_hierarchy=1",
        ),
    };
    if missing.is_empty() {
        return Finding::ok(subject, format!("controllers: {}", available.join(" ")));
    }
    Finding::fail(subject, format!("controllers are missing: {}", missing.join(", ")), advice)
}

pub(super) fn user_namespaces() -> Finding {
    let subject = "user namespaces";
    let limit = std::fs::read_to_string("/proc/sys/user/max_user_namespaces");
    match limit.ok().and_then(|text| text.trim().parse::<u64>().ok()) {
        None => {
            let advice = "the kernel must have CONFIG_USER_NS=y";
            Finding::fail(subject, "not supported by this kernel", advice)
        }
        Some(0) => {
            let advice = "sysctl -w user.max_user_namespaces=15000";
            Finding::fail(subject, "forbidden by user.max_user_namespaces=0", advice)
        }
        Some(limit) => Finding::ok(subject, format!("up to {limit}")),
    }
}

pub(super) fn tun() -> Finding {
    let subject = "/dev/net/tun";
    if Path::new("/dev/net/tun").exists() {
        return Finding::ok(subject, "present");
    }
    let advice = "modprobe tun; until then only `bulkhead run --network none` works";
    Finding::warn(subject, "missing", advice)
}

pub(super) fn networks() -> Finding {
    let subject = "networks";
    if rootless::is_rootless() {
        let advice = "install passt; until then only `bulkhead run --network none` works";
        return match passt::available() {
            true => Finding::ok(subject, "passt, the one without root"),
            false => Finding::warn(subject, "missing: passt", advice),
        };
    }
    let missing = runtime::networks::missing();
    if missing.is_empty() {
        return Finding::ok(subject, "CNI's plugins, nft and iptables");
    }
    let advice = match passt::available() {
        true => {
            "install containernetworking-plugins, nftables and iptables; until then containers \
             are behind passt (--network passt), and there are no networks of several"
        }
        false => {
            "install containernetworking-plugins, nftables and iptables, or passt; until then \
             only `bulkhead run --network none` works"
        }
    };
    Finding::warn(subject, format!("missing: {}", missing.join(" ")), advice)
}

pub(super) fn memory() -> Finding {
    let subject = "memory";
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let Some(available) = available_mib(&text) else {
        return Finding::warn(subject, "unknown", "check that /proc is mounted");
    };
    let detail = format!("{available} MiB available");
    let wanted = u64::from(DEFAULT_GUEST_MIB) + VMM_HEADROOM_MIB;
    if available < wanted {
        let advice = "a container is given 512 MiB unless --memory says otherwise; free some";
        return Finding::warn(subject, detail, advice);
    }
    Finding::ok(subject, detail)
}

/// Guest memory is a memfd: its huge pages are those of shared memory.
pub(super) fn huge_pages() -> Finding {
    const SETTING: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
    let subject = "huge pages";
    let text = std::fs::read_to_string(SETTING).unwrap_or_default();
    let chosen = text.split(['[', ']']).nth(1).unwrap_or("absent");
    let detail = format!("{SETTING} is {chosen}");
    if ["always", "within_size", "advise", "force"].contains(&chosen) {
        return Finding::ok(subject, detail);
    }
    let advice = "containers start faster with `echo advise > \
                  /sys/kernel/mm/transparent_hugepage/shmem_enabled`";
    Finding::warn(subject, detail, advice)
}

pub(super) fn assets() -> Finding {
    let subject = "bulkhead's files";
    match Assets::find() {
        Ok(assets) => {
            let Assets { vmm, kernel, initrd } = &assets;
            let paths = [vmm, kernel, initrd].map(|path| path.display().to_string());
            Finding::ok(subject, paths.join(", "))
        }
        Err(error) => Finding::fail(subject, error.to_string(), "build and install them first"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases() {
        assert_eq!(version("6.12.9-amd64"), Some((6, 12)));
        assert_eq!(version("5.4"), Some((5, 4)));
        assert_eq!(version("weird"), None);
    }
}
