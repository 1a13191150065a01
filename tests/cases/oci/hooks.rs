//! config.md, "POSIX-platform Hooks": those that fail or take too long.

use std::time::{Duration, Instant};

use bulkhead_tests::bundle::Bundle;
use bulkhead_tests::children::{adopt, reap};
use bulkhead_tests::program::eventually;
use serde_json::{Value, json};

use super::both;

/// A hook that notes that it began, and then takes longer than it may.
fn slow(note: &str) -> Value {
    let script = format!("echo begun >> {note}; exec sleep 150");
    json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"],
        "timeout": 1}])
}

both!(a_hook_that_takes_too_long_is_killed, |runtime| {
    for kind in ["prestart", "createRuntime", "createContainer"] {
        let mut bundle = Bundle::new(runtime, "echo never");
        let note = bundle.file("note");
        bundle.config["hooks"] = json!({});
        bundle.config["hooks"][kind] = slow(&note);
        let begin = Instant::now();
        let failed = bundle.verb(&["create", &bundle.id]);
        assert_ne!(failed.status, 0, "{kind}");
        assert!(begin.elapsed() < Duration::from_secs(60), "{kind}: {:?}", begin.elapsed());
        assert!(failed.stderr.contains("hook"), "{kind}: {}", failed.stderr);
        assert_eq!(std::fs::read_to_string(&note).expect("it ran"), "begun\n", "{kind}");
        let state = bundle.verb(&["state", &bundle.id]);
        assert!(state.stderr.contains("does not exist"), "{kind}: {}", state.stderr);
    }
});

both!(a_slow_hook_in_the_container_keeps_its_process_from_running, |runtime| {
    adopt();
    let mut bundle = Bundle::new(runtime, "echo never");
    bundle.config["hooks"]["startContainer"] = slow("/note");
    // A shell in a busy emulated guest may need more than a second to begin.
    bundle.config["hooks"]["startContainer"][0]["timeout"] = json!(5);
    let pid = bundle.create();
    let begin = Instant::now();
    bundle.verb(&["start", &bundle.id]);
    reap(pid);
    assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", begin.elapsed());
    assert_eq!(bundle.status(), "stopped");
    assert!(!bundle.output().contains("never"), "{}", bundle.output());
    let note = bundle.path().join("rootfs/note");
    assert_eq!(std::fs::read_to_string(note).expect("it ran"), "begun\n");
    bundle.verb(&["delete", &bundle.id]).ok();
});

both!(a_slow_hook_after_the_end_does_not_keep_the_container, |runtime| {
    adopt();
    let mut bundle = Bundle::new(runtime, "exit 0");
    let note = bundle.file("note");
    bundle.config["hooks"]["poststop"] = slow(&note);
    let pid = bundle.create();
    bundle.verb(&["start", &bundle.id]).ok();
    reap(pid);
    eventually("its end", || bundle.status() == "stopped");
    let deleted = bundle.verb(&["delete", &bundle.id]).expect(0);
    assert!(deleted.took < Duration::from_secs(60), "{:?}", deleted.took);
    assert_eq!(std::fs::read_to_string(&note).expect("it ran"), "begun\n");
    assert!(bundle.verb(&["state", &bundle.id]).stderr.contains("does not exist"));
});
