//! Life on disk, with supervisors played by locks. No sandbox is started.

use oci_spec::image::ImageConfiguration;

use super::*;
use crate::container::create::{CreateOptions, ImageSource};
use crate::container::place::SupervisorLock;
use crate::container::state::Machine;
use crate::time::Timestamp;

struct Home {
    _dir: tempfile::TempDir,
    containers: Containers,
}

fn home() -> Home {
    let dir = tempfile::tempdir().unwrap();
    let dirs = Dirs { run: dir.path().join("run"), lib: dir.path().join("lib") };
    Home { _dir: dir, containers: Containers::new(dirs) }
}

impl Home {
    fn create(&self, name: Option<&str>, auto_remove: bool) -> Result<Container, ContainerError> {
        let config = ImageConfiguration::default();
        let image = ImageSource {
            name: "img".into(),
            id: "sha256:0".into(),
            config: &config,
            layers: vec!["/no/such/layer".into()],
        };
        let mut options =
            CreateOptions { name: name.map(String::from), auto_remove, ..CreateOptions::default() };
        options.spec.process.args = vec!["true".into()];
        self.containers.create(&image, options)
    }
}

/// Writes Ready and Running, as a supervisor does.
fn run(container: &Container) -> SupervisorLock {
    let lock = container.lock().unwrap();
    let alive = container.become_supervisor().unwrap();
    let machine = Machine::default();
    container.write_state(&lock, &State::Ready { machine: machine.clone() }).unwrap();
    let started = Timestamp::now();
    container.write_state(&lock, &State::Running { machine, started }).unwrap();
    alive
}

#[test]
fn a_container_is_found_by_name_and_id() {
    let home = home();
    let made = home.create(Some("web"), false).unwrap();
    let other = home.create(None, false).unwrap();
    for reference in ["web", made.id(), crate::id::short(made.id())] {
        assert_eq!(home.containers.find(reference).unwrap().id(), made.id());
    }
    assert_eq!(made.state().unwrap(), Some(State::Created));
    assert_eq!(made.config.spec.spec["hostname"], crate::id::short(made.id()));
    assert!(made.rw_dir().join("upper").is_dir());
    assert!(matches!(home.containers.find("nope"), Err(ContainerError::NotFound(_))));
    assert!(matches!(home.containers.find(""), Err(ContainerError::NotFound(_))));
    let taken = home.create(Some("web"), false).unwrap_err();
    assert!(matches!(taken, ContainerError::NameTaken { .. }));
    let invalid = home.create(Some("../x"), false).unwrap_err();
    assert!(matches!(invalid, ContainerError::InvalidName(_)));
    let ids: Vec<_> =
        home.containers.list().unwrap().known.into_iter().map(|(c, _)| c.config.id).collect();
    assert_eq!(ids, [other.id(), made.id()]);
}

#[test]
fn a_dead_supervisor_is_found_out() {
    let home = home();
    let container = home.create(None, false).unwrap();
    let alive = run(&container);
    assert!(matches!(container.state().unwrap(), Some(State::Running { .. })));
    std::fs::create_dir_all(container.sandbox_dir()).unwrap();
    drop(alive);
    let Some(State::Stopped(stopped)) = container.state().unwrap() else { panic!() };
    assert_eq!(stopped.exit_code, 137);
    assert!(stopped.error.unwrap().contains("was killed") && stopped.started.is_some());
    assert!(!container.sandbox_dir().exists());
}

#[test]
fn one_that_removes_itself_is_removed_for_a_dead_supervisor() {
    let home = home();
    let container = home.create(None, true).unwrap();
    drop(run(&container));
    assert_eq!(container.state().unwrap(), None);
    assert!(!container.lib_dir().exists() && !container.run_dir().exists());
}

#[test]
fn a_reboot_ends_what_ran_and_nothing_else() {
    let home = home();
    let (ran, fresh) = (home.create(None, false).unwrap(), home.create(None, false).unwrap());
    drop(run(&ran));
    std::fs::remove_dir_all(home.containers.dirs().run.clone()).unwrap();
    let Some(State::Stopped(stopped)) = ran.state().unwrap() else { panic!() };
    assert!(stopped.error.unwrap().contains("restarted"));
    assert_eq!(fresh.state().unwrap(), Some(State::Created));
}

#[tokio::test]
async fn removal_needs_an_end_or_force() {
    let home = home();
    let container = home.create(Some("busy"), false).unwrap();
    let alive = run(&container);
    let refused = container.remove(false).await.unwrap_err();
    assert!(matches!(refused, ContainerError::StillRunning(_)));
    drop(alive);
    container.remove(true).await.unwrap();
    assert!(!container.lib_dir().exists() && !container.run_dir().exists());
    // A second one comes too late, and a lock of it is not to be had.
    container.remove(true).await.unwrap();
    assert!(matches!(container.lock(), Err(ContainerError::NotFound(_))));
    assert!(!container.run_dir().exists());
    home.create(Some("busy"), false).unwrap();
}

#[test]
fn verbs_wait_for_each_other() {
    let home = home();
    let container = home.create(None, false).unwrap();
    let held = container.lock().unwrap();
    assert!(container.try_lock().unwrap().is_none());
    let other = container.clone();
    let waiter = std::thread::spawn(move || other.lock().map(drop));
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert!(!waiter.is_finished());
    drop(held);
    waiter.join().unwrap().unwrap();
}

#[test]
fn a_damaged_file_is_named() {
    let home = home();
    let container = home.create(None, false).unwrap();
    std::fs::write(container.lib_dir().join("state.json"), "{").unwrap();
    let error = container.written_state().unwrap_err();
    assert!(error.to_string().contains("state.json is damaged"));
}

#[tokio::test]
async fn verbs_refuse_what_does_not_run() {
    let home = home();
    let container = home.create(Some("idle"), false).unwrap();
    let error = container.kill(crate::signals::SignalNumber(9)).await.unwrap_err();
    assert_eq!(error.to_string(), "cannot kill container idle: it is created");
    container.stop(std::time::Duration::from_secs(1)).await.unwrap();
}

#[test]
fn one_whose_state_cannot_be_corrected_does_not_hide_the_others() {
    let home = home();
    let sound = home.create(Some("web"), false).unwrap();
    let stuck = home.create(Some("stuck"), false).unwrap();
    drop(run(&stuck));
    // Where its end would be written down.
    std::fs::create_dir(stuck.lib_dir().join("state.json")).unwrap();
    let list = home.containers.list().unwrap();
    assert_eq!((list.known.len(), list.known[0].0.id()), (1, sound.id()));
    let told: Vec<_> = list.uncertain.iter().map(|one| crate::container::chain(one)).collect();
    assert_eq!((told.len(), list.damaged.len()), (1, 0), "{told:?}");
    assert!(told[0].contains("container stuck: ") && told[0].contains("state.json"), "{told:?}");
    // It is found out as soon as it can be.
    std::fs::remove_dir(stuck.lib_dir().join("state.json")).unwrap();
    assert_eq!(home.containers.list().unwrap().known.len(), 2);
}

#[test]
fn one_damaged_container_does_not_hide_the_others() {
    let home = home();
    let (sound, bad) =
        (home.create(Some("web"), false).unwrap(), home.create(None, false).unwrap());
    let worse = home.create(None, false).unwrap();
    std::fs::write(bad.lib_dir().join("config.json"), "{").unwrap();
    std::fs::write(worse.lib_dir().join("state.json"), "").unwrap();
    let list = home.containers.list().unwrap();
    assert_eq!((list.known.len(), list.known[0].0.id()), (1, sound.id()));
    let told: Vec<_> =
        list.damaged.iter().map(|damaged| crate::container::chain(damaged)).collect();
    for (container, file) in [(&bad, "config.json"), (&worse, "state.json")] {
        let short = crate::id::short(container.id());
        let hint = format!("`bulkhead rm -f {short}`");
        let path = container.lib_dir().join(file).display().to_string();
        assert!(told.iter().any(|text| text.contains(&hint) && text.contains(&path)), "{told:?}");
    }
    assert_eq!(home.containers.find("web").unwrap().id(), sound.id());
    assert!(matches!(home.containers.find("nope"), Err(ContainerError::NotFound(_))));
    let error = home.containers.find(crate::id::short(bad.id())).unwrap_err();
    assert!(matches!(error, ContainerError::Unreadable(_)));
    home.create(Some("new"), false).unwrap();
}

#[tokio::test]
async fn damaged_containers_are_removed_by_force() {
    let home = home();
    for file in ["config.json", "state.json"] {
        let container = home.create(None, false).unwrap();
        std::fs::write(container.lib_dir().join(file), "{").unwrap();
        let short = crate::id::short(container.id());
        let refused = home.containers.remove(short, false).await.unwrap_err();
        assert!(matches!(refused, ContainerError::Unreadable(_)));
        home.containers.remove(short, true).await.unwrap();
        assert!(!container.lib_dir().exists() && !container.run_dir().exists());
    }
    for force in [true, false] {
        let error = home.containers.remove("nope", force).await.unwrap_err();
        assert!(matches!(error, ContainerError::NotFound(_)));
    }
}

#[tokio::test]
async fn verbs_name_a_start_that_is_under_way() {
    let home = home();
    let container = home.create(Some("new"), false).unwrap();
    let (verb, alive) = (container.lock().unwrap(), container.become_supervisor().unwrap());
    let error = container.kill(crate::signals::SignalNumber(9)).await.unwrap_err();
    assert_eq!(error.to_string(), "cannot kill container new: it is starting");
    let error = container.stop(std::time::Duration::from_secs(1)).await.unwrap_err();
    assert_eq!(error.to_string(), "cannot stop container new: it is starting");
    let error = container.remove(false).await.unwrap_err();
    assert!(error.to_string().contains("running or starting"));
    // What a supervisor does whose machine was killed in the middle of a start.
    let started = container.clone();
    let begin = std::time::Instant::now();
    let supervisor = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(200));
        let end = State::Created.stopped(125, false, Some("killed".into()));
        started.write_state(&verb, &end).unwrap();
        drop((alive, verb));
    });
    container.remove(true).await.unwrap();
    supervisor.join().unwrap();
    assert!(begin.elapsed() < std::time::Duration::from_secs(5));
    assert!(!container.lib_dir().exists() && !container.run_dir().exists());
}
