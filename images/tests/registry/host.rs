//! The registry, the images in it, and the proxy.

use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bulkhead_images::{Digest, Event, Image, Phase, Progress, PullOptions, RegistryError, Store};
use tempfile::TempDir;

/// A registry on a free port of 127.0.0.1; ends with the value.
pub struct Registry {
    process: Child,
    pub address: String,
    dir: TempDir,
}

impl Registry {
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// `extra` is added to the registry's configuration.
    pub fn start_with(extra: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = {
            let free = TcpListener::bind("127.0.0.1:0").unwrap();
            free.local_addr().unwrap().port()
        };
        let address = format!("127.0.0.1:{port}");
        let config = dir.path().join("config.yml");
        let root = dir.path().join("data");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\nhttp: {{addr: '{address}'}}\n{extra}",
            root.display()
        );
        fs::write(&config, text).unwrap();
        let process = Command::new("docker-registry")
            .args(["serve"])
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the package docker-registry is needed");
        let registry = Self { process, address, dir };
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(&registry.address).is_err() {
            assert!(Instant::now() < deadline, "the registry does not start");
            std::thread::sleep(Duration::from_millis(30));
        }
        registry
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Copies an OCI layout into the registry.
    pub fn push(&self, layout: &Path, name: &str, options: &[&str]) {
        let output = Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--dest-tls-verify=false", "--quiet"])
            .args(options)
            .arg(format!("oci:{}", layout.display()))
            .arg(format!("docker://{}/{name}", self.address))
            .output()
            .expect("the package skopeo is needed");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
    }

    /// Where the registry keeps a blob.
    pub fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").unwrap();
        let blobs = "data/docker/registry/v2/blobs/sha256";
        self.path(blobs).join(&hex[..2]).join(hex).join("data")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An OCI layout with one image for each architecture.
pub struct Layout {
    pub dir: PathBuf,
    /// Digests of the layer blobs, for the last architecture.
    pub layers: Vec<String>,
    /// Digest of the manifest of each architecture.
    pub manifests: Vec<String>,
}

pub fn host_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Bytes that do not compress.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(length);
    out
}

pub fn layer(name: &str, data: &[u8]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(data.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, data).unwrap();
    tar.into_inner().unwrap()
}

/// Writes a layout; several architectures make an index of it.
pub fn layout(dir: PathBuf, arches: &[&str], layers: &[Vec<u8>]) -> Layout {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |data: &[u8], kind: &str| {
        let digest = Digest::of(data);
        fs::write(blobs.join(digest.hex()), data).unwrap();
        serde_json::json!({
            "mediaType": format!("application/vnd.oci.image.{kind}"),
            "digest": digest.to_string(), "size": data.len(),
        })
    };
    let packed: Vec<_> = layers
        .iter()
        .map(|layer| {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(layer).unwrap();
            put(&gzip.finish().unwrap(), "layer.v1.tar+gzip")
        })
        .collect();
    let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
    let manifests: Vec<_> = arches
        .iter()
        .map(|arch| {
            let config = serde_json::json!({
                "os": "linux", "architecture": arch, "config": {"Cmd": ["true"]},
                "rootfs": {"type": "layers", "diff_ids": diff_ids},
            });
            let manifest = serde_json::json!({
                "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": put(config.to_string().as_bytes(), "config.v1+json"), "layers": packed,
            });
            let mut entry = put(manifest.to_string().as_bytes(), "manifest.v1+json");
            entry["platform"] = serde_json::json!({"os": "linux", "architecture": arch});
            entry
        })
        .collect();
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests,
    });
    let top = match manifests.as_slice() {
        [_] => index,
        _ => serde_json::json!({
            "schemaVersion": 2,
            "manifests": [put(index.to_string().as_bytes(), "index.v1+json")],
        }),
    };
    fs::write(dir.join("index.json"), top.to_string()).unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let digest = |entry: &serde_json::Value| entry["digest"].as_str().unwrap().to_owned();
    Layout {
        dir,
        layers: packed.iter().map(digest).collect(),
        manifests: manifests.iter().map(digest).collect(),
    }
}

/// Forwards to a registry; the first `breaks` answers end after `limit` bytes.
pub struct Proxy {
    pub address: String,
}

impl Proxy {
    pub fn start(registry: &str, limit: usize, breaks: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let registry = registry.to_owned();
        let left = Arc::new(Mutex::new(breaks));
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let server = TcpStream::connect(&registry).unwrap();
                let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || std::io::copy(&mut from, &mut to));
                let left = Arc::clone(&left);
                std::thread::spawn(move || answer(server, client, limit, &left));
            }
        });
        Self { address }
    }
}

fn answer(mut server: TcpStream, mut client: TcpStream, limit: usize, left: &Mutex<usize>) {
    use std::io::Read;
    let mut buf = [0; 8192];
    let mut sent = 0;
    while let Ok(n @ 1..) = server.read(&mut buf) {
        if client.write_all(&buf[..n]).is_err() {
            break;
        }
        sent += n;
        if sent > limit {
            let mut left = left.lock().unwrap();
            if *left > 0 {
                *left -= 1;
                break;
            }
        }
    }
    let _ = client.shutdown(std::net::Shutdown::Both);
    let _ = server.shutdown(std::net::Shutdown::Both);
}

/// Keeps the events that tests ask about.
#[derive(Default)]
pub struct Recorder {
    /// Item, and bytes at each step of its download.
    pub steps: Mutex<Vec<(String, u64)>>,
    pub cached: Mutex<Vec<(String, Phase)>>,
}

impl Progress for Recorder {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::Advance { item, phase: Phase::Download, done } => {
                self.steps.lock().unwrap().push((item.to_owned(), done))
            }
            Event::End { item, phase, cached: true } => {
                self.cached.lock().unwrap().push((item.to_owned(), phase))
            }
            _ => {}
        }
    }
}

impl Recorder {
    /// Bytes that were there at the first step of a download.
    pub fn first(&self, item: &str) -> Option<u64> {
        let steps = self.steps.lock().unwrap();
        steps.iter().find(|(name, _)| name == item).map(|(_, done)| *done)
    }
}

pub fn pull(store: &Store, name: &str) -> Result<Image, RegistryError> {
    pull_with(store, name, PullOptions::default(), Arc::new(()))
}

pub fn pull_with(
    store: &Store,
    name: &str,
    options: PullOptions,
    progress: Arc<dyn Progress>,
) -> Result<Image, RegistryError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(store.pull(&name.parse().unwrap(), options, progress))
}
