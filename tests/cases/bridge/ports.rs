//! Published ports of UDP and of IPv6, rates, networks without a way out, and the host's
//! loopback.

use bulkhead_tests::outside::Outside;
use bulkhead_tests::program::{compile, script};
use bulkhead_tests::turn::alone;
use bulkhead_tests::{Background, rates};

use super::{Made, address, on};

/// Whether a server of files answers the container within so many seconds.
fn asks(from: &Background, host: &str, port: u16, seconds: u32) -> bool {
    let request = "printf 'GET /os-release HTTP/1.0\\r\\n\\r\\n'";
    from.exec(&format!("{request} | nc -w {seconds} {host} {port} | grep -q ID=")).status == 0
}

#[track_caller]
fn refused(from: &Background, what: &str) -> u64 {
    from.inspect()["NetworkSettings"]["Refused"][what].as_u64().expect("a count")
}

#[test]
fn ports_are_published_for_udp_and_ipv6_and_rates_are_held() {
    let _turn = alone();
    let outside = Outside::set_up();
    script("ip addr add 2001:db8:99::1/64 dev out0 nodad").ok();
    outside.run("ip addr add 2001:db8:99::2/64 dev out1 nodad").ok();
    let made = Made::new("e2e-ports", &["--ipv6"]);
    let programs = tempfile::tempdir_in("/var/lib/bulkhead").expect("a directory");
    let echo = programs.path().join("echod");
    compile(include_str!("../../guests/echo.c"), &echo);
    let volume = format!("{}:/guest:ro", programs.path().display());
    let options = ["-v", &volume, "-p", "7:7/udp", "-p", "18099:80"];
    let serve = "/guest/echod & httpd -p 82 -h /guest; exec httpd -f -p 80 -h /etc";
    rates::prepare(programs.path());
    let options = [&options[..], &rates::OPTIONS].concat();
    let server = Background::start(&on(made.0, &options), &["sh", "-c", serve]);
    for host in ["::ffff:203.0.113.1", "2001:db8:99::1"] {
        let answer = outside.run(&format!("{} {host}", echo.display())).ok();
        assert_eq!(answer, "hello", "a datagram to {host}");
    }
    for host in ["203.0.113.1", "2001:db8:99::1"] {
        let answer = outside.get(host, 18099).text();
        assert!(answer.contains("ID=small"), "{host}: {answer}");
    }
    rates::are_held(&server, (&address(&server, "IPAddress"), 82), &outside, programs.path());
    drop(server);
    assert_ne!(outside.get("2001:db8:99::1", 18099).status, 0, "that goes with it");
}

#[test]
fn an_internal_network_has_no_way_out() {
    let _turn = alone();
    let _outside = Outside::set_up();
    let made = Made::new("e2e-inner", &["--internal", "--subnet", "10.99.5.0/24"]);
    let server = Background::start(&on(made.0, &[]), &super::SERVER);
    let inner = Background::idle(&on(made.0, &["--cap-add", "NET_ADMIN"]));
    assert!(asks(&inner, &address(&server, "IPAddress"), 80, 30), "a neighbour");
    assert!(!asks(&inner, "203.0.113.2", 80, 3), "without a route");
    inner.exec("ip route add default via 10.99.5.1").ok();
    assert!(!asks(&inner, "203.0.113.2", 80, 3), "with one of its own");
    assert!(refused(&inner, "egress") > 0);
    assert!(!asks(&inner, "10.99.5.1", 18081, 3));
    assert!(refused(&inner, "host") > 0);
}

#[test]
fn the_hosts_loopback_is_closed_whatever_is_open() {
    let _turn = alone();
    let _outside = Outside::set_up();
    let made = Made::new("e2e-loop", &["--subnet", "10.99.6.0/24"]);
    // A port at the host's loopback makes the host route such addresses.
    let options = ["--allow-host", "--cap-add", "NET_ADMIN", "-p", "127.0.0.1:18100:80"];
    let open = Background::idle(&on(made.0, &options));
    assert!(asks(&open, "10.99.6.1", 18081, 30), "the host itself");
    // By the guest's own kernel, which then has no loopback.
    open.exec("ip addr del 127.0.0.1/8 dev lo && ip route add 127.0.0.0/8 via 10.99.6.1").ok();
    let before = refused(&open, "host");
    assert!(!asks(&open, "127.0.0.1", 18081, 3));
    assert!(refused(&open, "host") > before, "it was asked, and did not answer");
}
