//! Each process of ours is killed at many moments of each verb, and verbs come at once.
//!
//! After each kill `state` has to tell what can be observed, and `delete --force` has to
//! leave nothing. `BULKHEAD_KILLS` is the number of moments for each verb and victim.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bulkhead_tests::bundle::{Bundle, OURS};
use bulkhead_tests::children::{adopt, reap_orphans};
use bulkhead_tests::program::eventually;
use bulkhead_tests::{leaks, turn};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Writes as long as it runs.
const TICKS: &str = "while :; do echo tick; sleep 0.1; done";
/// Longer than a tick takes on a slow host.
const WATCHED: Duration = Duration::from_millis(1500);
/// `state` and `delete` of what was disturbed take no longer.
const BOUND: Duration = Duration::from_secs(40);

/// Scenes at a time.
const ROWS: usize = 2;

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Victim {
    /// The verb's own process.
    Verb,
    /// The process that stands for the container.
    Monitor,
    /// Its machine.
    Vmm,
}

/// How far the container is before the verb.
#[derive(Debug, Clone, Copy, PartialEq)]
enum From {
    Nothing,
    Created,
    Running,
    Paused,
    Stopped,
}

/// What is disturbed.
struct Scene {
    from: From,
    words: &'static [&'static str],
    victims: &'static [Victim],
}

const ALL: &[Victim] = &[Victim::Verb, Victim::Monitor, Victim::Vmm];
const VERB: &[Victim] = &[Victim::Verb];

const SCENES: &[Scene] = &[
    Scene { from: From::Nothing, words: &["create", "ID"], victims: ALL },
    Scene { from: From::Created, words: &["start", "ID"], victims: ALL },
    Scene { from: From::Running, words: &["exec", "ID", "true"], victims: ALL },
    Scene { from: From::Running, words: &["pause", "ID"], victims: ALL },
    Scene { from: From::Paused, words: &["resume", "ID"], victims: VERB },
    Scene { from: From::Running, words: &["update", "--pids-limit", "50", "ID"], victims: VERB },
    Scene { from: From::Running, words: &["kill", "ID", "KILL"], victims: VERB },
    Scene { from: From::Stopped, words: &["delete", "ID"], victims: VERB },
    Scene { from: From::Running, words: &["delete", "--force", "ID"], victims: VERB },
];

/// A container, and the verb that is under way.
struct Stage {
    bundle: Bundle,
}

impl Stage {
    fn set(from: From) -> Stage {
        let bundle = Bundle::new(OURS, TICKS);
        let id = &bundle.id;
        if from != From::Nothing {
            bundle.create();
        }
        if !matches!(from, From::Nothing | From::Created) {
            bundle.verb(&["start", id]).ok();
            eventually("its output", || !bundle.output().is_empty());
        }
        match from {
            From::Paused => drop(bundle.verb(&["pause", id]).ok()),
            From::Stopped => drop(bundle.verb(&["kill", id, "KILL"]).ok()),
            _ => {}
        }
        Stage { bundle }
    }

    /// The verb, on its way, with its output in a file as an engine has it.
    fn begin(&self, words: &[&str]) -> Child {
        let id = self.bundle.id.as_str();
        let words: Vec<&str> =
            words.iter().map(|&word| if word == "ID" { id } else { word }).collect();
        let mut command: Command = self.bundle.command(&words);
        let name = if words[0] == "create" { "out" } else { "verb" };
        let file = std::fs::File::create(self.bundle.file(name)).expect("a file");
        let copy = file.try_clone().expect("a descriptor");
        command.stdin(Stdio::null()).stdout(file).stderr(copy);
        command.spawn().expect("it is installed")
    }

    fn cgroup(&self) -> PathBuf {
        PathBuf::from("/sys/fs/cgroup/bulkhead-tests").join(&self.bundle.id)
    }

    fn pids(&self, below: &str) -> Vec<i32> {
        let path = self.cgroup().join(below).join("cgroup.procs");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Kills whoever there is of the kind; the one that stands for the container, not
    /// that of an exec. Whether there was anybody.
    fn strike(&self, victim: Victim, verb: &mut Child) -> bool {
        // Others outlive the verb; whether it is disturbed is the question.
        if verb.try_wait().expect("it is a child").is_some() {
            return false;
        }
        let pid = match victim {
            Victim::Verb => Some(verb.id().cast_signed()),
            Victim::Monitor => self.monitor(),
            Victim::Vmm => self.pids("machine").first().copied(),
        };
        pid.is_some_and(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok())
    }

    /// It writes its pid down before all else.
    fn monitor(&self) -> Option<i32> {
        let path = self.bundle.root().join(&self.bundle.id).join("monitor.lock");
        let text = std::fs::read_to_string(path).ok()?;
        text.split(' ').next()?.parse().ok()
    }

    /// What `state` says; nothing when there is no such container.
    fn told(&self) -> Option<String> {
        let begin = Instant::now();
        let state = self.bundle.verb(&["state", &self.bundle.id]);
        assert!(begin.elapsed() < BOUND, "`state` took {:?}", begin.elapsed());
        if state.status != 0 {
            let known = ["does not exist", "delete --force"];
            assert!(known.iter().any(|text| state.stderr.contains(text)), "{}", state.stderr);
            return None;
        }
        let state: Value = serde_json::from_str(&state.text()).expect("JSON");
        Some(state["status"].as_str().expect("a status").to_owned())
    }

    /// Fails unless the host shows what `state` says.
    fn holds(&self, told: Option<&str>, moment: &str) {
        let lives = || !self.pids("machine").is_empty();
        let written = || self.bundle.output().len();
        let before = written();
        match told {
            Some("running") => eventually(&format!("{moment}: its output"), || written() > before),
            Some("paused") => {
                std::thread::sleep(WATCHED);
                assert!(
                    before > 0 && written() == before,
                    "{moment}: `paused`, but it writes: {before}, then {}",
                    written()
                );
            }
            Some("created") => {
                std::thread::sleep(WATCHED);
                assert!(lives() && written() == 0, "{moment}: `created`, but it has run or died");
            }
            // An engine asks again.
            Some("creating") => {}
            Some("stopped") | None => {
                eventually(&format!("{moment}: {told:?}, and its machine's end"), || !lives());
            }
            Some(other) => panic!("{moment}: status {other:?}"),
        }
    }

    fn clean(&self, moment: &str) {
        let begin = Instant::now();
        for _ in 0..2 {
            let words = ["delete", "--force", &self.bundle.id];
            let deleted = self.bundle.verb(&words);
            assert_eq!(deleted.status, 0, "{moment}: delete --force: {}", deleted.stderr);
        }
        assert!(begin.elapsed() < BOUND, "{moment}: delete took {:?}", begin.elapsed());
        assert_eq!(self.told(), None, "{moment}: still there");
        assert!(!self.cgroup().exists(), "{moment}: its cgroup is still there");
    }
}

#[test]
fn whoever_is_killed_leaves_the_truth_and_nothing_else() {
    let _turn = turn::alone();
    adopt();
    let moments = std::env::var("BULKHEAD_KILLS").ok().and_then(|text| text.parse().ok());
    let moments: u32 = moments.unwrap_or(1);
    let warm = Stage::set(From::Running);
    drop(warm);
    reap_orphans();
    leaks::none(|| {
        // In rows, since nobody else has a turn meanwhile, and much of it is waiting.
        let next = AtomicUsize::new(0);
        let row = || {
            while let Some(scene) = SCENES.get(next.fetch_add(1, Ordering::Relaxed)) {
                play(scene, moments);
            }
        };
        std::thread::scope(|scope| (0..ROWS).for_each(|_| drop(scope.spawn(row))));
        reap_orphans();
    });
}

/// Kills each victim of a scene.
fn play(scene: &Scene, moments: u32) {
    let stage = Stage::set(scene.from);
    let begin = Instant::now();
    let status = stage.begin(scene.words).wait().expect("it ends");
    let whole = begin.elapsed();
    assert!(status.success(), "{:?} undisturbed", scene.words);
    drop(stage);
    for &victim in scene.victims {
        // Half of the verb's time, or parts of it.
        let part = |moment| whole * (2 * moment + 1) / (2 * moments);
        let first: Vec<_> = (0..moments).map(|at| disturb(scene, victim, part(at))).collect();
        let mut hit = first.iter().any(Result::is_ok);
        // Where nobody was there yet, or any more: again, by the time that it took then.
        let mut took = first.into_iter().find_map(Result::err).unwrap_or(whole);
        for share in [2, 4, 8, 3, 16] {
            if !hit {
                let again = disturb(scene, victim, took / share);
                hit = again.is_ok();
                took = again.err().unwrap_or(took);
            }
        }
        assert!(hit, "{:?}: no {victim:?} was killed", scene.words);
    }
}

/// Kills `victim` after `delay`; how long the verb took, where there was nobody to kill.
fn disturb(scene: &Scene, victim: Victim, delay: Duration) -> Result<(), Duration> {
    let moment = format!("{} {victim:?} after {} ms", scene.words.join(" "), delay.as_millis());
    let stage = Stage::set(scene.from);
    let start = Instant::now();
    let mut verb = stage.begin(scene.words);
    std::thread::sleep(delay);
    let hit = stage.strike(victim, &mut verb);
    let begin = Instant::now();
    verb.wait().expect("it ends");
    let took = start.elapsed();
    assert!(begin.elapsed() < BOUND, "{moment}: the verb hung for {:?}", begin.elapsed());
    // What was on its way to the guest arrives.
    std::thread::sleep(Duration::from_millis(300));
    let told = stage.told();
    eprintln!("{moment}: {}", told.as_deref().unwrap_or("nothing"));
    stage.holds(told.as_deref(), &moment);
    stage.clean(&moment);
    if hit { Ok(()) } else { Err(took) }
}

/// Ours alone: runc has no lock, and one of two that start may hang.
#[test]
fn verbs_at_once_are_carried_out_one_after_the_other() {
    let _turn = turn::shared();
    let bundle = Bundle::new(OURS, TICKS);
    let id = bundle.id.clone();
    // Each word list, several times at once; how many had their way.
    let at_once = |words: &[&str]| -> usize {
        let begin = |_| {
            let mut command = bundle.command(words);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command.spawn().expect("it is installed")
        };
        let children: Vec<Child> = (0..4).map(begin).collect();
        let ends = children.into_iter().map(|mut child| child.wait().expect("it ends"));
        ends.filter(std::process::ExitStatus::success).count()
    };
    assert_eq!(at_once(&["create", &id]), 1, "create");
    assert_eq!(bundle.status(), "created");
    assert_eq!(at_once(&["start", &id]), 1, "start");
    assert_eq!(bundle.status(), "running");
    assert_eq!(at_once(&["exec", &id, "true"]), 4, "exec");
    assert_eq!(at_once(&["pause", &id]), 1, "pause");
    assert_eq!(bundle.status(), "paused");
    assert_eq!(at_once(&["resume", &id]), 1, "resume");
    assert_eq!(bundle.status(), "running");
    assert!(at_once(&["kill", &id, "KILL"]) >= 1, "kill");
    eventually("its end", || bundle.status() == "stopped");
    assert_eq!(at_once(&["delete", "--force", &id]), 4, "delete --force");
    assert!(bundle.verb(&["state", &id]).stderr.contains("does not exist"));
}
