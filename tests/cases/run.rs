//! `run`: what a container is given, and its exit codes.

use std::process::Command;

use bulkhead_tests::turn::shared;
use bulkhead_tests::{Background, bulkhead, guest, image, run, small};

fn host_kernel() -> String {
    nix::sys::utsname::uname().expect("uname").release().to_string_lossy().into_owned()
}

#[test]
fn a_real_image_runs_on_a_kernel_of_its_own() {
    let _turn = shared();
    let debian = image::debian();
    let script = "cat /etc/os-release; uname -r; cat /proc/mounts; \
                  python3 -c 'print(\"python says\", 6 * 7)'; exit 7";
    let text = bulkhead(&["run", "--rm", debian, "sh", "-c", script]).expect(7).text();
    assert!(text.contains("ID=debian"), "{text}");
    assert!(text.contains("python says 42"), "{text}");
    assert!(!text.contains(&host_kernel()), "the kernel is the host's: {text}");
    let root =
        text.lines().find(|line| line.starts_with("bulkhead / overlay rw,")).unwrap_or_default();
    for layer in ["immutable/l0", "immutable/l1", "immutable/l2", "userxattr"] {
        assert!(root.contains(layer), "{layer} in the overlay: {text}");
    }
}

#[test]
fn the_process_gets_what_was_asked_for() {
    let _turn = shared();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("env");
    std::fs::write(&file, "# a comment\nOF_FILE=file value\nTWICE=file\n").unwrap();
    let mut command = Command::new("bulkhead");
    command.args(["run", "--rm", "-e", "OF_OPTION=a b", "-e", "OURS", "-e", "TWICE=option"]);
    command.args(["--env-file", file.to_str().unwrap(), "-w", "/etc", "-u", "app"]);
    command.args(["--hostname", "named.example", small(), "sh", "-c"]);
    command
        .arg("env; pwd; id; hostname; cat second-layer; echo pid $$; grep Cap /proc/self/status");
    let text = run(command_with_env(command)).ok();
    for line in [
        "OF_OPTION=a b",
        "OURS=passed on",
        "OF_FILE=file value",
        "TWICE=option",
        "FROM_IMAGE=image",
        "PATH=/bin",
        "HOME=/home/app",
        "HOSTNAME=named.example",
        "/etc",
        "uid=1000(app) gid=1001(app) groups=29(audio)",
        "named.example",
        "yes",
        "pid 1",
        "CapEff:\t0000000000000000",
        "CapPrm:\t0000000000000000",
        "CapBnd:\t00000000a80425fb",
    ] {
        assert!(text.lines().any(|have| have == line), "{line:?} in: {text}");
    }
    assert!(!text.contains("BULKHEAD"), "our own environment stays out: {text}");
}

fn command_with_env(mut command: Command) -> Command {
    command.env("OURS", "passed on").env("BULKHEAD_LOG", "warn");
    command
}

#[test]
fn users_by_name_and_number() {
    let _turn = shared();
    // One container: exec resolves users the same way.
    let idle = Background::idle(&["-u", "1234:29"]);
    let id = |user: &[&str]| {
        bulkhead(&[&["exec"], user, &[idle.id.as_str(), "sh", "-c", "id -u; id -G"]].concat())
            .ok()
            .replace('\n', " ")
    };
    assert_eq!(id(&[]), "1234 29");
    assert_eq!(id(&["-u", "app"]), "1000 1001 29");
    assert_eq!(id(&["-u", "app:audio"]), "1000 29");
    assert_eq!(id(&["-u", "77"]), "77 0");
    assert_eq!(id(&["-u", "0"]), "0 0");
    bulkhead(&["exec", "-u", "nobody", &idle.id, "true"])
        .fails_saying(125, &["unable to find user nobody", "/etc/passwd"]);
    bulkhead(&["run", "--rm", "-u", "nobody", small()])
        .fails_saying(125, &["unable to find user nobody", "/etc/passwd"]);
    // Privileges follow the user, not the container's first process.
    let caps = |user: &str| {
        let script = "grep CapEff /proc/self/status";
        bulkhead(&["exec", "-u", user, &idle.id, "sh", "-c", script]).ok()
    };
    assert_eq!(caps("app"), "CapEff:\t0000000000000000");
    assert_eq!(caps("0"), "CapEff:\t00000000a80425fb");
}

#[test]
fn root_loses_its_capabilities_with_its_id() {
    let _turn = shared();
    let idle = Background::idle(&[]);
    let script = "grep CapEff /proc/self/status; id -u";
    let text = bulkhead(&["exec", "-u", "app", &idle.id, "sh", "-c", script]).ok();
    assert_eq!(text, "CapEff:\t0000000000000000\n1000");
    let text = idle.exec(script).ok();
    assert_eq!(text, "CapEff:\t00000000a80425fb\n0");
}

#[test]
fn entry_point_read_only_root_and_memory_file_systems() {
    let _turn = shared();
    let script = "touch /new 2>&1; touch /scratch/new && echo scratch; stat -c %a /scratch; \
                  cp /bin/busybox /scratch/; /scratch/busybox true 2>&1; \
                  grep ' /scratch ' /proc/mounts; grep ' / ' /proc/mounts";
    let options =
        ["run", "--rm", "--read-only", "--tmpfs", "/scratch:size=4m,mode=1770", "--entrypoint"];
    let text =
        bulkhead(&[&options[..], &["/bin/sh", small(), "-c", script]].concat()).expect(0).text();
    assert!(text.contains("touch: /new: Read-only file system"), "{text}");
    assert!(text.contains("scratch\n1770\n"), "{text}");
    assert!(text.contains("/scratch/busybox: Permission denied"), "noexec: {text}");
    assert!(text.contains("size=4096k"), "{text}");
    assert!(text.contains("bulkhead / overlay ro,"), "{text}");
    // Without one, the root is writable and each container has its own.
    let text = guest(&[], "echo 1 > /new; ls /new").ok();
    assert_eq!(text, "/new");
    assert_eq!(
        guest(&["--writable", "memory"], "ls /new || echo fresh; echo 1 > /n").ok(),
        "fresh"
    );
}

#[test]
fn limits_shape_the_machine_and_the_cgroup() {
    let _turn = shared();
    let script = "nproc; cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max; \
                  cat /sys/fs/cgroup/cpu.max; awk '/MemTotal/ {print $2}' /proc/meminfo";
    let text = guest(&["--cpus", "2", "--memory", "100m", "--pids-limit", "50"], script).ok();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..4], ["2", "104857600", "50", "200000 100000"], "{text}");
    let total: u64 = lines[4].parse().unwrap();
    assert!((100 << 10..180 << 10).contains(&total), "MemTotal {total} KiB");
    let text = guest(&[], script).ok();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "1", "{text}");
    assert_eq!(lines[1], "max", "{text}");
    let total: u64 = lines[4].parse().unwrap();
    assert!((400 << 10..512 << 10).contains(&total), "MemTotal {total} KiB");
}

#[test]
fn exit_codes_are_dockers() {
    let _turn = shared();
    guest(&[], "exit 0").expect(0);
    guest(&[], "exit 7").expect(7);
    bulkhead(&["run", "--rm", small(), "no-such-command"])
        .fails_saying(127, &["no-such-command", "not found"]);
    bulkhead(&["run", "--rm", small(), "/etc/not-executable"])
        .fails_saying(126, &["/etc/not-executable", "ermission denied"]);
    bulkhead(&["run", "--no-such-option", small()]).expect(125);
    bulkhead(&["run", "--rm", "-w", "relative", small()]).fails_saying(125, &["relative"]);
    // A signal cannot kill a container's first process from inside; another one
    // it can.
    let idle = Background::idle(&[]);
    idle.exec("exit 9").expect(9);
    idle.exec("kill -KILL $$").expect(137);
    idle.exec("kill -SEGV $$").expect(139);
}

#[test]
fn a_container_out_of_memory_is_reported() {
    let _turn = shared();
    let name = format!("oom-{}", std::process::id());
    let ended =
        bulkhead(&["run", "--name", &name, "--memory", "24m", small(), "tail", "/dev/zero"]);
    let state = bulkhead(&["inspect", &name]).ok();
    let table = bulkhead(&["ps", "-a"]).ok();
    bulkhead(&["rm", &name]).ok();
    ended.expect(137);
    assert!(state.contains(r#""OOMKilled": true"#), "{state}");
    assert!(table.contains("Exited (137, out of memory)"), "{table}");
}

/// The kernel takes free blocks from its allocator while it reports them to the VMM,
/// two seconds after they became free: never so many that a process goes without.
#[test]
fn reporting_free_pages_takes_no_memory_away() {
    let _turn = shared();
    let script = "head -c 40000000 /dev/zero | tail -c 40000000 >/dev/null
        free() { while read name kib unit; do [ $name = MemFree: ] && break; done </proc/meminfo; }
        free; first=$kib; least=$kib; read up idle </proc/uptime; end=$((${up%.*} + 6))
        while [ ${up%.*} -lt $end ]; do
            free; [ $kib -lt $least ] && least=$kib; read up idle </proc/uptime
        done; echo $first $least";
    let text = guest(&["--memory", "64m"], script).ok();
    let (first, least) = text.split_once(' ').expect("two numbers");
    let (first, least): (u64, u64) = (first.parse().unwrap(), least.parse().unwrap());
    assert!(least > first - 8192, "of {first} KiB that were free, {least} were left");
}

#[test]
fn names_are_unique_and_rm_forgets() {
    let _turn = shared();
    let name = format!("once-{}", std::process::id());
    let first = Background::idle(&["--name", &name]);
    bulkhead(&["run", "--name", &name, small(), "true"])
        .fails_saying(125, &[&name, "already in use", "bulkhead rm"]);
    drop(first);
    bulkhead(&["run", "--rm", "--name", &name, small(), "true"]).ok();
    let all = bulkhead(&["ps", "-a"]).ok();
    assert!(!all.contains(&name), "{all}");
    bulkhead(&["run", "--name", "-bad", small()]).expect(125);
    bulkhead(&["run", "--name", "a/b", small()]).fails_saying(125, &["invalid container name"]);
}
