//! A runtime that is replaced while containers run.

use std::path::{Path, PathBuf};

use bulkhead_tests::bundle::{Bundle, OURS};
use bulkhead_tests::children::{adopt, reap};
use bulkhead_tests::program::{eventually, script};
use bulkhead_tests::turn::shared;
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;
use serde_json::{Value, json};

/// A copy of the installation that is on PATH, laid out as it.
struct Installation(tempfile::TempDir);

impl Installation {
    fn new() -> Installation {
        let parent = "/var/lib/containers/bulkhead-tests";
        std::fs::create_dir_all(parent).expect("a directory");
        let this = Installation(tempfile::tempdir_in(parent).expect("a directory"));
        this.install();
        this
    }

    /// As a package manager does: each file is written beside, and renamed over the old one.
    fn install(&self) {
        let program = script("readlink -f $(command -v bulkhead-runtime)").ok();
        let from = Path::new(&program).parent().and_then(Path::parent).expect("PREFIX/bin");
        let copy = "cd $0 && find . -type f | while read -r file; do \
                    mkdir -p \"$1/${file%/*}\" && cp \"$file\" \"$1/$file.new\" && \
                    mv \"$1/$file.new\" \"$1/$file\"; done";
        let mut shell = std::process::Command::new("bash");
        shell.args(["-euc", copy]).arg(from).arg(self.0.path());
        bulkhead_tests::program::run(shell).ok();
    }

    fn runtime(&self) -> &'static str {
        let path = self.0.path().join("bin").join(OURS);
        Box::leak(path.display().to_string().into_boxed_str())
    }
}

/// The file that a process executes, as the kernel tells it.
fn executes(pid: i32) -> PathBuf {
    std::fs::read_link(format!("/proc/{pid}/exe")).expect("it lives")
}

#[test]
fn programs_are_replaced_under_running_containers() {
    let _turn = shared();
    adopt();
    let installed = Installation::new();
    let text = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done";
    let bundle = Bundle::new(installed.runtime(), text);
    let pid = bundle.create();
    let created = bundle.beside("echo begun; exit 5");
    let second = created.create();
    bundle.verb(&["start", &bundle.id]).ok();
    eventually("its output", || bundle.output() == "ready\n");
    bundle.verb(&["pause", &bundle.id]).ok();

    installed.install();
    assert!(executes(pid).to_string_lossy().ends_with(" (deleted)"), "{:?}", executes(pid));
    assert_eq!(bundle.status(), "paused");
    assert_eq!(created.status(), "created");
    bundle.verb(&["resume", &bundle.id]).ok();
    assert_eq!(bundle.verb(&["exec", &bundle.id, "echo", "in"]).ok(), "in");
    let pid_file = bundle.file("exec.pid");
    let detached = ["exec", "-d", "--pid-file", &pid_file, &bundle.id, "sh", "-c", "exit 6"];
    let mut detached = bundle.command(&detached);
    let null = std::process::Stdio::null;
    assert!(detached.stdin(null()).stdout(null()).stderr(null()).status().unwrap().success());
    let third: i32 = std::fs::read_to_string(pid_file).unwrap().parse().unwrap();
    assert_eq!(reap(third), WaitStatus::Exited(Pid::from_raw(third), 6));
    bundle.verb(&["update", "--pids-limit", "33", &bundle.id]).ok();
    let stats = bundle.verb(&["events", "--stats", &bundle.id]).ok();
    let stats: Value = serde_json::from_str(&stats).unwrap();
    assert_eq!(stats["data"]["pids"]["limit"], 33);
    created.verb(&["start", &created.id]).ok();
    assert_eq!(reap(second), WaitStatus::Exited(Pid::from_raw(second), 5));
    assert_eq!(created.output(), "begun\n");
    created.verb(&["delete", &created.id]).ok();
    bundle.verb(&["kill", &bundle.id, "TERM"]).ok();
    assert_eq!(reap(pid), WaitStatus::Exited(Pid::from_raw(pid), 3));
    bundle.verb(&["delete", &bundle.id]).ok();
}

#[test]
fn what_another_version_wrote_is_read_or_named() {
    let _turn = shared();
    let bundle = Bundle::new(OURS, "sleep 100");
    bundle.create();
    let directory = bundle.root().join(&bundle.id);
    let change = |file: &str, change: &dyn Fn(&mut Value)| {
        let path = directory.join(file);
        let mut value: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut value);
        std::fs::write(&path, value.to_string()).unwrap();
    };
    // Fields that a later one may add.
    for file in ["record.json", "phase.json"] {
        change(file, &|value| value["of a later version"] = json!({"a": [1]}));
    }
    // The first monitors took no questions about their machine.
    let asked = script(&format!("find {} -name members.sock -delete -print", directory.display()));
    assert_ne!(asked.ok(), "");
    bundle.verb(&["start", &bundle.id]).ok();
    assert_eq!(bundle.status(), "running");
    assert_eq!(bundle.verb(&["exec", &bundle.id, "echo", "in"]).ok(), "in");
    // A form that this one does not read: it is named, and nobody else suffers.
    let other = bundle.beside("true");
    other.create();
    change("record.json", &|value| value["version"] = json!(99));
    for verb in ["state", "start", "delete"] {
        let failed = bundle.verb(&[verb, &bundle.id]).expect(1);
        assert!(failed.stderr.contains("another version"), "{verb}: {}", failed.stderr);
    }
    assert!(other.verb(&["list", "-q"]).ok().lines().any(|id| id == other.id));
    assert!(other.verb(&["list"]).ok().contains(&other.id));
    other.verb(&["delete", "--force", &other.id]).ok();
    change("record.json", &|value| value["version"] = json!(1));
    bundle.verb(&["delete", "--force", &bundle.id]).ok();
}
