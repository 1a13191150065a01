//! `bulkhead` without root: a user with subordinate ids, /dev/kvm and passt.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use bulkhead_tests::image::write_small;
use bulkhead_tests::leaks::pids;
use bulkhead_tests::outside::{Outside, get};
use bulkhead_tests::program::{eventually, run, script};
use bulkhead_tests::turn::{alone, shared};
use bulkhead_tests::user::{FIRST, ID, Person};
use nix::sys::signal::{SIGKILL, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::passt::ask;

const IMAGE: &str = "small:rootless";
/// What `sh -c` of a container is run by.
const RUN: [&str; 4] = ["run", "--rm", "--network", "none"];

/// A user who has the small image.
fn person() -> Person {
    let person = Person::new();
    let layout = tempfile::tempdir().expect("a directory");
    write_small(layout.path());
    let readable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(layout.path(), readable).expect("chmod");
    let path = layout.path().to_str().expect("a plain path");
    person.bulkhead(&["load", "-q", path, "--name", IMAGE]).ok();
    person
}

fn inspect(person: &Person, container: &str) -> Value {
    let text = person.bulkhead(&["inspect", container]).ok();
    serde_json::from_str::<Value>(&text).expect("JSON")[0].take()
}

#[test]
fn a_user_runs_containers_with_owners_and_volumes() {
    let _turn = shared();
    let person = person();
    let volume = person.home().join("volume");
    let run = |options: &[&str], text: &str| {
        person.bulkhead(&[&RUN[..], options, &[IMAGE, "sh", "-c", text]].concat())
    };
    assert_eq!(run(&["-u", "app"], "id -u; id -g; exit 7").expect(7).text(), "1000\n1001\n");
    // The writable layer has all ids, in the person's own files.
    let text = run(&[], "touch /a; chown 65535:33 /a; stat -c %u:%g /a /home/app; rm -r /home");
    assert_eq!(text.ok(), "65535:33\n1000:1001");
    let option = format!("{}:/v", volume.display());
    run(&["-v", &option], "echo of the guest >/v/root; touch /v/app; chown 1000 /v/app").ok();
    let owner = |name: &str| std::fs::metadata(volume.join(name)).expect("it is there").uid();
    assert_eq!((owner("root"), owner("app")), (ID, FIRST + 999));
    let refused = run(&["-v", &format!("{option}:ro")], "echo >/v/root").expect(1);
    assert!(refused.stderr.contains("Read-only"), "{}", refused.stderr);
    // What the person may not read, root of the machine may not either.
    let closed = person.home().join("volume/closed");
    std::fs::write(&closed, "of root").expect("a file");
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o600)).expect("chmod");
    let denied = run(&["-v", &option], "cat /v/root && id -u && cat /v/closed").expect(1);
    assert!(denied.stderr.contains("Permission denied"), "{}", denied.stderr);
    // Only what has nothing mounted below it, as that may hide something.
    run(&["-v", "/:/v"], "true").fails_saying(125, &["mounted below", "only root"]);
    run(&["--cpus", "0.5"], "true").fails_saying(125, &["whole CPUs"]);
    let bridge = ["run", "--rm", "--network", "bridge", IMAGE, "true"];
    person.bulkhead(&bridge).fails_saying(125, &["needs root", "--network passt"]);
    person.bulkhead(&["network", "create", "n"]).fails_saying(1, &["needs root"]);
    let doctor = person.bulkhead(&["doctor"]).expect(0).text();
    assert!(doctor.contains(&ID.to_string()) && doctor.contains("passt"), "{doctor}");
    assert_eq!(person.bulkhead(&["ps", "-a", "-q"]).ok(), "");
}

#[test]
fn who_has_no_subordinate_ids_is_told_so() {
    let _turn = shared();
    let person = Person::with("person:1600000000:1000\nsomebody:1700000000:65536\n");
    let words = ["person has 1000 subordinate ids", "/etc/subuid", "usermod --add-subuids"];
    person.bulkhead(&["run", "x", "true"]).fails_saying(125, &words);
    let doctor = person.bulkhead(&["doctor"]).expect(1).text();
    assert!(doctor.contains(words[0]), "{doctor}");
    person.bulkhead(&["--version"]).ok();
    let poor = ["unshare", "-r", "bulkhead", "run", "x", "true"];
    run(person.command(&poor)).fails_saying(125, &["too few ids"]);
    // What others may change is nobody's state.
    let person = Person::new();
    let state = person.home().join(".local/share/bulkhead");
    std::fs::create_dir_all(&state).expect("a directory");
    std::fs::set_permissions(&state, std::fs::Permissions::from_mode(0o777)).expect("chmod");
    script(&format!("chown -R {ID}:{ID} {}/.local", person.home().display())).ok();
    let shared = [".local/share/bulkhead", "nobody but its owner"];
    person.bulkhead(&["ps"]).fails_saying(1, &shared);
}

#[test]
fn a_user_has_a_network_and_leaves_nothing() {
    let _turn = alone();
    let _outside = Outside::set_up();
    let person = person();
    let nothing = || {
        bulkhead_tests::children::reap_ended();
        pids("bulkhead-vmm").is_empty() && pids("passt").is_empty()
    };
    eventually("what other cases left has ended", nothing);
    let start = |options: &[&str]| {
        let servers = "exec httpd -f -p 80 -h /etc";
        let all = [&["run", "-d"], options, &[IMAGE, "sh", "-c", servers]].concat();
        person.bulkhead(&all).ok()
    };
    let id = start(&["-p", "127.0.0.1:18097:80"]);
    eventually("a server", || get("127.0.0.1", 18097).contains("ID=small"));
    let exec = |text: &str| person.bulkhead(&["exec", &id, "sh", "-c", text]);
    exec(&ask("203.0.113.2", 80, 30)).ok();
    exec(&ask("203.0.113.1", 18081, 3)).expect(1);
    let told = inspect(&person, &id);
    let settings = &told["NetworkSettings"];
    assert_eq!(settings["Networks"]["passt"]["IPAddress"], "10.86.0.2", "{settings}");
    assert!(settings["Refused"]["host"].as_u64() > Some(0), "{settings}");
    assert_eq!(told["Machine"]["CgroupPath"], Value::Null);
    let low = ["run", "--rm", "-p", "80:80", IMAGE, "true"];
    person.bulkhead(&low).fails_saying(125, &["80:80", "one of root's"]);
    // The VMM is the person on the host, and nothing more.
    let vmm = told["Machine"]["Live"]["vmm"].as_i64().expect("a pid");
    let status = std::fs::read_to_string(format!("/proc/{vmm}/status")).expect("it lives");
    let line = |name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)).expect(name).trim().to_owned()
    };
    assert_eq!(line("Uid:"), vec![ID.to_string(); 4].join("\t"));
    assert_eq!((line("Groups:"), line("CapEff:")), (String::new(), "0".repeat(16)));

    // Whoever ends, however.
    kill(Pid::from_raw(vmm as i32), SIGKILL).expect("it lives");
    eventually("the end is written down", || inspect(&person, &id)["State"]["Status"] == "exited");
    let again = person.bulkhead(&["start", &id]);
    again.ok();
    let supervisor = inspect(&person, &id)["State"]["Pid"].as_i64().expect("a pid");
    kill(Pid::from_raw(supervisor as i32), SIGKILL).expect("it lives");
    eventually("the end is seen", || inspect(&person, &id)["State"]["Status"] == "exited");
    person.bulkhead(&["rm", &id]).ok();
    let other = start(&[]);
    person.bulkhead(&["rm", "-f", &other]).ok();
    eventually("nothing of it is left", nothing);
    let lasting = person.home().join(".local/share/bulkhead");
    for place in [lasting.join("run"), lasting] {
        for kind in ["containers", "sandboxes"] {
            // Beside them is the lock of names.
            let all = std::fs::read_dir(place.join(kind)).into_iter().flatten().flatten();
            let left: Vec<_> = all.map(|entry| entry.path()).filter(|it| it.is_dir()).collect();
            assert!(left.is_empty(), "{left:?}");
        }
    }
    person.bulkhead(&["rmi", IMAGE]).ok();
}
