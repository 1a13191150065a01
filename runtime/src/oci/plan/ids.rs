//! `linux.uidMappings`, and those of mounts: which ids of the host a container has.

use oci_spec::runtime::{Linux, LinuxIdMapping, Mount, Spec};
use serde_json::Value;

use super::super::bundle::{BundleError, field};
use super::namespaces::User;
use crate::sandbox::ShareIds;
use crate::sandbox::ids::{Both, High, Mapping, Mappings};

/// Of one container.
#[derive(Debug, Default)]
pub(super) struct Ids {
    /// Of its user namespace, if it is in one.
    pub(super) mappings: Option<Mappings>,
    /// What its machine must have beside 0..65535.
    pub(super) machine: Both<High>,
}

impl Ids {
    /// In `raw`, nothing is left of mappings that a joined namespace has already.
    pub(super) fn of(
        spec: &Spec,
        linux: &Linux,
        user: User,
        raw: &mut Value,
    ) -> Result<Ids, BundleError> {
        let lists = (linux.uid_mappings().as_deref(), linux.gid_mappings().as_deref());
        let mappings = match user {
            // Stray mappings are the agent's to refuse.
            User::None => None,
            User::New => both("linux.", lists)?,
            User::Joined(mappings) => {
                // Engines that share one repeat them, or make some up for older runcs.
                if let Some(linux) = raw.as_object_mut() {
                    linux.retain(|key, _| key != "uidMappings" && key != "gidMappings");
                }
                Some(mappings)
            }
        };
        let mut needed: Vec<Mappings> = mappings.iter().cloned().collect();
        for mount in spec.mounts().iter().flatten() {
            needed.extend(of_mount(mount)?);
        }
        let user = spec.process().as_ref().map(|process| process.user());
        // Those of the process itself, as itself: for its files.
        let user = user.filter(|_| mappings.is_none());
        let groups = user.map(|user| {
            let more = user.additional_gids().iter().flatten().copied();
            more.chain([user.gid()]).collect::<Vec<_>>()
        });
        let high = |ids: Vec<u32>, list: fn(&Mappings) -> &Vec<Mapping>, name: &str| {
            let own = ids.into_iter().map(|id| (id, 1));
            let named = needed.iter().flat_map(list).map(|mapping| (mapping.host, mapping.size));
            High::of(own.chain(named)).map_err(|error| field(name, error.to_string()))
        };
        let uids = user.map(|user| vec![user.uid()]).unwrap_or_default();
        let machine = Both {
            uids: high(uids, |mappings| &mappings.uids, "uidMappings")?,
            gids: high(groups.unwrap_or_default(), |mappings| &mappings.gids, "gidMappings")?,
        };
        Ok(Ids { mappings, machine })
    }

    /// Of shares that are not id-mapped mounts.
    pub(super) fn plain(&self) -> ShareIds {
        self.mappings.clone().map_or(ShareIds::Machine, ShareIds::User)
    }

    /// Of a bind mount. In `entry`, nothing of it is left: it is done on the host.
    pub(super) fn bind(&self, mount: &Mount, entry: &mut Value) -> Result<ShareIds, BundleError> {
        let is_word = |word: &str| matches!(word, "idmap" | "ridmap");
        let words = mount.options().iter().flatten();
        let wanted = words.flat_map(|option| option.split(',')).any(is_word);
        if let Some(options) = entry["options"].as_array_mut() {
            for option in options.iter_mut() {
                let kept = option.as_str().unwrap_or_default().split(',');
                *option = kept.filter(|word| !is_word(word)).collect::<Vec<_>>().join(",").into();
            }
        }
        if let Some(entry) = entry.as_object_mut() {
            entry.retain(|key, _| key != "uidMappings" && key != "gidMappings");
        }
        match (of_mount(mount)?, &self.mappings) {
            (Some(own), _) => Ok(ShareIds::Mount(own)),
            (None, _) if !wanted => Ok(self.plain()),
            (None, Some(mappings)) => Ok(ShareIds::Mount(mappings.clone())),
            (None, None) => {
                let reason = "idmap needs uidMappings and gidMappings, or a user namespace";
                Err(field(name(mount), reason))
            }
        }
    }
}

fn name(mount: &Mount) -> String {
    format!("mounts[{}]", mount.destination().display())
}

/// The mappings of its own that a mount has.
fn of_mount(mount: &Mount) -> Result<Option<Mappings>, BundleError> {
    let lists = (mount.uid_mappings().as_deref(), mount.gid_mappings().as_deref());
    both(&format!("{}.", name(mount)), lists)
}

type List<'a> = Option<&'a [LinuxIdMapping]>;

/// None if there are none.
fn both(of: &str, (uids, gids): (List, List)) -> Result<Option<Mappings>, BundleError> {
    let uids = list(format!("{of}uidMappings"), uids)?;
    let gids = list(format!("{of}gidMappings"), gids)?;
    match (uids.is_empty(), gids.is_empty()) {
        (true, true) => Ok(None),
        (false, false) => Ok(Some(Both { uids, gids })),
        _ => Err(field(
            format!("{of}uidMappings, {of}gidMappings"),
            "one of them is of no use alone",
        )),
    }
}

/// Checked as the kernel will (new_idmap_permitted, mappings_overlap).
fn list(name: String, list: List) -> Result<Vec<Mapping>, BundleError> {
    let mapping = |m: &LinuxIdMapping| Mapping {
        container: m.container_id(),
        host: m.host_id(),
        size: m.size(),
    };
    let list: Vec<Mapping> = list.unwrap_or_default().iter().map(mapping).collect();
    let sides: [fn(&Mapping) -> u32; 2] = [|m| m.container, |m| m.host];
    for first in sides {
        let range = |m: &Mapping| (u64::from(first(m)), u64::from(first(m)) + u64::from(m.size));
        let mut ranges: Vec<_> = list.iter().map(range).collect();
        ranges.sort_unstable();
        let odd = ranges.iter().any(|&(first, end)| first == end || end > u64::from(u32::MAX));
        if odd || ranges.windows(2).any(|two| two[1].0 < two[0].1) {
            return Err(field(name, "a range is empty, overlaps another or ends beyond all ids"));
        }
    }
    Ok(list)
}
