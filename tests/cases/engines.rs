//! podman, buildah, docker and ctr of the distribution, as people type them, with
//! `bulkhead-runtime` in runc's place. Their state lies apart from the host's own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use bulkhead_tests::image::busybox_and;
use bulkhead_tests::program::{eventually, feed, run};
use bulkhead_tests::tarball::Entry;
use bulkhead_tests::turn::shared;
use bulkhead_tests::{Finished, script, traffic};

mod networks;
mod users;

pub const IMAGE: &str = "small";

/// A directory on a disk for an engine's state, removed at the end.
fn place(parent: &str) -> tempfile::TempDir {
    std::fs::create_dir_all(parent).expect("a directory");
    tempfile::tempdir_in(parent).expect("a directory")
}

/// Where our runtime is: engines want a path.
fn runtime() -> String {
    script("command -v bulkhead-runtime").ok()
}

fn archive(directory: &Path) -> PathBuf {
    let path = directory.join("rootfs.tar");
    let program = std::fs::read(traffic::program()).expect("it was compiled");
    let more = vec![Entry::program("bin/traffic", program)];
    std::fs::write(&path, busybox_and(more)).expect("a disk");
    path
}

/// podman with a storage of its own. Dropped, all that it has is removed.
pub struct Podman {
    place: tempfile::TempDir,
    runtime: String,
    /// Words that precede each command line, where there is a systemd.
    before: Option<Vec<String>>,
    /// Who makes its networks.
    networks: &'static str,
}

impl Podman {
    /// One that makes cgroups itself.
    pub fn new() -> Podman {
        Podman::with(None, "cni")
    }

    /// As [`Podman::new`], with netavark's networks instead of CNI's.
    pub fn with_netavark() -> Podman {
        Podman::with(None, "netavark")
    }

    /// One that leaves cgroups to systemd; `before` precedes its command lines.
    pub fn beside(before: Vec<String>) -> Podman {
        Podman::with(Some(before), "cni")
    }

    fn with(before: Option<Vec<String>>, networks: &'static str) -> Podman {
        let place = place("/var/lib/containers");
        let podman = Podman { place, runtime: runtime(), before, networks };
        let tar = archive(podman.place.path());
        // The first one of a host makes the locks of all, and another one at once fails.
        static FIRST: std::sync::Mutex<()> = std::sync::Mutex::new(());
        let _first = FIRST.lock().unwrap_or_else(|failed| failed.into_inner());
        podman.run(&["import", "-q", tar.to_str().unwrap(), IMAGE]).ok();
        podman
    }

    fn command(&self, program: &str, words: &[&str]) -> Command {
        let at = |name: &str| self.place.path().join(name);
        let before = self.before.iter().flatten().map(String::as_str);
        let line: Vec<&str> = before.chain([program]).collect();
        let mut command = Command::new(line[0]);
        command.args(&line[1..]).arg("--root").arg(at("root")).arg("--runroot").arg(at("run"));
        if program == "podman" {
            let manager = if self.before.is_some() { "systemd" } else { "cgroupfs" };
            command.args(["--cgroup-manager", manager, "--events-backend", "file"]);
            command.args(["--runtime", &self.runtime]).arg("--tmpdir").arg(at("tmp"));
            // Its `system reset` removes all networks that it knows, with their bridges.
            command.arg("--network-config-dir").arg(at("networks"));
            command.args(["--network-backend", self.networks]);
        }
        command.args(words).env("TMPDIR", self.place.path());
        command
    }

    /// Carries out a verb.
    #[track_caller]
    pub fn run(&self, words: &[&str]) -> Finished {
        run(self.command("podman", words))
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let null = Stdio::null;
        for words in [&["rm", "-f", "-t", "0", "-a"][..], &["system", "reset", "-f"]] {
            let _ = self.command("podman", words).stdout(null()).stderr(null()).status();
        }
    }
}

#[test]
fn podman_runs_execs_commits_and_cleans_up() {
    let _turn = shared();
    let podman = Podman::new();
    let new = ["run", "--rm", "--network", "none"];
    let once = |words: &[&str]| podman.run(&[&new[..], words].concat());
    // As people type it: with the profile that podman names of itself.
    let script = "uname -r; cat /proc/self/attr/current; exit 4";
    let text = once(&[IMAGE, "sh", "-c", script]).expect(4).text();
    assert!(text.contains("bulkhead\ncontainers-default-"), "{text}");
    assert!(text.ends_with(" (enforce)\n"), "{text}");
    assert_eq!(once(&[IMAGE, "nosuch"]).status, 127);
    let script = "id -u; touch /x || echo refused; touch /t/x && echo ok; cat /v/f; \
                  cat /sys/fs/cgroup/memory.max";
    let volume = podman.place.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    std::fs::write(volume.join("f"), "of the host\n").unwrap();
    let volume = format!("{}:/v", volume.display());
    let options =
        ["--user", "5:6", "--read-only", "--tmpfs", "/t", "--memory", "64m", "-v", &volume];
    let told = once(&[&options[..], &[IMAGE, "sh", "-c", script]].concat()).ok();
    assert_eq!(told, "5\nrefused\nok\nof the host\n67108864");
    let mut input = podman.command("podman", &new);
    input.args(["-i", IMAGE, "cat"]);
    assert_eq!(feed(input, Box::new(std::io::Cursor::new(b"piped\n".to_vec()))).ok(), "piped");

    let background = "echo begun; echo kept > /new; while :; do sleep 1; done";
    let words = ["run", "-d", "--name", "web", "--network", "none", "--health-cmd", "test -e /new"];
    let more = ["--health-interval", "disable", IMAGE, "sh", "-c", background];
    podman.run(&[&words[..], &more].concat()).ok();
    eventually("its output", || podman.run(&["logs", "web"]).text() == "begun\n");
    assert_eq!(podman.run(&["exec", "web", "cat", "/new"]).ok(), "kept");
    assert_eq!(podman.run(&["exec", "web", "false"]).status, 1);
    podman.run(&["healthcheck", "run", "web"]).ok();
    let copied = podman.place.path().join("copied");
    std::fs::write(&copied, "of the host\n").unwrap();
    let copied = copied.to_str().unwrap();
    podman.run(&["cp", copied, "web:/copied-by-podman"]).ok();
    assert!(!Path::new("/copied-by-podman").exists(), "it is the host's root");
    assert_eq!(podman.run(&["exec", "web", "cat", "/copied-by-podman"]).ok(), "of the host");
    podman.run(&["exec", "web", "sh", "-c", "echo of the guest > /tmp/made"]).ok();
    // No link of the container leads out of it.
    podman.run(&["exec", "web", "ln", "-s", "/proc/1/root/etc", "/out"]).ok();
    assert_ne!(podman.run(&["cp", "web:/out/passwd", copied]).status, 0);
    podman.run(&["cp", "web:/tmp/made", copied]).ok();
    assert_eq!(std::fs::read_to_string(copied).unwrap(), "of the guest\n");
    let status = ["inspect", "web", "--format", "{{.State.Status}}"];
    assert_eq!(podman.run(&status).ok(), "running");
    podman.run(&["pause", "web"]).ok();
    assert_eq!(podman.run(&status).ok(), "paused");
    podman.run(&["unpause", "web"]).ok();
    assert!(podman.run(&["stats", "--no-stream", "web"]).ok().contains("web"));
    assert!(podman.run(&["diff", "web"]).ok().contains("A /new"));
    podman.run(&["commit", "-q", "web", "changed"]).ok();
    podman.run(&["stop", "-t", "1", "web"]).ok();
    assert_eq!(podman.run(&status).ok(), "exited");
    podman.run(&["rm", "web"]).ok();
    assert_eq!(once(&["changed", "cat", "/new"]).ok(), "kept");
}

#[test]
fn podman_pods_share_a_machine() {
    let _turn = shared();
    let podman = Podman::new();
    podman.run(&["pod", "create", "--name", "pod", "--network", "none", "--hostname", "both"]).ok();
    let server = "echo shared > /dev/shm/f; while :; do nc -l -p 8080 -e hostname; done";
    let words = ["run", "-d", "--pod", "pod", "--name", "server", IMAGE, "sh", "-c", server];
    podman.run(&words).ok();
    let client = "until nc 127.0.0.1 8080; do sleep 0.2; done; cat /dev/shm/f; \
                  cat /proc/sys/kernel/random/boot_id";
    let once =
        |script: &str| podman.run(&["run", "--rm", "--pod", "pod", IMAGE, "sh", "-c", script]).ok();
    let told = once(client);
    assert!(told.starts_with("both\nshared\n"), "{told}");
    let boot = podman.run(&["exec", "server", "cat", "/proc/sys/kernel/random/boot_id"]).ok();
    assert!(told.ends_with(&boot), "one machine: {told}, {boot}");
    let terminal = ["run", "--rm", "-t", "--pod", "pod", IMAGE, "tty"];
    assert!(podman.run(&terminal).ok().contains("/dev/pts/"));
    let status = ["pod", "inspect", "pod", "--format", "{{.State}}"];
    assert_eq!(podman.run(&status).ok(), "Running");
    podman.run(&["restart", "-t", "0", "server"]).ok();
    assert!(once(client).starts_with("both\nshared\n"));
    podman.run(&["pod", "stop", "-t", "0", "pod"]).ok();
    assert_eq!(podman.run(&status).ok(), "Exited");
    podman.run(&["pod", "start", "pod"]).ok();
    assert!(once(client).starts_with("both\nshared\n"));
    podman.run(&["pod", "rm", "-f", "-t", "0", "pod"]).ok();
}

#[test]
fn buildah_builds_in_stages() {
    let _turn = shared();
    let podman = Podman::new();
    let context = podman.place.path().join("context");
    std::fs::create_dir(&context).unwrap();
    let file = format!(
        "FROM {IMAGE} AS one\nRUN echo built > /built && uname -r > /kernel && ip addr show eth0\n\
         FROM {IMAGE}\nCOPY --from=one /built /kernel /\nRUN cat /built /kernel && id -u\n"
    );
    std::fs::write(context.join("Dockerfile"), file).unwrap();
    // With a network, which buildah sets up between `create` and `start`.
    let mut build = podman.command("buildah", &["bud", "--isolation", "oci"]);
    build.args(["--cgroup-manager", "cgroupfs", "--runtime", &podman.runtime, "-t", "result"]);
    let text = run({
        build.arg(&context);
        build
    })
    .ok();
    assert!(text.contains("built") && text.contains("-bulkhead"), "{text}");
    let words = ["run", "--rm", "--network", "none", "result", "cat", "/built"];
    assert_eq!(podman.run(&words).ok(), "built");
}

/// containerd and dockerd of our own. Dropped, they are ended.
struct Docker {
    place: tempfile::TempDir,
    run: tempfile::TempDir,
    daemons: Vec<Child>,
}

impl Docker {
    /// One that has no network until one is made.
    fn new() -> Docker {
        let place = place("/var/lib/docker");
        let run = tempfile::tempdir_in("/run").expect("a directory");
        let mut docker = Docker { place, run, daemons: Vec::new() };
        let at = |name: &str| docker.place.path().join(name);
        let in_run = |name: &str| docker.run.path().join(name);
        let log = |name: &str| std::fs::File::create(at(name)).expect("a disk");
        let socket = in_run("containerd.sock");
        let mut containerd = Command::new("containerd");
        containerd.arg("--address").arg(&socket);
        containerd.arg("--root").arg(at("containerd")).arg("--state").arg(in_run("containerd"));
        containerd.stdout(log("containerd.log")).stderr(log("containerd.err"));
        let mut dockerd = Command::new("dockerd");
        dockerd.arg("--containerd").arg(&socket).arg("--data-root").arg(at("data"));
        dockerd.arg("--exec-root").arg(in_run("docker")).arg("--pidfile").arg(in_run("docker.pid"));
        dockerd.arg("-H").arg(docker.host()).args(["--bridge", "none"]);
        dockerd.arg("--add-runtime").arg(format!("bulkhead={}", runtime()));
        dockerd.stdout(log("dockerd.log")).stderr(log("dockerd.err"));
        docker.daemons.push(containerd.spawn().expect("containerd is installed"));
        eventually("containerd's socket", || socket.exists());
        docker.daemons.push(dockerd.spawn().expect("dockerd is installed"));
        eventually("dockerd's answer", || docker.run(&["version"]).status == 0);
        let tar = archive(docker.place.path());
        docker.run(&["import", tar.to_str().unwrap(), IMAGE]).ok();
        docker
    }

    fn host(&self) -> String {
        format!("unix://{}", self.run.path().join("docker.sock").display())
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.arg("-H").arg(self.host()).args(words);
        command
    }

    #[track_caller]
    fn run(&self, words: &[&str]) -> Finished {
        run(self.command(words))
    }

    /// ctr of its containerd.
    #[track_caller]
    fn ctr(&self, words: &[&str]) -> Finished {
        let mut command = Command::new("ctr");
        command.arg("-a").arg(self.run.path().join("containerd.sock")).args(["-n", "e2e"]);
        command.args(words);
        run(command)
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        use nix::sys::signal::{Signal, kill};
        while let Some(mut daemon) = self.daemons.pop() {
            let _ = kill(nix::unistd::Pid::from_raw(daemon.id() as i32), Signal::SIGTERM);
            let _ = daemon.wait();
        }
    }
}

#[test]
fn docker_and_ctr_run_and_exec() {
    let _turn = shared();
    let docker = Docker::new();
    let new = ["run", "--network", "none", "--runtime", "bulkhead"];
    let once = |words: &[&str]| docker.run(&[&new[..], words].concat());
    // docker's own profile forbids to mount, also with the capability.
    let script = "uname -r; cat /proc/self/attr/current; \
                  mount -t tmpfs none /tmp || echo refused; exit 6";
    let admin = ["--rm", "--cap-add", "SYS_ADMIN", IMAGE, "sh", "-c", script];
    let text = once(&admin).expect(6).text();
    assert!(text.contains("bulkhead\ndocker-default (enforce)\nrefused\n"), "{text}");
    assert_eq!(once(&["--rm", IMAGE, "nosuch"]).status, 127);
    let tty = once(&["--rm", "-t", IMAGE, "sh", "-c", "tty; exit 3"]).expect(3).text();
    assert_eq!(tty.trim(), "/dev/pts/0");
    once(&["-d", "--name", "web", IMAGE, "sh", "-c", "echo begun; sleep 1000"]).ok();
    eventually("its output", || docker.run(&["logs", "web"]).text() == "begun\n");
    docker.run(&["exec", "web", "sh", "-c", "exit 9"]).expect(9);
    let label = ["exec", "web", "cat", "/proc/self/attr/current"];
    assert_eq!(docker.run(&label).ok(), "docker-default (enforce)");
    assert_eq!(docker.run(&["exec", "-t", "web", "tty"]).ok(), "/dev/pts/0");
    assert!(docker.run(&["top", "web"]).ok().contains("bulkhead-runtime"));
    docker.run(&["pause", "web"]).ok();
    docker.run(&["unpause", "web"]).ok();
    docker.run(&["stop", "-t", "1", "web"]).ok();
    let status = docker.run(&["inspect", "web", "--format", "{{.State.ExitCode}}"]).ok();
    assert_eq!(status, "137");
    docker.run(&["rm", "web"]).ok();
    networks::docker_networks(&docker);

    let saved = docker.place.path().join("saved.tar");
    docker.run(&["save", IMAGE, "-o", saved.to_str().unwrap()]).ok();
    let ctr = |words: &[&str]| docker.ctr(words);
    ctr(&["images", "import", saved.to_str().unwrap()]).ok();
    let name = ctr(&["images", "ls", "-q"]).ok();
    let binary = runtime();
    let words =
        ["run", "--rm", "--runc-binary", &binary, &name, "c1", "sh", "-c", "uname -r; exit 8"];
    assert!(ctr(&words).expect(8).text().contains("bulkhead"));
    networks::ctr_runs_with_cni(&docker, &name);
}
