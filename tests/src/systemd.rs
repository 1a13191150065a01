//! A genuine systemd as the manager of a part of the host's cgroups, which the test host
//! does not have.
//!
//! ```text
//! /sys/fs/cgroup/systemd-PID-N     root of a cgroup namespace, and of what is below
//!                                  (in each hierarchy of a host with cgroup v1):
//!   init.scope                     systemd, first process of a pid namespace
//!   cases                          what a case does, where systemd may take it from
//!   system.slice, ...              what it makes
//! ```
//!
//! It has a mount namespace with a /run of its own, and knows two units beside those that
//! are built in: its target, and a bus that is started when somebody connects to it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::bundle::Bundle;
use crate::cgroup1;
use crate::program::{Finished, eventually, run};

/// Carries out a command line in cgroups: their directories are one word.
const JOIN: &str = "for d in $0; do echo $$ > $d/cgroup.procs; done; exec \"$@\"";

/// What becomes systemd, in its namespaces.
const FIRST: &str = r#"
set -e
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    umount /sys/fs/cgroup
    mount -t cgroup2 -o nsdelegate cgroup2 /sys/fs/cgroup
else
    trees=$(find /sys/fs/cgroup -mindepth 1 -maxdepth 1 -type d -printf '%f ')
    umount -R /sys/fs/cgroup
    # systemd makes it read-only.
    mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
    for tree in $trees; do
        mkdir /sys/fs/cgroup/$tree
        of=$tree
        [ $tree != systemd ] || of=none,name=systemd
        mount -t cgroup -o $of cgroup /sys/fs/cgroup/$tree
        for name in ${tree//,/ }; do
            [ -e /sys/fs/cgroup/$name ] || ln -s $tree /sys/fs/cgroup/$name
        done
    done
fi
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/units /run/dbus /run/lock
cat > /run/units/quiet.target <<END
[Unit]
DefaultDependencies=no
Requires=dbus.socket
After=dbus.socket
END
cat > /run/units/dbus.socket <<END
[Unit]
DefaultDependencies=no
[Socket]
ListenStream=/run/dbus/system_bus_socket
END
cat > /run/units/dbus.service <<END
[Unit]
DefaultDependencies=no
Requires=dbus.socket
[Service]
ExecStart=/usr/bin/dbus-daemon --system --address=systemd: --nofork --nopidfile --systemd-activation --syslog-only
END
mount --make-rshared /
# Where it keeps what it was told of its units, beside ours.
export SYSTEMD_UNIT_PATH=/run/systemd/system.control:/run/systemd/transient:/run/units
export container=bulkhead SYSTEMD_LOG_TARGET=console
exec /lib/systemd/systemd --system --unit=quiet.target --show-status=no
"#;

/// It. Dropped, it is ended with all that it manages.
pub struct Systemd {
    unshare: Child,
    first: i32,
    name: String,
    trees: Vec<PathBuf>,
}

impl Systemd {
    /// Starts one, and waits until it takes calls.
    #[track_caller]
    pub fn start() -> Systemd {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("systemd-{}-{number}", std::process::id());
        let mut trees = cgroup1::hierarchies();
        if trees.is_empty() {
            trees.push("/sys/fs/cgroup".into());
        }
        for tree in &trees {
            make(tree, Path::new(&name));
            make(tree, &Path::new(&name).join("cases"));
        }
        let cases = words(&trees, &format!("{name}/cases"));
        let cgroup = words(&trees, &name);
        let mut command = Command::new("bash");
        command.args(["-c", JOIN]).arg(&cases).args(["unshare", "--mount", "--pid", "--ipc"]);
        command.args(["--mount-proc", "--fork", "--kill-child", "bash", "-c", JOIN]).arg(&cgroup);
        // Alone in its root: controllers are not given to children beside processes.
        command.args(["unshare", "--cgroup", "bash", "-c", FIRST]);
        let unshare = command.stdin(Stdio::null()).spawn().expect("bash and unshare");
        let mut systemd = Systemd { unshare, first: 0, name, trees };
        eventually("systemd's socket", || systemd.is_up());
        systemd
    }

    fn is_up(&mut self) -> bool {
        let ended = self.unshare.try_wait().expect("our child");
        assert_eq!(ended, None, "systemd ended; its log is above");
        let unshare = self.unshare.id();
        let children = std::fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children"));
        self.first = children.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        Path::new(&format!("/proc/{}/root/run/systemd/private", self.first)).exists()
    }

    /// Words that precede a command line which is carried out beside it in `directory`.
    pub fn words(&self, directory: &Path) -> Vec<String> {
        let first = self.first.to_string();
        let enter = ["nsenter", "--target", &first, "--mount", "--pid", "--cgroup", "--ipc"];
        let cases = words(&self.trees, &format!("{}/cases", self.name));
        let mut words = ["bash", "-c", JOIN, &cases].map(str::to_owned).to_vec();
        words.extend(enter.map(str::to_owned));
        words.extend(["env".to_owned(), "-C".to_owned(), directory.display().to_string()]);
        words
    }

    /// Has the bundle's verbs carried out beside it, with `--systemd-cgroup`. Drop the
    /// bundle first.
    pub fn manages(&self, bundle: &mut Bundle) {
        bundle.before = self.words(&bundle.path());
        bundle.options = vec!["--systemd-cgroup".to_owned()];
    }

    /// A shell script beside it.
    #[track_caller]
    pub fn script(&self, text: &str) -> Finished {
        let words = self.words(Path::new("/"));
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(["bash", "-c", text]);
        run(command)
    }

    /// A property of a unit, as `systemctl show` prints it.
    #[track_caller]
    pub fn property(&self, unit: &str, name: &str) -> String {
        self.script(&format!("systemctl show --value -p {name} -- {unit}")).ok()
    }

    /// Directory of one of its cgroups, on a host with cgroup v2.
    pub fn cgroup(&self, below: &str) -> PathBuf {
        Path::new("/sys/fs/cgroup").join(self.below(below))
    }

    /// Path of one of its cgroups, below the root of a tree.
    pub fn below(&self, below: &str) -> PathBuf {
        Path::new(&self.name).join(below)
    }
}

/// The directories of a cgroup in all trees, as one word.
fn words(trees: &[PathBuf], below: &str) -> String {
    let directories = trees.iter().map(|tree| tree.join(below).display().to_string());
    directories.collect::<Vec<_>>().join(" ")
}

/// Makes a cgroup that processes may join: in cgroup v1 a new cpuset is empty.
fn make(tree: &Path, below: &Path) {
    let path = tree.join(below);
    std::fs::create_dir_all(&path).expect("a cgroup");
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let inherited = std::fs::read_to_string(path.with_file_name(file)).unwrap_or_default();
        if tree.ends_with("cpuset") {
            std::fs::write(path.join(file), inherited.trim()).expect("a cpuset");
        }
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        // The whole namespace, and with it each process that it has in a cgroup.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
        let roots: Vec<PathBuf> = self.trees.iter().map(|tree| tree.join(&self.name)).collect();
        let mut remove = Command::new("find");
        remove.args(&roots).args(["-depth", "-type", "d", "-exec", "rmdir", "{}", ";"]);
        for _ in 0..100 {
            roots.iter().for_each(|root| drop(std::fs::write(root.join("cgroup.kill"), "1")));
            let _ = remove.stderr(Stdio::null()).status();
            if !roots.iter().any(|root| root.exists()) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
}
