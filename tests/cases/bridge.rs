//! Networks of `bulkhead run`: names, ports, what is closed, and that nothing is left.

mod left;
mod ports;
mod spoofing;

use std::path::{Path, PathBuf};

use bulkhead_tests::image::debian;
use bulkhead_tests::outside::{Outside, ask, get};
use bulkhead_tests::program::{eventually, script};
use bulkhead_tests::turn::{alone, shared};
use bulkhead_tests::{Background, bulkhead, guest, small, traffic};
use serde_json::Value;

/// A network that is removed when the case ends.
struct Made(&'static str);

impl Made {
    #[track_caller]
    fn new(name: &'static str, options: &[&str]) -> Made {
        bulkhead(&[&["network", "create"], options, &[name]].concat()).ok();
        Made(name)
    }

    fn inspect(&self) -> Value {
        let text = bulkhead(&["network", "inspect", self.0]).ok();
        serde_json::from_str::<Value>(&text).expect("JSON")[0].take()
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let removed = bulkhead(&["network", "rm", self.0]);
        if !std::thread::panicking() {
            removed.expect(0);
        }
    }
}

fn address(container: &Background, key: &str) -> String {
    let all = container.inspect()["NetworkSettings"]["Networks"].take();
    let only = all.as_object().and_then(|all| all.values().next()).expect("one network");
    only[key].as_str().unwrap_or_else(|| panic!("{key} in {only}")).to_owned()
}

/// A server of /etc on port 80.
const SERVER: [&str; 6] = ["httpd", "-f", "-p", "80", "-h", "/etc"];

#[test]
fn networks_carry_all_kinds_of_traffic() {
    let _turn = shared();
    let volume = traffic::volume();
    let begin = |made: &Made| {
        let options = ["--network", made.0, "-v", &volume];
        let script = traffic::serve(traffic::MOUNTED);
        let server = Background::start(&options, &["sh", "-c", &script]);
        let addresses = ["IPAddress", "GlobalIPv6Address"].map(|key| address(&server, key));
        (server, addresses)
    };
    let large = Made::new("e2e-large", &["--ipv6", "--mtu", "9000"]);
    let (server, [four, six]) = begin(&large);
    traffic::from_host(&[&four, &six], 9000);
    drop(server);
    let little = Made::new("e2e-little", &["--ipv6", "--mtu", "1280"]);
    let (_server, [four, six]) = begin(&little);
    let checks = traffic::checks(traffic::MOUNTED, &[&four, &six], 1280);
    let client = ["--network", little.0, "-v", &volume];
    assert_eq!(guest(&client, &checks).ok(), "all of it");
}

#[test]
fn containers_reach_each_other_and_the_host_a_published_port() {
    let _turn = shared();
    let made = Made::new("e2e-names", &["--ipv6", "--mtu", "1400"]);
    let network = ["--network", made.0];
    let options =
        ["--name", "e2e-web", "--hostname", "webhost", "-p", "127.0.0.1:18079-18080:79-80"];
    let aliases = ["--network-alias", "e2e-store", "--network-alias", "e2e-shop"];
    let both = ["sh", "-c", "httpd -p 79 -h /etc; exec httpd -f -p 80 -h /etc"];
    let web = Background::start(&[&network[..], &options, &aliases].concat(), &both);
    let (four, six) = (address(&web, "IPAddress"), address(&web, "GlobalIPv6Address"));
    let ports = web.inspect()["NetworkSettings"]["Ports"].clone();
    assert_eq!(ports["80/tcp"][0]["HostPort"], "18080", "{ports}");

    let options = ["--name", "e2e-peer", "--dns", "192.0.2.53", "--dns-search", "a.example"];
    let more = ["--add-host", "db:192.0.2.7"];
    // Debian's: a static busybox cannot look up names.
    let run = [&["run", "-d"], &network[..], &options, &more, &[debian(), "sleep", "100000"]];
    let peer = Background { id: bulkhead(&run.concat()).ok() };
    for host in ["e2e-web", "webhost", "e2e-shop", &web.id[..12], &four, &six] {
        let text = peer.exec(&format!("bash -c '{}'", ask(host, 80))).ok();
        assert!(text.contains("ID=small"), "{host}: {text}");
    }
    let text = peer.exec("cat /etc/resolv.conf /etc/hosts /sys/class/net/eth0/mtu").ok();
    for part in ["nameserver 192.0.2.53", "search a.example", "192.0.2.7\tdb", "\n1400"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    // Who came later is known as well, and who goes is forgotten.
    let own = address(&peer, "IPAddress");
    let hosts = || web.exec("cat /etc/hosts").ok();
    let names = "webhost e2e-web e2e-store e2e-shop";
    assert!(hosts().contains(&format!("{four}\t{names}")), "its own: {}", hosts());
    assert!(hosts().contains(&format!("{own}\te2e-peer")), "{}", hosts());
    drop(peer);
    eventually("the name is gone", || !hosts().contains("e2e-peer"));

    for port in [18079, 18080] {
        let answer = get("127.0.0.1", port);
        assert!(answer.contains("ID=small"), "{port}: {answer}");
    }
    let taken = ["run", "--rm", "--network", made.0, "-p", "18080:81", small(), "true"];
    bulkhead(&taken).fails_saying(125, &["18080:81/tcp", "e2e-web"]);
    bulkhead(&["network", "rm", made.0]).fails_saying(1, &["in use by e2e-web"]);
    assert_eq!(made.inspect()["Containers"][0], "e2e-web");
}

fn on<'a>(network: &'a str, options: &[&'a str]) -> Vec<&'a str> {
    [&["--network", network], options].concat()
}

/// A network that the host's administrator describes: ptp, with CNI's own masquerade.
struct Listed(PathBuf);

impl Listed {
    fn new() -> Listed {
        let directory = Path::new("/etc/cni/net.d");
        std::fs::create_dir_all(directory).expect("/etc/cni/net.d");
        let list = serde_json::json!({ "cniVersion": "1.0.0", "name": "e2e-direct", "plugins": [
            { "type": "ptp", "ipMasq": true, "ipam": { "type": "host-local",
                "ranges": [[{ "subnet": "10.99.9.0/24" }]], "routes": [{ "dst": "0.0.0.0/0" }],
                "dataDir": "/run/e2e-direct" } }] });
        let path = directory.join("99-e2e-direct.conflist");
        std::fs::write(&path, list.to_string()).expect("the list");
        Listed(path)
    }

    fn name(&self) -> &'static str {
        "e2e-direct"
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn the_host_is_closed_and_egress_is_what_was_asked_for() {
    let _turn = alone();
    let made = Made::new("e2e-walls", &["--subnet", "10.99.7.0/24"]);
    let outside = Outside::set_up();
    let request = |from: &Background, host: &str, seconds: u32| {
        let (host, port) = host.split_once(':').unwrap_or((host, "80"));
        from.exec(&format!(
            "printf 'GET /os-release HTTP/1.0\\r\\n\\r\\n' | nc -w {seconds} {host} {port} | grep -q ID="
        ))
    };
    let reaches = |from: &Background, host: &str| match request(from, host, 30) {
        answer if answer.status == 0 => true,
        answer => panic!("{host}: status {}, {}", answer.status, answer.stderr),
    };
    let cannot = |from: &Background, host: &str| request(from, host, 3).status == 1;
    let refused = |from: &Background, what: &str| {
        from.inspect()["NetworkSettings"]["Refused"][what].as_u64().unwrap()
    };
    let plain = Background::start(&on(made.0, &["--cap-add", "NET_ADMIN"]), &SERVER);
    let own = address(&plain, "IPAddress");
    assert!(reaches(&plain, "203.0.113.2"), "the way out");
    for host in ["10.99.7.1:18081", "203.0.113.1:18081"] {
        assert!(cannot(&plain, host), "{host} is the host");
    }
    assert!(refused(&plain, "host") > 0);
    let ways = "ip route add 10.99.0.0/16 via 203.0.113.1 dev out1";
    outside.run(ways).ok();
    assert_ne!(outside.get(&own, 80).status, 0, "a port that is not published");
    assert!(cannot(&plain, "169.254.169.254"));
    assert!(refused(&plain, "metadata") > 0);

    let open = Background::idle(&on(made.0, &["--allow-host"]));
    assert!(reaches(&open, "10.99.7.1:18081") && reaches(&open, &own));
    drop(open);

    let shut = Background::start(&on(made.0, &["--egress", "none", "-p", "18082:80"]), &SERVER);
    assert!(cannot(&shut, "203.0.113.2") && cannot(&shut, "10.99.7.1:18081"));
    assert!(refused(&shut, "egress") > 0 && refused(&shut, "host") > 0);
    let before = refused(&shut, "egress");
    assert!(cannot(&shut, &own), "a neighbour");
    assert!(refused(&shut, "egress") > before);
    let answer = get("127.0.0.1", 18082);
    assert!(answer.contains("ID=small"), "who asks is answered: {answer}");
    let answer = outside.get("203.0.113.1", 18082).text();
    assert!(answer.contains("ID=small"), "from elsewhere as well: {answer}");
    drop(shut);

    let list = format!("203.0.113.2:80,{own}");
    let some = Background::idle(&on(made.0, &["--egress", &list]));
    assert!(reaches(&some, "203.0.113.2") && reaches(&some, &own));
    assert!(cannot(&some, "203.0.113.2:81"));
    assert!(refused(&some, "egress") > 0);

    let [internet, _] = outside.on_the_internet();
    let public = Background::idle(&on(made.0, &["--egress", "public", "--name", "e2e-public"]));
    assert!(reaches(&public, internet));
    for private in ["203.0.113.2", &own] {
        let before = refused(&public, "egress");
        assert!(cannot(&public, private), "{private} is not on the Internet");
        assert!(refused(&public, "egress") > before, "{private}");
    }
    // What inspect tells, for programs.
    let told = |what: &str, more: &str| {
        let metrics = bulkhead(&["metrics"]).ok();
        let start = format!("bulkhead_{what}{{id=\"{}\",name=\"e2e-public\"{more}}} ", public.id);
        let mut found = metrics.lines().filter_map(|line| line.strip_prefix(&start));
        found.next().map(|value| value.parse::<u64>().expect("a number"))
    };
    let reason = ",reason=\"egress\"";
    assert_eq!(told("network_refused_frames_total", reason), Some(refused(&public, "egress")));
    let both = [",direction=\"sent\"", ",direction=\"received\""];
    assert!(both.iter().all(|way| told("network_bytes_total", way) > Some(300)));
    assert_eq!(told("container_running", ""), Some(1));
    bulkhead(&["stop", "-t", "0", &public.id]).ok();
    assert_eq!(told("container_running", ""), Some(0));
    assert_eq!(told("network_refused_frames_total", reason), Some(refused(&public, "egress")));
    assert_eq!(told("network_bytes_total", both[0]), None);
    drop(public);

    // Where no bridge is, the host's end is where the host is.
    let list = Listed::new();
    let direct = Background::idle(&on(list.name(), &["--egress", "203.0.113.2:80,10.99.0.0/16"]));
    assert!(reaches(&direct, "203.0.113.2"));
    assert!(cannot(&direct, "203.0.113.2:81") && cannot(&direct, "203.0.113.1:18081"));
    let before = refused(&direct, "networks");
    assert!(cannot(&direct, &own), "a wide entry opens no other network");
    assert!(refused(&direct, "networks") > before);
    let sets = script("nft list set inet bulkhead translated4").text();
    assert!(sets.contains("10.99.7.0/24") && !sets.contains("10.99.9.0/24"), "{sets}");
    drop(direct);

    // Another address than its own reaches nobody.
    assert!(reaches(&some, &own));
    plain.exec("ip addr add 10.99.7.200/24 dev eth0").ok();
    assert!(reaches(&plain, "203.0.113.2"), "its own address still works");
    plain.exec("ip route replace default via 10.99.7.1 dev eth0 src 10.99.7.200").ok();
    assert!(cannot(&plain, "203.0.113.2"));
}

#[test]
fn what_no_network_can_be_is_told() {
    let _turn = shared();
    let run =
        |options: &[&str]| bulkhead(&[&["run", "--rm"], options, &[small(), "true"]].concat());
    let host = run(&["--network", "host"]).expect(125);
    assert!(host.stderr.contains("a kernel of its own"), "{}", host.stderr);
    run(&["--network", "nowhere"])
        .fails_saying(125, &["no such network: nowhere", "network create"]);
    run(&["--network", "none", "-p", "80:80"]).fails_saying(125, &["--publish"]);
    for (options, said) in [
        (["--egress-rate", "0"], "between 1kbit and 1000tbit"),
        (["-p", "80-82:80-81"], "3 of the host cannot lead to 2"),
    ] {
        let refused = run(&options).expect(125);
        assert!(refused.stderr.contains(said), "{said} in {}", refused.stderr);
    }
    let mut command = std::process::Command::new("bulkhead");
    command.env("CNI_PATH", "/nowhere").args([
        "run",
        "--rm",
        "--network",
        "bridge",
        small(),
        "true",
    ]);
    let missing = bulkhead_tests::run(command);
    missing.fails_saying(125, &["\"bridge\"", "containernetworking-plugins", "--network none"]);
    let create = |options: &[&str]| bulkhead(&[&["network", "create"], options].concat());
    create(&["--subnet", "127.0.0.0/30", "../x"]).fails_saying(1, &["../x"]);
    create(&["--subnet", "10.1.0.0/31", "x"]).fails_saying(1, &["10.1.0.0/31"]);
}
