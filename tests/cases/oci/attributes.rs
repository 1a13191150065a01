//! config.json: what the kernel keeps for a process beside its identity. Debian 12's
//! runc knows none of these fields and drops them, so that it is not asked.

use bulkhead_tests::bundle::{Bundle, OURS};
use bulkhead_tests::turn::shared;
use serde_json::json;

use super::{Change, each_is_named};

/// Lines that `script` prints under a configuration that `change` made.
#[track_caller]
fn printed(script: &str, change: impl Fn(&mut Bundle)) -> Vec<String> {
    let mut bundle = Bundle::new(OURS, script);
    change(&mut bundle);
    bundle.run().ok().lines().map(str::to_owned).collect()
}

#[test]
fn scheduler_io_priority_and_personality() {
    let _turn = shared();
    // nice, real-time priority and policy of proc_pid_stat(5); a child's as well.
    let script = "awk '{print $19, $40, $41}' /proc/self/stat; ionice -p $$; uname -m";
    let lines = printed(script, |bundle| {
        let process = &mut bundle.config["process"];
        process["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 7});
        process["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 6});
        bundle.config["linux"]["personality"] = json!({"domain": "LINUX32"});
    });
    assert_eq!(lines, ["7 0 3", "best-effort: prio 6", "i686"]);
    let script = "read -r line </proc/self/stat; set -- $line; echo ${40} ${41}; \
                  awk '{print $40, $41}' /proc/self/stat; ionice -p $$; uname -m";
    let lines = printed(script, |bundle| {
        let process = &mut bundle.config["process"];
        // What begins with the flag leaves its children without the priority.
        process["scheduler"] = json!({"policy": "SCHED_RR", "priority": 12,
            "flags": ["SCHED_FLAG_RESET_ON_FORK"]});
        process["ioPriority"] = json!({"class": "IOPRIO_CLASS_IDLE", "priority": 0});
        bundle.config["linux"]["personality"] = json!({"domain": "LINUX"});
    });
    assert_eq!(lines, ["12 2", "0 0", "idle", "x86_64"]);
}

#[test]
fn time_offsets() {
    let _turn = shared();
    let script = "cut -d. -f1 /proc/uptime; awk '{print $1, $2, $3}' /proc/self/timens_offsets";
    let lines = printed(script, |bundle| {
        let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().expect("a list");
        namespaces.push(json!({"type": "time"}));
        bundle.config["linux"]["timeOffsets"] = json!({
            "boottime": {"secs": 8_640_000, "nanosecs": 5},
            "monotonic": {"secs": 1000},
        });
    });
    let uptime: u32 = lines[0].parse().expect("seconds");
    assert!((8_640_000..8_640_000 + 600).contains(&uptime), "{uptime}");
    assert_eq!(lines[1..], ["monotonic 1000 0", "boottime 8640000 5"]);
}

#[test]
fn wrong_values_are_named() {
    let _turn = shared();
    let cases: [(&str, Change); 5] = [
        ("linux.timeOffsets", |config| {
            config["linux"]["timeOffsets"] = json!({"boottime": {"secs": 1}});
        }),
        ("process.ioPriority.priority", |config| {
            config["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 8});
        }),
        ("process.scheduler", |config| {
            config["process"]["scheduler"] = json!({"policy": "SCHED_FIFO", "priority": 100});
        }),
        ("process.scheduler.policy", |config| {
            config["process"]["scheduler"] = json!({"policy": "SCHED_ISO"});
        }),
        ("linux.resources.hugepageLimits", |config| {
            let limit = json!({"pageSize": "/../../pids.max#", "limit": 1});
            config["linux"]["resources"]["hugepageLimits"] = json!([limit]);
        }),
    ];
    each_is_named(&cases);
}
