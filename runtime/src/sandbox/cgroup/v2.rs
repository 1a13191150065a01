//! One tree of cgroups, see the kernel's cgroup-v2.rst.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::{CgroupConfig, CgroupError, ROOT};
use super::{controller, make_directory, parts, remove_patiently, write};

/// Beside the process' own cgroup: that one holds processes, and cannot have children
/// with controllers.
pub(super) fn base(own: &str) -> PathBuf {
    let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    Path::new(own).parent().unwrap_or(Path::new("/")).to_owned()
}

pub(super) fn controllers() -> Result<Vec<String>, CgroupError> {
    let list = read(&Path::new(ROOT).join("cgroup.controllers"))?;
    Ok(list.split_whitespace().map(str::to_owned).collect())
}

pub(super) fn make(config: &CgroupConfig) -> Result<(), CgroupError> {
    let mut controllers = Vec::new();
    for name in config.limits.iter().filter_map(|(file, _)| controller(file)) {
        if !controllers.contains(&name) {
            controllers.push(name);
        }
    }
    let mut path = PathBuf::from(ROOT);
    for part in parts(&config.path)? {
        enable(&path, &controllers)?;
        path.push(part);
        make_directory(&path)?;
    }
    change(&path, &config.limits).inspect_err(|_| remove(&path))
}

pub(super) fn change(path: &Path, settings: &[(String, String)]) -> Result<(), CgroupError> {
    settings.iter().try_for_each(|(file, value)| write(&path.join(file), value))
}

pub(super) fn populated(path: &Path) -> bool {
    let events = std::fs::read_to_string(path.join("cgroup.events")).unwrap_or_default();
    events.lines().any(|line| line == "populated 1")
}

pub(super) fn kill(path: &Path) -> Result<(), CgroupError> {
    let file = path.join("cgroup.kill");
    match write(&file, "1") {
        // Absent also on kernels before 5.14; the VMM then ends by other means.
        Err(CgroupError::File { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

pub(super) fn remove(path: &Path) {
    // The attempt to remove it tells what is wrong.
    let _ = kill(path);
    remove_patiently(path, || std::fs::remove_dir(path));
}

/// Hands the controllers that are missing in `directory` down to its children.
fn enable(directory: &Path, controllers: &[&str]) -> Result<(), CgroupError> {
    let file = directory.join("cgroup.subtree_control");
    let (enabled, available) = (read(&file)?, read(&directory.join("cgroup.controllers"))?);
    for &controller in controllers {
        if has(&enabled, controller) {
            continue;
        }
        if !has(&available, controller) {
            return Err(CgroupError::NoController {
                controller: controller.to_owned(),
                directory: directory.to_owned(),
            });
        }
        write(&file, &format!("+{controller}"))?;
    }
    Ok(())
}

fn read(path: &Path) -> Result<String, CgroupError> {
    std::fs::read_to_string(path).map_err(CgroupError::file(path))
}

/// Whether a list of controllers has `name`.
fn has(list: &str, name: &str) -> bool {
    list.split_whitespace().any(|word| word == name)
}
