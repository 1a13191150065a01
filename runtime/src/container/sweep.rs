//! What is left of containers whose creation or removal was killed.
//!
//! A container exists from the moment that config.json is written to the moment
//! that it is removed. A directory without it is either being made, which is
//! done under the lock of names, or being erased, which is done under the lock
//! of the container, or nobody's: such a one never becomes a container again,
//! because no id is used twice.

use std::collections::BTreeSet;

use super::Containers;
use super::place::{Place, VerbLock};
use crate::{dirs, id, networks};

impl Containers {
    /// Removes what nobody owns. `names` is held while that is found out, and
    /// given back before files are removed: there may be many.
    pub(super) fn sweep(&self, names: VerbLock) {
        let orphans = self.orphans(&names);
        drop(names);
        for orphan in orphans {
            orphan.purge_sandbox();
            // The volatile one last: it finds the other again if we are killed.
            let removed = networks::remove_all_else(&orphan.lib_dir());
            if let Err(error) = removed.and_then(|()| dirs::remove_tree(&orphan.run_dir())) {
                tracing::warn!("cannot remove what is left of a container: {error}");
            }
        }
    }

    fn orphans(&self, _: &VerbLock) -> Vec<Place> {
        let mut ids = BTreeSet::new();
        for directory in [self.dirs().containers(), self.dirs().containers_run()] {
            let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
            let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
            // What is not ours by its name is not ours to remove.
            ids.extend(names.filter(|name| id::is_id(name)));
        }
        ids.iter().map(|id| self.place(id)).filter(Place::is_orphan).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::dirs::Dirs;

    fn home(root: &Path) -> Containers {
        let dirs = Dirs { run: root.join("run"), lib: root.join("lib") };
        std::fs::create_dir_all(dirs.containers()).unwrap();
        std::fs::create_dir_all(dirs.containers_run()).unwrap();
        Containers::new(dirs)
    }

    fn orphan(all: &Containers, digit: &str) -> Place {
        let place = all.place(&digit.repeat(id::ID_LEN));
        std::fs::create_dir_all(place.rw_dir().join("upper/etc")).unwrap();
        std::fs::write(place.lib_dir().join("state.json"), "{}").unwrap();
        std::fs::create_dir_all(place.run_dir()).unwrap();
        std::fs::write(place.run_dir().join("lock"), "").unwrap();
        place
    }

    /// A record of an earlier boot, of a network whose one plugin is in `plugins`.
    fn attached(place: &Place, plugins: &Path) {
        let record = serde_json::json!({ "list": { "cniVersion": "1.0.0", "name": "net",
            "plugins": [{ "type": "takes-back" }] }, "subnets": [], "interface": "eth0",
            "settings": {}, "ports": [], "names": [], "boot": "another", "plugins": plugins,
            "rules": true, "keep_counts": false, "result": null });
        std::fs::write(place.lib_dir().join("attached.json"), record.to_string()).unwrap();
    }

    fn is_gone(place: &Place) -> bool {
        !place.lib_dir().exists() && !place.run_dir().exists()
    }

    #[test]
    fn what_a_killed_creation_or_removal_left_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let all = home(dir.path());
        let (both, lasting, volatile) = (orphan(&all, "a"), orphan(&all, "b"), orphan(&all, "c"));
        std::fs::remove_dir_all(lasting.run_dir()).unwrap();
        std::fs::remove_dir_all(volatile.lib_dir()).unwrap();
        let strange = dir.path().join("lib/containers/lost+found");
        std::fs::create_dir(&strange).unwrap();
        drop(all.lock_names().unwrap());
        assert!(all.list().unwrap().known.is_empty());
        assert!([both, lasting, volatile].iter().all(is_gone));
        assert!(strange.exists());
    }

    #[test]
    fn what_somebody_makes_or_erases_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let all = home(dir.path());
        let place = orphan(&all, "a");
        // A creation under way.
        let names = all.lock_names().unwrap();
        all.list().unwrap();
        assert!(!is_gone(&place));
        drop(names);
        // A removal under way, or a supervisor of what somebody removed by hand.
        for file in ["lock", "supervisor.lock"] {
            let held = super::super::place::lock(&place.run_dir().join(file)).unwrap();
            all.sweep(all.lock_names().unwrap());
            assert!(!is_gone(&place));
            drop(held);
        }
        // One that exists, readable or not.
        std::fs::write(place.config_path(), "").unwrap();
        all.sweep(all.lock_names().unwrap());
        assert!(!is_gone(&place));
        std::fs::remove_file(place.config_path()).unwrap();
        all.sweep(all.lock_names().unwrap());
        assert!(is_gone(&place));
    }

    #[test]
    fn what_a_network_cannot_take_back_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let all = home(dir.path());
        let place = orphan(&all, "d");
        attached(&place, dir.path());
        all.sweep(all.lock_names().unwrap());
        let left = place.lib_dir();
        assert!(left.join("attached.json").exists() && !left.join("rw").exists());
        let plugin = dir.path().join("takes-back");
        std::fs::write(&plugin, "#!/bin/sh\ncat >/dev/null\n").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&plugin, mode).unwrap();
        all.sweep(all.lock_names().unwrap());
        assert!(is_gone(&place));
    }
}
