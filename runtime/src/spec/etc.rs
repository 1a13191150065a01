//! /etc/hostname, /etc/hosts and /etc/resolv.conf of a container.

use protocol::agent::SeedFile;

/// Longest resolv.conf of the host that is passed on.
const MAX_RESOLV: usize = 16 << 10;

pub(super) fn files(hostname: &str) -> Vec<SeedFile> {
    let file = |path: &str, contents: String| SeedFile { path: path.into(), contents };
    vec![
        file("/etc/hostname", format!("{hostname}\n")),
        file("/etc/hosts", hosts(hostname)),
        file("/etc/resolv.conf", passable_resolv_conf()),
    ]
}

fn hosts(hostname: &str) -> String {
    format!(
        "127.0.0.1\tlocalhost\n127.0.1.1\t{hostname}\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\nff00::0\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
    )
}

/// Where systemd-resolved writes the servers that its own, on loopback, asks.
const RESOLVED: &str = "/run/systemd/resolve/resolv.conf";

/// The host's resolv.conf, as far as it is of use to a guest.
pub fn passable_resolv_conf() -> String {
    let read = |path| passable(&std::fs::read_to_string(path).unwrap_or_default());
    let usable = |text: &String| text.lines().any(|line| line.starts_with("nameserver"));
    let host = read("/etc/resolv.conf");
    if usable(&host) { host } else { Some(read(RESOLVED)).filter(usable).unwrap_or(host) }
}

/// The host's resolv.conf without name servers on the host's own loopback,
/// which the guest cannot reach.
fn passable(resolv: &str) -> String {
    let local = |line: &str| {
        let mut words = line.split_whitespace();
        words.next() == Some("nameserver")
            && words.next().is_none_or(|ip| ip.starts_with("127.") || ip == "::1")
    };
    let kept = resolv.lines().filter(|line| !local(line)).map(|line| format!("{line}\n"));
    let text: String = kept.collect();
    if text.len() > MAX_RESOLV { String::new() } else { text }
}

/// Labels of RFC 1123, in total at most 64 bytes, as the kernel limits it.
pub(super) fn valid_hostname(name: &str) -> bool {
    let label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        !label.is_empty() && label.bytes().all(inner) && !label.starts_with('-')
    };
    name.len() <= 64 && name.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_name_servers_are_left_out() {
        let text = "search a b\nnameserver 127.0.0.53\nnameserver 10.0.0.1\nnameserver ::1\n";
        assert_eq!(passable(text), "search a b\nnameserver 10.0.0.1\n");
    }

    #[test]
    fn host_names() {
        for good in ["a", "0123456789ab", "my-host.example", "under_score"] {
            assert!(valid_hostname(good), "{good}");
        }
        for bad in ["", "-a", "a b", "a..b", "a\nb", &"x".repeat(65)] {
            assert!(!valid_hostname(bad), "{bad}");
        }
    }
}
