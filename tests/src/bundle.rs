//! OCI bundles, run by a runtime that speaks runc's command line.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

use crate::image::busybox;
use crate::program::{Finished, compile, feed, run};

/// The runtime that is under test.
pub const OURS: &str = "bulkhead-runtime";
/// The one that it is compared with.
pub const RUNC: &str = "runc";

/// A bundle of busybox with a configuration, an id of its own and a runtime.
/// Dropped, the container is deleted by force.
pub struct Bundle {
    directory: tempfile::TempDir,
    runtime: &'static str,
    root: PathBuf,
    /// Words that precede the runtime on each command line.
    pub before: Vec<String>,
    /// Options of the runtime on each of them.
    pub options: Vec<String>,
    /// Id of its container.
    pub id: String,
    /// Its configuration; written before each verb that reads it.
    pub config: Value,
}

impl Bundle {
    /// A bundle whose process is `sh -c SCRIPT`.
    pub fn new(runtime: &'static str, script: &str) -> Bundle {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let id = format!("e2e-{}-{number}", std::process::id());
        // A disk: what a container writes to must be mappable for ours.
        let parent = Path::new("/var/lib/containers/bulkhead-tests");
        std::fs::create_dir_all(parent).expect("a directory");
        let directory = tempfile::tempdir_in(parent).expect("a directory");
        let rootfs = directory.path().join("rootfs");
        std::fs::create_dir(&rootfs).expect("a directory");
        let mut tar = Command::new("tar");
        tar.args(["-x", "-C"]).arg(&rootfs);
        feed(tar, Box::new(std::io::Cursor::new(busybox()))).ok();
        let mut config = runcs_own();
        config["process"]["terminal"] = json!(false);
        config["process"]["env"] = json!(["PATH=/bin"]);
        config["process"]["args"] = json!(["sh", "-c", script]);
        config["root"]["readonly"] = json!(false);
        config["hostname"] = json!("e2e");
        config["linux"]["cgroupsPath"] = json!(format!("/bulkhead-tests/{id}"));
        let root = directory.path().join("root");
        Bundle { directory, runtime, root, before: Vec::new(), options: Vec::new(), id, config }
    }

    /// Where the runtime keeps its state.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// One of the same runtime with the same `--root`. Drop it first.
    pub fn beside(&self, script: &str) -> Bundle {
        let mut other = Bundle::new(self.runtime, script);
        other.root.clone_from(&self.root);
        other
    }

    /// Has it join namespaces of the process `pid`.
    pub fn join(&mut self, pid: i32, kinds: &[&str]) {
        for kind in kinds {
            self.without_namespace(kind);
            let file = if *kind == "network" { "net" } else { kind };
            let namespace = json!({ "type": kind, "path": format!("/proc/{pid}/ns/{file}") });
            if let Some(list) = self.config["linux"]["namespaces"].as_array_mut() {
                list.push(namespace);
            }
        }
    }

    /// Has it join the network namespace at `path`.
    pub fn in_network(&mut self, path: &str) {
        self.without_namespace("network");
        if let Some(list) = self.config["linux"]["namespaces"].as_array_mut() {
            list.push(json!({ "type": "network", "path": path }));
        }
    }

    /// Its directory.
    pub fn path(&self) -> PathBuf {
        self.directory.path().to_owned()
    }

    /// Compiles `source`, of `tests/guests/`, into the root file system: a static program,
    /// since that has no libraries.
    pub fn compile(&self, source: &str, program: &str) {
        compile(source, &self.directory.path().join("rootfs").join(program));
    }

    /// A file beside config.json.
    pub fn file(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    /// Drops a namespace from the configuration.
    pub fn without_namespace(&mut self, kind: &str) {
        if let Some(list) = self.config["linux"]["namespaces"].as_array_mut() {
            list.retain(|namespace| namespace["type"] != kind);
        }
    }

    /// The command line up to the verb's own words.
    pub fn command(&self, words: &[&str]) -> Command {
        let text = serde_json::to_vec_pretty(&self.config).expect("JSON");
        std::fs::write(self.directory.path().join("config.json"), text).expect("a disk");
        let before = self.before.iter().map(String::as_str);
        let line: Vec<&str> = before.chain([self.runtime]).collect();
        let mut command = Command::new(line[0]);
        command.args(&line[1..]).arg("--root").arg(&self.root).args(&self.options);
        command.args(words).current_dir(self.directory.path());
        command
    }

    /// Carries out a verb.
    #[track_caller]
    pub fn verb(&self, words: &[&str]) -> Finished {
        run(self.command(words))
    }

    /// `run` in the foreground.
    #[track_caller]
    pub fn run(&self) -> Finished {
        self.verb(&["run", &self.id])
    }

    /// `create`, its stdio into the file `out`; the pid.
    #[track_caller]
    pub fn create(&self) -> i32 {
        let script = format!(
            "exec \"$@\" create --pid-file {} {} </dev/null >{} 2>&1",
            self.file("pid"),
            self.id,
            self.file("out")
        );
        let mut shell = Command::new("bash");
        let base = self.command(&[]);
        shell.args(["-c", &script, "bash"]).arg(base.get_program()).args(base.get_args());
        shell.current_dir(self.directory.path());
        let finished = run(shell);
        assert_eq!(finished.status, 0, "create: {}", self.output());
        let pid = std::fs::read_to_string(self.file("pid")).expect("a pid file");
        pid.parse().expect("a pid")
    }

    /// What its process wrote, after [`Bundle::create`].
    pub fn output(&self) -> String {
        std::fs::read_to_string(self.file("out")).unwrap_or_default()
    }

    /// `state`.
    #[track_caller]
    pub fn state(&self) -> Value {
        let text = self.verb(&["state", &self.id]).ok();
        serde_json::from_str(&text).expect("JSON")
    }

    /// `status` of `state`.
    #[track_caller]
    pub fn status(&self) -> String {
        self.state()["status"].as_str().unwrap_or_default().to_owned()
    }
}

/// What `runc spec` writes.
fn runcs_own() -> Value {
    static SPEC: OnceLock<Value> = OnceLock::new();
    let write = || {
        let directory = tempfile::tempdir().expect("a directory");
        let mut spec = Command::new("runc");
        spec.arg("spec").current_dir(directory.path());
        run(spec).ok();
        let text = std::fs::read(directory.path().join("config.json")).expect("runc wrote it");
        serde_json::from_slice(&text).expect("JSON")
    };
    SPEC.get_or_init(write).clone()
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let mut delete = self.command(&["delete", "--force", &self.id]);
        let _ = delete.stderr(std::process::Stdio::null()).status();
    }
}
