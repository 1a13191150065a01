//! Lines of /etc/passwd and /etc/group. A line that is none is skipped.

/// Most members of a group that are read.
const MAX_MEMBERS: usize = 4096;

pub(super) struct Passwd {
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) home: String,
}

pub(super) struct Group {
    pub(super) name: String,
    pub(super) gid: u32,
    pub(super) members: Vec<String>,
}

/// Fields of all lines that are text.
fn lines(file: &[u8]) -> impl Iterator<Item = Vec<&str>> {
    file.split(|&byte| byte == b'\n')
        .filter_map(|line| std::str::from_utf8(line).ok())
        .map(|line| line.trim_end_matches('\r').splitn(8, ':').collect())
}

pub(super) fn users(file: &[u8]) -> impl Iterator<Item = Passwd> {
    lines(file).filter_map(|fields| match fields[..] {
        [name, _, uid, gid, _, home, ..] => Some(Passwd {
            name: name.into(),
            uid: uid.parse().ok()?,
            gid: gid.parse().ok()?,
            home: home.into(),
        }),
        _ => None,
    })
}

pub(super) fn groups(file: &[u8]) -> impl Iterator<Item = Group> {
    lines(file).filter_map(|fields| match fields[..] {
        [name, _, gid, members, ..] => Some(Group {
            name: name.into(),
            gid: gid.parse().ok()?,
            members: members.split(',').take(MAX_MEMBERS).map(|name| name.trim().into()).collect(),
        }),
        _ => None,
    })
}
