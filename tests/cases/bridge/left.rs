//! What is left of networks: nothing. `BULKHEAD_SANDBOXES` is another number of containers
//! (and `BULKHEAD_AT_ONCE` of those that run beside each other); the figures are then told.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bulkhead_tests::children::reap_ended;
use bulkhead_tests::leaks::none;
use bulkhead_tests::program::{eventually, script};
use bulkhead_tests::turn::alone;
use bulkhead_tests::{Background, guest};
use nix::sys::signal::{SIGKILL, kill};
use nix::unistd::Pid;

/// What a host holds of networks, in full.
fn held() -> String {
    script(
        "nft -s list ruleset; ls /sys/class/net; find /run/bulkhead/leases ! -name 'last_*'; \
         grep -c nsfs /proc/self/mountinfo; true",
    )
    .text()
}

/// How many things of each kind, each by a program that counts them.
fn counts() -> BTreeMap<&'static str, usize> {
    let kinds = [
        ("interfaces", "ls /sys/class/net | wc -l"),
        // Also of namespaces that a process has.
        (
            "taps",
            "for ns in $(ls -i1 -L /proc/[0-9]*/ns/net 2>/dev/null | sort -u -k1,1 | \
             awk '{ print $2 }'); do nsenter --net=$ns ip -o link show 2>/dev/null; done | \
             grep -c bhtap",
        ),
        ("qdiscs", "tc qdisc show | wc -l"),
        (
            "filters",
            "for dev in $(ls /sys/class/net); do tc filter show dev $dev ingress; done 2>/dev/null | wc -l",
        ),
        ("leases", "find /run/bulkhead/leases -type f ! -name 'last_*' ! -name lock | wc -l"),
        ("lines of nft", "nft -s list ruleset | wc -l"),
        (
            "lines of its tables",
            "for t in inet netdev; do nft -s list table $t bulkhead; done | wc -l",
        ),
        ("lines of iptables", "{ iptables-save; ip6tables-save; } 2>/dev/null | grep -vc '^#'"),
        (
            "namespaces",
            "ls -i1 -L /proc/[0-9]*/ns/net 2>/dev/null | awk '{ print $1 }' | sort -u | wc -l",
        ),
        ("mounts of namespaces", "grep -c nsfs /proc/self/mountinfo"),
        (
            "processes",
            "grep -lE '^(bulkhead|passt|nft|iptables|portmap|firewall)' /proc/[0-9]*/comm 2>/dev/null | wc -l",
        ),
    ];
    let count = |command: &str| script(command).text().trim().parse().expect("a number");
    kinds.into_iter().map(|(kind, command)| (kind, count(command))).collect()
}

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Not by eprintln: that is shown for failed cases only.
fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Runs `count` containers in a network, `at_once` at a time. Each has rules of its own; one
/// in eight has a port of the host, and one in sixteen loses its supervisor.
fn run_many(count: usize, at_once: usize) {
    let (next, start) = (AtomicUsize::new(0), Instant::now());
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return;
            }
            if index > 0 && index.is_multiple_of(25) {
                tell(&format!("{index} of {count} after {} s", start.elapsed().as_secs()));
            }
            let port = format!("{}:80", 20_000 + index);
            let mut run = vec!["--network", "bridge", "--egress", "public"];
            if index.is_multiple_of(8) {
                run.extend(["-p", &port]);
            }
            if index % 16 == 15 {
                let killed = Background::idle(&run);
                kill(Pid::from_raw(killed.supervisor()), SIGKILL).unwrap();
                eventually("its end", || killed.inspect()["State"]["Status"] == "exited");
                continue;
            }
            guest(&run, "ip addr show eth0 | grep -q inet || exit 9; exit 3").expect(3);
        }
    };
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
        for one in all {
            one.join().expect("each of them runs");
        }
    });
}

#[test]
fn nothing_of_a_network_is_left() {
    let _turn = alone();
    let run = ["--network", "bridge", "-p", "18083:80", "--egress", "public"];
    // The bridge, and what all networks have in common, stay.
    guest(&run, "true").ok();
    // A case before this one may have adopted orphans, which are this process's then.
    reap_ended();
    let (before, before_counts) = (held(), counts());
    let count = number("BULKHEAD_SANDBOXES", 2);
    let start = Instant::now();
    none(|| {
        run_many(count, number("BULKHEAD_AT_ONCE", 2));
        if count >= 25 {
            let (took, after) = (start.elapsed().as_secs(), counts());
            tell(&format!("{count} in {took} s; before {before_counts:?}, after {after:?}"));
        }
        let killed = Background::start(&run, &super::SERVER);
        let supervisor = killed.supervisor();
        assert!(held() != before && counts() != before_counts, "it can tell");
        kill(Pid::from_raw(supervisor), SIGKILL).unwrap();
        eventually("its end", || killed.inspect()["State"]["Status"] == "exited");
        assert_eq!(held(), before, "after a killed supervisor and a look");
        eventually("the last of them ends", || {
            reap_ended();
            counts() == before_counts
        });
    });
    assert_eq!(held(), before);
}
