//! `process.apparmorProfile`: profiles that the host's kernel has loaded.

use bulkhead_tests::apparmor::Profile;
use bulkhead_tests::bundle::{Bundle, OURS};
use bulkhead_tests::turn::shared;
use serde_json::{Value, json};

use super::both;

/// What a process says of itself, and whether it may write.
const TELL: &str = "cat /proc/self/attr/current; \
                    { echo x > /denied/file; } 2>/dev/null || echo refused; \
                    echo x > /allowed && echo written";

fn bundle(runtime: &'static str, script: &str, profile: &str) -> Bundle {
    let mut bundle = Bundle::new(runtime, script);
    std::fs::create_dir(bundle.file("rootfs/denied")).expect("a directory");
    bundle.config["process"]["apparmorProfile"] = json!(profile);
    bundle
}

fn enforced(name: &str) -> String {
    format!("{name} (enforce)\nrefused\nwritten")
}

both!(a_profile_confines_the_process_and_what_is_executed, |runtime| {
    let profile = Profile::load("deny /denied/** w,");
    let other = Profile::load("");
    let bundle = bundle(runtime, &format!("{TELL}; sleep 1000"), &profile.name);
    bundle.create();
    bundle.verb(&["start", &bundle.id]).ok();
    let told = enforced(&profile.name);
    bulkhead_tests::program::eventually("its words", || bundle.output().contains("written"));
    assert_eq!(bundle.output().trim_end(), told);
    let exec = |words: &[&str]| bundle.verb(&[&["exec"], words].concat()).ok();
    assert_eq!(exec(&[&bundle.id, "sh", "-c", TELL]), told);
    let elsewhere = exec(&["--apparmor", &other.name, &bundle.id, "sh", "-c", TELL]);
    assert_eq!(elsewhere, format!("{} (enforce)\nwritten", other.name));
    // A process object that names none has none, as runc (1.1.5) has it.
    let process = json!({"cwd": "/", "args": ["sh", "-c", TELL], "env": ["PATH=/bin"],
        "user": {"uid": 0, "gid": 0}});
    std::fs::write(bundle.file("process.json"), process.to_string()).unwrap();
    let told = exec(&["--process", &bundle.file("process.json"), &bundle.id]);
    assert_eq!(told, "unconfined\nwritten");
    let missing = bundle.verb(&["exec", "--apparmor", "no-such-profile", &bundle.id, "true"]);
    assert_eq!(missing.status, 255, "{}", missing.stderr);
    assert!(missing.stderr.to_lowercase().contains("apparmor"), "{}", missing.stderr);
    // What the host loads anew holds for what runs.
    profile.replace("deny /allowed w,");
    let told = bundle.verb(&["exec", &bundle.id, "sh", "-c", TELL]).expect(1).text();
    assert_eq!(told, format!("{} (enforce)\n", profile.name));
});

both!(without_privileges_it_holds_as_well, |runtime| {
    let profile = Profile::load("deny /tmp/denied w,");
    let script = "id -u; cat /proc/self/attr/current; echo x > /tmp/denied || echo refused; \
                  mkdir /tmp/x || echo filtered; echo x > /tmp/y && echo written";
    let mut bundle = bundle(runtime, script, &profile.name);
    bundle.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    bundle.config["process"]["noNewPrivileges"] = json!(true);
    bundle.config["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]});
    let told = bundle.run().ok();
    assert_eq!(told, format!("1000\n{} (enforce)\nrefused\nfiltered\nwritten", profile.name));
});

both!(stacks_are_profiles_too, |runtime| {
    let one = Profile::load("deny /denied/** w,");
    let two = Profile::load("deny /allowed w,");
    let stack = format!("{}//&{}", one.name, two.name);
    let told = bundle(runtime, TELL, &stack).run().text();
    assert!(told.contains("(enforce)\nrefused\n") && !told.contains("written"), "{told}");
    assert!(told.contains(&one.name) && told.contains(&two.name), "{told}");
});

both!(a_profile_that_is_not_loaded_is_an_error, |runtime| {
    let bundle = bundle(runtime, "true", "no-such-profile");
    let failed = bundle.verb(&["create", &bundle.id]);
    assert_eq!(failed.status, 1);
    assert!(failed.stderr.to_lowercase().contains("apparmor"), "{}", failed.stderr);
    assert!(bundle.verb(&["state", &bundle.id]).stderr.contains("does not exist"));
});

both!(nobody_is_unconfined_unawares, |runtime| {
    for profile in ["", "unconfined"] {
        let told = bundle(runtime, "cat /proc/self/attr/current", profile).run().ok();
        assert_eq!(told, "unconfined", "{profile:?}");
    }
});

both!(a_container_cannot_unload_its_profile, |runtime| {
    let profile = Profile::load("deny /denied/** w,");
    // The file system needs CAP_SYS_ADMIN, its files CAP_MAC_ADMIN.
    let script = format!(
        "mount -t securityfs none /mnt && test -e /mnt/apparmor/.remove && echo mounted; \
         echo -n {} > /mnt/apparmor/.remove || echo kept; {TELL}",
        profile.name
    );
    let mut bundle = bundle(runtime, &script, &profile.name);
    std::fs::create_dir(bundle.file("rootfs/mnt")).expect("a directory");
    for set in ["bounding", "effective", "permitted"] {
        if let Some(list) = bundle.config["process"]["capabilities"][set].as_array_mut() {
            list.push(json!("CAP_SYS_ADMIN"));
        }
    }
    let told = bundle.run().ok();
    assert_eq!(told, format!("mounted\nkept\n{}", enforced(&profile.name)));
});

both!(containers_of_a_pod_have_profiles_of_their_own, |runtime| {
    let one = Profile::load("deny /denied/** w,");
    let two = Profile::load("deny /allowed w,");
    let first = bundle(runtime, "sleep 1000", "");
    let pid = first.create();
    first.verb(&["start", &first.id]).ok();
    for (profile, word) in [(&one, "refused\nwritten"), (&two, "")] {
        let mut second = first.beside(TELL);
        second.join(pid, &["ipc", "network", "uts"]);
        second.config.as_object_mut().expect("an object").remove("hostname");
        std::fs::create_dir(second.file("rootfs/denied")).expect("a directory");
        second.config["process"]["apparmorProfile"] = json!(profile.name);
        let told = second.run().text();
        assert_eq!(told.trim_end(), format!("{} (enforce)\n{word}", profile.name).trim_end());
    }
});

#[test]
fn what_is_not_supported_is_named() {
    let _turn = shared();
    for (profile, word) in [
        ("no-such-profile", "\"no-such-profile\": it is not loaded on this host"),
        (":namespace:profile", "\":namespace:profile\""),
        ("unconfined//&:namespace://profile", "\":namespace://profile\""),
    ] {
        let bundle = bundle(OURS, "true", profile);
        let failed = bundle.verb(&["create", &bundle.id]);
        assert_eq!(failed.status, 1);
        let told = &failed.stderr;
        assert!(told.contains("process.apparmorProfile: ") && told.contains(word), "{told}");
        assert_eq!(told.lines().count(), 1, "{told}");
    }
    let features = bulkhead_tests::script("bulkhead-runtime features").ok();
    let features: Value = serde_json::from_str(&features).expect("JSON");
    assert_eq!(features["linux"]["apparmor"]["enabled"], json!(true));
}
