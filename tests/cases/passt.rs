//! `--network passt`: what passes, what is closed, and that nothing is left.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::process::Command;
use std::time::{Duration, Instant};

use bulkhead_tests::children::reap_ended;
use bulkhead_tests::leaks::{none, pids};
use bulkhead_tests::outside::{Outside, get};
use bulkhead_tests::program::{Finished, compile, eventually, limit, run, script};
use bulkhead_tests::turn::alone;
use bulkhead_tests::{Background, bulkhead, guest, rates, small};
use nix::sys::signal::{SIGKILL, kill};
use nix::unistd::Pid;

const PASST: [&str; 2] = ["--network", "passt"];
/// Servers of /etc, and an echo of datagrams.
const SERVERS: [&str; 3] =
    ["sh", "-c", "/guest/echod & httpd -p 81 -h /guest; exec httpd -f -p 80 -h /etc"];

/// A directory with the echo, and the option that shows it.
fn programs() -> (tempfile::TempDir, String) {
    let programs = tempfile::tempdir_in("/var/lib/bulkhead").expect("a directory");
    compile(include_str!("../guests/echo.c"), &programs.path().join("echod"));
    let volume = format!("{}:/guest:ro", programs.path().display());
    (programs, volume)
}

/// A client that leaves its half of the connection open: passt of Debian 12 does not tell
/// one that has closed it of the server's end.
pub(crate) fn ask(host: &str, port: u16, seconds: u32) -> String {
    format!(
        "rm -f /tmp/ask; mkfifo /tmp/ask; exec 3<>/tmp/ask
         printf 'GET /os-release HTTP/1.0\\r\\n\\r\\n' >&3
         nc -w {seconds} {host} {port} <&3 | grep -q ID="
    )
}

fn request(from: &Background, host: &str, port: u16, seconds: u32) -> Finished {
    from.exec(&ask(host, port, seconds))
}

#[track_caller]
fn reaches(from: &Background, host: &str, port: u16) {
    request(from, host, port, 30).expect(0);
}

#[track_caller]
fn cannot(from: &Background, host: &str, port: u16) {
    request(from, host, port, 3).expect(1);
}

fn refused(from: &Background, what: &str) -> u64 {
    from.inspect()["NetworkSettings"]["Refused"][what].as_u64().expect("a count")
}

/// Sends a datagram to a port of 127.0.0.1 until it comes back.
fn echoes(port: u16) {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
    eventually("an echo", || {
        socket.send_to(b"through passt", ("127.0.0.1", port)).expect("a datagram");
        let mut back = [0; 100];
        matches!(socket.recv(&mut back), Ok(length) if back[..length] == *b"through passt")
    });
}

#[test]
fn behind_passt_ports_are_published_and_the_host_is_closed() {
    let _turn = alone();
    let outside = Outside::set_up();
    let (programs, volume) = programs();
    rates::prepare(programs.path());
    let options = [
        &PASST[..],
        &rates::OPTIONS,
        &["-v", &volume, "-p", "127.0.0.1:18091:80", "-p", "18092:80"],
        &["-p", "127.0.0.1:18096-18097:80-81"],
        &["-p", "127.0.0.1:18093:7/udp", "--add-host", "db:192.0.2.7", "--dns", "192.0.2.53"],
    ]
    .concat();
    let plain = Background::start(&options, &SERVERS);

    let settings = plain.inspect()["NetworkSettings"].take();
    assert_eq!(settings["Networks"]["passt"]["IPAddress"], "10.86.0.2", "{settings}");
    assert_eq!(settings["Ports"]["80/tcp"][0]["HostPort"], "18091", "{settings}");
    let text = plain.exec("cat /etc/resolv.conf /etc/hosts").ok();
    for part in ["nameserver 192.0.2.53", "192.0.2.7\tdb", "10.86.0.2\t"] {
        assert!(text.contains(part), "{part} in {text}");
    }

    let own = [18091, 18092, 18096].map(|port| ("127.0.0.1", port));
    for (address, port) in own.into_iter().chain([("203.0.113.1", 18092)]) {
        let answer = get(address, port);
        assert!(answer.contains("ID=small"), "{address}:{port}: {answer}");
    }
    assert!(outside.get("203.0.113.1", 18092).text().contains("ID=small"));
    assert_ne!(outside.get("203.0.113.1", 18091).status, 0, "that is for loopback alone");
    echoes(18093);
    rates::are_held(&plain, ("127.0.0.1", 18097), &outside, programs.path());
    let taken = [&["run", "--rm"], &PASST[..], &["-p", "18091:80", small(), "true"]].concat();
    bulkhead(&taken).fails_saying(125, &["18091:80/tcp", "in use"]);
    let six = [&["run", "--rm"], &PASST[..], &["-p", "[::1]:18094:80", small(), "true"]].concat();
    bulkhead(&six).fails_saying(125, &["[::1]:18094:80", "IPv6"]);

    reaches(&plain, "203.0.113.2", 80);
    let echo = format!("{}/echod >/dev/null 2>&1 </dev/null & echo $!", programs.path().display());
    let echo = outside.run(&echo).ok();
    let answer = plain.exec("/guest/echod ::ffff:203.0.113.2");
    script(&format!("kill {echo}")).ok();
    assert_eq!(answer.text(), "hello\n", "a datagram's answer: {answer:?}");
    // The host by its address, and its loopback by the gateway.
    let before = refused(&plain, "host");
    cannot(&plain, "203.0.113.1", 18081);
    cannot(&plain, "10.86.0.1", 18081);
    assert!(refused(&plain, "host") >= before + 2);
    cannot(&plain, "169.254.169.254", 80);
    assert!(refused(&plain, "metadata") > 0);
    assert_eq!(refused(&plain, "egress"), 0);
}

#[test]
fn behind_passt_egress_and_the_host_are_as_was_asked_for() {
    let _turn = alone();
    let outside = Outside::set_up();
    let some = Background::idle(&[&PASST[..], &["--egress", "203.0.113.2:80"]].concat());
    reaches(&some, "203.0.113.2", 80);
    cannot(&some, "203.0.113.2", 81);
    assert!(refused(&some, "egress") > 0);
    cannot(&some, "203.0.113.1", 18081);
    bulkhead(&["stop", "-t", "0", &some.id]).ok();
    assert!(refused(&some, "egress") > 0, "also after the end");
    drop(some);

    // IPv6 is there where the host has a way out by it.
    let internet = outside.on_the_internet();
    script(
        "set -e; ip -6 route add default via 2001:db8:99::2; ip route add default via 203.0.113.2",
    )
    .ok();
    let options = ["--allow-host", "--add-host", "host:host-gateway"];
    let open = Background::idle(&[&PASST[..], &options].concat());
    reaches(&open, "2001:db8:99::2", 80);
    reaches(&open, "2001:db8:99::1", 18081);
    reaches(&open, "203.0.113.1", 18081);
    assert!(open.exec("cat /etc/hosts").ok().contains("203.0.113.1\thost"));
    // Not even then what the host serves itself alone.
    cannot(&open, "10.86.0.1", 18081);
    drop(open);

    let public = Background::idle(&[&PASST[..], &["--egress", "public"]].concat());
    for host in internet {
        reaches(&public, host, 80);
    }
    for host in ["203.0.113.2", "2001:db8:99::2"] {
        let before = refused(&public, "egress");
        cannot(&public, host, 80);
        assert!(refused(&public, "egress") > before, "{host} is not on the Internet");
    }
}

/// Processes of passt, and what there is of interfaces, namespaces and listening sockets, each by
/// its name.
fn held() -> BTreeSet<String> {
    let told = script(
        "cd /proc; for at in [0-9]*; do read name < $at/comm && case $name in
             passt*) echo process $name $at;; esac; done 2> /dev/null
         ls /sys/class/net | sed 's/^/interface /'
         for at in [0-9]*; do readlink $at/ns/net; done | sort -u
         ss -tulnH | awk '{ print $1, $5 }'",
    );
    told.text().lines().map(str::to_owned).collect()
}

/// Waits until there is no more than there was `before`. What ends beside it may.
#[track_caller]
fn all_gone(before: &BTreeSet<String>) {
    let deadline = Instant::now() + limit();
    loop {
        // passt, when its supervisor was killed.
        reap_ended();
        let now = held();
        let more: Vec<_> = now.difference(before).collect();
        if more.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "still there: {more:?}");
    }
}

#[test]
fn nothing_of_passt_is_left() {
    let _turn = alone();
    let run = [&PASST[..], &["-p", "18095:80"]].concat();
    guest(&[], "true").ok();
    reap_ended();
    // What cases before this one left to the kernel to end: its numbers are given out again.
    let mut before = held();
    for _ in 0..20 {
        std::thread::sleep(Duration::from_secs(1));
        let last = std::mem::replace(&mut before, held());
        if last == before {
            break;
        }
    }
    none(|| {
        guest(&run, "ip addr show eth0 | grep -q 10.86.0.2 && exit 3").expect(3);
        all_gone(&before);

        let killed = Background::idle(&run);
        let kinds = ["process passt", "net:[", "tcp 0.0.0.0:18095"];
        let more: Vec<_> = held().difference(&before).cloned().collect();
        for kind in kinds {
            assert!(more.iter().any(|one| one.starts_with(kind)), "{kind} can be told: {more:?}");
        }
        kill(Pid::from_raw(killed.supervisor()), SIGKILL).unwrap();
        all_gone(&before);
        eventually("its end", || killed.inspect()["State"]["Status"] == "exited");
        drop(killed);

        // Without passt a container goes on, and has no network.
        let orphan = Background::idle(&run);
        let passt = [pids("passt"), pids("passt.avx2")].concat();
        assert_eq!(passt.len(), 1, "{passt:?}");
        kill(Pid::from_raw(passt[0]), SIGKILL).unwrap();
        eventually("no interface", || orphan.exec("ip link show eth0").status != 0);
        drop(orphan);
        all_gone(&before);
    });
}

#[test]
fn without_plugins_there_is_passt_and_a_line_says_so() {
    let _turn = alone();
    let mut command = Command::new("bulkhead");
    command.env("CNI_PATH", "/nowhere").env_remove("BULKHEAD_NETWORK");
    command.args(["run", "--rm", small(), "ip", "addr", "show", "eth0"]);
    let ended = run(command).expect(0);
    assert!(ended.text().contains("inet 10.86.0.2/24"), "{}", ended.text());
    assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
    for part in ["bridge, host-local", "--network passt"] {
        assert!(ended.stderr.contains(part), "{part} in {}", ended.stderr);
    }
}
