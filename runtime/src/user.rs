//! Users of an image: `USER name` means the image's /etc/passwd.
//!
//! The image is hostile. Its layers are looked up as overlayfs would stack them
//! (whiteouts, opaque directories, symbolic links), one path component at a
//! time, each opened below the one before without following links, so that no
//! path leaves the layers; sizes and numbers are bounded.

mod layers;
mod passwd;

use serde::{Deserialize, Serialize};

pub use layers::Layers;
use passwd::{Group, Passwd};

/// Why a user cannot be resolved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// The name is not in /etc/passwd.
    #[error("unable to find user {0}: no matching entries in the image's /etc/passwd")]
    NoUser(String),
    /// The name is not in /etc/group.
    #[error("unable to find group {0}: no matching entries in the image's /etc/group")]
    NoGroup(String),
    /// More than user and group, or an id out of range.
    #[error("invalid user: {0:?} (name|uid[:group|gid])")]
    Invalid(String),
}

/// Largest id: the kernel's -1 means "unchanged", and ids beyond a range of
/// 65536 do not exist in the sandbox.
const MAX_ID: u32 = 65_535;

/// A user as the kernel wants it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResolvedUser {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Groups of which /etc/group says that the user is a member.
    pub additional_gids: Vec<u32>,
    /// Home directory of the entry, `/` without one.
    pub home: String,
}

/// Resolves `user[:group]`; empty means root.
///
/// # Errors
/// As [`UserError`].
pub fn resolve(user: &str, layers: &Layers) -> Result<ResolvedUser, UserError> {
    let passwd = layers.read("/etc/passwd").unwrap_or_default();
    let group = layers.read("/etc/group").unwrap_or_default();
    resolve_in(user, &passwd, &group)
}

fn resolve_in(text: &str, passwd: &[u8], group: &[u8]) -> Result<ResolvedUser, UserError> {
    let invalid = || UserError::Invalid(text.into());
    let (user, group_name) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (text, None),
    };
    if group_name.is_some_and(|group| group.contains(':')) {
        return Err(invalid());
    }
    let user = if user.is_empty() { "0" } else { user };
    let number = parse_id(user).map_err(|()| invalid())?;
    // A name that looks like a number is a number, as in docker.
    let entry = match number {
        Some(uid) => passwd::users(passwd).find(|entry| entry.uid == uid),
        None => passwd::users(passwd).find(|entry| entry.name == user),
    };
    let (uid, primary) = match (&entry, number) {
        (Some(entry), _) => (entry.uid, entry.gid),
        (None, Some(uid)) => (uid, 0),
        (None, None) => return Err(UserError::NoUser(user.into())),
    };
    let gid = match group_name {
        None => primary,
        Some(name) => find_group(name, group)?.ok_or_else(|| UserError::NoGroup(name.into()))?,
    };
    if uid > MAX_ID || gid > MAX_ID {
        return Err(invalid());
    }
    let additional_gids = match (&entry, group_name) {
        // Whoever names a group gets that one alone, as in docker.
        (Some(entry), None) => member_of(entry, gid, group),
        _ => Vec::new(),
    };
    let home = entry.map(|entry| entry.home).filter(|home| home.starts_with('/'));
    Ok(ResolvedUser { uid, gid, additional_gids, home: home.unwrap_or_else(|| "/".into()) })
}

/// `Ok(None)` for a name.
fn parse_id(text: &str) -> Result<Option<u32>, ()> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    text.parse::<u32>().ok().filter(|&id| id <= MAX_ID).map(Some).ok_or(())
}

fn find_group(name: &str, file: &[u8]) -> Result<Option<u32>, UserError> {
    match parse_id(name) {
        Ok(Some(gid)) => Ok(Some(gid)),
        Ok(None) => Ok(passwd::groups(file).find(|group| group.name == name).map(|g| g.gid)),
        Err(()) => Err(UserError::Invalid(name.into())),
    }
}

fn member_of(entry: &Passwd, primary: u32, file: &[u8]) -> Vec<u32> {
    let is_member = |group: &Group| group.members.contains(&entry.name);
    let gids = passwd::groups(file).filter(is_member).map(|group| group.gid);
    let mut gids: Vec<u32> = gids.filter(|&gid| gid != primary && gid <= MAX_ID).collect();
    gids.sort_unstable();
    gids.dedup();
    gids
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\nwww:x:33:33:w:/var/www:/bin/false\n\
        broken line\nhuge:x:99999999999:1::/:/\nfar:x:70000:70000::/:/\n";
    const GROUP: &[u8] = b"root:x:0:\nwww:x:33:\nssl:x:101:www,root\naudio:x:29:www\n";

    fn ok(text: &str) -> (u32, u32, Vec<u32>, String) {
        let user = resolve_in(text, PASSWD, GROUP).unwrap();
        (user.uid, user.gid, user.additional_gids, user.home)
    }

    #[test]
    fn names_numbers_and_groups() {
        assert_eq!(ok(""), (0, 0, vec![101], "/root".into()));
        assert_eq!(ok("www"), (33, 33, vec![29, 101], "/var/www".into()));
        assert_eq!(ok("33"), (33, 33, vec![29, 101], "/var/www".into()));
        assert_eq!(ok("www:ssl"), (33, 101, vec![], "/var/www".into()));
        assert_eq!(ok("1000"), (1000, 0, vec![], "/".into()));
        assert_eq!(ok("1000:1001"), (1000, 1001, vec![], "/".into()));
        assert_eq!(ok(":29"), (0, 29, vec![], "/root".into()));
    }

    #[test]
    fn what_is_not_there_is_named() {
        let error = |text| resolve_in(text, PASSWD, GROUP).unwrap_err();
        assert_eq!(error("nobody"), UserError::NoUser("nobody".into()));
        assert_eq!(error("www:none"), UserError::NoGroup("none".into()));
        for text in ["70000", "4294967295", "99999999999", "1:2:3", "far"] {
            assert!(matches!(error(text), UserError::Invalid(_)), "{text}");
        }
    }

    proptest! {
        #[test]
        fn hostile_files_never_panic(
            user in ".{0,20}",
            passwd in prop::collection::vec(any::<u8>(), 0..200),
            group in "([a-z]{0,3}:x?:[0-9]{0,11}:[a-z,]{0,9}\n){0,5}",
        ) {
            if let Ok(user) = resolve_in(&user, &passwd, group.as_bytes()) {
                prop_assert!(user.uid <= MAX_ID && user.gid <= MAX_ID);
            }
        }
    }
}
