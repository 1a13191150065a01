//! Bind mounts of a specification as shares of the machine.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use oci_spec::runtime::Mount;
use protocol::agent::MemoryVolume;
use protocol::machine::ShareKind;
use serde_json::{Value, json};

use super::super::bundle::{Bundle, BundleError, field};
use super::MEMORY;
use super::ids::Ids;
use crate::sandbox::ShareConfig;

type Places<'a> =
    (&'a mut Vec<ShareConfig>, &'a mut BTreeMap<String, String>, &'a mut Vec<MemoryVolume>);

/// Makes a share of a bind mount's source.
pub(super) fn share_mount(
    index: usize,
    mount: &Mount,
    bundle: &Bundle,
    entry: &mut Value,
    ids: &Ids,
    (shares, sources, volumes): Places,
) -> Result<(), BundleError> {
    let options = mount.options().clone().unwrap_or_default();
    // As the guest and mount(8) read them: an option may be a list itself.
    let has =
        |word: &str| options.iter().flat_map(|option| option.split(',')).any(|one| one == word);
    let read_only = (has("ro") && !has("rw")) || has("rro");
    if !has("bind") && !has("rbind") && mount.typ().as_deref() != Some("bind") {
        return Ok(());
    }
    let name = format!("mounts[{}]", mount.destination().display());
    let source = mount.source().clone().unwrap_or_default();
    if source.as_os_str().is_empty() {
        return Err(field(name, "a bind mount needs a source"));
    }
    let path = bundle.path.join(&source);
    let path = std::fs::canonicalize(&path)
        .map_err(|error| field(&name, format!("source {}: {error}", path.display())))?;
    if mount.destination() == Path::new("/dev/shm")
        && let Some(volume) = memory_volume(&path)
    {
        // Shared memory is memory of the guest: a file of the host could not be mapped
        // by two processes of it. What is one tmpfs on the host, a pod's, is one there.
        let key = format!("{MEMORY}/{}", volume.name);
        if ids.bind(mount, &mut entry.clone())? != ids.plain() {
            return Err(field(name, "shared memory cannot be an id-mapped mount"));
        }
        let access = if read_only { "ro" } else { "rw" };
        let options = ["bind", "nosuid", "noexec", "nodev", access];
        *entry = json!({
            "destination": "/dev/shm", "type": "bind", "source": key, "options": options,
        });
        sources.insert(key.clone(), key);
        volumes.push(volume);
        return Ok(());
    }
    let ids = ids.bind(mount, entry)?;
    let share = ShareConfig {
        name: format!("m{index}"),
        kind: ShareKind::Live,
        source: path,
        read_only,
        ids,
    };
    let key = share.guest_path();
    entry["source"] = Value::String(key.clone());
    sources.insert(key.clone(), key);
    shares.push(share);
    Ok(())
}

/// The tmpfs at `path`, if it is one, as one of the guest.
fn memory_volume(path: &Path) -> Option<MemoryVolume> {
    let fs = nix::sys::statfs::statfs(path).ok()?;
    let metadata = std::fs::metadata(path).ok()?;
    let block = u64::try_from(fs.block_size()).unwrap_or(4096);
    (fs.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC).then(|| MemoryVolume {
        name: format!("{:x}-{:x}", metadata.dev(), metadata.ino()),
        size: fs.blocks().saturating_mul(block),
        uid: metadata.uid(),
        gid: metadata.gid(),
    })
}
