//! What a VMM is allowed, read from the outside while one lives.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use bulkhead_tests::turn::{alone, shared};
use bulkhead_tests::{Background, leaks, run};

/// chown, dac_override, fowner, fsetid, setgid, setuid, mknod, setfcap.
const FILE_SERVER: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 27 | 1 << 31;
const FIRST_UID: u32 = 0x7000_0000;

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A field of a `status` file.
fn field(status: &str, name: &str) -> String {
    let prefix = format!("{name}:");
    let line = status.lines().find_map(|line| line.strip_prefix(&prefix));
    line.unwrap_or_else(|| panic!("no {name} in {status}"))
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

fn capabilities(status: &str, set: &str) -> u64 {
    u64::from_str_radix(&field(status, set), 16).expect("hexadecimal")
}

/// (name, status, scheduling policy) of each thread.
fn tasks(pid: i32) -> Vec<(String, String, i32)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it lives");
    tasks
        .flatten()
        .map(|task| {
            let read = |file| read(&format!("{}/{file}", task.path().display()));
            (read("comm").trim_end().to_owned(), read("status"), policy(&read("stat")))
        })
        // KVM's own worker, which never runs a user's instruction.
        .filter(|(name, ..)| !name.starts_with("kvm-nx-lpage"))
        .collect()
}

/// Field 41 of a `stat` file (proc_pid_stat(5)), of which the second may have spaces.
fn policy(stat: &str) -> i32 {
    let behind = stat.rsplit_once(')').expect("a name").1;
    behind.split_whitespace().nth(38).expect("a policy").parse().expect("a number")
}

/// First host id of a map of exactly one range of 65536.
fn base(pid: i32, map: &str) -> u32 {
    let text = read(&format!("/proc/{pid}/{map}"));
    let numbers: Vec<u32> = text.split_whitespace().map(|number| number.parse().unwrap()).collect();
    assert_eq!((numbers.len(), numbers[0], numbers[2]), (3, 0, 65_536), "{map}: {text}");
    assert!(numbers[1] >= FIRST_UID && numbers[1].is_multiple_of(65_536), "{map}: {text}");
    numbers[1]
}

#[test]
fn namespaces_and_ids_are_the_sandboxs_own() {
    let _turn = shared();
    let (one, two) = (Background::idle(&[]), Background::idle(&[]));
    let (one, two) = (one.vmm(), two.vmm());
    for kind in ["user", "mnt", "pid", "net", "ipc", "uts"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        let all: BTreeSet<_> = [of("1"), of(&one.to_string()), of(&two.to_string())].into();
        assert_eq!(all.len(), 3, "{kind}: {all:?}");
    }
    for map in ["uid_map", "gid_map"] {
        assert_ne!(base(one, map), base(two, map), "{map}");
        assert_eq!(base(one, map), base(one, "uid_map"));
    }
    for pid in [one, two] {
        let status = read(&format!("/proc/{pid}/status"));
        let own = base(pid, "uid_map");
        let ids = format!("{own} {own} {own} {own}");
        assert_eq!((field(&status, "Uid"), field(&status, "Gid")), (ids.clone(), ids));
        assert_eq!(field(&status, "Groups"), "", "supplementary groups");
        assert!(field(&status, "NSpid").ends_with(" 1"), "pid 1 of its own namespace");
        // Its network has nothing but a loopback that is down.
        let devices = read(&format!("/proc/{pid}/net/dev"));
        assert_eq!(devices.lines().count(), 3, "{devices}");
    }
}

#[test]
fn every_thread_is_confined() {
    let _turn = shared();
    let idle = Background::idle(&["--cpus", "2", "--network", "bridge"]);
    let tasks = tasks(idle.vmm());
    let mut names: Vec<&str> = tasks.iter().map(|(name, ..)| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["bulkhead-vmm", "devices", "fs", "net", "vcpu0", "vcpu1"]);
    for (name, status, policy) in &tasks {
        // That one chooses, by what it has to wait for.
        let polite = name == "net" && *policy == libc::SCHED_BATCH;
        assert!(polite || *policy == libc::SCHED_OTHER, "{name}: policy {policy}");
        let held = if name == "fs" { FILE_SERVER } else { 0 };
        assert_eq!(capabilities(status, "CapPrm"), held, "{name}: CapPrm");
        // The file server lays its own down while it acts for a user.
        assert_eq!(capabilities(status, "CapEff") & !held, 0, "{name}: CapEff");
        assert_eq!(capabilities(status, "CapBnd"), FILE_SERVER, "{name}: CapBnd");
        assert_eq!(capabilities(status, "CapInh"), 0, "{name}: CapInh");
        assert_eq!(capabilities(status, "CapAmb"), 0, "{name}: CapAmb");
        assert_eq!(field(status, "NoNewPrivs"), "1", "{name}: no_new_privs");
        assert_eq!(field(status, "Seccomp"), "2", "{name}: a seccomp filter");
    }
    let open = fs::read_dir(format!("/proc/{}/fd", idle.vmm())).expect("it lives").flatten();
    let mut targets = open.filter_map(|entry| fs::read_link(entry.path()).ok());
    assert!(targets.any(|target| target.ends_with("schedstat")), "what it has to wait for");
    let limits = read(&format!("/proc/{}/limits", idle.vmm()));
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).collect::<Vec<_>>(), ["0", "0", "bytes"]);
}

#[test]
fn the_file_tree_holds_the_shares_and_nothing_else() {
    let _turn = shared();
    let volume = tempfile::tempdir_in("/run").unwrap();
    fs::write(volume.path().join("mark"), "").unwrap();
    let idle = Background::idle(&["-v", &format!("{}:/v:ro", volume.path().display())]);
    let root = format!("/proc/{}/root", idle.vmm());
    let list = |path: &str| -> Vec<String> {
        let entries =
            fs::read_dir(format!("{root}/{path}")).unwrap_or_else(|e| panic!("{path}: {e}"));
        let mut names: Vec<_> =
            entries.flatten().map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(list("."), ["proc", "shares"]);
    assert_eq!(list("shares"), ["immutable", "live", "private"]);
    assert_eq!(list("shares/immutable"), ["l0", "l1"]);
    assert_eq!(list("shares/private"), ["rw"]);
    assert_eq!(list("shares/live"), ["v0"]);
    assert_eq!(list("shares/live/v0"), ["mark"]);
    assert_eq!(fs::read_link(format!("/proc/{}/cwd", idle.vmm())).unwrap(), Path::new("/"));
    // Field 5 is the place, field 6 the flags.
    let info = read(&format!("/proc/{}/mountinfo", idle.vmm()));
    let mounts: BTreeSet<(&str, &str)> = info
        .lines()
        .map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            (fields[4], fields[5])
        })
        .collect();
    let places: Vec<&str> = mounts.iter().map(|(place, _)| *place).collect();
    assert_eq!(
        places,
        [
            "/",
            "/proc",
            "/shares/immutable/l0",
            "/shares/immutable/l1",
            "/shares/live/v0",
            "/shares/private/rw"
        ],
        "{info}"
    );
    for (place, flags) in &mounts {
        let has = |flag: &str| flags.split(',').any(|have| have == flag);
        assert!(has("nosuid") && has("nodev"), "{place}: {flags}");
        let writable = *place == "/shares/private/rw" || *place == "/proc";
        assert!(has("ro") || writable, "{place}: {flags}");
        if place.starts_with("/shares/") {
            let line = info.lines().find(|line| line.contains(place)).unwrap();
            assert!(line.contains("idmapped"), "{line}");
        }
    }
}

/// Whether a VMM may have a descriptor of this kind.
fn allowed(target: &str) -> bool {
    let anonymous = ["kvm-vm", "kvm-vcpu:", "[eventfd]", "[eventpoll]", "[timerfd]"];
    let is = |kinds: &[&str]| kinds.iter().any(|kind| target.starts_with(kind));
    match target.strip_prefix("anon_inode:") {
        Some(kind) => anonymous.iter().any(|allowed| kind.starts_with(allowed)),
        // Its own /proc, by which the file server finds mounts and reopens files.
        None => {
            is(&["socket:[", "pipe:[", "/memfd:", "/shares", "/proc/1/"])
                || ["/dev/null", "/dev/kvm", "/proc", "/"].contains(&target)
        }
    }
}

#[test]
fn only_the_needed_descriptors_are_open() {
    let _turn = shared();
    let idle = Background::idle(&[]);
    let pid = idle.vmm();
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let targets: Vec<String> = descriptors
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .map(|target| target.display().to_string())
        .collect();
    for target in &targets {
        assert!(allowed(target), "{target} is open; all: {targets:#?}");
    }
    for needed in ["anon_inode:kvm-vm", "anon_inode:kvm-vcpu:0", "anon_inode:[eventpoll]"] {
        assert!(targets.iter().any(|target| target.starts_with(needed)), "{needed}: {targets:#?}");
    }
    // Its cgroup is the container's, with a limit for the memory of both.
    let cgroup = read(&format!("/proc/{pid}/cgroup"));
    assert_eq!(cgroup.trim_end(), format!("0::/bulkhead/{}", idle.id));
    let max: u64 =
        read(&format!("/sys/fs/cgroup/bulkhead/{}/memory.max", idle.id)).trim().parse().unwrap();
    assert!((512 << 20..768 << 20).contains(&max), "{max}");
    // Nothing of the host's environment, and no words that tell of it.
    assert_eq!(read(&format!("/proc/{pid}/environ")), "");
    assert_eq!(read(&format!("/proc/{pid}/cmdline")), "bulkhead-vmm\0");
}

#[test]
fn no_mount_of_ours_is_on_the_host() {
    let _turn = alone();
    bulkhead_tests::small();
    let mounts = || read("/proc/1/mountinfo");
    let before = mounts();
    let idle = Background::idle(&["-v", "/run:/v", "--tmpfs", "/t"]);
    assert_eq!(mounts(), before);
    assert_eq!(leaks::pids("bulkhead-vmm").len(), 1);
    drop(idle);
    assert_eq!(mounts(), before);
}

#[test]
fn a_vmm_started_by_hand_refuses() {
    let ended = run(Command::new("bulkhead-vmm")).expect(2);
    assert!(ended.stderr.contains("never by hand"), "{}", ended.stderr);
    assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
}
