//! Which ids of the host a machine has, and who owns what on a disk.
//!
//! ```text
//! on a disk --- map of the mount ---> range of the sandbox --- VMM's namespace ---> guest
//!     0..65535                            base + 0..65535                            0..65535
//!     h                                   base + 65536 + n                           h
//!     of nobody in there                  NOBODYS + 0..65535                         (65534)
//! ```
//!
//! A guest knows ids by the host's own numbers, so that user namespaces of a
//! specification mean the same there. All machines have 0..65535, and as many above
//! that as their range has room for: those that the specification names.
//!
//! Files of a container in a user namespace that belong to ids outside of it keep an
//! owner that the kernel knows (an id-mapped mount refuses to change a file whose
//! owner it does not map, even one that all may write), but not one that the machine
//! could take: whatever a guest does, no file of such a container becomes root's.

use serde::{Deserialize, Serialize};

use super::uids::{HIGH, LOW, NOBODYS};

/// What the kernel takes as a map: less than a page (map_write in
/// kernel/user_namespace.c), and 340 lines, which never fit.
const PAGE: usize = 4096;

/// Something for users and for groups.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Both<T> {
    /// Of users.
    pub uids: T,
    /// Of groups.
    pub gids: T,
}

impl<T> Both<T> {
    /// The same of both kinds.
    pub fn map<'a, U>(&'a self, of: impl Fn(&'a T) -> U) -> Both<U> {
        Both { uids: of(&self.uids), gids: of(&self.gids) }
    }
}

/// `LinuxIDMapping` of the runtime specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    /// First id in the container; of an id-mapped mount, on the disk.
    pub container: u32,
    /// First id of the host.
    pub host: u32,
    /// How many.
    pub size: u32,
}

/// `uidMappings` and `gidMappings`.
pub type Mappings = Both<Vec<Mapping>>;

/// Ids above 65535 of the host that a machine has, as (first, how many).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct High(Vec<(u32, u32)>);

/// Why a machine cannot have them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdsError {
    /// More than a range has.
    #[error("a machine can have {HIGH} ids of the host above {}, not {wanted}", LOW - 1)]
    TooMany {
        /// Asked for.
        wanted: u64,
    },
    /// More lines than the kernel takes.
    #[error("{0} ranges of ids are more than the kernel takes in one map")]
    TooLong(usize),
}

impl High {
    /// All of `ranges` (first, how many) that are above 65535; they may overlap.
    ///
    /// # Errors
    /// When they are too many.
    pub fn of(ranges: impl IntoIterator<Item = (u32, u32)>) -> Result<High, IdsError> {
        let end = |(first, count): (u32, u32)| u64::from(first) + u64::from(count);
        let mut ranges: Vec<_> =
            ranges.into_iter().map(|range| (u64::from(range.0.max(LOW)), end(range))).collect();
        ranges.retain(|(first, end)| first < end);
        ranges.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::new();
        for (first, end) in ranges {
            match merged.last_mut() {
                Some(last) if first <= last.1 => last.1 = last.1.max(end),
                _ => merged.push((first, end)),
            }
        }
        let wanted = merged.iter().map(|(first, end)| end - first).sum();
        if wanted > u64::from(HIGH) {
            return Err(IdsError::TooMany { wanted });
        }
        // Neither is larger than an id, now that they are few.
        Ok(High(merged.iter().map(|&(first, end)| (first as u32, (end - first) as u32)).collect()))
    }

    /// Whether all of `other` is in this.
    pub fn contains(&self, other: &High) -> bool {
        let end = |(first, count): (u32, u32)| u64::from(first) + u64::from(count);
        let within = |one: (u32, u32), of: (u32, u32)| of.0 <= one.0 && end(one) <= end(of);
        other.0.iter().all(|&one| self.0.iter().any(|&range| within(one, range)))
    }

    /// The map of a VMM whose range begins at `base`.
    pub(super) fn map(&self, base: u32) -> Map {
        let mut next = base + LOW;
        let high = self.0.iter().map(|&(from, count)| {
            let to = next;
            next += count;
            Extent { from, to, count }
        });
        Map([Extent { from: 0, to: base, count: LOW }].into_iter().chain(high).collect())
    }
}

/// A line of /proc/PID/uid_map, see user_namespaces(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extent {
    from: u32,
    to: u32,
    count: u32,
}

/// Such a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Map(Vec<Extent>);

impl Map {
    /// As the kernel reads it.
    pub(super) fn lines(&self) -> Result<String, IdsError> {
        let line = |extent: &Extent| format!("{} {} {}\n", extent.from, extent.to, extent.count);
        let lines: String = self.0.iter().map(line).collect();
        if lines.len() < PAGE { Ok(lines) } else { Err(IdsError::TooLong(self.0.len())) }
    }

    /// The same for a writer whose own namespace has these ranges (first, how many) of ids: a
    /// line must lie in one of them (map_id_range_down in kernel/user_namespace.c).
    pub(super) fn split(&self, ranges: &[(u32, u32)]) -> Map {
        let pieces = |extent: &Extent| {
            let Extent { from, to, count } = *extent;
            let piece = move |range: &(u32, u32)| {
                let (first, end) = common((to, count), *range)?;
                let count = (end - u64::from(first)) as u32;
                Some(Extent { from: from + (first - to), to: first, count })
            };
            ranges.iter().filter_map(piece).collect::<Vec<_>>()
        };
        Map(self.0.iter().flat_map(pieces).collect())
    }

    /// What id `from` is.
    pub(super) fn get(&self, from: u32) -> Option<u32> {
        let extent = self.0.iter().find(|extent| from.wrapping_sub(extent.from) < extent.count)?;
        Some(extent.to + (from - extent.from))
    }

    /// What its first id is, for want of a better one.
    pub(super) fn any(&self) -> Option<u32> {
        self.0.first().map(|extent| extent.to)
    }

    /// With this the map of a machine: that of a mount whose id `container` is the
    /// host's id `host`. What it does not name has no owner.
    pub(super) fn of_mount(&self, mappings: &[Mapping]) -> Map {
        let pieces = |mapping: &Mapping| {
            let Mapping { container, host, size } = *mapping;
            let piece = move |extent: &Extent| {
                let (first, end) = common((host, size), (extent.from, extent.count))?;
                Some(Extent {
                    from: container + (first - host),
                    to: extent.to + (first - extent.from),
                    count: (end - u64::from(first)) as u32,
                })
            };
            self.0.iter().filter_map(piece).collect::<Vec<_>>()
        };
        Map(mappings.iter().flat_map(pieces).collect())
    }

    /// The same for a mount of a container whose user namespace has `mappings`: ids
    /// are the host's, and those of others are nobody's.
    pub(super) fn of_user(&self, mappings: &[Mapping]) -> Map {
        let own: Vec<Mapping> = mappings
            .iter()
            .map(|mapping| Mapping { container: mapping.host, ..*mapping })
            .collect();
        let Map(mut extents) = self.of_mount(&own);
        extents.sort_unstable_by_key(|extent| extent.from);
        let mut others = Vec::new();
        let mut first = 0;
        for own in extents.iter().chain(&[Extent { from: LOW, to: 0, count: 0 }]) {
            let end = own.from.min(LOW);
            if first < end {
                others.push(Extent { from: first, to: NOBODYS + first, count: end - first });
            }
            first = first.max(own.from.saturating_add(own.count));
        }
        extents.extend(others);
        Map(extents)
    }
}

/// First id and end of what two ranges have in common.
fn common(one: (u32, u32), other: (u32, u32)) -> Option<(u32, u64)> {
    let end = |(first, count): (u32, u32)| u64::from(first) + u64::from(count);
    let (first, end) = (one.0.max(other.0), end(one).min(end(other)));
    (u64::from(first) < end).then_some((first, end))
}

#[cfg(test)]
mod tests;
