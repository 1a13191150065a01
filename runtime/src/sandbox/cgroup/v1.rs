//! A tree of cgroups for each controller, or for some together, see the kernel's
//! cgroup-v1/cgroups.rst. A process is in one cgroup of each; ours are at the same path
//! in all of them.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use super::{CgroupConfig, CgroupError, ROOT};
use super::{controller, make_directory, parts, pids, remove_patiently, write};
use crate::sys::pidfd::PidFd;

/// systemd's own, without a controller: by it systemd knows which unit a process is of.
const SYSTEMD: &str = "name=systemd";
/// The tree of cgroup v2 beside them, where there is one (a hybrid host): by it systemd
/// knows the same then.
const UNIFIED: &str = "unified";
/// What a cpuset must have before a process may be in it, and a new one has not.
const PLACES: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];
/// How often a cgroup is looked through for processes that were forked meanwhile.
const PASSES: u32 = 100;

/// A mounted tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchy {
    /// Where.
    mount: PathBuf,
    /// The cgroup that is to be seen there: not the tree's root in some containers.
    root: PathBuf,
    /// Names of controllers, or [`SYSTEMD`], or [`UNIFIED`].
    of: Vec<String>,
}

impl Hierarchy {
    fn has(&self, name: &str) -> bool {
        self.of.iter().any(|of| of == name)
    }

    /// Directory of the cgroup with this path.
    fn directory(&self, path: &Path) -> Result<PathBuf, CgroupError> {
        let mut directory = self.mount.clone();
        directory.extend(parts(path)?);
        Ok(directory)
    }
}

/// Those that this thread sees: a monitor's first one sees its container's files.
pub(super) fn hierarchies() -> Vec<Hierarchy> {
    parse(&std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default())
}

/// The hierarchies below [`ROOT`] by proc_pid_mountinfo(5), each one once.
fn parse(mountinfo: &str) -> Vec<Hierarchy> {
    let (mut devices, mut found) = (Vec::new(), Vec::new());
    for line in mountinfo.lines() {
        let Some((mount, of)) = line.split_once(" - ") else { continue };
        let (mount, of): (Vec<&str>, Vec<&str>) =
            (mount.split(' ').collect(), of.split(' ').collect());
        let (&[_, _, device, root, point, ..], &[kind, _, options]) = (&mount[..], &of[..]) else {
            continue;
        };
        let point = PathBuf::from(unescaped(point));
        let names: Vec<String> = match kind {
            "cgroup" => {
                options.split(',').filter(|option| is_name(option)).map(str::to_owned).collect()
            }
            "cgroup2" if point != Path::new(ROOT) => vec![UNIFIED.to_owned()],
            _ => continue,
        };
        // The device is the hierarchy: it may be mounted twice.
        if names.is_empty() || !point.starts_with(ROOT) || devices.contains(&device) {
            continue;
        }
        devices.push(device);
        found.push(Hierarchy { mount: point, root: unescaped(root).into(), of: names });
    }
    found
}

/// Whether an option of a mounted hierarchy names what it is for: systemd, or a controller
/// (`include/linux/cgroup_subsys.h`). Hierarchies of other names belong to somebody else.
fn is_name(option: &str) -> bool {
    const CONTROLLERS: [&str; 15] = [
        "cpuset",
        "cpu",
        "cpuacct",
        "blkio",
        "memory",
        "devices",
        "freezer",
        "net_cls",
        "perf_event",
        "net_prio",
        "hugetlb",
        "pids",
        "rdma",
        "misc",
        "debug",
    ];
    option == SYSTEMD || CONTROLLERS.contains(&option)
}

/// mountinfo writes blanks and the like as three octal digits.
fn unescaped(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// The process' own cgroup in the hierarchy that matters most, by /proc/PID/cgroup. (runc
/// takes each hierarchy's own; ours have one path in all.)
pub(super) fn base(own: &str, hierarchies: &[Hierarchy]) -> PathBuf {
    let of = ["memory", SYSTEMD].into_iter().find_map(|name| {
        let hierarchy = hierarchies.iter().find(|hierarchy| hierarchy.has(name))?;
        let path = own.lines().find_map(|line| {
            let (names, path) = line.split_once(':')?.1.split_once(':')?;
            names.split(',').any(|of| of == name).then_some(path)
        })?;
        let path = Path::new(path);
        Some(path.strip_prefix(&hierarchy.root).unwrap_or(path).to_owned())
    });
    Path::new("/").join(of.unwrap_or_default())
}

pub(super) fn controllers(hierarchies: &[Hierarchy]) -> Vec<String> {
    let all = hierarchies.iter().flat_map(|hierarchy| &hierarchy.of);
    all.filter(|name| *name != SYSTEMD && *name != UNIFIED).cloned().collect()
}

/// Path of a controller's file in the cgroup at `path`.
pub(super) fn file(
    path: &Path,
    file: &str,
    hierarchies: &[Hierarchy],
) -> Result<PathBuf, CgroupError> {
    let name = controller(file).unwrap_or_default();
    let hierarchy = hierarchies.iter().find(|hierarchy| hierarchy.has(name));
    let hierarchy = hierarchy.ok_or_else(|| CgroupError::NotMounted(name.to_owned()))?;
    Ok(hierarchy.directory(path)?.join(file))
}

pub(super) fn make(config: &CgroupConfig, hierarchies: &[Hierarchy]) -> Result<(), CgroupError> {
    let CgroupConfig { path, limits } = config;
    for (name, _) in limits {
        file(path, name, hierarchies)?;
    }
    let make = || {
        hierarchies.iter().try_for_each(|hierarchy| make_in(hierarchy, path))?;
        change(path, limits, hierarchies)
    };
    make().inspect_err(|_| remove(path, hierarchies))
}

fn make_in(hierarchy: &Hierarchy, path: &Path) -> Result<(), CgroupError> {
    let mut directory = hierarchy.mount.clone();
    for part in parts(path)? {
        let above = directory.clone();
        directory.push(part);
        make_directory(&directory)?;
        if hierarchy.has("cpuset") {
            PLACES.iter().try_for_each(|file| inherit(&above, &directory, file))?;
        }
    }
    Ok(())
}

/// Fills a file that is empty as that of the cgroup above is.
fn inherit(above: &Path, directory: &Path, file: &str) -> Result<(), CgroupError> {
    let (from, to) = (above.join(file), directory.join(file));
    if !read(&to)?.trim().is_empty() {
        return Ok(());
    }
    write(&to, read(&from)?.trim())
}

pub(super) fn change(
    path: &Path,
    settings: &[(String, String)],
    hierarchies: &[Hierarchy],
) -> Result<(), CgroupError> {
    for (name, value) in settings {
        let file = file(path, name, hierarchies)?;
        match name.as_str() {
            "memory.limit_in_bytes" => limit_memory(&file, value)?,
            name if PLACES.contains(&name) => confine(&file, name, value)?,
            _ => write(&file, value)?,
        }
    }
    Ok(())
}

/// The limit of memory and swap together is never below that of memory.
fn limit_memory(file: &Path, value: &str) -> Result<(), CgroupError> {
    let both = file.with_file_name("memory.memsw.limit_in_bytes");
    // Not there without accounting of swap.
    let present = std::fs::read_to_string(&both).ok();
    let present = present.and_then(|text| text.trim().parse::<u64>().ok());
    if let (Some(present), Ok(wanted)) = (present, value.parse::<u64>())
        && present < wanted
    {
        write(&both, value)?;
    }
    write(file, value)
}

/// Sets a place of a cpuset, and of those below: theirs must always be part of it.
fn confine(file: &Path, name: &str, value: &str) -> Result<(), CgroupError> {
    let directory = file.parent().unwrap_or(file);
    let below = directories(directory);
    if !below.is_empty() {
        let present = read(file)?;
        let both = [present.trim(), value].join(",");
        write(file, both.trim_start_matches(','))?;
        below.iter().try_for_each(|below| confine(&below.join(name), name, value))?;
    }
    write(file, value)
}

fn read(path: &Path) -> Result<String, CgroupError> {
    std::fs::read_to_string(path).map_err(CgroupError::file(path))
}

/// The cgroups right below a directory.
fn directories(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories.map(|entry| entry.path()).collect()
}

pub(super) fn enter(path: &Path, pid: &str, hierarchies: &[Hierarchy]) -> Result<(), CgroupError> {
    hierarchies
        .iter()
        .try_for_each(|hierarchy| write(&hierarchy.directory(path)?.join("cgroup.procs"), pid))
}

/// One that is on its way may be in some of the hierarchies only.
pub(super) fn processes(path: &Path, hierarchies: &[Hierarchy]) -> Result<Vec<i32>, CgroupError> {
    let mut found = BTreeSet::new();
    for hierarchy in hierarchies {
        found.extend(pids(&read(&hierarchy.directory(path)?.join("cgroup.procs"))?));
    }
    Ok(found.into_iter().collect())
}

/// The processes of a directory, and of those below it.
fn all_in(directory: &Path) -> Vec<i32> {
    let text = std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    let below = directories(directory);
    pids(&text).into_iter().chain(below.iter().flat_map(|below| all_in(below))).collect()
}

pub(super) fn populated(path: &Path, hierarchies: &[Hierarchy]) -> bool {
    let has = |hierarchy: &Hierarchy| {
        hierarchy.directory(path).is_ok_and(|directory| !all_in(&directory).is_empty())
    };
    hierarchies.iter().any(has)
}

/// Signals each process until there is none that was not: who got SIGKILL forks no more.
pub(super) fn kill(path: &Path, hierarchies: &[Hierarchy]) -> Result<(), CgroupError> {
    for hierarchy in hierarchies {
        let directory = hierarchy.directory(path)?;
        let mut signalled = BTreeSet::new();
        for _ in 0..PASSES {
            let opened: Vec<(i32, PidFd)> = all_in(&directory)
                .into_iter()
                .filter(|pid| signalled.insert(*pid))
                .filter_map(|pid| Some((pid, PidFd::open(pid).ok()?)))
                .collect();
            if opened.is_empty() {
                break;
            }
            // Looked for again: a number may have changed hands before it was opened.
            let there = all_in(&directory);
            for (pid, process) in opened {
                if there.contains(&pid) {
                    let failed = CgroupError::file(directory.join("cgroup.procs"));
                    process.signal(libc::SIGKILL).map_err(|errno| failed(errno.into()))?;
                }
            }
        }
    }
    Ok(())
}

pub(super) fn remove(path: &Path, hierarchies: &[Hierarchy]) {
    let attempt = || {
        // Each time: one that forked, or was on its way, may have come since. What cannot be
        // killed keeps it from being removed, which is told.
        let _ = kill(path, hierarchies);
        // In each one, whatever another says.
        let mut result = Ok(());
        for directory in hierarchies.iter().filter_map(|one| one.directory(path).ok()) {
            match remove_tree(&directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => result = Err(error),
                _ => {}
            }
        }
        result
    };
    remove_patiently(path, attempt);
}

fn remove_tree(directory: &Path) -> io::Result<()> {
    for below in directories(directory) {
        match remove_tree(&below) {
            // systemd removes what is empty.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    std::fs::remove_dir(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEGACY: &str = "\
23 28 0:21 / /sys rw,nosuid shared:7 - sysfs sysfs rw
29 23 0:25 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
30 29 0:26 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate
31 29 0:27 / /sys/fs/cgroup/systemd rw,nosuid shared:11 - cgroup cgroup rw,xattr,name=systemd
32 29 0:28 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:12 - cgroup cgroup rw,cpu,cpuacct
33 29 0:29 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory
34 29 0:30 / /sys/fs/cgroup/cpuset rw shared:1 master:2 - cgroup cgroup rw,cpuset,clone_children
35 29 0:31 / /sys/fs/cgroup/openrc rw - cgroup cgroup rw,name=openrc,release_agent=/sbin/rc
38 29 0:32 / /sys/fs/cgroup/mine rw - cgroup cgroup rw,seclabel,name=mine
36 28 0:29 / /mnt/memory rw,nosuid - cgroup cgroup rw,memory
37 29 0:29 / /sys/fs/cgroup/again rw,nosuid - cgroup cgroup rw,memory
";

    fn named(hierarchies: &[Hierarchy]) -> Vec<(&str, Vec<&str>)> {
        let of = |one: &'_ Hierarchy| one.of.iter().map(String::len).sum::<usize>();
        assert!(hierarchies.iter().all(|one| of(one) > 0));
        let named = |one| {
            let Hierarchy { mount, of, .. }: &Hierarchy = one;
            let mount = mount.strip_prefix(ROOT).unwrap().to_str().unwrap();
            (mount, of.iter().map(String::as_str).collect())
        };
        hierarchies.iter().map(named).collect()
    }

    #[test]
    fn mounted_hierarchies_count_once() {
        let expected = [
            ("unified", vec!["unified"]),
            ("systemd", vec!["name=systemd"]),
            ("cpu,cpuacct", vec!["cpu", "cpuacct"]),
            ("memory", vec!["memory"]),
            ("cpuset", vec!["cpuset"]),
        ];
        let hierarchies = parse(LEGACY);
        assert_eq!(named(&hierarchies), expected);
        assert_eq!(controllers(&hierarchies), ["cpu", "cpuacct", "memory", "cpuset"]);
        let unified = "30 29 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate";
        for none in ["", "nonsense - cgroup", unified] {
            assert_eq!(parse(none), [], "{none}");
        }
    }

    #[test]
    fn a_file_is_in_its_controllers_hierarchy() {
        let hierarchies = parse(LEGACY);
        let of = |name: &str| file(Path::new("/sys/fs/cgroup/a/b"), name, &hierarchies);
        let cpu = of("cpu.cfs_quota_us").unwrap();
        assert_eq!(cpu, Path::new("/sys/fs/cgroup/cpu,cpuacct/a/b/cpu.cfs_quota_us"));
        let error = of("pids.max").unwrap_err().to_string();
        assert!(error.contains("`pids`"), "{error}");
        let outside = file(Path::new("/a/b"), "memory.limit_in_bytes", &hierarchies);
        assert!(matches!(outside, Err(CgroupError::Outside(_))), "{outside:?}");
    }

    #[test]
    fn relative_paths_are_the_process_own() {
        let own = "12:memory:/outer/user\n4:cpu,cpuacct:/\n1:name=systemd:/session\n0::/s\n";
        let mut hierarchies = parse(LEGACY);
        assert_eq!(base(own, &hierarchies), Path::new("/outer/user"));
        hierarchies[3].root = "/outer".into();
        assert_eq!(base(own, &hierarchies), Path::new("/user"));
        hierarchies.remove(3);
        assert_eq!(base(own, &hierarchies), Path::new("/session"));
        assert_eq!(base("", &hierarchies), Path::new("/"));
    }

    #[test]
    fn a_cpuset_is_confined_with_those_below() {
        let directory = tempfile::tempdir().unwrap();
        let below = directory.path().join("machine");
        std::fs::create_dir(&below).unwrap();
        for cpus in [directory.path(), &below] {
            std::fs::write(cpus.join("cpuset.cpus"), "0-1\n").unwrap();
        }
        confine(&directory.path().join("cpuset.cpus"), "cpuset.cpus", "2").unwrap();
        for cpus in [directory.path(), &below] {
            assert_eq!(std::fs::read_to_string(cpus.join("cpuset.cpus")).unwrap(), "2");
        }
        std::fs::create_dir(below.join("new")).unwrap();
        std::fs::write(below.join("new/cpuset.cpus"), "\n").unwrap();
        inherit(&below, &below.join("new"), "cpuset.cpus").unwrap();
        assert_eq!(std::fs::read_to_string(below.join("new/cpuset.cpus")).unwrap(), "2");
    }

    #[test]
    fn memory_may_be_raised_above_memory_and_swap() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let file = at("memory.limit_in_bytes");
        let both = at("memory.memsw.limit_in_bytes");
        std::fs::write(&file, "0").unwrap();
        limit_memory(&file, "100").unwrap();
        assert!(!both.exists());
        for (before, after) in [("50\n", "100"), ("200\n", "200\n")] {
            std::fs::write(&both, before).unwrap();
            limit_memory(&file, "100").unwrap();
            assert_eq!(std::fs::read_to_string(&both).unwrap(), after);
        }
    }
}
