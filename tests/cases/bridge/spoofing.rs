//! A guest that sends what is not its own: by packet sockets, as root of its own kernel.

use std::time::Duration;

use bulkhead_tests::program::compile;
use bulkhead_tests::turn::alone;
use bulkhead_tests::wire::{Seen, Wire};
use bulkhead_tests::{Background, bulkhead};

use super::{Made, SERVER, address, on};

/// What destinations of tests/guests/spoof.c begin with; kind and number follow.
const PREFIX: [u8; 4] = [3, 0x62, 0x6b, 0x68];

/// How many frames of a kind the guest's kernel took.
fn sent(said: &str, kind: char) -> u64 {
    let line = said.lines().find(|line| line.starts_with(kind));
    let words: Vec<&str> = line.unwrap_or_else(|| panic!("{kind} in {said}")).split(' ').collect();
    words[1].parse().expect("a number")
}

fn of(all: &[Seen], kind: char) -> Vec<&Seen> {
    all.iter().filter(|seen| seen.to[..4] == PREFIX && seen.to[4] == kind as u8).collect()
}

/// Whether all three frames were at the bridge and at a neighbour's end.
fn everywhere(all: &[Seen], kind: char, bridge: &str) -> bool {
    let all = of(all, kind);
    (1..=3).all(|number| {
        let places = all.iter().filter(|seen| seen.to[5] == number);
        let mut names: Vec<&str> = places.map(|seen| seen.interface.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        // The liar's own end, the neighbour's, and the host.
        names.len() >= 3 && names.contains(&bridge)
    })
}

#[test]
fn a_guest_that_lies_reaches_nobody() {
    let _turn = alone();
    let made = Made::new("e2e-lies", &["--ipv6"]);
    let bridge = made.inspect()["Bridge"].as_str().expect("a bridge").to_owned();
    let peer = Background::start(&on(made.0, &["--name", "e2e-believer"]), &SERVER);
    let programs = tempfile::tempdir_in("/var/lib/bulkhead").expect("a directory");
    compile(include_str!("../../guests/spoof.c"), &programs.path().join("spoof"));
    let volume = format!("{}:/guest:ro", programs.path().display());
    let options = ["--cap-add", "NET_RAW", "--cap-add", "NET_ADMIN", "-v", &volume];
    let liar = Background::idle(&on(made.0, &options));
    let vmm = liar.vmm();

    let wire = Wire::listen();
    let of_both = [&liar, &peer]
        .map(|one| format!("{} {}", address(one, "IPAddress"), address(one, "GlobalIPv6Address")));
    let program = format!("/guest/spoof eth0 {}", of_both.join(" "));
    // Otherwise its own kernel sends nothing that is too long.
    let said = liar.exec(&format!("ip link set eth0 mtu 65000 && {program} h s c l g H")).ok();
    let mut all = wire.seen();
    for _ in 0..100 {
        if everywhere(&all, 'H', &bridge) {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
        all.extend(wire.seen());
    }
    for kind in ['h', 'H'] {
        let came = of(&all, kind);
        assert!(everywhere(&all, kind, &bridge), "what is honest arrives: {said}: {came:?}");
    }

    for (kind, least) in [('s', 50), ('c', 2), ('l', 4), ('g', 10)] {
        assert!(sent(&said, kind) >= least, "its kernel took too few of {kind}: {said}");
    }
    for kind in ['s', 'l', 'g'] {
        assert_eq!(of(&all, kind), [] as [&Seen; 0], "{said}");
    }
    // Advertisements under its own address come as far as the rules of its own end.
    let claims = of(&all, 'c');
    let mut places: Vec<&str> = claims.iter().map(|seen| seen.interface.as_str()).collect();
    places.dedup();
    assert!(places.len() <= 1 && !places.contains(&bridge.as_str()), "{claims:?}");

    let refused = liar.inspect()["NetworkSettings"]["Refused"].take();
    let count = |what: &str| refused[what].as_u64().unwrap_or_else(|| panic!("{refused}"));
    assert!(count("guard") >= sent(&said, 's'), "{said}{refused}");
    let headers = sent(&said, 'g');
    assert!(count("guard") + count("malformed") >= sent(&said, 's') + headers, "{said}{refused}");
    assert!(count("malformed") > 0 && count("host") > 0 && count("routers") > 0, "{refused}");

    // All goes on: the machine is the same, and honest.
    assert_eq!(liar.vmm(), vmm);
    liar.exec("ip link set eth0 mtu 1500").ok();
    for host in [address(&peer, "IPAddress"), address(&peer, "GlobalIPv6Address")] {
        let ask = format!("printf 'GET /os-release HTTP/1.0\\r\\n\\r\\n' | nc -w 30 {host} 80");
        assert!(liar.exec(&ask).ok().contains("ID=small"), "{host}");
    }
    drop(peer);
    bulkhead(&["stop", "-t", "0", &liar.id]).ok();
    let after = liar.inspect()["NetworkSettings"]["Refused"].take();
    assert!(after["guard"].as_u64() >= refused["guard"].as_u64(), "also after the end: {after}");
}
