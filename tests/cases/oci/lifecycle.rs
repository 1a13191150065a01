//! runtime.md, "Lifecycle", and what happens when it is disturbed.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use bulkhead_tests::bundle::{Bundle, OURS};
use bulkhead_tests::children::{adopt, reap, reap_orphans};
use bulkhead_tests::program::{eventually, script};
use bulkhead_tests::{leaks, turn};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::both;

both!(from_creation_to_deletion, |runtime| {
    adopt();
    let bundle = Bundle::new(runtime, "echo begun; exit 7");
    let pid = bundle.create();
    let state = bundle.state();
    assert_eq!((&state["status"], &state["pid"]), (&json!("created"), &json!(pid)));
    assert_eq!((&state["id"], &state["bundle"]), (&json!(bundle.id), &json!(bundle.path())));
    assert_eq!(bundle.output(), "", "nothing of the user's may run before start");
    assert_ne!(bundle.verb(&["create", &bundle.id]).status, 0, "the id is taken");
    bundle.verb(&["start", &bundle.id]).ok();
    assert_eq!(reap(pid), WaitStatus::Exited(Pid::from_raw(pid), 7));
    assert_eq!(bundle.output(), "begun\n");
    let state = bundle.state();
    assert_eq!(state["status"], "stopped");
    assert_eq!(state["pid"].as_i64().unwrap_or(0), 0);
    for verb in ["start", "kill", "pause"] {
        assert_ne!(bundle.verb(&[verb, &bundle.id]).status, 0, "{verb} of a stopped container");
    }
    assert_ne!(bundle.verb(&["exec", &bundle.id, "true"]).status, 0);
    bundle.verb(&["delete", &bundle.id]).ok();
    for verb in ["state", "start", "kill", "delete"] {
        let failed = bundle.verb(&[verb, &bundle.id]);
        assert!(
            failed.status != 0 && failed.stderr.contains("does not exist"),
            "{}",
            failed.stderr
        );
    }
    bundle.verb(&["delete", "--force", &bundle.id]).ok();
});

both!(spec_writes_a_configuration_that_runs, |runtime| {
    let mut bundle = Bundle::new(runtime, "");
    let directory = bundle.file("spec");
    std::fs::create_dir(&directory).expect("a directory");
    let spec = ["spec", "--bundle", &directory];
    bundle.verb(&spec).ok();
    assert!(bundle.verb(&spec).expect(1).stderr.contains("exists"), "it is not written over");
    let text = std::fs::read(Path::new(&directory).join("config.json")).expect("it is there");
    bundle.config = serde_json::from_slice(&text).expect("JSON");
    bundle.config["process"]["terminal"] = json!(false);
    bundle.config["process"]["args"] = json!(["echo", "as written"]);
    assert_eq!(bundle.run().ok(), "as written");
});

both!(its_end_by_a_signal_is_seen, |runtime| {
    adopt();
    let mut bundle = Bundle::new(runtime, "echo ready; while :; do sleep 1; done");
    // The first process of a pid namespace is spared what it does not catch.
    bundle.without_namespace("pid");
    let pid = bundle.create();
    bundle.verb(&["start", &bundle.id]).ok();
    eventually("its output", || bundle.output() == "ready\n");
    assert_ne!(bundle.verb(&["delete", &bundle.id]).status, 0, "it runs");
    bundle.verb(&["kill", &bundle.id, "USR1"]).ok();
    assert_eq!(reap(pid), WaitStatus::Signaled(Pid::from_raw(pid), Signal::SIGUSR1, false));
    assert_eq!(bundle.status(), "stopped");
});

both!(signals_reach_the_process, |runtime| {
    adopt();
    let text = "trap 'echo got TERM; exit 4' TERM; trap 'echo got HUP' HUP; \
                  trap 'echo got IO' IO; trap 'echo got 37' 37; echo ready; \
                  while :; do sleep 0.1; done";
    let bundle = Bundle::new(runtime, text);
    let pid = bundle.create();
    bundle.verb(&["start", &bundle.id]).ok();
    eventually("its traps", || bundle.output() == "ready\n");
    bundle.verb(&["kill", &bundle.id, "1"]).ok();
    eventually("the first signal", || bundle.output().contains("got HUP"));
    // To the pid, as an engine or a person may send it.
    kill(Pid::from_raw(pid), Signal::SIGIO).expect("it lives");
    eventually("a signal to the pid", || bundle.output().contains("got IO"));
    script(&format!("kill -37 {pid}")).ok();
    eventually("a real-time signal", || bundle.output().contains("got 37"));
    assert_ne!(bundle.verb(&["kill", &bundle.id, "NOSUCH"]).status, 0);
    bundle.verb(&["kill", &bundle.id]).ok();
    assert_eq!(reap(pid), WaitStatus::Exited(Pid::from_raw(pid), 4));
    assert!(bundle.output().ends_with("got TERM\n"));
});

both!(signals_to_a_run_in_the_foreground_are_passed_on, |runtime| {
    let text = "trap 'echo got 37' 37; trap 'echo got TERM; trap - 40; kill -40 $$' TERM; \
                echo ready; while :; do sleep 0.1; done";
    let mut bundle = Bundle::new(runtime, text);
    // The first process of a pid namespace is spared what it does not catch.
    bundle.without_namespace("pid");
    let output = std::fs::File::create(bundle.file("out")).expect("a file");
    let mut command = bundle.command(&["run", &bundle.id]);
    let mut run = command.stdin(Stdio::null()).stdout(output).spawn().expect("it is installed");
    eventually("its traps", || bundle.output() == "ready\n");
    script(&format!("kill -37 {}", run.id())).ok();
    eventually("a real-time signal", || bundle.output().contains("got 37"));
    script(&format!("kill -TERM {}", run.id())).ok();
    // As a shell tells that a signal killed it, a real-time one here.
    assert_eq!(run.wait().expect("it ends").code(), Some(128 + 40));
    assert!(bundle.output().ends_with("got TERM\n"), "{}", bundle.output());
});

both!(a_created_container_is_deleted, |runtime| {
    adopt();
    let bundle = Bundle::new(runtime, "echo never");
    let pid = bundle.create();
    bundle.verb(&["delete", &bundle.id]).ok();
    assert_eq!(reap(pid), WaitStatus::Signaled(Pid::from_raw(pid), Signal::SIGKILL, false));
    assert_eq!(bundle.output(), "");
    // runc leaves it now and then, when its process was a moment too slow to end.
    let cgroup = Path::new("/sys/fs/cgroup/bulkhead-tests").join(&bundle.id);
    assert!(runtime != OURS || !cgroup.exists());
});

both!(pause_and_resume, |runtime| {
    let bundle = Bundle::new(runtime, "while :; do echo x; sleep 0.1; done");
    bundle.create();
    bundle.verb(&["start", &bundle.id]).ok();
    eventually("its output", || bundle.output().len() > 4);
    bundle.verb(&["pause", &bundle.id]).ok();
    assert_eq!(bundle.status(), "paused");
    std::thread::sleep(Duration::from_millis(300));
    let length = bundle.output().len();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(bundle.output().len(), length, "it writes although it is frozen");
    assert_ne!(bundle.verb(&["exec", &bundle.id, "true"]).status, 0);
    assert_ne!(bundle.verb(&["start", &bundle.id]).status, 0);
    bundle.verb(&["resume", &bundle.id]).ok();
    assert_eq!(bundle.status(), "running");
    eventually("more output", || bundle.output().len() > length);
    assert_ne!(bundle.verb(&["resume", &bundle.id]).status, 0, "it is not paused");
    bundle.verb(&["pause", &bundle.id]).ok();
    bundle.verb(&["delete", "--force", &bundle.id]).ok();
});

both!(hooks_run_in_their_order_with_the_state, |runtime| {
    adopt();
    let mut bundle = Bundle::new(runtime, "exit 0");
    let log = bundle.file("hooks");
    let hook = |name: &str| {
        let script = format!("echo \"{name} $FROM $(cat)\" >> {log}");
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["FROM=spec"]}])
    };
    let kinds = ["prestart", "createRuntime", "createContainer", "poststart", "poststop"];
    for kind in kinds {
        bundle.config["hooks"][kind] = hook(kind);
    }
    // In the container, before its process.
    bundle.config["hooks"]["startContainer"] = json!([{
        "path": "/bin/sh", "args": ["sh", "-c", "echo \"$FROM $(cat)\" > /hook"],
        "env": ["FROM=spec", "PATH=/bin"],
    }]);
    bundle.config["process"]["args"] = json!(["cat", "/hook"]);
    let pid = bundle.create();
    bundle.verb(&["start", &bundle.id]).ok();
    reap(pid);
    bundle.verb(&["delete", &bundle.id]).ok();
    let inside = bundle.output();
    let state: Value =
        serde_json::from_str(inside.strip_prefix("spec ").expect("its env")).unwrap();
    assert_eq!((&state["id"], &state["status"]), (&json!(bundle.id), &json!("created")));
    let text = std::fs::read_to_string(&log).expect("hooks ran");
    let lines: Vec<(&str, &str, Value)> = text
        .lines()
        .map(|line| {
            let mut words = line.splitn(3, ' ');
            let (name, from) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
            (name, from, serde_json::from_str(words.next().unwrap_or("")).expect("a state"))
        })
        .collect();
    assert_eq!(lines.iter().map(|line| line.0).collect::<Vec<_>>(), kinds, "{text}");
    for (name, from, state) in &lines {
        assert_eq!((*from, &state["id"]), ("spec", &json!(bundle.id)), "{name}");
        assert_eq!(state["bundle"], json!(bundle.path()), "{name}");
    }
    assert_eq!(lines[1].2["status"], "creating");
    assert_eq!(lines[1].2["pid"], json!(pid));
    assert_eq!(lines[4].2["status"], "stopped");
});

both!(a_hook_that_fails_stops_the_creation, |runtime| {
    let mut bundle = Bundle::new(runtime, "echo never");
    bundle.config["hooks"]["createRuntime"] =
        json!([{"path": "/bin/sh", "args": ["sh", "-c", "echo refused >&2; exit 3"]}]);
    let failed = bundle.verb(&["create", &bundle.id]);
    assert!(failed.status != 0 && failed.stderr.contains("refused"), "{}", failed.stderr);
    assert!(bundle.verb(&["state", &bundle.id]).stderr.contains("does not exist"));
});

both!(errors_reach_the_log_as_json, |runtime| {
    let bundle = Bundle::new(runtime, "true");
    let log = bundle.file("log");
    let words = ["--log", &log, "--log-format", "json", "start", "nobody"];
    let failed = bundle.verb(&words);
    assert_eq!(failed.status, 1);
    assert!(failed.stderr.lines().count() >= 1);
    let text = std::fs::read_to_string(log).expect("a log");
    let line: Value = serde_json::from_str(text.lines().last().unwrap_or("")).expect("JSON");
    assert_eq!(line["level"], "error");
    assert!(line["msg"].as_str().is_some_and(|text| text.contains("does not exist")), "{line}");
    assert!(line["time"].as_str().is_some_and(|text| text.contains('T')), "{line}");
});

both!(lists_tell_what_there_is, |runtime| {
    let bundle = Bundle::new(runtime, "sleep 100");
    assert_eq!(bundle.verb(&["list", "-q"]).ok(), "");
    bundle.create();
    assert_eq!(bundle.verb(&["list", "-q"]).ok(), bundle.id);
    let table = bundle.verb(&["list"]).ok();
    let rows: Vec<Vec<&str>> = table.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]);
    assert_eq!((rows[1][0], rows[1][2], rows[1][5]), (bundle.id.as_str(), "created", "root"));
    let list: Value = serde_json::from_str(&bundle.verb(&["list", "-f", "json"]).ok()).unwrap();
    assert_eq!((&list[0]["id"], &list[0]["status"]), (&json!(bundle.id), &json!("created")));
    bundle.verb(&["start", &bundle.id]).ok();
    let pids: Vec<i32> =
        serde_json::from_str(&bundle.verb(&["ps", "-f", "json", &bundle.id]).ok()).unwrap();
    assert_eq!(pids.len(), 1);
    assert!(bundle.verb(&["ps", &bundle.id]).ok().contains("sleep 100"));
    let stats: Value =
        serde_json::from_str(&bundle.verb(&["events", "--stats", &bundle.id]).ok()).unwrap();
    assert_eq!((&stats["type"], &stats["id"]), (&json!("stats"), &json!(bundle.id)));
    assert!(stats["data"]["cpu"]["usage"]["total"].as_u64().is_some_and(|total| total > 0));
    assert_eq!(stats["data"]["pids"]["current"], 1);
});

#[test]
fn a_killed_monitor_leaves_the_truth_and_delete_cleans_up() {
    let _turn = turn::alone();
    adopt();
    let warm = Bundle::new(OURS, "true");
    warm.run().ok();
    drop(warm);
    reap_orphans();
    leaks::none(|| {
        for started in [false, true] {
            let bundle = Bundle::new(OURS, "sleep 100");
            let pid = bundle.create();
            if started {
                bundle.verb(&["start", &bundle.id]).ok();
            }
            kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it lives");
            reap(pid);
            assert_eq!(bundle.status(), "stopped");
            // Its VMM, which ends with it, is ours as well now.
            reap_orphans();
            let begin = Instant::now();
            bundle.verb(&["delete", "--force", &bundle.id]).ok();
            assert!(begin.elapsed() < Duration::from_secs(20));
        }
    });
}

/// `BULKHEAD_CYCLES` is their number.
#[test]
fn cycles_leave_nothing() {
    let _turn = turn::alone();
    adopt();
    let count = std::env::var("BULKHEAD_CYCLES").ok().and_then(|text| text.parse().ok());
    let count: u32 = count.unwrap_or(6);
    let cycle = || {
        let bundle = Bundle::new(OURS, "sleep 100");
        let pid = bundle.create();
        bundle.verb(&["start", &bundle.id]).ok();
        assert_eq!(bundle.verb(&["exec", &bundle.id, "echo", "in"]).ok(), "in");
        bundle.verb(&["kill", &bundle.id, "KILL"]).ok();
        assert_eq!(reap(pid), WaitStatus::Signaled(Pid::from_raw(pid), Signal::SIGKILL, false));
        bundle.verb(&["delete", &bundle.id]).ok();
    };
    cycle();
    reap_orphans();
    let files = leaks::open_files();
    leaks::none(|| {
        // In two rows, since nobody else has a turn meanwhile.
        std::thread::scope(|scope| {
            scope.spawn(|| (0..count / 2).for_each(|_| cycle()));
            (count / 2..count).for_each(|_| cycle());
        });
        reap_orphans();
    });
    assert!(leaks::open_files() < files + 10, "descriptors: {files} before");
}
