//! Who the process is and what it may: ids, capabilities, limits, seccomp.
//!
//! The order is the whole point:
//!
//! ```text
//! limits, scheduling   need the agent's own privileges
//! bounding set         needs CAP_SETPCAP
//! groups, gid, uid     with KEEPCAPS, so that the permitted set survives
//! capabilities         with CAP_SYS_ADMIN still there if seccomp needs it
//! -- the go --
//! AppArmor             for the execve; a filter might forbid to say so
//! seccomp              without no_new_privs it needs CAP_SYS_ADMIN
//! capabilities         as the specification says
//! ```

use std::str::FromStr;

use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use super::{Context, RoleError};
use crate::plan::ProcessPlan;
use crate::plan::process::CapabilitySets;
use crate::sys::lsm;
use crate::sys::process::{self, SchedAttr};

/// Limits of process `pid` (0: this one) that only privilege can set.
///
/// # Errors
/// Names the limit.
pub fn limit(plan: &ProcessPlan, pid: i32) -> Result<(), RoleError> {
    for (resource, soft, hard) in &plan.rlimits {
        process::set_limit(pid, *resource, *soft, *hard)
            .context(|| format!("setting process.rlimits (resource {resource})"))?;
    }
    if let Some(score) = plan.oom_score_adj {
        let who = if pid == 0 { "self".to_owned() } else { pid.to_string() };
        std::fs::write(format!("/proc/{who}/oom_score_adj"), score.to_string())
            .context(|| "setting process.oomScoreAdj".into())?;
    }
    Ok(())
}

/// Everything up to the go.
///
/// # Errors
/// Names the field.
pub fn assume(plan: &ProcessPlan) -> Result<(), RoleError> {
    schedule(plan)?;
    let sets = Sets::of(&plan.capabilities)?;
    let kernel = caps::runtime::thread_all_supported();
    for capability in kernel.difference(&sets.bounding) {
        caps::drop(None, CapSet::Bounding, *capability).map_err(unfit("bounding"))?;
    }
    prctl::set_keepcaps(true).context(|| "keeping capabilities".into())?;
    let (uid, gid) = (Uid::from_raw(plan.uid), Gid::from_raw(plan.gid));
    let groups: Vec<_> = plan.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    setgroups(&groups).context(|| "setting process.user.additionalGids".into())?;
    setresgid(gid, gid, gid).context(|| "setting process.user.gid".into())?;
    setresuid(uid, uid, uid).context(|| "setting process.user.uid".into())?;
    umask(Mode::from_bits_truncate(plan.umask.unwrap_or(0o022)));
    let mut before = sets;
    if plan.seccomp.is_some() && !plan.no_new_privileges {
        before.effective.insert(Capability::CAP_SYS_ADMIN);
        before.permitted.insert(Capability::CAP_SYS_ADMIN);
    }
    // The ambient set follows in `confine`.
    before.ambient.clear();
    before.apply()
}

/// What is left for after the go; execve follows at once.
///
/// # Errors
/// Names the field.
pub fn confine(plan: &ProcessPlan) -> Result<(), RoleError> {
    let sets = Sets::of(&plan.capabilities)?;
    if let Some(profile) = &plan.apparmor {
        lsm::change_on_exec(profile)
            .context(|| format!("process.apparmorProfile: changing to {profile:?}"))?;
    }
    if plan.no_new_privileges {
        prctl::set_no_new_privs().context(|| "setting process.noNewPrivileges".into())?;
        sets.apply()?;
    }
    if let Some(filter) = &plan.seccomp {
        crate::sys::seccomp::install(&mut filter.instructions(), filter.flags)
            .context(|| "installing linux.seccomp".into())?;
    }
    if plan.no_new_privileges { Ok(()) } else { sets.apply() }
}

fn schedule(plan: &ProcessPlan) -> Result<(), RoleError> {
    if let Some((class, level)) = plan.io_priority {
        process::set_io_priority(class, level).context(|| "setting process.ioPriority".into())?;
    }
    if let Some(scheduler) = &plan.scheduler {
        let (runtime, deadline, period) = scheduler.deadline;
        process::set_scheduler(SchedAttr {
            policy: scheduler.policy,
            flags: scheduler.flags,
            nice: scheduler.nice,
            priority: scheduler.priority,
            runtime,
            deadline,
            period,
            ..SchedAttr::default()
        })
        .context(|| "setting process.scheduler".into())?;
    }
    if let Some(persona) = plan.personality {
        let persona = nix::sys::personality::Persona::from_bits_retain(persona as i32);
        nix::sys::personality::set(persona).context(|| "setting linux.personality".into())?;
    }
    Ok(())
}

#[derive(Clone)]
struct Sets {
    bounding: CapsHashSet,
    effective: CapsHashSet,
    inheritable: CapsHashSet,
    permitted: CapsHashSet,
    ambient: CapsHashSet,
}

impl Sets {
    /// What the kernel does not know it cannot grant: left out, as runc does.
    fn of(names: &CapabilitySets) -> Result<Self, RoleError> {
        let kernel = caps::runtime::thread_all_supported();
        let set = |names: &[String]| -> Result<CapsHashSet, RoleError> {
            let parsed = names.iter().map(|name| {
                Capability::from_str(name).map_err(|_| {
                    RoleError::Unfit(format!("process.capabilities: {name} is unknown"))
                })
            });
            let parsed: CapsHashSet = parsed.collect::<Result<_, _>>()?;
            Ok(parsed.intersection(&kernel).copied().collect())
        };
        Ok(Sets {
            bounding: set(&names.bounding)?,
            effective: set(&names.effective)?,
            inheritable: set(&names.inheritable)?,
            permitted: set(&names.permitted)?,
            ambient: set(&names.ambient)?,
        })
    }

    fn apply(&self) -> Result<(), RoleError> {
        // Effective first shrinks to what will be permitted, then permitted.
        let lowered = self.effective.intersection(&self.permitted).copied().collect();
        caps::set(None, CapSet::Inheritable, &self.inheritable).map_err(unfit("inheritable"))?;
        caps::set(None, CapSet::Effective, &lowered).map_err(unfit("effective"))?;
        caps::set(None, CapSet::Permitted, &self.permitted).map_err(unfit("permitted"))?;
        if self.ambient.is_empty() {
            return Ok(());
        }
        // A capability can be ambient only while permitted and inheritable;
        // runc warns and goes on for the others, and so do we, in silence:
        // engines ask for ambient sets that do not fit the user all the time.
        for capability in &self.ambient {
            let _ = caps::raise(None, CapSet::Ambient, *capability);
        }
        Ok(())
    }
}

fn unfit(set: &'static str) -> impl Fn(caps::errors::CapsError) -> RoleError {
    move |error| RoleError::Unfit(format!("setting process.capabilities.{set}: {error}"))
}
