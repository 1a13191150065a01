//! What a layer may bring along besides files: attributes and device nodes.

use super::Refusal;

/// Device nodes that images do carry (debootstrap, old base images) and that
/// reach nothing but the kernel's own pseudo devices. Everything else - disks,
/// /dev/mem, /dev/port - is of use to an attacker only: the guest makes its
/// own /dev, and the host keeps layers on mounts that are `nodev`. As
/// (major, first minor, last minor).
const CHARACTER_DEVICES: &[(u32, u32, u32)] = &[
    (1, 3, 3),      // null
    (1, 5, 5),      // zero
    (1, 7, 9),      // full, random, urandom
    (4, 0, 63),     // tty0..tty63: the guest has none behind them
    (5, 0, 2),      // tty, console, ptmx
    (10, 200, 200), // net/tun
    (10, 229, 229), // fuse
];

/// Refuses nodes outside the list above. The whiteout number 0:0 is outside:
/// a layer says what it deletes with `.wh.` names, which are checked.
pub(super) fn check_device(block: bool, major: u32, minor: u32) -> Result<(), Refusal> {
    let known = CHARACTER_DEVICES
        .iter()
        .any(|(m, first, last)| *m == major && (*first..=*last).contains(&minor));
    if !block && known {
        return Ok(());
    }
    Err(Refusal::Device { kind: if block { "block" } else { "character" }, major, minor })
}

/// Whether an extended attribute of the archive is taken over.
///
/// `user.overlay.*` and `trusted.*` would let a layer steer overlayfs
/// (redirects, opaque marks, metacopy), and labels of the builder's security
/// modules mean nothing here.
pub(super) fn keeps_xattr(name: &[u8], is_file_or_dir: bool) -> bool {
    if name == b"security.capability" {
        return true;
    }
    if name.starts_with(b"user.overlay.") || !is_file_or_dir {
        return false;
    }
    name.starts_with(b"user.")
        || name == b"system.posix_acl_access"
        || name == b"system.posix_acl_default"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_harmless_devices_pass() {
        assert!(check_device(false, 1, 3).is_ok());
        assert!(check_device(false, 5, 2).is_ok());
        for (block, major, minor) in [(false, 0, 0), (false, 1, 1), (true, 8, 0), (true, 1, 3)] {
            assert!(check_device(block, major, minor).is_err());
        }
    }

    #[test]
    fn overlay_and_trusted_attributes_are_dropped() {
        assert!(keeps_xattr(b"user.comment", true));
        assert!(keeps_xattr(b"security.capability", true));
        assert!(keeps_xattr(b"system.posix_acl_default", true));
        for name in [
            &b"user.overlay.opaque"[..],
            b"user.overlay.redirect",
            b"trusted.overlay.opaque",
            b"trusted.x",
            b"security.selinux",
        ] {
            assert!(!keeps_xattr(name, true));
        }
        assert!(!keeps_xattr(b"user.comment", false));
    }
}
