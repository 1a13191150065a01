//! From `run -d` to `rm`.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bulkhead_tests::program::{eventually, feed, wait};
use bulkhead_tests::turn::shared;
use bulkhead_tests::{Background, bulkhead};

/// A shell that says when its trap stands, and ends by SIGTERM with 9.
const POLITE: &str = "trap 'echo bye; exit 9' TERM; trap 'echo usr1' USR1; echo ready; \
                      echo warn >&2; while :; do sleep 0.1; done";

fn logs(container: &Background) -> String {
    bulkhead(&["logs", &container.id]).ok()
}

#[test]
fn a_background_container_from_start_to_removal() {
    let _turn = shared();
    let name = format!("life-{}", std::process::id());
    let life = Background::start(&["--name", &name], &["sh", "-c", POLITE]);
    let listed = |options: &[&str]| bulkhead(&[&["ps", "--no-trunc"], options].concat()).ok();
    let line = |table: &str| table.lines().find(|l| l.contains(&name)).unwrap_or("").to_owned();
    let running = line(&listed(&[]));
    assert!(running.starts_with(&life.id) && running.contains(" Up "), "{running}");
    eventually("its first words", || logs(&life).contains("ready"));
    assert!(bulkhead(&["logs", &name]).expect(0).stderr.contains("warn"));
    // A follower sees what comes, and ends with the container.
    let mut follower = Command::new("bulkhead");
    let mut follower = follower.args(["logs", "-f", &name]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    bulkhead(&["kill", "-s", "USR1", &name]).ok();
    assert_eq!(lines.next().unwrap().unwrap(), "usr1");
    assert_eq!(life.inspect()["State"]["Status"], "running");
    bulkhead(&["rm", &name]).fails_saying(1, &[&name, "is running", "-f"]);

    let start = Instant::now();
    bulkhead(&["stop", &name]).ok();
    assert!(start.elapsed() < Duration::from_secs(10), "SIGTERM was enough: no SIGKILL");
    assert_eq!(lines.next().unwrap().unwrap(), "bye");
    assert!(lines.next().is_none());
    let deadline = Instant::now() + Duration::from_secs(10);
    assert_eq!(wait(&mut follower, deadline, "logs -f"), 0);

    assert_eq!(line(&listed(&[])), "", "ps shows only what runs");
    assert!(line(&listed(&["-a"])).contains("Exited (9)"), "{}", listed(&["-a"]));
    let state = life.inspect()["State"].clone();
    assert_eq!((&state["Status"], &state["ExitCode"]), (&"exited".into(), &9.into()), "{state}");
    bulkhead(&["stop", &name]).ok();
    bulkhead(&["exec", &name, "true"]).fails_saying(125, &[&name, "exited"]);
    bulkhead(&["kill", &name]).fails_saying(1, &[&name, "exited"]);
    bulkhead(&["rm", &name]).ok();
    bulkhead(&["logs", &name]).fails_saying(1, &["no such container", &name]);
    bulkhead(&["rm", &name]).fails_saying(1, &["no such container", &name]);
    let forced = bulkhead(&["rm", "-f", &name]).fails_saying(0, &["no such container", &name]);
    assert_eq!(forced.text(), "");
}

#[test]
fn exec_runs_beside_the_first_process() {
    let _turn = shared();
    let idle = Background::idle(&["-e", "OWN=1", "-w", "/etc"]);
    let text = idle
        .exec("echo $OWN $PWD $$ $(hostname); ls /proc/1/ns/pid >/dev/null; cat /proc/1/comm")
        .ok();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("1 /etc ") && lines[0].ends_with(&idle.id[..12]), "{text}");
    assert_eq!(lines[1], "sleep");
    let text = bulkhead(&[
        "exec",
        "-e",
        "OWN=2",
        "-e",
        "MORE=3",
        "-w",
        "/tmp",
        "-u",
        "app",
        &idle.id,
        "sh",
        "-c",
        "echo $OWN $MORE $PWD $(id -un) $HOME",
    ])
    .ok();
    assert_eq!(text, "2 3 /tmp app /home/app");
    let mut command = Command::new("bulkhead");
    command.args(["exec", "-i", &idle.id, "sh", "-c", "cat; echo err >&2; exit 5"]);
    let ended = feed(command, Box::new(std::io::Cursor::new(b"fed".to_vec()))).expect(5);
    assert_eq!((ended.text().as_str(), ended.stderr.as_str()), ("fed", "err\n"));
    // What does not exist is answered at once.
    let start = Instant::now();
    bulkhead(&["exec", &idle.id, "no-such-command"]).fails_saying(127, &["no-such-command"]);
    bulkhead(&["exec", &idle.id, "/etc"]).fails_saying(126, &["/etc"]);
    bulkhead(&["exec", "-w", "/no/such/dir", &idle.id, "true"])
        .fails_saying(126, &["/no/such/dir"]);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    bulkhead(&["exec", "-d", &idle.id, "sh", "-c", "echo > /tmp/made; sleep 1000"]).ok();
    eventually("the detached process's file", || idle.exec("test -e /tmp/made").status == 0);
    bulkhead(&["exec", "no-such-container", "true"]).fails_saying(125, &["no such container"]);
}

#[test]
fn a_container_that_ignores_sigterm_is_killed_and_starts_again() {
    let _turn = shared();
    let script = "trap '' TERM; echo round >> /rounds; cat /rounds; while :; do sleep 0.1; done";
    let stubborn = Background::start(&[], &["sh", "-c", script]);
    eventually("its first words", || logs(&stubborn).contains("round"));
    let start = Instant::now();
    bulkhead(&["stop", "-t", "2", &stubborn.id]).ok();
    let took = start.elapsed();
    assert!((Duration::from_secs(2)..Duration::from_secs(20)).contains(&took), "{took:?}");
    assert_eq!(stubborn.inspect()["State"]["ExitCode"], 137);
    // It starts again on the same writable layer.
    bulkhead(&["start", &stubborn.id]).ok();
    eventually("the second round", || logs(&stubborn).matches("round").count() == 3);
    let start = Instant::now();
    bulkhead(&["kill", &stubborn.id]).ok();
    eventually("its end", || stubborn.inspect()["State"]["Status"] == "exited");
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    assert_eq!(stubborn.inspect()["State"]["ExitCode"], 137);
}

#[test]
fn a_signal_to_the_foreground_command_is_passed_on() {
    let _turn = shared();
    let mut command = Command::new("bulkhead");
    command.args(["run", "--rm", bulkhead_tests::small(), "sh", "-c", POLITE]);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM).unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "bye");
    assert_eq!(wait(&mut child, Instant::now() + Duration::from_secs(30), "run"), 9);
}

#[test]
fn logs_are_cut_and_dated() {
    let _turn = shared();
    let noisy = Background::start(&[], &["sh", "-c", "seq 1 2000; echo last"]);
    eventually("its end", || noisy.inspect()["State"]["Status"] == "exited");
    let all = logs(&noisy);
    assert_eq!(all.lines().count(), 2001);
    assert_eq!(bulkhead(&["logs", "-n", "2", &noisy.id]).ok(), "2000\nlast");
    let dated = bulkhead(&["logs", "-t", "-n", "1", &noisy.id]).ok();
    assert!(dated.starts_with("20") && dated.ends_with("Z last"), "{dated}");
    assert_eq!(bulkhead(&["logs", "-f", "-n", "1", &noisy.id]).ok(), "last");
}
