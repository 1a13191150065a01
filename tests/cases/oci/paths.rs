//! config.json: what of the root file system is hidden or cannot be written, and how
//! mounts propagate.

use bulkhead_tests::bundle::{Bundle, OURS};
use bulkhead_tests::turn::shared;
use serde_json::json;

use super::same;

/// A file in the root file system.
fn file(bundle: &Bundle, path: &str) {
    let path = bundle.path().join("rootfs").join(path);
    std::fs::create_dir_all(path.parent().expect("it has one")).expect("a directory");
    std::fs::write(path, "content\n").expect("a file");
}

#[test]
fn masked_and_read_only_paths() {
    let _turn = shared();
    let script = "echo file $(cat /hidden/file) $(ls -l /hidden/file | cut -c1-10); \
                  echo x > /hidden/file && echo swallowed; \
                  echo directory $(ls -A /hidden/directory); \
                  touch /hidden/directory/new 2>&1; cat /hidden/seen; \
                  cat /fixed/below/file; echo x > /fixed/below/file; touch /fixed/new 2>&1; \
                  echo x > /fixed-file; cat /fixed-file; touch /beside && echo made; \
                  for file in kcore keys timer_list; do head -c 1 /proc/$file | wc -c; done \
                  2>/dev/null; ls /sys/firmware | wc -l; echo 1 > /proc/sys/kernel/panic; \
                  (echo b > /proc/sysrq-trigger) 2>/dev/null; echo alive";
    let text = same(script, |bundle| {
        for path in ["hidden/file", "hidden/directory/file", "hidden/seen"] {
            file(bundle, path);
        }
        for path in ["fixed/below/file", "fixed-file"] {
            file(bundle, path);
        }
        let linux = &mut bundle.config["linux"];
        for path in ["/hidden/file", "/hidden/directory", "/not-there"] {
            linux["maskedPaths"].as_array_mut().expect("runc's own").push(json!(path));
        }
        for path in ["/fixed", "/fixed-file", "/not-there"] {
            linux["readonlyPaths"].as_array_mut().expect("runc's own").push(json!(path));
        }
    });
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..3], ["file crw-rw-rw-", "swallowed", "directory"], "{text}");
    assert!(lines[3].contains("Read-only"), "{text}");
    assert_eq!(lines[4..6], ["content", "content"], "{text}");
    assert!(lines[6].contains("Read-only"), "{text}");
    assert_eq!(lines[7..], ["content", "made", "0", "0", "0", "0", "alive"], "{text}");
}

/// A script that prints mounts whose place is like `place`, with their propagation but
/// without the numbers of peer groups.
fn propagation(place: &str) -> String {
    let program = "$5 ~ place {words = \"\"; for (i = 7; $i != \"-\"; i++) \
                   {sub(\":.*\", \"\", $i); words = words \" \" $i}; print $5 words}";
    format!("awk -v place='{place}' '{program}' /proc/self/mountinfo")
}

#[test]
fn propagation_of_mounts() {
    let _turn = shared();
    let script = format!(
        "{}; mkdir /shared /private /p/shared/a /p/private/a; \
         for kind in shared private; do \
         mount --bind /p/$kind /$kind; mount -t tmpfs none /p/$kind/a; \
         grep -q \" /$kind/a \" /proc/mounts && echo $kind comes along || echo $kind stays; done; \
         mkdir /copy; mount --bind /p/unbindable /copy 2>/dev/null || echo unbindable",
        propagation("^/p/")
    );
    let text = same(&script, |bundle| {
        for set in ["bounding", "effective", "permitted"] {
            let list = bundle.config["process"]["capabilities"][set].as_array_mut();
            list.expect("runc's own").push(json!("CAP_SYS_ADMIN"));
        }
        let mounts = bundle.config["mounts"].as_array_mut().expect("runc's own");
        for (name, word) in [
            ("shared", "rshared"),
            ("private", "rprivate"),
            ("slave", "slave"),
            ("unbindable", "unbindable"),
            ("both", "shared,rslave"),
        ] {
            let options: Vec<&str> = word.split(',').collect();
            mounts.push(json!({"destination": format!("/p/{name}"), "type": "tmpfs",
                "source": "tmpfs", "options": options}));
        }
    });
    assert!(text.contains("/p/shared shared\n"), "{text}");
    assert!(text.ends_with("shared comes along\nprivate stays\nunbindable\n"), "{text}");
}

/// Debian 12's runc forgets it when it changes the root (later ones do not).
#[test]
fn propagation_of_the_root() {
    let _turn = shared();
    for (word, seen) in
        [("private", "/\n"), ("rshared", "/ shared\n"), ("unbindable", "/ unbindable\n")]
    {
        let mut bundle = Bundle::new(OURS, &propagation("^/$"));
        bundle.config["linux"]["rootfsPropagation"] = json!(word);
        assert_eq!(bundle.run().expect(0).text(), seen, "{word}");
    }
}
