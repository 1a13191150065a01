//! `process`, of a container or of an exec.

use oci_spec::runtime::{
    Capabilities, IOPriorityClass, LinuxPersonality, LinuxPersonalityDomain, LinuxSchedulerFlag,
    LinuxSchedulerPolicy, LinuxSeccomp, PosixRlimitType, Process, Scheduler,
};
use protocol::apparmor::Policy;
use serde::{Deserialize, Serialize};

use super::{PlanError, field};
use crate::apparmor;
use crate::seccomp::{self, Filter};

/// A process to execute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessPlan {
    /// Arguments; the first names the program.
    pub args: Vec<String>,
    /// Environment.
    pub env: Vec<String>,
    /// Working directory.
    pub cwd: String,
    /// Rows and columns of its terminal, when it has one.
    pub terminal: Option<(u16, u16)>,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// File mode creation mask.
    pub umask: Option<u32>,
    /// Names (`CAP_...`) of the five sets.
    pub capabilities: CapabilitySets,
    /// Resource, soft, hard.
    pub rlimits: Vec<(u32, u64, u64)>,
    /// PR_SET_NO_NEW_PRIVS.
    pub no_new_privileges: bool,
    /// /proc/self/oom_score_adj.
    pub oom_score_adj: Option<i32>,
    /// AppArmor profile from execve on.
    pub apparmor: Option<String>,
    /// Compiled profile.
    pub seccomp: Option<Filter>,
    /// personality(2).
    pub personality: Option<u64>,
    /// Class, level.
    pub io_priority: Option<(u32, u32)>,
    /// Scheduling policy.
    pub scheduler: Option<SchedulerPlan>,
}

/// Names of the capabilities of each set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapabilitySets {
    /// Upper bound of what execve may give.
    pub bounding: Vec<String>,
    /// In force.
    pub effective: Vec<String>,
    /// Kept over execve by files that say so.
    pub inheritable: Vec<String>,
    /// May be put in force.
    pub permitted: Vec<String>,
    /// Kept over execve.
    pub ambient: Vec<String>,
}

/// As the kernel's sched_attr.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchedulerPlan {
    /// SCHED_*.
    pub policy: u32,
    /// SCHED_FLAG_*.
    pub flags: u64,
    /// Nice value.
    pub nice: i32,
    /// Real-time priority.
    pub priority: u32,
    /// Deadline parameters: runtime, deadline, period in nanoseconds.
    pub deadline: (u64, u64, u64),
}

impl ProcessPlan {
    /// Validates `process` with what `linux` says of it, and the AppArmor profiles that
    /// came along.
    ///
    /// # Errors
    /// Names the field.
    pub fn new(
        process: &Process,
        seccomp: Option<&LinuxSeccomp>,
        personality: &Option<LinuxPersonality>,
        policies: &[Policy],
    ) -> Result<Self, PlanError> {
        refuse(process)?;
        let args = process.args().clone().unwrap_or_default();
        if args.is_empty() {
            return Err(field("process.args", "is empty"));
        }
        let env = process.env().clone().unwrap_or_default();
        if args.iter().chain(&env).any(|word| word.contains('\0')) {
            return Err(field("process.args, process.env", "contain a NUL byte"));
        }
        if !process.cwd().is_absolute() {
            return Err(field("process.cwd", "is not absolute"));
        }
        let user = process.user();
        let size = process.console_size();
        let cut = |n: u64| u16::try_from(n).unwrap_or(u16::MAX);
        let cells = size.map_or((0, 0), |size| (cut(size.height()), cut(size.width())));
        Ok(ProcessPlan {
            args,
            env,
            cwd: process.cwd().to_string_lossy().into_owned(),
            terminal: process.terminal().unwrap_or(false).then_some(cells),
            uid: user.uid(),
            gid: user.gid(),
            groups: user.additional_gids().clone().unwrap_or_default(),
            umask: user.umask(),
            capabilities: capabilities(process),
            rlimits: rlimits(process)?,
            no_new_privileges: process.no_new_privileges().unwrap_or(false),
            oom_score_adj: process.oom_score_adj(),
            apparmor: apparmor::profile(process.apparmor_profile().as_deref(), policies)?,
            seccomp: seccomp.map(seccomp::compile).transpose()?,
            personality: personality.as_ref().map(domain).transpose()?,
            io_priority: io_priority(process)?,
            scheduler: process.scheduler().as_ref().map(scheduler).transpose()?,
        })
    }
}

fn refuse(process: &Process) -> Result<(), PlanError> {
    let text = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    if text(process.selinux_label()) {
        return Err(field("process.selinuxLabel", "the guest kernel has no SELinux"));
    }
    if text(process.command_line()) || text(process.user().username()) {
        let reason = "are of another platform";
        return Err(field("process.commandLine, process.user.username", reason));
    }
    if process.exec_cpu_affinity().is_some() {
        return Err(field("process.execCPUAffinity", "is not supported"));
    }
    Ok(())
}

fn capabilities(process: &Process) -> CapabilitySets {
    let names = |set: &Option<Capabilities>| {
        let mut names: Vec<_> =
            set.iter().flatten().map(|capability| format!("CAP_{capability}")).collect();
        names.sort();
        names
    };
    let Some(sets) = process.capabilities() else {
        return CapabilitySets::default();
    };
    CapabilitySets {
        bounding: names(sets.bounding()),
        effective: names(sets.effective()),
        inheritable: names(sets.inheritable()),
        permitted: names(sets.permitted()),
        ambient: names(sets.ambient()),
    }
}

fn rlimits(process: &Process) -> Result<Vec<(u32, u64, u64)>, PlanError> {
    use PosixRlimitType as Type;
    let mut limits: Vec<(u32, u64, u64)> = Vec::new();
    for limit in process.rlimits().iter().flatten() {
        let resource = match limit.typ() {
            Type::RlimitCpu => libc::RLIMIT_CPU,
            Type::RlimitFsize => libc::RLIMIT_FSIZE,
            Type::RlimitData => libc::RLIMIT_DATA,
            Type::RlimitStack => libc::RLIMIT_STACK,
            Type::RlimitCore => libc::RLIMIT_CORE,
            Type::RlimitRss => libc::RLIMIT_RSS,
            Type::RlimitNproc => libc::RLIMIT_NPROC,
            Type::RlimitNofile => libc::RLIMIT_NOFILE,
            Type::RlimitMemlock => libc::RLIMIT_MEMLOCK,
            Type::RlimitAs => libc::RLIMIT_AS,
            Type::RlimitLocks => libc::RLIMIT_LOCKS,
            Type::RlimitSigpending => libc::RLIMIT_SIGPENDING,
            Type::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
            Type::RlimitNice => libc::RLIMIT_NICE,
            Type::RlimitRtprio => libc::RLIMIT_RTPRIO,
            Type::RlimitRttime => libc::RLIMIT_RTTIME,
        };
        if limits.iter().any(|(other, ..)| *other == resource) {
            return Err(field("process.rlimits", format!("{} is there twice", limit.typ())));
        }
        if limit.soft() > limit.hard() {
            return Err(field("process.rlimits", format!("{}: soft is over hard", limit.typ())));
        }
        limits.push((resource, limit.soft(), limit.hard()));
    }
    Ok(limits)
}

fn domain(personality: &LinuxPersonality) -> Result<u64, PlanError> {
    if personality.flags().as_ref().is_some_and(|flags| !flags.is_empty()) {
        return Err(field("linux.personality.flags", "the specification defines none"));
    }
    Ok(match personality.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 8, // PER_LINUX32
    })
}

fn io_priority(process: &Process) -> Result<Option<(u32, u32)>, PlanError> {
    let Some(priority) = process.io_priority() else { return Ok(None) };
    let class = match priority.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    match u32::try_from(priority.priority()) {
        Ok(level @ 0..=7) => Ok(Some((class, level))),
        _ => Err(field("process.ioPriority.priority", "is not within 0..7")),
    }
}

fn scheduler(scheduler: &Scheduler) -> Result<SchedulerPlan, PlanError> {
    use LinuxSchedulerFlag as Flag;
    let policy = match scheduler.policy() {
        LinuxSchedulerPolicy::SchedOther => 0,
        LinuxSchedulerPolicy::SchedFifo => 1,
        LinuxSchedulerPolicy::SchedRr => 2,
        LinuxSchedulerPolicy::SchedBatch => 3,
        LinuxSchedulerPolicy::SchedIso => {
            return Err(field("process.scheduler.policy", "Linux has no SCHED_ISO"));
        }
        LinuxSchedulerPolicy::SchedIdle => 5,
        LinuxSchedulerPolicy::SchedDeadline => 6,
    };
    let bit = |flag: &Flag| match flag {
        Flag::SchedResetOnFork => 0x01,
        Flag::SchedFlagReclaim => 0x02,
        Flag::SchedFlagDLOverrun => 0x04,
        Flag::SchedFlagKeepPolicy => 0x08,
        Flag::SchedFlagKeepParams => 0x10,
        Flag::SchedFlagUtilClampMin => 0x20,
        Flag::SchedFlagUtilClampMax => 0x40,
    };
    let priority = scheduler.priority().unwrap_or(0);
    Ok(SchedulerPlan {
        policy,
        flags: scheduler.flags().iter().flatten().map(bit).sum(),
        nice: scheduler.nice().unwrap_or(0),
        priority: u32::try_from(priority)
            .map_err(|_| field("process.scheduler.priority", "is negative"))?,
        deadline: (
            scheduler.runtime().unwrap_or(0),
            scheduler.deadline().unwrap_or(0),
            scheduler.period().unwrap_or(0),
        ),
    })
}
