//! AppArmor on the host: whether its kernel has it, and the policy that it has loaded
//! for a profile, which the guest's kernel is given. Nothing is looked for in files of
//! /etc: a profile is what the host's kernel knows by that name, as for runc.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use protocol::apparmor::{MAX_BYTES, MAX_PROFILES, Policy};

use super::bundle::{BundleError, field};
use crate::sys::mounts;

/// Whether AppArmor is enabled: `Y` (`security/apparmor/lsm.c`).
const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
/// The policy of this process's AppArmor namespace (`security/apparmor/apparmorfs.c`), in
/// securityfs.
const POLICY: &str = "apparmor/policy";
/// Where securityfs is mounted, if it is.
const SECURITYFS: &str = "/sys/kernel/security";

/// Whether the host's kernel runs with AppArmor.
pub fn enabled() -> bool {
    Kernel::host().enabled()
}

/// The policy of `process.apparmorProfile`; none of what is not confined.
///
/// # Errors
/// When a profile is not loaded, or its policy is not to be had, with its name.
pub fn policies(profile: Option<&str>) -> Result<Vec<Policy>, BundleError> {
    match profile {
        None | Some("" | UNCONFINED) => Ok(Vec::new()),
        Some(name) => Kernel::host()
            .policies(name)
            .map_err(|reason| field("process.apparmorProfile", format!("{name:?}: {reason}"))),
    }
}

const UNCONFINED: &str = "unconfined";

/// Where a kernel tells of its AppArmor.
struct Kernel {
    enabled: PathBuf,
    policy: PathBuf,
    /// What `policy` leads through.
    _mount: Option<OwnedFd>,
}

impl Kernel {
    fn host() -> Kernel {
        let enabled = PathBuf::from(ENABLED);
        let policy = Path::new(SECURITYFS).join(POLICY);
        // podman hides what is mounted there from the runtime of a container with ids of
        // its own.
        let hidden = enabled.exists() && !policy.is_dir();
        let mount = hidden.then(|| mounts::detached(c"securityfs").ok()).flatten();
        let policy = match &mount {
            Some(mount) => {
                Path::new("/proc/self/fd").join(mount.as_raw_fd().to_string()).join(POLICY)
            }
            None => policy,
        };
        Kernel { enabled, policy, _mount: mount }
    }

    fn enabled(&self) -> bool {
        let yes = std::fs::read(&self.enabled).is_ok_and(|text| text.starts_with(b"Y"));
        yes && self.policy.is_dir()
    }

    /// Of each profile of a stack (`a//&b`).
    fn policies(&self, label: &str) -> Result<Vec<Policy>, String> {
        if !self.enabled() {
            return Err(format!(
                "AppArmor is not enabled on this host, or securityfs cannot be mounted: there is \
                 no {}",
                self.policy.display()
            ));
        }
        let mut policies: Vec<Policy> = Vec::new();
        let mut bytes = 0;
        for profile in label.split("//&").filter(|profile| *profile != UNCONFINED) {
            if profile.starts_with([':', '&']) {
                return Err(format!(
                    "{profile:?} leads to another AppArmor namespace, or stacks on what the \
                     runtime has: neither is supported, profiles by name and stacks of them \
                     (a//&b) are"
                ));
            }
            let (revision, binary) = self.binary(profile)?;
            bytes += binary.len();
            policies.push(Policy { profile: profile.into(), revision, binary });
        }
        if bytes > MAX_BYTES || policies.len() > MAX_PROFILES {
            return Err(format!(
                "{} profiles of {bytes} bytes are too many for a guest: {MAX_PROFILES} and \
                 {MAX_BYTES} bytes are the limits",
                policies.len()
            ));
        }
        Ok(policies)
    }

    /// Revision and bytes of what was loaded for a profile.
    fn binary(&self, profile: &str) -> Result<(u64, Vec<u8>), String> {
        let directory = self.find(profile).ok_or_else(|| {
            "it is not loaded on this host (apparmor_parser -r FILE loads one, aa-status tells \
             which are)"
                .to_owned()
        })?;
        let path = directory.join("raw_data");
        let mut binary = Vec::new();
        let read = File::open(&path)
            .and_then(|file| file.take(MAX_BYTES as u64 + 1).read_to_end(&mut binary));
        match read {
            Ok(0) => Err(format!("{} is empty", path.display())),
            Ok(_) => Ok((revision(&path)?, binary)),
            Err(error) => Err(format!(
                "the host's kernel does not give its policy ({}: {error}): it needs \
                 CONFIG_SECURITY_APPARMOR_EXPORT_BINARY, and apparmor.export_binary=1 when the \
                 profile is loaded. Without a profile: --security-opt apparmor=unconfined",
                path.display()
            )),
        }
    }

    /// The directory of a profile, or of a child (`parent//child`).
    fn find(&self, profile: &str) -> Option<PathBuf> {
        profile
            .split("//")
            .try_fold(self.policy.clone(), |parent, name| named(&parent.join("profiles"), name))
    }
}

/// Of the policy at `raw_data`: the kernel has it beside what that link leads to. (It is
/// reached through `apparmor/policy`, which has no path: see `policy_get_link`.)
fn revision(raw_data: &Path) -> Result<u64, String> {
    let place = std::fs::read_link(raw_data).map_err(|error| {
        format!("the host's kernel does not say where {} leads: {error}", raw_data.display())
    })?;
    let path = raw_data.with_file_name("").join(place).with_file_name("revision");
    let text = std::fs::read_to_string(&path)
        .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    text.trim().parse().map_err(|_| format!("{} says {text:?}", path.display()))
}

/// The directory in `parent` that stands for `name`: called by what is left of the name,
/// a dot and a number.
fn named(parent: &Path, name: &str) -> Option<PathBuf> {
    let plain = plain(name);
    let candidate = |entry: &std::fs::DirEntry| {
        let called = entry.file_name();
        let number =
            called.to_str().and_then(|called| called.strip_prefix(&plain)?.strip_prefix('.'));
        number.is_some_and(|number| number.parse::<u64>().is_ok())
    };
    // Different names may leave the same: the file in it is the one to believe.
    let is_it = |directory: &PathBuf| {
        let told = std::fs::read_to_string(directory.join("name"));
        told.is_ok_and(|told| told.trim_end_matches('\n') == name)
    };
    let entries = std::fs::read_dir(parent).ok()?.flatten();
    entries.filter(candidate).map(|entry| entry.path()).find(is_it)
}

/// A profile's name as that of a directory: `mangle_name` of the kernel.
fn plain(name: &str) -> String {
    let kept = name.trim_start_matches(['/', '.']).chars().filter_map(|c| match c {
        '/' => Some('.'),
        c if c.is_ascii_whitespace() || c == '\x0b' => Some('_'),
        c if c.is_ascii_alphanumeric() || "._-".contains(c) => Some(c),
        _ => None,
    });
    kept.collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A kernel that has these profiles: directory, name, policy.
    fn kernel(profiles: &[(&str, &str, &str)]) -> (tempfile::TempDir, Kernel) {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        fs::write(at("enabled"), "Y\n").unwrap();
        fs::create_dir_all(at("policy/profiles")).unwrap();
        for (directory, name, policy) in profiles {
            let directory = at("policy/profiles").join(directory);
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("name"), format!("{name}\n")).unwrap();
            if !policy.is_empty() {
                // As the kernel has it: a link into a directory of its own.
                let data = at("policy/raw_data").join(name.replace('/', "."));
                fs::create_dir_all(&data).unwrap();
                fs::write(data.join("raw_data"), policy).unwrap();
                fs::write(data.join("revision"), format!("{}\n", policy.len())).unwrap();
                std::os::unix::fs::symlink(data.join("raw_data"), directory.join("raw_data"))
                    .unwrap();
            }
        }
        let kernel = Kernel { enabled: at("enabled"), policy: at("policy"), _mount: None };
        (place, kernel)
    }

    fn told(kernel: &Kernel, label: &str) -> String {
        match kernel.policies(label) {
            Err(reason) => format!("error: {reason}"),
            Ok(policies) => policies
                .iter()
                .map(|policy| {
                    assert_eq!(policy.revision, policy.binary.len() as u64);
                    format!("{}={} ", policy.profile, String::from_utf8_lossy(&policy.binary))
                })
                .collect(),
        }
    }

    #[test]
    fn a_profile_is_found_by_its_name() {
        let (_place, kernel) = kernel(&[
            ("docker-default.3", "docker-default", "one"),
            ("docker-default.3.4", "docker-default.3", "two"),
            ("usr.bin.x.5", "/usr/bin/x", "three"),
            ("usr.bin.x.6", "usr/bin/x", "four"),
            ("a_b.7", "a b", "five"),
            ("p.8", "p", "six"),
            ("p.8/profiles/c.9", "c", "seven"),
        ]);
        for (label, policies) in [
            ("docker-default", "docker-default=one "),
            ("docker-default.3", "docker-default.3=two "),
            ("/usr/bin/x", "/usr/bin/x=three "),
            ("usr/bin/x", "usr/bin/x=four "),
            ("a b", "a b=five "),
            ("p//c", "p//c=seven "),
            ("p//&a b//&p//c", "p=six a b=five p//c=seven "),
            ("p//&unconfined", "p=six "),
        ] {
            assert_eq!(told(&kernel, label), policies);
        }
    }

    #[test]
    fn what_cannot_be_had_is_told() {
        let (place, kernel) = kernel(&[("bare.1", "bare", ""), ("p.2", "p", "policy")]);
        for (label, word) in [
            ("gone", "not loaded"),
            ("p//gone", "not loaded"),
            ("p//&gone", "not loaded"),
            ("../p", "not loaded"),
            ("bare", "export_binary"),
            (":ns:p", "\":ns:p\""),
            ("p//&:ns://p", "\":ns://p\""),
            ("&p", "\"&p\""),
        ] {
            let told = told(&kernel, label);
            assert!(told.starts_with("error: ") && told.contains(word), "{label}: {told}");
        }
        fs::write(place.path().join("enabled"), "N\n").unwrap();
        assert!(told(&kernel, "p").contains("not enabled"));
    }

    #[test]
    fn more_than_a_guest_takes_is_refused() {
        let much = "x".repeat(MAX_BYTES / 2 + 1);
        let (_place, kernel) = kernel(&[("a.1", "a", &much), ("b.2", "b", &much)]);
        assert!(told(&kernel, "a").starts_with("a=xx"));
        assert!(told(&kernel, "a//&b").contains("too many"));
    }
}
