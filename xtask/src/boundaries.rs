//! `cargo xtask boundaries`: who may import whom, and whether ARCHITECTURE.md
//! still speaks of things that are there.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::paths::Tree;
use crate::sh::{self, cmd, note};

/// What a crate of ours may import of ours, and what it must never import.
struct Rule {
    package: &'static str,
    may: &'static [&'static str],
    never: &'static [&'static str],
}

/// The table of ARCHITECTURE.md. A crate that does not stand here is an error.
const RULES: [Rule; 10] = [
    Rule { package: "bulkhead-protocol", may: &[], never: &["tokio", "nix", "kvm-ioctls"] },
    Rule {
        package: "bulkhead-vmm",
        may: &["bulkhead-protocol"],
        never: &["oci-spec", "oci-client", "tokio", "tar", "anyhow"],
    },
    Rule {
        package: "bulkhead-agent",
        may: &["bulkhead-protocol"],
        never: &["kvm-ioctls", "vm-memory", "virtio-queue", "oci-client", "tar"],
    },
    Rule {
        package: "bulkhead-images",
        may: &[],
        never: &["kvm-ioctls", "vm-memory", "tokio-vsock"],
    },
    Rule {
        package: "bulkhead-runtime-lib",
        may: &["bulkhead-protocol"],
        never: &["kvm-ioctls", "vm-memory", "virtio-queue", "oci-client", "tar"],
    },
    Rule {
        package: "bulkhead-cli",
        may: &["bulkhead-runtime-lib", "bulkhead-images"],
        // kvm-ioctls: `doctor` times a guest loop.
        never: &["virtio-queue", "fuse-backend-rs", "linux-loader"],
    },
    Rule {
        package: "bulkhead-oci",
        may: &["bulkhead-protocol", "bulkhead-runtime-lib"],
        never: &["kvm-ioctls", "vm-memory", "oci-client", "tar"],
    },
    Rule { package: "bulkhead-tests", may: &[], never: &[] },
    Rule {
        package: "bulkhead-bench",
        may: &["bulkhead-protocol", "bulkhead-runtime-lib"],
        never: &[],
    },
    Rule { package: "xtask", may: &[], never: &["tokio"] },
];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    /// `dev` or `build`; none for a normal one.
    kind: Option<String>,
    /// Set for a crate of this workspace.
    path: Option<String>,
}

/// Checks both, and lists everything that is wrong.
pub fn run(tree: &Tree) -> Result<()> {
    let mut cargo = cmd(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()), ["metadata"]);
    cargo.args(["--no-deps", "--format-version=1", "--locked"]).current_dir(tree.root());
    let metadata: Metadata =
        serde_json::from_str(&sh::output(&mut cargo)?).context("cargo metadata")?;
    let mut wrong = violations(&metadata.packages);
    let map = tree.at("ARCHITECTURE.md");
    if let Ok(text) = fs::read_to_string(&map) {
        wrong.extend(missing_paths(&text, tree.root()));
    }
    if wrong.is_empty() {
        note(format!("boundaries hold for {} crates", metadata.packages.len()));
        return Ok(());
    }
    bail!("{} boundaries are broken:\n  {}", wrong.len(), wrong.join("\n  "))
}

fn violations(packages: &[Package]) -> Vec<String> {
    let rules: BTreeMap<&str, &Rule> = RULES.iter().map(|rule| (rule.package, rule)).collect();
    let mut wrong = Vec::new();
    for package in packages {
        let Some(rule) = rules.get(package.name.as_str()) else {
            wrong.push(format!("{} has no rule in xtask/src/boundaries.rs", package.name));
            continue;
        };
        for dependency in package.dependencies.iter().filter(|d| d.kind.as_deref() != Some("dev")) {
            let name = dependency.name.as_str();
            if dependency.path.is_some() && !rule.may.contains(&name) {
                wrong.push(format!("{} imports {name}, which it may not", package.name));
            }
            if rule.never.contains(&name) {
                wrong.push(format!("{} imports {name}, which it must never do", package.name));
            }
        }
    }
    wrong
}

/// Every `path/with/slash` or `file.rs` in backquotes that is not there.
fn missing_paths(text: &str, root: &Path) -> Vec<String> {
    let tops: Vec<String> = fs::read_dir(root)
        .map(|entries| {
            entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect()
        })
        .unwrap_or_default();
    let mut missing = Vec::new();
    for word in text.split('`').skip(1).step_by(2) {
        let path = word.trim_end_matches('/');
        let plain = path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b));
        let ours = path.split('/').next().is_some_and(|top| tops.iter().any(|t| t == top));
        let looks_like_path =
            path.contains('/') && (ours || path.ends_with(".rs") || path.ends_with(".md"));
        let generated = path.starts_with("build/") || path.starts_with("target/");
        if plain
            && looks_like_path
            && !generated
            && !path.starts_with('/')
            && !root.join(path).exists()
        {
            missing.push(format!("ARCHITECTURE.md names `{word}`, which is not there"));
        }
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, dependencies: &[(&str, Option<&str>, bool)]) -> Package {
        let dependencies = dependencies
            .iter()
            .map(|(name, kind, ours)| Dependency {
                name: (*name).into(),
                kind: kind.map(Into::into),
                path: ours.then(|| "/somewhere".into()),
            })
            .collect();
        Package { name: name.into(), dependencies }
    }

    #[test]
    fn a_forbidden_import_is_named() {
        let good = package(
            "bulkhead-vmm",
            &[("bulkhead-protocol", None, true), ("kvm-ioctls", None, false)],
        );
        let tests_may = package("bulkhead-vmm", &[("tokio", Some("dev"), false)]);
        assert!(violations(&[good, tests_may]).is_empty());
        let sibling = package("bulkhead-vmm", &[("bulkhead-images", None, true)]);
        let foreign = package("bulkhead-vmm", &[("tokio", None, false)]);
        let unknown = package("newcomer", &[]);
        assert_eq!(violations(&[sibling, foreign, unknown]).len(), 3);
    }

    #[test]
    fn a_path_that_is_gone_is_named() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let text = "see `xtask/src/main.rs`, `build/root/bin`, `xtask/src/gone.rs`, `/dev/kvm`, `a b/c`, `cgroup/x`";
        let missing = missing_paths(text, root);
        assert_eq!(missing.len(), 1, "{missing:?}");
        assert!(missing[0].contains("gone.rs"));
    }
}
