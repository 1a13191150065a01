//! What a pull promises.

use std::collections::HashSet;
use std::fs;
use std::sync::Arc;

use bulkhead_images::{
    Credentials, Digest, LoadOptions, PullOptions, RegistryError, Store, StoreError,
};
use tempfile::TempDir;

use crate::host::*;

fn store() -> (TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store")).unwrap();
    (dir, store)
}

fn count(store: &Store, dir: &str) -> usize {
    fs::read_dir(store.root().join(dir)).unwrap().count()
}

fn text(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", text(source)),
        None => error.to_string(),
    }
}

#[test]
fn by_tag_by_digest_and_by_both() {
    let registry = Registry::start();
    let layers = [layer("a", &noise(1, 300_000)), layer("b", b"2"), layer("c", b"3")];
    let made = layout(registry.path("one"), &[host_arch()], &layers);
    registry.push(&made.dir, "team/app:1", &[]);
    let repository = format!("{}/team/app", registry.address);
    let (_dir, store) = store();

    let by_tag = pull(&store, &format!("{repository}:1")).unwrap();
    assert_eq!(by_tag.layers.len(), 3);
    for (dir, file) in by_tag.layers.iter().zip(["a", "b", "c"]) {
        assert!(dir.join(file).exists());
    }
    assert_eq!(by_tag.manifest_digest.to_string(), made.manifests[0]);

    let digest = &by_tag.manifest_digest;
    let pinned = format!("{repository}@{digest}");
    let recorder = Arc::new(Recorder::default());
    let options = PullOptions::default();
    let by_digest = pull_with(&store, &pinned, options, recorder.clone()).unwrap();
    assert_eq!(by_digest.id, by_tag.id);
    assert!(recorder.steps.lock().unwrap().is_empty(), "nothing to fetch");
    assert_eq!(recorder.cached.lock().unwrap().len(), 4);
    let both = format!("{repository}:1@{digest}");
    assert_eq!(pull(&store, &both).unwrap().id, by_tag.id);
    for name in [&pinned, &both, &format!("{repository}:1")] {
        assert_eq!(store.resolve(name).unwrap().id, by_tag.id);
    }

    let wrong = format!("{repository}:1@{}", Digest::of(b"something else"));
    let error = pull(&store, &wrong).unwrap_err();
    assert!(matches!(error, RegistryError::NotFound { .. }), "{error}");
    store.remove(by_tag.id.short(), true, &HashSet::new()).unwrap();
    assert_eq!((count(&store, "blobs/sha256"), count(&store, "layers")), (0, 0));
}

#[test]
fn an_index_gives_the_image_of_this_machine() {
    let registry = Registry::start();
    let layers = [layer("a", b"1")];
    let made = layout(registry.path("multi"), &["s390x", host_arch()], &layers);
    registry.push(&made.dir, "multi:1", &["--all"]);
    let (_dir, store) = store();
    let name = format!("{}/multi:1", registry.address);
    let image = pull(&store, &name).unwrap();
    assert_eq!(image.manifest_digest.to_string(), made.manifests[1]);
    // By the digest of the index as well.
    assert_eq!(image.repo_digests.len(), 2);
    for pinned in &image.repo_digests {
        assert_eq!(pull(&store, pinned).unwrap().id, image.id);
    }

    let made = layout(registry.path("other"), &["s390x", "ppc64le"], &layers);
    registry.push(&made.dir, "other:1", &["--all"]);
    let error = pull(&store, &format!("{}/other:1", registry.address)).unwrap_err();
    let text = text(&error);
    assert!(text.contains("linux/ppc64le, linux/s390x"), "{text}");
    let made = layout(registry.path("single"), &["s390x"], &layers);
    registry.push(&made.dir, "single:1", &[]);
    let error = pull(&store, &format!("{}/single:1", registry.address)).unwrap_err();
    assert!(crate::pull::text(&error).contains("linux/s390x"), "{error}");
    assert_eq!((count(&store, "tmp"), count(&store, "leases")), (0, 0));
}

#[test]
fn a_corrupted_blob_is_refused_by_name() {
    let registry = Registry::start();
    let layers = [layer("a", b"1"), layer("b", &noise(2, 100_000))];
    let made = layout(registry.path("x"), &[host_arch()], &layers);
    registry.push(&made.dir, "x:1", &[]);
    let blob = registry.blob(&made.layers[1]);
    let mut content = fs::read(&blob).unwrap();
    content[50_000] ^= 1;
    fs::write(&blob, content).unwrap();
    let (_dir, store) = store();
    let name = format!("{}/x:1", registry.address);
    let error = pull(&store, &name).unwrap_err();
    assert!(matches!(error, RegistryError::Corrupted { .. }), "{error}");
    assert!(error.to_string().contains(&made.layers[1]), "{error}");
    let missing = store.resolve(&name);
    assert!(matches!(missing, Err(StoreError::NotFound { .. })));
    for dir in ["blobs/sha256", "blobs/partial", "tmp", "leases"] {
        assert_eq!(count(&store, dir), 0, "{dir}");
    }
}

#[test]
fn a_corrupted_manifest_is_refused() {
    let registry = Registry::start();
    let made = layout(registry.path("x"), &[host_arch()], &[layer("a", b"1")]);
    registry.push(&made.dir, "x:1", &[]);
    let blob = registry.blob(&made.manifests[0]);
    let text = fs::read_to_string(&blob).unwrap();
    fs::write(&blob, text.replace("\"size\":", "\"size\": ")).unwrap();
    let (_dir, store) = store();
    let name = format!("{}/x@{}", registry.address, made.manifests[0]);
    let error = pull(&store, &name).unwrap_err();
    assert!(
        matches!(error, RegistryError::WrongManifest { .. } | RegistryError::Protocol { .. }),
        "{error:?}"
    );
}

#[test]
fn a_broken_download_goes_on_where_it_broke() {
    let registry = Registry::start();
    let layers = [layer("a", &noise(3, 2_000_000))];
    let made = layout(registry.path("x"), &[host_arch()], &layers);
    registry.push(&made.dir, "x:1", &[]);
    let proxy = Proxy::start(&registry.address, 700_000, 2);
    let (_dir, store) = store();
    let recorder = Arc::new(Recorder::default());
    let name = format!("{}/x:1", proxy.address);
    let options = PullOptions::default();
    let image = pull_with(&store, &name, options, recorder.clone()).unwrap();
    assert_eq!(fs::read(image.layers[0].join("a")).unwrap(), noise(3, 2_000_000));
    // Every byte was counted once: no step goes back.
    let steps = recorder.steps.lock().unwrap();
    let layer: Vec<u64> =
        steps.iter().filter(|(item, _)| *item == made.layers[0]).map(|(_, done)| *done).collect();
    assert!(layer.is_sorted());
    assert_eq!(count(&store, "blobs/partial"), 0);
}

#[test]
fn another_process_can_go_on_with_a_broken_download() {
    let registry = Registry::start();
    let layers = [layer("a", &noise(4, 2_000_000))];
    let made = layout(registry.path("x"), &[host_arch()], &layers);
    registry.push(&made.dir, "x:1", &[]);
    let proxy = Proxy::start(&registry.address, 200_000, 5);
    let (_dir, store) = store();
    let error = pull(&store, &format!("{}/x:1", proxy.address)).unwrap_err();
    let message = error.to_string();
    assert!(matches!(error, RegistryError::Interrupted { tries: 5, .. }), "{message}");
    assert!(message.contains(&made.layers[0]) && message.contains("pull again"), "{message}");
    assert_eq!(count(&store, "blobs/partial"), 1);
    drop(store);

    let store = Store::open(_dir.path().join("store")).unwrap();
    let recorder = Arc::new(Recorder::default());
    let name = format!("{}/x:1", registry.address);
    pull_with(&store, &name, PullOptions::default(), recorder.clone()).unwrap();
    let first = recorder.first(&made.layers[0]).unwrap();
    assert!(first > 800_000, "started at {first}");
}

#[test]
fn a_partial_file_that_lies_is_thrown_away() {
    let registry = Registry::start();
    let layers = [layer("a", &noise(5, 500_000))];
    let made = layout(registry.path("x"), &[host_arch()], &layers);
    registry.push(&made.dir, "x:1", &[]);
    let hex = made.layers[0].strip_prefix("sha256:").unwrap();
    for content in [vec![7; 100_000], vec![7; 900_000]] {
        let (_dir, store) = store();
        fs::write(store.root().join("blobs/partial").join(hex), content).unwrap();
        let image = pull(&store, &format!("{}/x:1", registry.address)).unwrap();
        assert_eq!(fs::read(image.layers[0].join("a")).unwrap(), noise(5, 500_000));
    }
}

#[test]
fn pulls_at_once_share_one_store() {
    let registry = Registry::start();
    let layers: Vec<_> = (0..5).map(|n| layer(&format!("f{n}"), &noise(n + 10, 400_000))).collect();
    let made = layout(registry.path("x"), &[host_arch()], &layers);
    registry.push(&made.dir, "x:1", &[]);
    let (dir, store) = store();
    let name = format!("{}/x:1", registry.address);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            let (name, root) = (&name, dir.path().join("store"));
            scope.spawn(move || pull(&Store::open(root).unwrap(), name).unwrap());
        }
        scope.spawn(|| {
            // Sweeps, as after a load that failed, go on all the while and take
            // nothing away.
            let nowhere = std::path::Path::new("/no/such/archive");
            for _ in 0..20 {
                store.load(nowhere, &LoadOptions::default(), &()).unwrap_err();
            }
        });
    });
    let image = store.resolve(&name).unwrap();
    assert_eq!(image.layers.len(), 5);
    assert_eq!((count(&store, "layers"), count(&store, "tmp")), (10, 0));
}

#[test]
fn what_is_missing_is_said() {
    let registry = Registry::start();
    let (_dir, store) = store();
    let error = pull(&store, &format!("{}/no/such:thing", registry.address)).unwrap_err();
    assert!(matches!(error, RegistryError::NotFound { .. }), "{error:?}");
    let address = registry.address.clone();
    drop(registry);
    let error = pull(&store, &format!("{address}/x:1")).unwrap_err();
    assert!(matches!(error, RegistryError::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains(&address));
}

#[test]
fn passwords_are_asked_for_and_used() {
    let dir = tempfile::tempdir().unwrap();
    let htpasswd = dir.path().join("htpasswd");
    // The password is "open sesame"; made with htpasswd -B.
    let line = include_str!("htpasswd");
    fs::write(&htpasswd, line).unwrap();
    let extra = format!("auth:\n  htpasswd: {{realm: test, path: {}}}\n", htpasswd.display());
    let registry = Registry::start_with(&extra);
    let made = layout(registry.path("x"), &[host_arch()], &[layer("a", b"1")]);
    registry.push(&made.dir, "x:1", &["--dest-creds", "ali:open sesame"]);
    let (_dir, store) = store();
    let name = format!("{}/x:1", registry.address);
    let pull_as = |password: Option<&str>| {
        let credentials = match password {
            Some(password) => {
                Credentials::Password { user: "ali".to_owned(), password: password.to_owned() }
            }
            None => Credentials::Anonymous,
        };
        let options = PullOptions { credentials, ..PullOptions::default() };
        pull_with(&store, &name, options, Arc::new(()))
    };
    for wrong in [None, Some("close sesame")] {
        let error = pull_as(wrong).unwrap_err();
        assert!(matches!(error, RegistryError::Denied { .. }), "{error:?}");
        assert!(error.to_string().contains("docker login"), "{error}");
    }
    assert_eq!(pull_as(Some("open sesame")).unwrap().layers.len(), 1);
}

#[test]
fn other_registries_are_spoken_to_by_https() {
    // The name cannot exist (RFC 2606): what counts is that TLS is set up and
    // the failure is told as one of the network.
    let (_dir, store) = store();
    let error = pull(&store, "registry.invalid/x:1").unwrap_err();
    assert!(matches!(error, RegistryError::Unreachable { .. }), "{error:?}");
    assert!(text(&error).contains("https://registry.invalid"), "{error}");
}
