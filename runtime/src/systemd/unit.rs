//! Where a container's scope is, by its `linux.cgroupsPath`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Property, Value};
use crate::sandbox::cgroup;

/// The slice of those that name none, as runc has it.
const SLICE: &str = "system.slice";
/// The slice that holds all others, see systemd.slice(5).
const ROOT_SLICE: &str = "-.slice";
/// What precedes the id of a container that names no scope.
const PREFIX: &str = "bulkhead";
/// Longest name of a unit, see systemd.unit(5).
const MAX_NAME: usize = 255;

/// What files of a cgroup begin with, of either version.
const CONTROLLERS: [&str; 12] = [
    "cgroup", "cpu", "cpuacct", "cpuset", "io", "blkio", "memory", "devices", "pids", "hugetlb",
    "rdma", "misc",
];

/// A transient scope.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Unit {
    /// Its name, with `.scope`.
    pub name: String,
    /// The slice that it is in, with `.slice`.
    pub slice: String,
    /// For people, unless its properties say otherwise.
    pub description: String,
    /// What its configuration wants beside limits.
    pub properties: Vec<Property>,
}

impl Unit {
    /// The scope of container `id` by `slice:prefix:name`, or `system.slice:bulkhead:ID`,
    /// as runc's docs/systemd.md has it.
    ///
    /// # Errors
    /// What is wrong with the path.
    pub fn of(id: &str, path: Option<&str>) -> Result<Unit, String> {
        let path = path.filter(|path| !path.is_empty());
        let (slice, prefix, name) = match path {
            None => ("", PREFIX, id),
            Some(path) => {
                let parts: Vec<&str> = path.split(':').collect();
                let [slice, prefix, name] = parts[..] else {
                    return Err(format!(
                        "{path:?} is not of the form slice:prefix:name, which --systemd-cgroup \
                         wants"
                    ));
                };
                (slice, prefix, name)
            }
        };
        if name.ends_with(".slice") {
            return Err(format!("{name:?} is a slice, which can hold scopes but no processes"));
        }
        let slice = match slice {
            "" => SLICE,
            "-" => ROOT_SLICE,
            slice => slice,
        };
        slices(slice)?;
        let name = format!("{prefix}-{name}.scope");
        checked(&name)?;
        let description = format!("bulkhead container {id}");
        Ok(Unit { name, slice: slice.to_owned(), description, properties: Vec::new() })
    }

    /// What systemd says that it is: by this it is known for ours.
    pub fn description(&self) -> &str {
        let named = |property: &&Property| property.name == "Description";
        match self.properties.iter().rfind(named).map(|property| &property.value) {
            Some(Value::Text(text)) => text,
            _ => &self.description,
        }
    }

    /// Its cgroup: systemd has one directory for each slice above it.
    pub fn cgroup(&self) -> PathBuf {
        let mut path = Path::new(cgroup::ROOT).to_owned();
        // Checked when it was made.
        path.extend(slices(&self.slice).unwrap_or_default());
        path.join(&self.name)
    }
}

/// A slice and those above it, outermost first: `a.slice`, `a-b.slice` of `a-b.slice`.
fn slices(slice: &str) -> Result<Vec<String>, String> {
    if slice == ROOT_SLICE {
        return Ok(Vec::new());
    }
    let wrong = || format!("{slice:?} is no slice: names are of the form a-b-c.slice");
    checked(slice)?;
    let parts: Vec<&str> = slice.strip_suffix(".slice").ok_or_else(wrong)?.split('-').collect();
    if parts.iter().any(|part| part.is_empty()) {
        return Err(wrong());
    }
    Ok((1..=parts.len()).map(|count| parts[..count].join("-") + ".slice").collect())
}

/// Refuses what is no name of a unit, see "UNIT FILES" in systemd.unit(5).
fn checked(name: &str) -> Result<(), String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte);
    if name.len() > MAX_NAME {
        return Err(format!("{name:?} is longer than a unit's name may be ({MAX_NAME})"));
    }
    // systemd puts a `_` before such names of directories (cg_needs_escape).
    let escaped = name.starts_with(['_', '.'])
        || CONTROLLERS.iter().any(|of| name.strip_prefix(of).is_some_and(|at| at.starts_with('.')));
    if escaped {
        return Err(format!(
            "{name:?} is no name for a cgroup: it begins with `_`, `.` or a controller's name"
        ));
    }
    match name.bytes().all(allowed) {
        true => Ok(()),
        false => {
            Err(format!("{name:?} is no name of a unit (letters, digits and : - _ . \\ @ are)"))
        }
    }
}
