//! The container's cgroup on the host, and who makes it.
//!
//! ```text
//!                 Files                     Systemd(unit)
//! made            mkdir, limits             StartTransientUnit with the monitor in it,
//!                                           limits as properties; then the files too
//! changed         files                     SetUnitProperties; then the files too
//! removed         kill, rmdir               kill, StopUnit, ResetFailedUnit, rmdir
//! ```
//!
//! Under cgroup v1 systemd has the scope in the hierarchies that it uses, and we have a
//! cgroup of the same path in all others.
//!
//! The limits are the same list either way: files of the cgroup and their values. What
//! systemd does not know of stands in files alone, and what it would round is exact there.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::OciError;
use crate::container::chain;
use crate::sandbox::cgroup::{self, CgroupConfig};
use crate::systemd::{self, Bus, Unit};

/// Who makes the cgroup, and takes it away.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Manager {
    /// We do.
    #[default]
    Files,
    /// systemd, as a scope.
    Systemd(Unit),
}

impl Manager {
    /// Makes the cgroup, for process `pid`, which a scope begins with and which otherwise
    /// is still to join it.
    ///
    /// # Errors
    /// When it cannot be made; nothing is left then.
    pub(super) fn make(&self, config: &CgroupConfig, pid: i32) -> Result<(), OciError> {
        if let Manager::Systemd(unit) = self {
            let limits = systemd::of_limits(&config.limits)?;
            super::event_loop()?.block_on(async {
                Bus::connect().await?.start(unit, pid.unsigned_abs(), &limits).await
            })?;
        }
        cgroup::make(config).inspect_err(|_| self.remove(&config.path))?;
        Ok(())
    }

    /// Changes limits of the cgroup at `path`.
    ///
    /// # Errors
    /// Names the limit.
    pub(super) fn change(
        &self,
        path: &Path,
        settings: &[(String, String)],
    ) -> Result<(), OciError> {
        if let Manager::Systemd(unit) = self {
            let properties = systemd::of_limits(settings)?;
            if !properties.is_empty() {
                super::event_loop()?
                    .block_on(async { Bus::connect().await?.set(unit, &properties).await })?;
            }
        }
        Ok(cgroup::change(path, settings)?)
    }

    /// Kills what is in the cgroup at `path` and removes it.
    pub(super) fn remove(&self, path: &Path) {
        if let Manager::Systemd(unit) = self {
            // systemd would ask first, and wait.
            if let Err(error) = cgroup::kill(path) {
                tracing::warn!("{}", chain(&error));
            }
            let stopped = super::event_loop().and_then(|event_loop| {
                let stop = async { Bus::connect().await?.stop(unit).await };
                Ok(event_loop.block_on(stop)?)
            });
            if let Err(error) = stopped {
                // Its cgroup is removed below, which systemd notices.
                tracing::warn!("{}", chain(&error));
            }
        }
        cgroup::purge(path);
    }
}
