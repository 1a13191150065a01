//! The network of a machine is that of its namespace: bundles in namespaces that the case
//! makes with ip(8). tests/cases/engines/networks.rs has those of engines.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream, UdpSocket};
use std::time::Duration;

use bulkhead_tests::bundle::{Bundle, OURS};
use bulkhead_tests::netns::{Bridge, Namespace};
use bulkhead_tests::program::eventually;
use bulkhead_tests::traffic;
use bulkhead_tests::turn::shared;
use nix::sched::{CloneFlags, setns};
use serde_json::json;

/// What [`traffic`] serves, an echo and a file by TCP, until it is killed.
fn serve() -> String {
    let more = "nc -ll -p 5000 -e cat & nc -ll -p 5002 -e cat /served & echo up";
    format!("{more}; {}", traffic::serve("traffic"))
}

/// A bundle in a namespace.
fn bundle(namespace: &Namespace, script: &str) -> Bundle {
    let mut bundle = Bundle::new(OURS, script);
    bundle.in_network(&namespace.path());
    for set in ["bounding", "effective", "permitted"] {
        let set = bundle.config["process"]["capabilities"][set].as_array_mut().expect("a set");
        // To ping, and to change its own network.
        set.extend([json!("CAP_NET_RAW"), json!("CAP_NET_ADMIN")]);
    }
    bundle
}

/// One that serves, with what `served` is.
#[track_caller]
fn server(namespace: &Namespace, served: &[u8]) -> (Bundle, i32) {
    let bundle = bundle(namespace, &serve());
    std::fs::copy(traffic::program(), bundle.file("rootfs/bin/traffic")).expect("a disk");
    std::fs::write(bundle.file("rootfs/served"), served).expect("a disk");
    let pid = bundle.create();
    bundle.verb(&["start", &bundle.id]).ok();
    eventually("its output", || bundle.output() == "up\n");
    (bundle, pid)
}

/// The standard output of a script in a container.
#[track_caller]
fn exec(bundle: &Bundle, script: &str) -> String {
    bundle.verb(&["exec", &bundle.id, "sh", "-c", script]).ok()
}

fn connect(ip: &str, port: u16) -> TcpStream {
    let mut stream = None;
    eventually("a connection", || {
        stream = TcpStream::connect((ip, port)).ok();
        stream.is_some()
    });
    let stream = stream.expect("it is there");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    stream
}

/// Sends `data` to a port and gives what comes back.
fn send(ip: &str, port: u16, data: &[u8]) -> Vec<u8> {
    let mut stream = connect(ip, port);
    let mut reader = stream.try_clone().expect("a descriptor");
    let read = std::thread::spawn(move || {
        let mut back = Vec::new();
        reader.read_to_end(&mut back).expect("its answer");
        back
    });
    stream.write_all(data).expect("it takes all");
    stream.shutdown(Shutdown::Write).expect("a connection");
    read.join().expect("a thread")
}

#[test]
fn a_machine_has_the_network_of_its_namespace() {
    let _turn = shared();
    let bridge = Bridge::new(9000);
    let namespace = bridge.namespace(9000);
    let mac = "02:bb:00:00:00:07";
    namespace.ip(&format!("link set eth0 address {mac}"));
    let gateway = bridge.ip4(1);
    for route in [
        "blackhole 10.98.0.0/16 metric 7".to_owned(),
        "10.97.0.0/24 dev eth0 scope link".to_owned(),
        format!("10.96.0.0/24 via {gateway} metric 50 advmss 1360"),
        "10.95.1.1 via 10.94.0.1 dev eth0 onlink".to_owned(),
    ] {
        namespace.ip(&format!("route add {route}"));
    }
    namespace.ip("-6 route add unreachable fd98::/32");
    namespace.ip("neigh add 10.97.0.9 lladdr 02:00:00:00:00:99 dev eth0 nud permanent");
    let (machine, pid) = server(&namespace, b"a file");
    let (ip4, ip6) = (bridge.ip4(namespace.last), bridge.ip6(namespace.last));

    let told =
        exec(&machine, "ip addr show eth0; ip route; ip -6 route; ip neigh; cat /proc/net/route");
    for part in [
        "mtu 9000".to_owned(),
        format!("link/ether {mac}"),
        format!("inet {ip4}/24"),
        format!("inet6 {ip6}/64"),
        format!("default via {gateway} dev eth0"),
        "blackhole 10.98.0.0/16  metric 7".to_owned(),
        "10.97.0.0/24 dev eth0 scope link".to_owned(),
        format!("10.96.0.0/24 via {gateway} dev eth0 metric 50"),
        // 40 bytes of headers and the route's metric, which is all that is shown of those.
        "50 00FFFFFF 1400".to_owned(),
        "10.95.1.1 via 10.94.0.1 dev eth0 onlink".to_owned(),
        "unreachable fd98::/32".to_owned(),
        format!("default via {}", bridge.ip6(1)),
        "10.97.0.9 dev eth0 lladdr 02:00:00:00:00:99".to_owned(),
    ] {
        let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(squeeze(&told).contains(&squeeze(&part)), "{part:?} is not in {told}");
    }

    traffic::from_host(&[&ip4, &ip6], 9000);
    let hosts = (bridge.ip4(1), bridge.ip6(1));
    exec(&machine, &format!("ping -c 1 -W 9 {0} && ping -c 1 -W 9 {1}", hosts.0, hosts.1));

    // What changes in the namespace changes in the guest.
    namespace.ip("link set eth0 mtu 1280");
    namespace.ip("addr add 10.93.0.5/24 dev eth0");
    namespace.ip("route del blackhole 10.98.0.0/16");
    // An interface that the machine cannot have leaves the others as they should be.
    namespace.ip(&format!("link add twin address {mac} type veth peer name other"));
    namespace.ip("link set twin up");
    let elsewhere = Bridge::new(1500);
    elsewhere.plug(&namespace, "second.0", 1500, 77);
    let second = elsewhere.ip4(77);
    eventually("the second interface", || {
        let now = exec(&machine, "ip addr; ip route");
        let there = ["mtu 1280", "10.93.0.5/24", "second.0", &second];
        there.iter().all(|part| now.contains(part)) && !now.contains("blackhole")
    });
    assert_eq!(send(&second, 5000, b"to the second"), b"to the second");
    exec(&machine, &format!("ping -c 1 -W 9 -s 1200 {}", hosts.0));
    namespace.ip("link del second.0");
    eventually("its end", || !exec(&machine, "ip link").contains("second.0"));
    assert_eq!(send(&ip4, 5000, b"to the first"), b"to the first");
    assert!(!exec(&machine, "ip link").contains("twin"));
    namespace.sysctl("net/ipv6/conf/eth0/disable_ipv6", "1");
    eventually("the end of IPv6", || !exec(&machine, "ip addr show eth0").contains("inet6"));
    assert_eq!(send(&ip4, 5000, b"by IPv4"), b"by IPv4");

    // Killed, it leaves filters that lead nowhere. `delete` removes them, once the tap has gone.
    assert!(namespace.leftovers().contains("bhtap"));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL)
        .expect("its monitor");
    machine.verb(&["delete", "--force", &machine.id]).ok();
    assert_eq!(namespace.leftovers(), "");
}

#[test]
fn machines_on_a_bridge_reach_each_other() {
    let _turn = shared();
    let bridge = Bridge::new(1280);
    let spaces = [bridge.namespace(1280), bridge.namespace(1280)];
    let (one, _) = server(&spaces[0], b"of one");
    let (ip4, ip6) = (bridge.ip4(spaces[0].last), bridge.ip6(spaces[0].last));
    let checks = traffic::checks("traffic", &[&ip4, &ip6], 1280);
    let script = format!("({checks}) && nc -w 9 {ip4} 5002");
    let mut other = bundle(&spaces[1], &script);
    std::fs::copy(traffic::program(), other.file("rootfs/bin/traffic")).expect("a disk");
    assert_eq!(other.run().ok(), "all of it\nof one");
    // At an orderly end nothing is left at once.
    assert_eq!(spaces[1].leftovers(), "");
    // Several queues.
    other.config["linux"]["resources"]["cpu"] = json!({ "quota": 200_000, "period": 100_000 });
    other.config["process"]["args"] =
        json!(["sh", "-c", format!("ls /sys/class/net/eth0/queues; {script}")]);
    let told = other.run().ok();
    assert!(told.contains("rx-1") && told.ends_with("of one"), "{told}");

    // A namespace that a machine has is not that of one of another --root.
    let mut third = bundle(&spaces[0], "true");
    let refused = third.run();
    assert!(refused.status != 0 && refused.stderr.contains("another machine"), "{refused:?}");
    assert_eq!(send(&bridge.ip4(spaces[0].last), 5000, b"still here"), b"still here");
    // Containers that name it beside the first one share it.
    third = one.beside("ip -o addr show eth0; echo \"GET\" | nc -w 9 127.0.0.1 5002");
    third.in_network(&spaces[0].path());
    let told = third.run().ok();
    assert!(told.contains(&bridge.ip4(spaces[0].last)) && told.ends_with("of one"), "{told}");
}

/// As docker has it: a resolver at a loopback address of the namespace.
#[test]
fn a_resolver_of_the_namespace_answers_in_the_guest() {
    let _turn = shared();
    let bridge = Bridge::new(1500);
    let namespace = bridge.namespace(1500);
    let mut machine = bundle(&namespace, "nslookup friend 127.0.0.11; nslookup friend; wait");
    let file = machine.file("resolv.conf");
    std::fs::write(&file, "nameserver 127.0.0.11\noptions ndots:0\n").expect("a disk");
    let mount = json!({
        "destination": "/etc/resolv.conf", "type": "bind", "source": file, "options": ["rbind"],
    });
    machine.config["mounts"].as_array_mut().expect("mounts").push(mount);
    let path = namespace.path();
    let server = std::thread::spawn(move || {
        let namespace = std::fs::File::open(path).expect("it is there");
        setns(namespace, CloneFlags::CLONE_NEWNET).expect("a thread's own");
        let socket = UdpSocket::bind("127.0.0.11:53").expect("nobody else has it");
        socket.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
        let mut question = [0; 512];
        // Of whoever asks for the IPv4 address; the other one is not there.
        let mut answered = 0;
        while answered < 2 {
            let Ok((length, from)) = socket.recv_from(&mut question) else { break };
            answered += usize::from(question[length - 3] == 1);
            socket.send_to(&resolve(&question[..length]), from).expect("its answer");
        }
        answered
    });
    let told = machine.run();
    assert_eq!(server.join().expect("a thread"), 2, "{told:?}");
    assert_eq!(told.text().matches("10.9.8.7").count(), 2, "{}", told.text());
}

/// The answer of DNS (RFC 1035, section 4.1) to a question: an IPv4 address, or nothing.
fn resolve(question: &[u8]) -> Vec<u8> {
    let mut answer = question.to_vec();
    let found = question[question.len() - 3] == 1;
    answer[2..4].copy_from_slice(&[0x81, 0x80]);
    answer[7] = u8::from(found);
    if found {
        // The name of the question, type A, class IN, a minute, four bytes.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 9, 8, 7]);
    }
    answer
}

#[test]
fn the_hosts_network_is_refused() {
    let mut bundle = Bundle::new(OURS, "true");
    bundle.without_namespace("network");
    let refused = bundle.run();
    assert!(refused.status != 0 && refused.stderr.contains("--network bridge"), "{refused:?}");
    bundle.in_network("/proc/1/ns/net");
    let refused = bundle.run();
    assert!(refused.status != 0 && refused.stderr.contains("take over"), "{refused:?}");
}
