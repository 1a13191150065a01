//! Nothing is left behind, whoever is killed.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bulkhead_tests::leaks::{none, open_files, pids};
use bulkhead_tests::program::{eventually, wait};
use bulkhead_tests::turn::alone;
use bulkhead_tests::{Background, bulkhead, guest, small};
use nix::sys::signal::{SIGKILL, kill};
use nix::unistd::Pid;

fn strike(pid: i32) {
    assert!(pid > 1);
    kill(Pid::from_raw(pid), SIGKILL).expect("it lives");
}

/// What is made once and stays: the image, directories, the parent cgroup.
fn warm_up() {
    guest(&[], "true").ok();
}

/// `BULKHEAD_RUNS` is their number.
#[test]
fn runs_in_a_row_leave_nothing() {
    let _turn = alone();
    let runs = std::env::var("BULKHEAD_RUNS").ok().and_then(|text| text.parse().ok());
    let runs: i32 = runs.unwrap_or(12);
    warm_up();
    let files = open_files();
    none(|| {
        // In two rows, since nobody else has a turn meanwhile.
        let row = |first: i32| {
            for round in (first..runs).step_by(2) {
                let status = round % 100;
                let script = format!("echo {round}; exit {status}");
                let options = ["--memory", "64m", "-v", "/run:/v:ro"];
                assert_eq!(guest(&options, &script).expect(status).text(), format!("{round}\n"));
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| row(0));
            row(1);
        });
    });
    let now = open_files();
    assert!(now < files + 10, "open files of the host: {files}, then {now}");
}

#[test]
fn ten_at_once_do_not_disturb_each_other() {
    let _turn = alone();
    warm_up();
    none(|| {
        let threads: Vec<_> = (0..10)
            .map(|number| {
                std::thread::spawn(move || {
                    let script = format!(
                        "echo {number} > /mine; sleep 2; cat /mine; hostname; exit {number}"
                    );
                    guest(&["--memory", "64m"], &script).expect(number).text()
                })
            })
            .collect();
        let texts: Vec<String> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        let mut names = std::collections::BTreeSet::new();
        for (number, text) in texts.iter().enumerate() {
            let (first, name) = text.split_once('\n').unwrap();
            assert_eq!(first, number.to_string());
            names.insert(name.to_owned());
        }
        assert_eq!(names.len(), 10, "{names:?}");
    });
}

#[test]
fn a_killed_vmm_is_reported_as_such() {
    let _turn = alone();
    warm_up();
    none(|| {
        // In the foreground.
        let mut command = Command::new("bulkhead");
        command.args(["run", "--rm", small(), "sleep", "100000"]);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        eventually("the container runs", || bulkhead(&["ps"]).ok().contains(" Up "));
        strike(pids("bulkhead-vmm")[0]);
        let deadline = Instant::now() + Duration::from_secs(20);
        let status = wait(&mut child, deadline, "run of a killed VMM");
        let mut words = String::new();
        std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut words).unwrap();
        assert_eq!(status, 137, "{words}");
        assert!(words.contains("the VMM was killed by SIGKILL"), "{words}");
        // In the background.
        let idle = Background::idle(&[]);
        strike(idle.vmm());
        eventually("the state is written", || idle.inspect()["State"]["Status"] == "exited");
        let state = idle.inspect()["State"].clone();
        assert_eq!(state["ExitCode"], 137, "{state}");
        assert!(state["Error"].as_str().unwrap().contains("killed by SIGKILL"), "{state}");
        let table = bulkhead(&["ps", "-a"]).ok();
        assert!(table.contains("Exited (137, see inspect)"), "{table}");
    });
}

#[test]
fn no_vmm_outlives_its_supervisor() {
    let _turn = alone();
    warm_up();
    none(|| {
        // A monitor.
        let idle = Background::idle(&["--name", "e2e-killed"]);
        let log = idle.inspect()["LogPath"].as_str().expect("a path").to_owned();
        strike(idle.supervisor());
        let start = Instant::now();
        eventually("the VMM ends", || pids("bulkhead-vmm").is_empty());
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        // Where its end cannot be written down, it is named, and whatever else there is is told.
        let end = Path::new(&log).with_file_name("state.json");
        std::fs::create_dir(&end).expect("a directory in its place");
        let failed = ["cannot find out the state of container e2e-killed", "state.json"];
        let metrics = bulkhead(&["metrics"]).fails_saying(1, &failed).text();
        assert!(metrics.contains("bulkhead_scrape_errors 1\n"), "{metrics}");
        let table = bulkhead(&["ps"]).fails_saying(1, &failed).text();
        assert!(table.contains("CONTAINER ID"), "{table}");
        std::fs::remove_dir(end).expect("it is empty");
        let running = bulkhead(&["ps", "--no-trunc", "-q"]).ok();
        assert!(!running.contains(&idle.id), "{running}");
        let state = idle.inspect()["State"].clone();
        assert_eq!((&state["Status"], &state["ExitCode"]), (&"exited".into(), &137.into()));
        assert!(state["Error"].as_str().unwrap().contains("supervised the container was killed"));
        bulkhead(&["exec", &idle.id, "true"]).fails_saying(125, &["exited"]);
        // It can be started again.
        bulkhead(&["start", &idle.id]).ok();
        assert_eq!(idle.exec("echo again").ok(), "again");
        strike(idle.supervisor());
        drop(idle);
        // A command in the foreground; `ps` finishes what it could not.
        let mut command = Command::new("bulkhead");
        command.args(["run", "--rm", small(), "sleep", "100000"]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        eventually("the container runs", || bulkhead(&["ps"]).ok().contains(" Up "));
        child.kill().unwrap();
        child.wait().unwrap();
        eventually("the VMM ends", || pids("bulkhead-vmm").is_empty());
        let table = bulkhead(&["ps", "-a"]).ok();
        assert_eq!(table.lines().count(), 1, "it was to be removed: {table}");
    });
}

fn interrupt_after(delay: Duration) {
    let mut command = Command::new("bulkhead");
    command.args(["run", "--rm", small(), "sleep", "100000"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    std::thread::sleep(delay);
    // Even sent to a process that has not caught it yet it ends it.
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    kill(pid, nix::sys::signal::SIGINT).unwrap();
    if let Ok(None) = child.try_wait() {
        std::thread::sleep(Duration::from_secs(3));
        // The first process ignores it once it runs: insist.
        let _ = child.kill();
    }
    wait(&mut child, Instant::now() + Duration::from_secs(30), "an interrupted run");
}

#[test]
fn a_start_that_is_interrupted_leaves_nothing() {
    let _turn = alone();
    warm_up();
    none(|| {
        // At once, since much of it is waiting.
        std::thread::scope(|scope| {
            for delay in [30, 100, 300, 700, 1500] {
                scope.spawn(move || interrupt_after(Duration::from_millis(delay)));
            }
        });
        // What was killed without a word is tidied up by whoever looks.
        bulkhead(&["ps", "-a"]).ok();
        let left = bulkhead(&["ps", "-a", "-q", "--no-trunc"]).ok();
        for id in left.lines() {
            bulkhead(&["rm", "-f", id]).ok();
        }
    });
}
