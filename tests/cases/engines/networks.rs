//! Networks of engines: bridges that podman, docker and CNI make.

use std::io::Read;
use std::net::TcpStream;

use bulkhead_tests::netns::Bridge;

use super::*;

/// Serves a line at port 80 of all addresses, and what [`traffic`] asks for.
fn serve() -> String {
    format!("echo served > /line; nc -ll -p 80 -e cat /line & {}", traffic::serve("traffic"))
}

/// Asks the server through the loopback of both, and tells where they are.
const SIBLING: &str = "nc -w 9 127.0.0.1 80; ip -o addr show eth0; \
                       cat /proc/sys/kernel/random/boot_id";

/// What a server says that can be reached by an address.
fn ask(address: &str) -> String {
    let mut text = String::new();
    eventually("a connection", || {
        text.clear();
        let stream = TcpStream::connect(address);
        stream.is_ok_and(|mut stream| stream.read_to_string(&mut text).is_ok() && !text.is_empty())
    });
    text
}

/// What an engine's inspect prints of a container's network namespace.
const NAMESPACE: &str = "{{.NetworkSettings.SandboxKey}}";

/// A tap of ours is in the namespace at this path.
#[track_caller]
fn is_taken_over(namespace: &str) {
    let links = script(&format!("nsenter --net={namespace} ip -o link")).ok();
    assert!(links.contains("bhtap"), "{namespace}: {links}");
}

/// There is no namespace at this path any more. (docker keeps the file for a minute.)
#[track_caller]
fn is_gone(namespace: &str) {
    let enter = format!("nsenter --net={namespace} true");
    eventually("the end of the network namespace", || script(&enter).status != 0);
}

#[test]
fn podman_networks() {
    let _turn = shared();
    let podman = Podman::new();
    let podman_run = |words: &[&str]| podman.run(words);
    let network = |name: &str, subnet: &str, mtu: u32| {
        let (six, mtu) = (format!("fd77:{name}::/64").replace("net", ""), format!("mtu={mtu}"));
        let options = ["--subnet", subnet, "--ipv6", "--subnet", &six, "--opt", &mtu];
        podman_run(&[&["network", "create"], &options[..], &[name]].concat()).ok();
    };
    network("net1", "10.71.1.0/24", 9000);
    network("net2", "10.71.2.0/24", 1280);
    let words = ["run", "-d", "--name", "server", "--network", "net1", "--dns", "10.71.1.53"];
    let more = ["--add-host", "friend:10.71.1.9", "-p", "127.0.0.1:8071:80", IMAGE];
    podman_run(&[&words[..], &more, &["sh", "-c", &serve()]].concat()).ok();
    assert_eq!(ask("127.0.0.1:8071"), "served\n");
    let exec = |script: &str| podman_run(&["exec", "server", "sh", "-c", script]).ok();
    let told = exec("ip -o addr; ip route; cat /etc/resolv.conf /etc/hosts");
    for part in ["10.71.1.2/24", "fd77:1::2/64", "default via 10.71.1.1", "10.71.1.53", "friend"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let client = traffic::checks("traffic", &["10.71.1.2", "fd77:1::2"], 9000);
    let words = ["run", "--rm", "--network", "net1", "--cap-add", "NET_RAW", IMAGE];
    assert_eq!(podman_run(&[&words[..], &["sh", "-c", &client]].concat()).ok(), "all of it");
    podman_run(&["network", "connect", "net2", "server"]).ok();
    eventually("the second interface", || exec("ip -o addr").contains("10.71.2.2/24"));
    traffic::from_host(&["10.71.2.2", "fd77:2::2"], 1280);
    podman_run(&["network", "disconnect", "net2", "server"]).ok();
    eventually("its end", || !exec("ip -o link").contains("eth1"));
    assert_eq!(ask("10.71.1.2:80"), "served\n");
    let namespace = podman_run(&["inspect", "server", "--format", NAMESPACE]).ok();
    is_taken_over(&namespace);
    podman_run(&["rm", "-f", "-t", "0", "server"]).ok();
    podman_run(&["network", "rm", "net1", "net2"]).ok();
    is_gone(&namespace);
}

#[test]
fn podman_networks_of_netavark_have_names() {
    let _turn = shared();
    let podman = Podman::with_netavark();
    let create = ["network", "create", "--subnet", "10.73.1.0/24", "--opt", "mtu=1400", "names"];
    podman.run(&create).ok();
    let words = ["run", "-d", "--name", "server", "--network", "names", "--network-alias", "web"];
    let more = ["-p", "127.0.0.1:8073:80", IMAGE, "sh", "-c"];
    podman.run(&[&words[..], &more, &[&serve()]].concat()).ok();
    assert_eq!(ask("127.0.0.1:8073"), "served\n");
    let client = "cat /etc/resolv.conf; for name in server web 10.73.1.2; do
        nc -w 9 $name 80; done; cat /sys/class/net/eth0/mtu";
    let words = ["run", "--rm", "--network", "names", IMAGE, "sh", "-c", client];
    let told = podman.run(&words).ok();
    let end = "served\nserved\nserved\n1400";
    assert!(told.contains("nameserver 10.73.1.1") && told.ends_with(end), "{told}");
    let namespace = podman.run(&["inspect", "server", "--format", NAMESPACE]).ok();
    is_taken_over(&namespace);
    podman.run(&["rm", "-f", "-t", "0", "server"]).ok();
    podman.run(&["network", "rm", "names"]).ok();
    is_gone(&namespace);
}

/// A namespace that podman only knows by its path, as a pod's of CRI-O.
#[test]
fn podman_containers_of_a_namespace_share_a_machine() {
    let _turn = shared();
    let podman = Podman::new();
    let bridge = Bridge::new(1500);
    let namespace = bridge.namespace(1500);
    let network = format!("ns:{}", namespace.path());
    let words = ["run", "-d", "--name", "server", "--network", &network, IMAGE, "sh", "-c"];
    podman.run(&[&words[..], &[&serve()]].concat()).ok();
    let address = bridge.ip4(namespace.last);
    assert_eq!(ask(&format!("{address}:80")), "served\n");
    let words = ["run", "--rm", "--network", &network, IMAGE, "sh", "-c", SIBLING];
    let told = podman.run(&words).ok();
    assert!(told.starts_with("served\n") && told.contains(&address), "{told}");
    let boot = podman.run(&["exec", "server", "cat", "/proc/sys/kernel/random/boot_id"]).ok();
    assert!(told.ends_with(&boot), "one machine: {told}, {boot}");
    podman.run(&["rm", "-f", "-t", "0", "server"]).ok();
    assert_eq!(namespace.leftovers(), "");
}

/// docker's networks. Part of the one case of docker's: a daemon takes long to start there.
pub(super) fn docker_networks(docker: &Docker) {
    let network = |name: &str, subnet: &str, mtu: u32| {
        let six = format!("fd72:{name}::/64").replace("net", "");
        let mtu = format!("com.docker.network.driver.mtu={mtu}");
        let options = ["--subnet", subnet, "--ipv6", "--subnet", &six, "--opt", &mtu];
        docker.run(&[&["network", "create"], &options[..], &[name]].concat()).ok();
    };
    network("net1", "10.72.1.0/24", 1280);
    network("net2", "10.72.2.0/24", 9000);
    let new = ["run", "--runtime", "bulkhead", "--network", "net1"];
    let words = ["-d", "--name", "server", "-p", "127.0.0.1:8072:80", IMAGE, "sh", "-c"];
    docker.run(&[&new[..], &words, &[&serve()]].concat()).ok();
    assert_eq!(ask("127.0.0.1:8072"), "served\n");
    let exec = |script: &str| docker.run(&["exec", "server", "sh", "-c", script]).ok();
    let told = exec("ip -o addr; ip route; cat /etc/hosts");
    for part in ["10.72.1.2/24", "fd72:1::2/64", "default via 10.72.1.1", "10.72.1.2\t"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    // By the name that docker's resolver knows, at 127.0.0.11 of the namespace.
    let checks = traffic::checks("traffic", &["10.72.1.2", "fd72:1::2"], 1280);
    let checks = if traffic::everywhere() { &checks } else { "echo all of it" };
    let client = format!("cat /etc/resolv.conf; nc -w 9 server 80; {checks}");
    let told = docker.run(&[&new[..], &["--rm", IMAGE, "sh", "-c", &client]].concat()).ok();
    let end = "served\nall of it";
    assert!(told.contains("nameserver 127.0.0.11") && told.ends_with(end), "{told}");
    let words = ["run", "--runtime", "bulkhead", "--rm", "--network", "container:server", IMAGE];
    let told = docker.run(&[&words[..], &["sh", "-c", SIBLING]].concat()).ok();
    assert!(told.starts_with("served\n") && told.contains("10.72.1.2/24"), "{told}");
    assert!(told.ends_with(&exec("cat /proc/sys/kernel/random/boot_id")), "one machine: {told}");
    docker.run(&["network", "connect", "net2", "server"]).ok();
    eventually("the second interface", || exec("ip -o addr").contains("10.72.2.2/24"));
    assert_eq!(ask("10.72.2.2:80"), "served\n");
    assert_eq!(ask("[fd72:2::2]:80"), "served\n");
    if traffic::everywhere() {
        traffic::from_host(&["10.72.2.2", "fd72:2::2"], 9000);
    }
    docker.run(&["network", "disconnect", "net2", "server"]).ok();
    eventually("its end", || !exec("ip -o link").contains("eth1"));
    let namespace = docker.run(&["inspect", "server", "--format", NAMESPACE]).ok();
    is_taken_over(&namespace);
    docker.run(&["rm", "-f", "server"]).ok();
    docker.run(&["network", "rm", "net1", "net2"]).ok();
    is_gone(&namespace);
}

/// `ctr run --cni`, which sets the network up between `create` and `start`.
pub(super) fn ctr_runs_with_cni(docker: &Docker, image: &str) {
    let plugins = "mkdir -p /opt/cni /etc/cni/net.d && ln -sfn /usr/lib/cni /opt/cni/bin";
    script(plugins).ok();
    let binary = runtime();
    let networks = [(3, 9000), (4, 1280)];
    let count = if traffic::everywhere() { networks.len() } else { 1 };
    for (number, mtu) in networks.into_iter().take(count) {
        let list = serde_json::json!({
            "cniVersion": "0.4.0", "name": format!("e2e{number}"),
            "plugins": [{
                "type": "bridge", "bridge": "e2ecni", "isGateway": true, "mtu": mtu,
                "ipam": { "type": "host-local", "routes": [{ "dst": "0.0.0.0/0" }], "ranges": [
                    [{ "subnet": format!("10.72.{number}.0/24") }],
                    [{ "subnet": format!("fd72:{number}::/64") }],
                ] },
            }],
        });
        let file = "/etc/cni/net.d/00-e2e.conflist";
        std::fs::write(file, list.to_string()).expect("the host's own");
        let run = ["run", "--cni", "--runc-binary", &binary];
        let server = serve();
        let words = ["-d", image, "server", "sh", "-c", &server];
        docker.ctr(&[&run[..], &words].concat()).ok();
        let addresses = [format!("10.72.{number}.2"), format!("fd72:{number}::2")];
        let checks = traffic::checks("traffic", &[&addresses[0], &addresses[1]], mtu);
        let checks = if traffic::everywhere() { &checks } else { "echo all of it" };
        let client = format!("ip -o addr; nc -w 9 {} 80; {checks}", addresses[0]);
        let told =
            docker.ctr(&[&run[..], &["--rm", image, "client", "sh", "-c", &client]].concat()).ok();
        docker.ctr(&["task", "kill", "-s", "KILL", "server"]).ok();
        eventually("its end", || docker.ctr(&["container", "rm", "server"]).status == 0);
        std::fs::remove_file(file).expect("it is there");
        script("ip link del e2ecni").ok();
        assert!(told.contains(&format!("10.72.{number}.3/24")), "{told}");
        assert!(told.ends_with("all of it"), "{told}");
    }
}
