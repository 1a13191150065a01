//! Several containers of a pod: namespaces that are joined by path, of a process or not.

use bulkhead_tests::bundle::{Bundle, OURS};
use bulkhead_tests::children::{adopt, reap, reap_orphans};
use bulkhead_tests::netns::Namespace;
use bulkhead_tests::program::eventually;
use bulkhead_tests::{leaks, turn};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;
use serde_json::json;

use super::both;

const PODS: &[&str] = &["ipc", "network", "uts"];

/// A bind mount in its configuration.
fn bind(bundle: &mut Bundle, source: &str, destination: &str, options: &[&str]) {
    let mounts = bundle.config["mounts"].as_array_mut().expect("mounts");
    mounts.retain(|mount| mount["destination"] != destination);
    let options: Vec<&str> = [&["bind"], options].concat();
    mounts.push(json!({
        "destination": destination, "source": source, "type": "bind", "options": options,
    }));
}

/// A directory in the host's memory, removed at the end.
fn memory() -> tempfile::TempDir {
    let directory = tempfile::tempdir_in("/dev/shm").expect("a directory");
    let all = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
    std::fs::set_permissions(directory.path(), all).expect("its mode");
    directory
}

/// A container that runs in the machine of `first`, and its pid.
fn joined(first: &Bundle, pid: i32) -> (Bundle, i32) {
    let mut one = first.beside("echo up; while :; do sleep 7654; done");
    one.join(pid, &["ipc", "network", "uts", "pid"]);
    one.config.as_object_mut().expect("an object").remove("hostname");
    let pid = one.create();
    one.verb(&["start", &one.id]).ok();
    eventually("its output", || one.output() == "up\n");
    (one, pid)
}

both!(namespaces_and_memory_are_shared, |runtime| {
    adopt();
    let shm = memory();
    let shm = shm.path().to_str().expect("a path");
    let script = "echo one > /dev/shm/one; while :; do nc -l -p 7777 -e cat; done";
    let mut first = Bundle::new(runtime, script);
    bind(&mut first, shm, "/dev/shm", &[]);
    first.config["hostname"] = json!("pod");
    let pid = first.create();
    first.verb(&["start", &first.id]).ok();

    let script = "hostname; cat /dev/shm/one; until nc 127.0.0.1 7777 </in/data; do sleep 0.2; \
                  done; echo two > /dev/shm/two; echo kept > /new; touch /in/x || echo ro; exit 5";
    let mut second = first.beside(script);
    second.join(pid, PODS);
    second.config.as_object_mut().expect("an object").remove("hostname");
    bind(&mut second, shm, "/dev/shm", &[]);
    let inside = second.file("inside");
    std::fs::create_dir(&inside).expect("a directory");
    std::fs::write(second.file("inside/data"), "through the loopback\n").expect("a file");
    bind(&mut second, &inside, "/in", &["ro"]);
    let ended = second.run();
    assert_eq!(ended.text(), "pod\none\nthrough the loopback\nro\n", "{}", ended.stderr);
    assert_eq!(ended.status, 5);
    let new = std::fs::read_to_string(second.file("rootfs/new"));
    assert_eq!(new.expect("it is in its own root"), "kept\n");
    assert_eq!(first.verb(&["exec", &first.id, "cat", "/dev/shm/two"]).ok(), "two");
    // A file of its own, of the same name as before, and the same container again.
    std::fs::write(second.file("inside/data"), "again\n").expect("a file");
    second.config["process"]["args"] = json!(["cat", "/in/data", "/new"]);
    assert_eq!(second.run().ok(), "again\nkept");
    assert_eq!(first.status(), "running");
});

both!(one_ends_and_the_others_go_on, |runtime| {
    adopt();
    let first = Bundle::new(runtime, "while :; do sleep 0.1; done");
    let first_pid = first.create();
    first.verb(&["start", &first.id]).ok();
    let (second, second_pid) = joined(&first, first_pid);
    let all = |word: &str| first.verb(&["exec", &first.id, "ps"]).ok().contains(word);
    assert!(all("sleep 7654"), "the pid namespace is shared");
    assert_eq!(second.verb(&["exec", &second.id, "echo", "in"]).ok(), "in");
    second.verb(&["pause", &second.id]).ok();
    assert_eq!((first.status(), second.status()), ("running".into(), "paused".into()));
    second.verb(&["resume", &second.id]).ok();
    second.verb(&["kill", &second.id, "KILL"]).ok();
    let killed = WaitStatus::Signaled(Pid::from_raw(second_pid), Signal::SIGKILL, false);
    assert_eq!(reap(second_pid), killed);
    assert_eq!(second.status(), "stopped");
    second.verb(&["delete", &second.id]).ok();
    eventually("the end of its children", || !all("sleep 7654"));
    assert_eq!(first.verb(&["exec", &first.id, "echo", "still"]).ok(), "still");
});

both!(a_network_namespace_is_shared_by_its_path, |runtime| {
    adopt();
    let first = Bundle::new(runtime, "while :; do nc -l -p 7777 -e hostname; done");
    let pid = first.create();
    first.verb(&["start", &first.id]).ok();
    // Another path than the one by which it was made, as docker and CRI-O keep one.
    let namespace = Namespace::of(pid);
    let script = "until nc 127.0.0.1 7777; do sleep 0.2; done; hostname; echo pid $$; exit 5";
    let mut second = first.beside(script);
    second.in_network(&namespace.path());
    second.config["hostname"] = json!("second");
    let ended = second.run();
    assert_eq!(ended.text(), "e2e\nsecond\npid 1\n", "{}", ended.stderr);
    assert_eq!(ended.status, 5);
    assert_eq!(first.status(), "running");
});

/// Tells in which kernel it is, and goes on.
const KERNEL: &str = "cat /proc/sys/kernel/random/boot_id; while :; do sleep 0.1; done";

both!(two_at_once_in_one_network_namespace_share_it, |runtime| {
    adopt();
    let namespace = Namespace::bare();
    let script = format!("nc -ll -p 7777 -e hostname & {KERNEL}");
    let mut one = Bundle::new(runtime, &script);
    let mut other = one.beside(KERNEL);
    one.in_network(&namespace.path());
    other.in_network(&namespace.path());
    std::thread::scope(|scope| {
        scope.spawn(|| one.create());
        scope.spawn(|| other.create());
    });
    for bundle in [&one, &other] {
        bundle.verb(&["start", &bundle.id]).ok();
        eventually("its output", || bundle.output().ends_with('\n'));
    }
    assert_eq!(one.output(), other.output(), "one kernel");
    let ask = "until nc 127.0.0.1 7777; do sleep 0.2; done";
    assert_eq!(other.verb(&["exec", &other.id, "sh", "-c", ask]).ok(), "e2e");
});

#[test]
fn a_network_namespace_outlives_its_machine() {
    let _turn = turn::shared();
    adopt();
    let namespace = Namespace::bare();
    let mut first = Bundle::new(OURS, KERNEL);
    first.in_network(&namespace.path());
    let begin = |bundle: &Bundle| {
        let pid = bundle.create();
        bundle.verb(&["start", &bundle.id]).ok();
        eventually("its output", || bundle.output().ends_with('\n'));
        pid
    };
    let beside = || {
        let mut bundle = first.beside(KERNEL);
        bundle.in_network(&namespace.path());
        bundle
    };
    let first_pid = begin(&first);
    let second = beside();
    let second_pid = begin(&second);
    assert_eq!(first.output(), second.output(), "one kernel");
    // Whoever comes at once waits for the machine's end, and begins the next one.
    first.verb(&["kill", &first.id, "KILL"]).ok();
    let third = beside();
    begin(&third);
    assert_ne!(first.output(), third.output(), "another kernel");
    for pid in [first_pid, second_pid] {
        let killed = WaitStatus::Signaled(Pid::from_raw(pid), Signal::SIGKILL, false);
        assert_eq!(reap(pid), killed);
    }
    // Deleted, those of the first machine take nothing from the other one.
    second.verb(&["delete", &second.id]).ok();
    first.verb(&["delete", &first.id]).ok();
    assert_eq!(third.verb(&["exec", &third.id, "echo", "still"]).ok(), "still");
    let mut fourth = beside();
    fourth.config["process"]["args"] = json!(["cat", "/proc/sys/kernel/random/boot_id"]);
    assert_eq!(fourth.run().ok(), third.output().trim());
}

#[test]
fn whoever_is_killed_nothing_is_left() {
    let _turn = turn::alone();
    adopt();
    let warm = Bundle::new(OURS, "true");
    warm.run().ok();
    drop(warm);
    reap_orphans();
    leaks::none(|| {
        let first = Bundle::new(OURS, "while :; do sleep 0.1; done");
        let first_pid = first.create();
        first.verb(&["start", &first.id]).ok();
        // Its own monitor: the container goes with it, in the guest as well.
        let (second, pid) = joined(&first, first_pid);
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it lives");
        reap(pid);
        assert_eq!(second.status(), "stopped");
        second.verb(&["delete", &second.id]).ok();
        let all = first.verb(&["exec", &first.id, "ps"]).ok();
        assert!(!all.contains("7654"), "{all}");
        // The first container ends, and the machine with it.
        let (third, pid) = joined(&first, first_pid);
        first.verb(&["kill", &first.id, "KILL"]).ok();
        reap(first_pid);
        let killed = WaitStatus::Signaled(Pid::from_raw(pid), Signal::SIGKILL, false);
        assert_eq!(reap(pid), killed);
        assert_eq!(third.status(), "stopped");
        third.verb(&["delete", &third.id]).ok();
        first.verb(&["delete", &first.id]).ok();
        // Nobody is there any more.
        let mut late = first.beside("true");
        late.join(first_pid, PODS);
        let failed = late.run();
        assert!(failed.status != 0 && failed.stderr.contains("namespace"), "{}", failed.stderr);
        reap_orphans();
    });
}

#[test]
fn a_machine_is_as_large_as_annotations_say() {
    let _turn = turn::shared();
    let mut bundle = Bundle::new(OURS, "grep MemTotal /proc/meminfo; nproc");
    let mut of = |annotations: serde_json::Value| {
        bundle.config["annotations"] = annotations;
        let text = bundle.run().ok();
        let words: Vec<&str> = text.split_whitespace().collect();
        let [_, kib, _, cpus] = words.as_slice() else { panic!("{text}") };
        (kib.parse::<u64>().expect("a number") / 1024, (*cpus).to_owned())
    };
    // As containerd tells a pod's first container what all will have together.
    let (mib, cpus) = of(json!({
        "io.kubernetes.cri.container-type": "sandbox",
        "io.kubernetes.cri.sandbox-memory": (768 << 20).to_string(),
        "io.kubernetes.cri.sandbox-cpu-quota": "150000",
        "io.kubernetes.cri.sandbox-cpu-period": "100000",
    }));
    assert!((740..=900).contains(&mib) && cpus == "2", "{mib} MiB, {cpus} CPUs");
    let (mib, cpus) = of(json!({"bulkhead.memory": "300m", "bulkhead.cpus": "2"}));
    assert!((280..=400).contains(&mib) && cpus == "2", "{mib} MiB, {cpus} CPUs");
}
