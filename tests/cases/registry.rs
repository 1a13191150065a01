//! Pulls from a registry on this host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use bulkhead_tests::image::busybox;
use bulkhead_tests::leaks::none;
use bulkhead_tests::oci::{Recipe, digest};
use bulkhead_tests::program::{eventually, run, script};
use bulkhead_tests::tarball::{Entry, layer};
use bulkhead_tests::turn::{alone, shared};
use bulkhead_tests::{bulkhead, guest};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Where nothing else listens in the test host; each case has its own.
const ADDRESSES: [&str; 3] = ["127.0.0.1:5055", "127.0.0.1:5056", "127.0.0.1:5057"];
/// Name and password of who may pull from the third, and its file of them.
const WHO: (&str, &str) = ("someone", "secret");
const HTPASSWD: &str = "someone:$2b$04$vS02v0HikkgLm7r.orwGsu.WzbnIgrE7JaqS8GHqPt8f0jsJg4OC6\n";

/// A docker-registry that holds `team/small:one`: busybox and a layer that no
/// other image has.
struct Registry {
    child: Child,
    address: &'static str,
    directory: TempDir,
    /// Digest of the manifest.
    digest: String,
    /// Digest of the layer on top.
    layer: String,
}

impl Registry {
    fn start(address: &'static str, content: &str) -> Registry {
        Registry::with(address, content, false)
    }

    /// `closed`: only [`WHO`] may use it.
    fn with(address: &'static str, content: &str, closed: bool) -> Registry {
        let directory = tempfile::tempdir().unwrap();
        let layout = directory.path().join("layout");
        let own = layer(&[Entry::file("own", content.repeat(20_000))]);
        let config = json!({ "Env": ["PATH=/bin"], "Cmd": ["sh"] });
        Recipe { layers: vec![busybox(), own], config, ..Recipe::default() }.write(&layout);
        let data = directory.path().join("data");
        let config = directory.path().join("config.yml");
        let mut text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: {address}}}\n",
            data.display()
        );
        let (mut login, mut upload) = (String::new(), String::new());
        if closed {
            let passwords = directory.path().join("htpasswd");
            fs::write(&passwords, HTPASSWD).unwrap();
            text += &format!("auth: {{htpasswd: {{realm: e2e, path: {}}}}}\n", passwords.display());
            let (name, password) = WHO;
            login = format!("--creds {name}:{password}");
            upload = format!("--dest-creds {name}:{password}");
        }
        fs::write(&config, text).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("docker-registry is installed");
        eventually("the registry listens", || std::net::TcpStream::connect(address).is_ok());
        // As every client does, skopeo compresses what it uploads.
        let image = format!("docker://{address}/team/small:one");
        let copy = "skopeo copy -q --insecure-policy --dest-tls-verify=false";
        script(&format!("{copy} {upload} oci:{} {image}", layout.display())).ok();
        let manifest = script(&format!("skopeo inspect {login} --tls-verify=false --raw {image}"));
        let manifest = manifest.expect(0).stdout;
        let digest = digest(&manifest);
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        let layer = manifest["layers"][1]["digest"].as_str().unwrap().to_owned();
        Registry { child, address, directory, digest, layer }
    }

    /// File of a blob in the registry's storage.
    fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        let blobs = self.directory.path().join("data/docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(hex).join("data")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn pull_by_tag_and_by_digest_and_from_the_cache() {
    let _turn = shared();
    guest(&[], "true").ok();
    let registry = Registry::start(ADDRESSES[0], "abc");
    let address = registry.address;
    let (tag, pinned) =
        (format!("{address}/team/small:one"), format!("{address}/team/small@{}", registry.digest));
    let id = bulkhead(&["pull", "-q", &tag]).ok();
    assert!(id.starts_with("sha256:"), "{id}");
    assert_eq!(bulkhead(&["pull", "-q", &pinned]).ok(), id);
    let both = format!("{tag}@{}", registry.digest);
    assert_eq!(bulkhead(&["pull", "-q", &both]).ok(), id);
    assert_eq!(bulkhead(&["run", "--rm", &pinned, "head", "-c", "3", "/own"]).ok(), "abc");
    // Another digest than the registry's is refused.
    let wrong = format!("{tag}@sha256:{}", "0".repeat(64));
    bulkhead(&["pull", "-q", &wrong]).expect(1);
    // What is here is not fetched again: the layers may be gone from there.
    let blob = registry.blob(&registry.layer);
    fs::rename(&blob, blob.with_extension("gone")).unwrap();
    assert_eq!(bulkhead(&["pull", "-q", &tag]).ok(), id);
    assert_eq!(
        bulkhead(&["run", "--rm", "--pull", "always", &tag, "echo", "cached"]).ok(),
        "cached"
    );
    fs::rename(blob.with_extension("gone"), &blob).unwrap();
    // With the registry gone, what is here still runs.
    drop(registry);
    assert_eq!(bulkhead(&["run", "--rm", &tag, "echo", "still"]).ok(), "still");
    bulkhead(&["pull", "-q", &tag]).fails_saying(1, &["cannot reach the registry", address]);
    bulkhead(&["rmi", "-f", &id]).ok();
    bulkhead(&["run", "--rm", &tag, "true"])
        .fails_saying(125, &["cannot reach the registry", address]);
    bulkhead(&["run", "--rm", "--pull", "never", &tag, "true"]).fails_saying(125, &["no image"]);
}

#[test]
fn what_a_registry_gets_wrong_is_refused() {
    let _turn = alone();
    guest(&[], "true").ok();
    let registry = Registry::start(ADDRESSES[1], "xyz");
    let address = registry.address;
    let name = format!("{address}/team/small:one");
    none(|| {
        let missing = format!("{address}/team/small:two");
        bulkhead(&["pull", "-q", &missing]).fails_saying(1, &["is not in the registry", &missing]);
        bulkhead(&["run", "--rm", &missing])
            .fails_saying(125, &["is not in the registry", &missing]);
    });
    // What a broken download leaves is what the next one goes on from; once the
    // image is removed nothing of either is left.
    none(|| {
        let digest = registry.layer.as_str();
        let kept = |directory: &str| {
            let name = digest.trim_start_matches("sha256:");
            Path::new("/var/lib/bulkhead/blobs").join(directory).join(name).exists()
        };
        let blob = registry.blob(digest);
        let honest = fs::read(&blob).unwrap();
        let mut corrupt = honest.clone();
        corrupt[honest.len() / 2] ^= 0x40;
        fs::write(&blob, &corrupt).unwrap();
        bulkhead(&["pull", "-q", &name]).fails_saying(1, &[digest, "corrupted"]);
        assert!(!kept("sha256") && !kept("partial"), "the corrupted blob was kept");
        // Shorter than announced: the transfer never completes.
        fs::write(&blob, &honest[..honest.len() / 2]).unwrap();
        bulkhead(&["pull", "-q", &name]).fails_saying(1, &[digest]);
        assert!(!kept("sha256"), "half a blob was kept as a whole one");
        fs::write(&blob, &honest).unwrap();
        bulkhead(&["pull", "-q", &name]).ok();
        assert_eq!(bulkhead(&["run", "--rm", &name, "head", "-c", "3", "/own"]).ok(), "xyz");
        bulkhead(&["rmi", "-f", &name]).ok();
    });
}

#[test]
fn a_closed_registry_opens_to_the_credentials_of_dockers_file() {
    let _turn = alone();
    guest(&[], "true").ok();
    let registry = Registry::with(ADDRESSES[2], "key", true);
    let name = format!("{}/team/small:one", registry.address);
    let home = tempfile::tempdir().unwrap();
    let pull = |credentials: Option<&str>| {
        let file = home.path().join("config.json");
        let _ = fs::remove_file(&file);
        if let Some(credentials) = credentials {
            let auth = base64(credentials);
            let text = json!({"auths": {registry.address: {"auth": auth}}});
            fs::write(&file, text.to_string()).unwrap();
        }
        let mut command = Command::new("bulkhead");
        command.args(["pull", "-q", &name]).env("DOCKER_CONFIG", home.path());
        run(command)
    };
    none(|| {
        pull(None).fails_saying(1, &["denies access", "docker login", &name]);
        let wrong = pull(Some("someone:guessed"))
            .fails_saying(1, &["denies access", "docker login", &name]);
        assert!(!wrong.stderr.contains("guessed"), "{}", wrong.stderr);
        let id = pull(Some(&format!("{}:{}", WHO.0, WHO.1))).ok();
        assert_eq!(bulkhead(&["run", "--rm", &name, "head", "-c", "3", "/own"]).ok(), "key");
        // What pulled it is written down nowhere.
        let kept = script(
            "grep -r -l -e c29tZW9uZTpzZWNyZXQ -e someone: /var/lib/bulkhead --include=*.json",
        );
        assert_eq!(kept.text(), "");
        bulkhead(&["rmi", "-f", &id]).ok();
    });
}

/// Of `text`, by the program of coreutils.
fn base64(text: &str) -> String {
    script(&format!("printf %s '{text}' | base64 -w0")).ok()
}
