//! `linux.resources`: what only the host can honour, huge pages, and `events`.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use bulkhead_tests::bundle::Bundle;
use bulkhead_tests::children::{adopt, reap};
use bulkhead_tests::program::{eventually, limit, wait};
use bulkhead_tests::turn::shared;
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{both, same};

/// The disk's major and minor number that the bundle lies on.
fn disk(bundle: &Bundle) -> (u64, u64) {
    let device = std::fs::metadata(bundle.path()).expect("it is there").dev();
    (nix::sys::stat::major(device), nix::sys::stat::minor(device))
}

both!(rates_of_disks_hold, |runtime| {
    let script = "begin=$(cut -d. -f1 /proc/uptime); dd if=/dev/zero of=/x bs=1M count=6 \
                  conv=fsync 2>/dev/null; echo $(($(cut -d. -f1 /proc/uptime) - begin)); sleep 100";
    let mut bundle = Bundle::new(runtime, script);
    let (major, minor) = disk(&bundle);
    let rate = |rate: u64| json!([{"major": major, "minor": minor, "rate": rate}]);
    bundle.config["linux"]["resources"]["blockIO"] = json!({
        "throttleWriteBpsDevice": rate(1 << 20),
        "throttleReadIOPSDevice": rate(5000),
    });
    bundle.create();
    // Of the cgroup that all of its processes of the host are in or below.
    let file = format!("/sys/fs/cgroup/bulkhead-tests/{}/io.max", bundle.id);
    let limits = std::fs::read_to_string(file).expect("a limit");
    assert_eq!(limits, format!("{major}:{minor} rbps=max wbps=1048576 riops=5000 wiops=max\n"));
    bundle.verb(&["start", &bundle.id]).ok();
    eventually("6 MiB at 1 MiB a second", || bundle.output().ends_with('\n'));
    let seconds: u32 = bundle.output().trim().parse().expect("seconds");
    assert!(seconds >= 3, "6 MiB in {seconds} s");
});

both!(an_oom_kill_is_told_as_engines_hear_of_one, |runtime| {
    adopt();
    // One that its first process outlives, and then that process itself.
    let big = "dd if=/dev/zero of=/dev/null bs=90M count=1 2>/dev/null";
    let script = format!(
        "until [ -e /go ]; do sleep 0.1; done; {big}; echo $?; \
         until [ -e /on ]; do sleep 0.1; done; exec {big}"
    );
    let mut bundle = Bundle::new(runtime, &script);
    bundle.config["linux"]["resources"] = json!({"memory": {"limit": 64 << 20}});
    let pid = bundle.create();
    bundle.verb(&["start", &bundle.id]).ok();
    // Who waits for an event in vain does not wait for ever.
    bundle.before = ["timeout", "120"].map(String::from).to_vec();
    let mut command = bundle.command(&["events", "--interval", "300ms", &bundle.id]);
    bundle.before.clear();
    let mut events = command.stdout(Stdio::piped()).spawn().expect("it is installed");
    let lines = BufReader::new(events.stdout.take().expect("piped")).lines();
    let mut types = lines.map(|line| {
        let event: Value = serde_json::from_str(&line.expect("text")).expect("JSON");
        event["type"].as_str().unwrap_or_default().to_owned()
    });
    assert_eq!(types.next().as_deref(), Some("stats"));
    bundle.verb(&["exec", &bundle.id, "touch", "/go"]).ok();
    assert!(types.any(|kind| kind == "oom"), "no event tells of it");
    eventually("its status", || bundle.output() == "137\n");
    bundle.verb(&["exec", &bundle.id, "touch", "/on"]).ok();
    assert_eq!(reap(pid), WaitStatus::Signaled(Pid::from_raw(pid), Signal::SIGKILL, false));
    // Of the cgroup that conmon and containerd's shim watch.
    let file = format!("/sys/fs/cgroup/bulkhead-tests/{}/memory.events", bundle.id);
    let counts = std::fs::read_to_string(file).expect("counts");
    let kills = counts.lines().find_map(|line| line.strip_prefix("oom_kill "));
    assert_ne!(kills.expect("a count"), "0", "{counts}");
    drop(events.wait());
});

#[test]
fn limits_of_huge_pages() {
    let _turn = shared();
    let text = same("cat /sys/fs/cgroup/hugetlb.2MB.max", |bundle| {
        bundle.config["linux"]["resources"]["hugepageLimits"] =
            json!([{"pageSize": "2MB", "limit": 6 << 20}]);
    });
    assert_eq!(text, "6291456\n");
}

both!(huge_pages_of_a_size_that_there_is_not_are_refused, |runtime| {
    for size in ["3MB", "../2MB", ""] {
        let mut bundle = Bundle::new(runtime, "echo never");
        bundle.config["linux"]["resources"]["hugepageLimits"] =
            json!([{"pageSize": size, "limit": 6 << 20}]);
        let failed = bundle.run();
        assert_ne!(failed.status, 0, "{size}");
        assert_eq!(failed.text(), "");
        assert!(failed.stderr.contains("hugetlb") || failed.stderr.contains("hugepageLimits"));
    }
});

both!(events_come_at_their_interval_until_the_end, |runtime| {
    let mut bundle = Bundle::new(runtime, "sleep 100");
    bundle.create();
    bundle.verb(&["start", &bundle.id]).ok();
    bundle.before = ["timeout", "120"].map(String::from).to_vec();
    let mut command = bundle.command(&["events", "--interval", "1200ms", &bundle.id]);
    bundle.before.clear();
    let mut events = command.stdout(Stdio::piped()).spawn().expect("it is installed");
    let mut lines = BufReader::new(events.stdout.take().expect("piped")).lines();
    let mut next = || {
        let line = lines.next().expect("one more").expect("text");
        let event: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!((&event["type"], &event["id"]), (&json!("stats"), &json!(bundle.id)));
        assert_eq!(event["data"]["pids"]["current"], 1);
        Instant::now()
    };
    let (first, _, third) = (next(), next(), next());
    let took = third - first;
    assert!(took > Duration::from_secs(2), "two intervals in {took:?}");
    // With the container it ends, and by itself.
    bundle.verb(&["kill", &bundle.id, "KILL"]).ok();
    let status = wait(&mut events, Instant::now() + limit(), "events");
    assert_eq!(status, 0);
});
