//! What a host holds, counted before and after.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::cgroup1;

/// Things that a container must not leave behind, by name.
pub type Holdings = BTreeMap<String, usize>;

/// Counts our processes, all mounts, our cgroups and all files of our state.
pub fn holdings() -> Holdings {
    let mut counts = Holdings::new();
    for process in processes() {
        // The suite itself is none of them.
        if process.starts_with("bulkhead") {
            *counts.entry(format!("process {process}")).or_default() += 1;
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    counts.insert("mounts".into(), mounts.lines().count());
    let hierarchies = cgroup1::hierarchies();
    let roots = if hierarchies.is_empty() { vec!["/sys/fs/cgroup".into()] } else { hierarchies };
    let cgroups =
        roots.iter().flat_map(|root| ["bulkhead", "bulkhead-tests"].map(|at| root.join(at)));
    counts.insert("cgroups".into(), cgroups.map(|at| directories(&at)).sum());
    for (tree, depth) in [("/run/bulkhead", usize::MAX), ("/var/lib/bulkhead", 3)] {
        counts.insert(format!("files in {tree}"), entries(Path::new(tree), depth));
    }
    counts
}

/// Descriptors of all processes of the host. (file-nr counts open files only to
/// within some dozens for each CPU.)
pub fn open_files() -> usize {
    let Ok(entries) = fs::read_dir("/proc") else { return 0 };
    entries
        .flatten()
        .filter_map(|entry| Some(fs::read_dir(entry.path().join("fd")).ok()?.count()))
        .sum()
}

/// Names of all processes.
pub fn processes() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()))
        .filter_map(|entry| fs::read_to_string(entry.path().join("comm")).ok())
        .map(|name| name.trim_end().to_owned())
        .collect()
}

/// Pids of processes whose name is `name` (at most 15 bytes).
pub fn pids(name: &str) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_string_lossy().parse().ok())
        .filter(|pid: &i32| {
            fs::read_to_string(format!("/proc/{pid}/comm"))
                .is_ok_and(|comm| comm.trim_end() == name)
        })
        .collect()
}

fn directories(root: &Path) -> usize {
    let Ok(entries) = fs::read_dir(root) else { return 0 };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| 1 + directories(&entry.path()))
        .sum()
}

/// Entries below `root`.
fn entries(root: &Path, depth: usize) -> usize {
    let Ok(entries) = fs::read_dir(root) else { return 0 };
    entries
        .flatten()
        .map(|entry| {
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let below = is_dir && depth > 1;
            1 + if below { self::entries(&entry.path(), depth - 1) } else { 0 }
        })
        .sum()
}

/// Runs `case` and fails when the host holds more, or less, afterwards. What
/// ends by itself gets a few seconds.
#[track_caller]
pub fn none(case: impl FnOnce()) {
    let before = holdings();
    case();
    let mut after = holdings();
    for _ in 0..100 {
        if after == before {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
        after = holdings();
    }
    assert_eq!(before, after, "something was left behind");
}
