//! What the guest may cache of a share, and how that is told to it.
//!
//! | kind      | names, attributes | absent names | file data                       |
//! |-----------|-------------------|--------------|---------------------------------|
//! | immutable | for ever          | for ever     | for ever                        |
//! | private   | for ever          | for ever     | for ever; writes go through     |
//! | live      | not at all        | not at all   | until the file changes          |
//!
//! A live share is a directory that host and guest use together: what one side
//! did, the other sees with its next call. Each open looks its name up again, and
//! each read asks for the file's attributes first, which costs a round trip and
//! tells whether cached data still hold. With attributes that held for a second,
//! a file that the host had just made longer was read up to its old length.
//!
//! Writes to a private share go through although no one else writes: an engine
//! may read the directory at any time (commit, diff, cp), and what a guest lost
//! in a crash would be lost in the middle.
//!
//! FUSE_NO_OPEN_SUPPORT and FUSE_NO_OPENDIR_SUPPORT would save a round trip for
//! each open, but they hold for the whole file system, and then imply
//! FOPEN_KEEP_CACHE: a live share would never see a change.

use std::path::PathBuf;
use std::time::Duration;

use fuse_backend_rs::passthrough::{CachePolicy, Config};
use protocol::machine::ShareKind;

/// As good as for ever, and small enough for any clock arithmetic of a kernel.
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// One share of the tree, already mounted where the server can see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareConfig {
    /// Name below the directory of its kind.
    pub name: String,
    /// Directory or single file that is shared.
    pub path: PathBuf,
    /// What the guest may cache.
    pub kind: ShareKind,
    /// Refuse changes with EROFS.
    pub read_only: bool,
    /// It came to a running guest, and may go: its name does not hold.
    pub passing: bool,
}

impl ShareConfig {
    /// Whether changes are refused.
    pub fn refuses_changes(&self) -> bool {
        self.read_only || self.kind == ShareKind::Immutable
    }

    /// How long names and attributes hold.
    pub fn timeout(&self) -> Duration {
        match self.kind {
            ShareKind::Immutable | ShareKind::Private => FOR_EVER,
            ShareKind::Live => Duration::ZERO,
        }
    }

    /// How long the absence of a name holds.
    pub fn absence(&self) -> Option<Duration> {
        (self.kind != ShareKind::Live).then_some(FOR_EVER)
    }

    /// The settings of the pass-through file system below.
    pub(super) fn passthrough(&self) -> Option<Config> {
        Some(Config {
            root_dir: self.path.to_str()?.to_owned(),
            attr_timeout: self.timeout(),
            entry_timeout: self.timeout(),
            cache_policy: match self.kind {
                ShareKind::Immutable | ShareKind::Private => CachePolicy::Always,
                ShareKind::Live => CachePolicy::Auto,
            },
            writeback: false,
            xattr: true,
            killpriv_v2: true,
            // Node ids made of inode numbers: without it the library keeps one
            // map entry for every file that ever was.
            use_host_ino: true,
            // open_by_handle_at(2) needs a capability of the initial namespace.
            inode_file_handles: false,
            no_open: false,
            no_opendir: false,
            do_import: true,
            allow_direct_io: false,
            ..Config::default()
        })
    }
}
