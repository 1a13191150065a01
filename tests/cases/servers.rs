//! Real servers of Debian's packages, asked by their own clients: none loses a request.
//! (`cargo xtask image --servers` makes the file system; `BULKHEAD_LOAD` multiplies what is
//! asked for.)

use std::path::PathBuf;
use std::process::Command;

use bulkhead_tests::bundle::{Bundle, OURS};
use bulkhead_tests::netns::{Bridge, Namespace};
use bulkhead_tests::program::{eventually, run};
use bulkhead_tests::traffic;
use bulkhead_tests::turn::shared;
use serde_json::json;

/// How many times the small load of the suite.
fn load() -> u32 {
    std::env::var("BULKHEAD_LOAD").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// The file system of servers, mounted once for all containers of a case.
struct Servers(tempfile::TempDir);

impl Servers {
    #[track_caller]
    fn mount() -> Servers {
        let image = std::env::var_os("BULKHEAD_TEST_SERVERS").map(PathBuf::from);
        let image = image.expect("start the suite by `cargo xtask test`");
        let place = tempfile::tempdir_in("/var/lib/containers").expect("a directory");
        let mut mount = Command::new("mount");
        mount.args(["-o", "loop,ro"]).arg(image).arg(place.path());
        run(mount).ok();
        Servers(place)
    }

    /// A container of it in a network namespace.
    fn container(&self, namespace: &Namespace, process: &str, user: u32) -> Served {
        let mut bundle = Bundle::new(OURS, process);
        let at = |name: &str| bundle.path().join(name);
        for directory in ["upper", "work", "merged"] {
            std::fs::create_dir(at(directory)).expect("a directory");
        }
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            self.0.path().display(),
            at("upper").display(),
            at("work").display()
        );
        let mut mount = Command::new("mount");
        mount.args(["-t", "overlay", "overlay", "-o", &options]).arg(at("merged"));
        run(mount).ok();
        bundle.config["root"]["path"] = json!("merged");
        bundle.without_namespace("network");
        let network = json!({ "type": "network", "path": namespace.path() });
        let process = &mut bundle.config["process"];
        process["user"] = json!({ "uid": user, "gid": user });
        process["env"] = json!(["PATH=/usr/lib/postgresql/15/bin:/sbin:/bin", "HOME=/tmp"]);
        process["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "hard": 4096, "soft": 4096 }]);
        for set in ["bounding", "effective", "permitted"] {
            let all = ["CAP_NET_BIND_SERVICE", "CAP_SETUID", "CAP_SETGID", "CAP_CHOWN", "CAP_KILL"];
            process["capabilities"][set] = json!(all);
        }
        bundle.config["linux"]["namespaces"].as_array_mut().expect("namespaces").push(network);
        Served(bundle)
    }

    /// Runs a client to its end; what it said.
    #[track_caller]
    fn client(&self, namespace: &Namespace, script: &str) -> String {
        self.container(namespace, script, 0).0.run().ok()
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

/// A container whose root is an overlay. Dropped, it is deleted before its root is unmounted.
struct Served(Bundle);

impl Served {
    #[track_caller]
    fn start(self) -> Served {
        self.0.create();
        self.0.verb(&["start", &self.0.id]).ok();
        self
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.command(&["delete", "--force", &self.0.id]).output();
        let _ = Command::new("umount").arg(self.0.path().join("merged")).status();
    }
}

/// Waits for a server at a port.
#[track_caller]
fn wait_for(served: &Served, ip: &str, port: u16) {
    eventually("the server", || {
        let state = served.0.status();
        assert_eq!(state, "running", "{}", served.0.output());
        std::net::TcpStream::connect((ip, port)).is_ok()
    });
}

#[test]
fn nginx_answers_two_hundred_clients_at_once() {
    let _turn = shared();
    let (servers, bridge) = (Servers::mount(), Bridge::new(1500));
    let namespace = bridge.namespace(1500);
    let nginx = servers.container(&namespace, "exec nginx", 0).start();
    let ip = bridge.ip4(namespace.last);
    wait_for(&nginx, &ip, 80);
    let mut client = Command::new(traffic::program());
    client.args(["requests", &ip, "200", &(5 * load()).to_string()]);
    run(client).ok();
}

#[test]
fn redis_loses_nothing_that_redis_benchmark_asks() {
    let _turn = shared();
    let (servers, bridge) = (Servers::mount(), Bridge::new(1500));
    let spaces = [bridge.namespace(1500), bridge.namespace(1500)];
    let server = "exec redis-server --save '' --protected-mode no --bind '*'";
    let redis = servers.container(&spaces[0], server, 101).start();
    let ip = bridge.ip4(spaces[0].last);
    wait_for(&redis, &ip, 6379);
    let count = 500 * load();
    // INCR of one key tells how many arrived.
    let told = servers.client(
        &spaces[1],
        &format!(
            "redis-benchmark -h {ip} -c 50 -n {count} -q -t set,get,incr,lpush >/tmp/told 2>&1 \
                 || {{ cat /tmp/told >&2; exit 1; }}; \
             redis-cli -h {ip} get counter:__rand_int__; redis-cli -h {ip} llen mylist"
        ),
    );
    assert_eq!(told, format!("{count}\n{count}"));
}

#[test]
fn postgresql_commits_what_pgbench_asks_for() {
    let _turn = shared();
    let (servers, bridge) = (Servers::mount(), Bridge::new(1500));
    let spaces = [bridge.namespace(1500), bridge.namespace(1500)];
    let server = "exec postgres -D /var/lib/postgresql/data";
    let postgres = servers.container(&spaces[0], server, 100).start();
    let ip = bridge.ip4(spaces[0].last);
    wait_for(&postgres, &ip, 5432);
    let (clients, each) = (4, 10 * load());
    let told = servers.client(
        &spaces[1],
        &format!(
            "pgbench -h {ip} -U postgres -n -c {clients} -t {each} postgres && \
             psql -h {ip} -U postgres -At -c 'SELECT count(*) FROM pgbench_history' postgres"
        ),
    );
    let all = clients * each;
    let part = format!("number of transactions actually processed: {all}/{all}");
    assert!(told.contains(&part) && !told.contains("failed transactions: 1"), "{told}");
    // Each transaction leaves a line.
    assert_eq!(told.lines().last(), Some(all.to_string().as_str()), "{told}");
}
