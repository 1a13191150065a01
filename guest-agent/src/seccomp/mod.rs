//! `linux.seccomp` -> a classic BPF program.
//!
//! Our own generator rather than seccompiler's, which knows one action beside
//! the default: docker's profile needs three (allow, EPERM, ENOSYS), and the
//! specification eight. The program:
//!
//! ```text
//! other architecture, x32 call        -> ENOSYS: only the table of x86-64 is built in
//! newer than any call of the profile  -> ENOSYS, when the default refuses
//!                                        (runc does so, for glibc's fallbacks)
//! each run of calls of equal action   -> that action
//! each call with argument conditions  -> first rule that holds, else default
//! anything else                       -> default
//! ```
//!
//! Calls that x86-64 does not have (profiles name those of all architectures)
//! need no rule.

mod table;

use std::collections::BTreeMap;

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg as Arg,
    LinuxSeccompFilterFlag as Flag, LinuxSeccompOperator as Operator, LinuxSyscall,
};
use serde::{Deserialize, Serialize};

use crate::sys::seccomp::Instruction;

/// Instructions that the kernel accepts at most (BPF_MAXINSNS).
const MAX_INSTRUCTIONS: usize = 4096;
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
const X32_BIT: u32 = 0x4000_0000;
const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const JEQ: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JGT: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
const JGE: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

/// A compiled profile, as it travels to the role that installs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// SECCOMP_FILTER_FLAG_*.
    pub flags: u32,
    /// (code, jt, jf, k).
    pub program: Vec<(u16, u8, u8, u32)>,
}

impl Filter {
    /// The program as the kernel takes it.
    pub fn instructions(&self) -> Vec<Instruction> {
        let one = |&(code, jt, jf, k)| Instruction { code, jt, jf, k };
        self.program.iter().map(one).collect()
    }
}

/// What of a profile cannot be expressed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SeccompError {
    /// User notification needs a listener on the host.
    #[error("linux.seccomp: SCMP_ACT_NOTIFY is not supported (no listener can cross the machine)")]
    Notify,
    /// An argument that system calls do not have.
    #[error("linux.seccomp.syscalls: argument index {0} is over 5")]
    Index(usize),
    /// A flag that has no meaning here.
    #[error("linux.seccomp.flags: {0} is not supported")]
    Flag(Flag),
    /// Too many rules for one program.
    #[error(
        "linux.seccomp: the profile needs {0} BPF instructions, the kernel takes {MAX_INSTRUCTIONS}"
    )]
    TooLong(usize),
    /// No architecture of the profile is this machine's.
    #[error("linux.seccomp.architectures: SCMP_ARCH_X86_64 is not among them")]
    Architecture,
}

/// Rules of one system call: conditions (all must hold) and the return value.
type Rules = Vec<(Vec<Arg>, u32)>;

/// Compiles a profile.
///
/// # Errors
/// Names what cannot be expressed.
pub fn compile(profile: &LinuxSeccomp) -> Result<Filter, SeccompError> {
    if profile.listener_path().is_some() {
        return Err(SeccompError::Notify);
    }
    let native = |arch: &Arch| matches!(arch, Arch::ScmpArchX86_64 | Arch::ScmpArchNative);
    match profile.architectures() {
        Some(list) if !list.is_empty() && !list.iter().any(native) => {
            return Err(SeccompError::Architecture);
        }
        _ => {}
    }
    let default = value(profile.default_action(), profile.default_errno_ret())?;
    let rules = collect(profile.syscalls().as_deref().unwrap_or_default())?;
    let program = assemble(default, &rules);
    if program.len() > MAX_INSTRUCTIONS {
        return Err(SeccompError::TooLong(program.len()));
    }
    Ok(Filter { flags: flags(profile.flags().as_deref().unwrap_or_default())?, program })
}

fn flags(list: &[Flag]) -> Result<u32, SeccompError> {
    list.iter().try_fold(0, |flags, flag| {
        Ok(flags
            | match flag {
                Flag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG as u32,
                Flag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as u32,
                // The process has one thread when the filter is installed.
                Flag::SeccompFilterFlagTsync => 0,
                Flag::SeccompFilterFlagWaitKillableRecv => return Err(SeccompError::Flag(*flag)),
            })
    })
}

fn value(action: Action, errno: Option<u32>) -> Result<u32, SeccompError> {
    let data = errno.unwrap_or(libc::EPERM as u32) & libc::SECCOMP_RET_DATA;
    Ok(match action {
        Action::ScmpActKill | Action::ScmpActKillThread => libc::SECCOMP_RET_KILL_THREAD,
        Action::ScmpActKillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        Action::ScmpActTrap => libc::SECCOMP_RET_TRAP,
        Action::ScmpActErrno => libc::SECCOMP_RET_ERRNO | data,
        Action::ScmpActTrace => libc::SECCOMP_RET_TRACE | data,
        Action::ScmpActLog => libc::SECCOMP_RET_LOG,
        Action::ScmpActAllow => libc::SECCOMP_RET_ALLOW,
        Action::ScmpActNotify => return Err(SeccompError::Notify),
    })
}

fn collect(syscalls: &[LinuxSyscall]) -> Result<BTreeMap<u32, Rules>, SeccompError> {
    let mut all = BTreeMap::<u32, Rules>::new();
    for syscall in syscalls {
        let value = value(syscall.action(), syscall.errno_ret())?;
        let args = syscall.args().as_deref().unwrap_or_default();
        if let Some(arg) = args.iter().find(|arg| arg.index() > 5) {
            return Err(SeccompError::Index(arg.index()));
        }
        let numbers = syscall.names().iter().filter_map(|name| table::number(name));
        for number in numbers {
            let rules = all.entry(number).or_default();
            // As libseccomp has it: conditions on one argument repeated are
            // alternatives, on different arguments they must all hold.
            let repeated = (0..6).any(|i| args.iter().filter(|arg| arg.index() == i).count() > 1);
            if repeated {
                rules.extend(args.iter().map(|arg| (vec![*arg], value)));
            } else {
                rules.push((args.to_vec(), value));
            }
        }
    }
    Ok(all)
}

type Program = Vec<(u16, u8, u8, u32)>;

fn assemble(default: u32, rules: &BTreeMap<u32, Rules>) -> Program {
    let mut program = vec![
        (LOAD, 0, 0, 4), // seccomp_data.arch
        (JEQ, 1, 0, AUDIT_ARCH_X86_64),
        (RETURN, 0, 0, ENOSYS),
        (LOAD, 0, 0, 0), // seccomp_data.nr
        (JGE, 0, 1, X32_BIT),
        (RETURN, 0, 0, ENOSYS),
    ];
    let refuses = default != libc::SECCOMP_RET_ALLOW && default != libc::SECCOMP_RET_LOG;
    if let (true, Some((newest, _))) = (refuses, rules.last_key_value()) {
        program.extend([(JGT, 0, 1, *newest), (RETURN, 0, 0, ENOSYS)]);
    }
    let plain = |rules: &Rules| match rules.first() {
        Some((args, value)) if args.is_empty() => Some(*value),
        _ => None,
    };
    let mut runs: Vec<(u32, u32, u32)> = Vec::new();
    for (&number, value) in rules.iter().filter_map(|(n, r)| Some((n, plain(r)?))) {
        match runs.last_mut() {
            Some((_, last, same)) if *last + 1 == number && *same == value => *last = number,
            _ => runs.push((number, number, value)),
        }
    }
    for (first, last, value) in runs {
        program.extend([(JGE, 0, 2, first), (JGT, 1, 0, last), (RETURN, 0, 0, value)]);
    }
    for (number, rules) in rules.iter().filter(|(_, rules)| plain(rules).is_none()) {
        let body = conditional(default, rules);
        program.extend([(JEQ, 1, 0, *number), (JUMP, 0, 0, body.len() as u32)]);
        program.extend(body);
    }
    program.push((RETURN, 0, 0, default));
    program
}

fn conditional(default: u32, rules: &Rules) -> Program {
    let mut body = Program::new();
    for (args, value) in rules {
        let mut rule = Program::new();
        let mut failing = Vec::new();
        for arg in args {
            condition(arg, &mut rule, &mut failing);
        }
        rule.push((RETURN, 0, 0, *value));
        for (at, when_true) in failing {
            let distance = (rule.len() - at - 1) as u8;
            if when_true {
                rule[at].1 = distance;
            } else {
                rule[at].2 = distance;
            }
        }
        body.extend(rule);
    }
    body.push((RETURN, 0, 0, default));
    body
}

/// Appends the test of one argument. `failing` collects the jumps (by index and
/// branch) that leave the rule.
fn condition(arg: &Arg, rule: &mut Program, failing: &mut Vec<(usize, bool)>) {
    let low = 16 + 8 * arg.index() as u32;
    let (mut want, mut mask) = (arg.value(), u64::MAX);
    if arg.op() == Operator::ScmpCmpMaskedEq {
        (want, mask) = (arg.value_two().unwrap_or(0), arg.value());
    }
    let halves = |number: u64| ((number >> 32) as u32, number as u32);
    let ((want_high, want_low), (mask_high, mask_low)) = (halves(want), halves(mask));
    let load = |rule: &mut Program, offset, mask| {
        rule.push((LOAD, 0, 0, offset));
        if mask != u32::MAX {
            rule.push((AND, 0, 0, mask));
        }
    };
    load(rule, low + 4, mask_high);
    match arg.op() {
        Operator::ScmpCmpEq | Operator::ScmpCmpMaskedEq => {
            failing.push((rule.len(), false));
            rule.push((JEQ, 0, 0, want_high));
            load(rule, low, mask_low);
            failing.push((rule.len(), false));
            rule.push((JEQ, 0, 0, want_low));
        }
        Operator::ScmpCmpNe => {
            // A different high half decides: past the load and test of the low.
            rule.push((JEQ, 0, 2, want_high));
            load(rule, low, u32::MAX);
            failing.push((rule.len(), true));
            rule.push((JEQ, 0, 0, want_low));
        }
        Operator::ScmpCmpGt | Operator::ScmpCmpGe => {
            rule.push((JGT, 3, 0, want_high));
            failing.push((rule.len(), false));
            rule.push((JEQ, 0, 0, want_high));
            load(rule, low, u32::MAX);
            let code = if arg.op() == Operator::ScmpCmpGt { JGT } else { JGE };
            failing.push((rule.len(), false));
            rule.push((code, 0, 0, want_low));
        }
        Operator::ScmpCmpLt | Operator::ScmpCmpLe => {
            failing.push((rule.len(), true));
            rule.push((JGT, 0, 0, want_high));
            rule.push((JEQ, 0, 2, want_high));
            load(rule, low, u32::MAX);
            let code = if arg.op() == Operator::ScmpCmpLt { JGE } else { JGT };
            failing.push((rule.len(), true));
            rule.push((code, 0, 0, want_low));
        }
    }
}

#[cfg(test)]
mod tests;
