//! The user namespaces by which a machine's shares are id-mapped.

use std::cell::RefCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use serde::{Deserialize, Serialize};

use super::ids::{Both, High, IdsError, Map, Mappings};
use crate::rootless::is_rootless;
use crate::sys::process;

/// Whom what lies in a share belongs to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShareIds {
    /// Those whom the host says; of those that the machine does not have, nobody.
    #[default]
    Machine,
    /// The same for a container in a user namespace with these mappings.
    User(Mappings),
    /// An id-mapped mount: the mapping says.
    Mount(Mappings),
}

/// Why there is no such namespace.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The ids.
    #[error(transparent)]
    Ids(#[from] IdsError),
    /// The kernel.
    #[error("cannot make a user namespace with the id map {map:?}")]
    System {
        /// Its uid_map.
        map: String,
        /// Why.
        source: std::io::Error,
    },
}

/// A user namespace to map a mount by.
#[derive(Debug)]
pub(super) struct Mapper {
    userns: OwnedFd,
    /// User and group of the sandbox's range that write what no process of the guest
    /// does: root of the disk, where that is mapped.
    pub(super) writer: (u32, u32),
}

impl AsFd for Mapper {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.userns.as_fd()
    }
}

/// What a machine's files are mapped to.
#[derive(Debug)]
pub(super) struct Owner {
    own: Rc<Mapper>,
    maps: bool,
    machine: Both<Map>,
    /// One for all shares that want the same.
    made: RefCell<Vec<(Both<String>, Rc<Mapper>)>>,
}

impl Owner {
    /// Of the machine whose VMM is in `userns`, with `ids` beside the low ones and a
    /// range that begins at `base`.
    pub(super) fn new(userns: OwnedFd, base: u32, ids: &Both<High>) -> Owner {
        let machine = ids.map(|high| high.map(base));
        let own = Rc::new(Mapper { userns, writer: (base, base) });
        Owner { own, maps: !is_rootless(), machine, made: RefCell::default() }
    }

    /// Whether mounts are mapped: else the machine has the ids of this process's namespace,
    /// and owners are right without. Only root of the file system's own namespace may.
    pub(super) fn maps(&self) -> bool {
        self.maps
    }

    /// For a share, or layers of an overlay that an engine has not mapped.
    pub(super) fn mapper(&self, ids: &ShareIds) -> Result<Rc<Mapper>, MapError> {
        match ids {
            ShareIds::Machine => Ok(self.own.clone()),
            ShareIds::User(mappings) => self.make(mappings, Map::of_user),
            ShareIds::Mount(mappings) => self.make(mappings, Map::of_mount),
        }
    }

    /// For layers that an engine has mapped to a container's user namespace: on the
    /// disk they belong to the ids that are the container's in there.
    pub(super) fn engines(&self, ids: &ShareIds) -> Result<Rc<Mapper>, MapError> {
        match ids {
            ShareIds::Machine => Ok(self.own.clone()),
            ShareIds::User(mappings) | ShareIds::Mount(mappings) => {
                self.make(mappings, Map::of_mount)
            }
        }
    }

    fn make(
        &self,
        mappings: &Mappings,
        of: fn(&Map, &[super::ids::Mapping]) -> Map,
    ) -> Result<Rc<Mapper>, MapError> {
        let uids = of(&self.machine.uids, &mappings.uids);
        let gids = of(&self.machine.gids, &mappings.gids);
        let lines = Both { uids: uids.lines()?, gids: gids.lines()? };
        if let Some((_, made)) = self.made.borrow().iter().find(|(of, _)| *of == lines) {
            return Ok(made.clone());
        }
        let userns = process::user_namespace(&lines.uids, &lines.gids)
            .map_err(|source| MapError::System { map: lines.uids.clone(), source })?;
        let writer = |map: &Map| map.get(0).or(map.any()).unwrap_or(self.own.writer.0);
        let mapper = Rc::new(Mapper { userns, writer: (writer(&uids), writer(&gids)) });
        self.made.borrow_mut().push((lines, mapper.clone()));
        Ok(mapper)
    }
}
