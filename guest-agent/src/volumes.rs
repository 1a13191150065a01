//! File systems in the guest's memory that containers have in common: what is one
//! tmpfs on the host (/dev/shm of a pod) must be one in here.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};

use nix::mount::{MntFlags, umount2};
use protocol::agent::{AgentError, ErrorKind, MAX_VOLUMES, MemoryVolume};

use crate::boot::VOLUMES;
use crate::error::{SystemContext, error};
use crate::kmsg;
use crate::sys::mount::Context;

/// One of them. It is unmounted with the last container that has it.
#[derive(Debug)]
pub struct Volume {
    path: PathBuf,
}

impl Drop for Volume {
    fn drop(&mut self) {
        let gone = umount2(&self.path, MntFlags::MNT_DETACH).map_err(std::io::Error::from);
        if let Err(error) = gone.and_then(|()| std::fs::remove_dir(&self.path)) {
            kmsg::log(&format!("unmounting {}: {error}", self.path.display()));
        }
    }
}

/// All of them, by name.
#[derive(Debug, Default)]
pub struct Volumes(RefCell<HashMap<String, Weak<Volume>>>);

impl Volumes {
    /// Those of a container; what is not there yet is made.
    ///
    /// # Errors
    /// When a name is none, there are too many, or the kernel refuses one.
    pub fn take(&self, wanted: &[MemoryVolume]) -> Result<Vec<Rc<Volume>>, AgentError> {
        if wanted.len() > MAX_VOLUMES {
            let message = format!("more than {MAX_VOLUMES} volumes in memory");
            return Err(error(ErrorKind::Invalid, message));
        }
        let mut all = self.0.borrow_mut();
        all.retain(|_, volume| volume.strong_count() > 0);
        let one = |volume: &MemoryVolume| {
            if let Some(there) = all.get(&volume.name).and_then(Weak::upgrade) {
                return Ok(there);
            }
            let made = Rc::new(make(volume)?);
            all.insert(volume.name.clone(), Rc::downgrade(&made));
            Ok(made)
        };
        wanted.iter().map(one).collect()
    }
}

fn make(volume: &MemoryVolume) -> Result<Volume, AgentError> {
    let name = &volume.name;
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if name.is_empty() || name.len() > 64 || !plain {
        return Err(error(ErrorKind::Invalid, format!("{name:?} is no name for a volume")));
    }
    let path = Path::new(VOLUMES).join(name);
    std::fs::create_dir(&path).system(|| format!("creating {}", path.display()))?;
    let mount = || {
        let tmpfs = Context::new("tmpfs")?;
        tmpfs.set("mode", Some("1777"))?;
        for (option, value) in
            [("size", volume.size), ("uid", volume.uid.into()), ("gid", volume.gid.into())]
        {
            tmpfs.set(option, Some(&value.to_string()))?;
        }
        let safe = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
        tmpfs.mount(safe)?.attach_at(&path)
    };
    if let Err(errno) = mount() {
        let _ = std::fs::remove_dir(&path);
        return Err(errno).system(|| format!("mounting {}", path.display()));
    }
    Ok(Volume { path })
}
