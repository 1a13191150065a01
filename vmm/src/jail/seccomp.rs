//! Allow-lists of system calls, one per kind of thread. Anything else kills the
//! process with SIGSYS, which the runtime reports as such; the audit log names
//! the call.

use std::collections::BTreeMap;
use std::sync::Arc;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::{JailError, ThreadKind};

/// What every thread does: locks, memory, its stack, its signals, its end.
const COMMON: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fcntl,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_read,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_sigaltstack,
    libc::SYS_write,
];

/// Waits for the runtime, signals vCPU threads, answers; attaches interfaces (eventfd2); and
/// makes the machine larger: the file that is guest memory, and threads for more vCPUs. A new thread inherits this
/// list and puts its own on top, so that this one must have all of [`VCPU`] as well.
const MAIN: &[i64] = &[
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_fstat,
    libc::SYS_ftruncate,
    libc::SYS_prctl,
    libc::SYS_recvmsg,
    libc::SYS_seccomp,
    libc::SYS_sendmsg,
    libc::SYS_set_robust_list,
    libc::SYS_tgkill,
];

/// clone(2) makes threads of this process (pthread_create's flags, no others): no
/// process, and no namespace.
const THREAD: libc::c_int = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID;

/// prctl(2): a thread's name, and what a filter needs.
const PRCTLS: &[libc::c_int] = &[libc::PR_SET_NAME, libc::PR_SET_NO_NEW_PRIVS];

/// Activates devices, which make what they need.
const VCPU: &[i64] = &[libc::SYS_timerfd_create];

/// Serves vsock, block, rng, balloon.
const DEVICES: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_fsync,
    libc::SYS_getsockopt,
    libc::SYS_lseek,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_socketpair,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_writev,
];

/// Serves files, in the name of the guest's users.
const FS: &[i64] = &[
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_copy_file_range,
    libc::SYS_dup,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fallocate,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fdatasync,
    libc::SYS_fgetxattr,
    libc::SYS_flistxattr,
    libc::SYS_fremovexattr,
    libc::SYS_fsetxattr,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getdents64,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_linkat,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_lremovexattr,
    libc::SYS_lseek,
    libc::SYS_lsetxattr,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_name_to_handle_at,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_removexattr,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_setresgid,
    libc::SYS_setresuid,
    libc::SYS_setxattr,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_symlinkat,
    libc::SYS_sync_file_range,
    libc::SYS_syncfs,
    libc::SYS_umask,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    libc::SYS_writev,
];

/// Serves network interfaces: whole frames between taps and guest memory. It looks at how long it
/// waits for a CPU, and chooses its policy by that.
const NET: &[i64] = &[
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_poll,
    libc::SYS_pread64,
    libc::SYS_readv,
    libc::SYS_sched_setscheduler,
    libc::SYS_timerfd_settime,
    libc::SYS_writev,
];

/// fcntl commands: flags and duplicates; no owners, leases or signals.
const FCNTLS: &[libc::c_int] =
    &[libc::F_GETFD, libc::F_GETFL, libc::F_SETFL, libc::F_DUPFD_CLOEXEC];

/// ioctl by which a device's thread, or whoever makes a device fail or changes its
/// configuration, interrupts the guest.
const IRQ_LINE: u64 = 0x4008_ae61; // KVM_IRQ_LINE
/// The same, for those of PCI functions.
const SIGNAL_MSI: u64 = 0x4020_aea5; // KVM_SIGNAL_MSI
/// ioctl by which notifications come where the guest, or the machine, has put them.
const IOEVENTFD: u64 = 0x4040_ae79; // KVM_IOEVENTFD

/// ioctl that runs a vCPU.
const KVM_RUN: u64 = 0xae80;

/// ioctls of a vCPU thread: running, what its writes to devices ask for, and saving state.
const VCPU_IOCTLS: &[u64] = &[
    IRQ_LINE,
    SIGNAL_MSI,
    IOEVENTFD,
    KVM_RUN,
    0x8090_ae81, // KVM_GET_REGS
    0x8138_ae83, // KVM_GET_SREGS
    0xc008_ae88, // KVM_GET_MSRS
    0x8400_ae8e, // KVM_GET_LAPIC
    0xc008_ae91, // KVM_GET_CPUID2
    0x8004_ae98, // KVM_GET_MP_STATE
    0x8040_ae9f, // KVM_GET_VCPU_EVENTS
    0x8080_aea1, // KVM_GET_DEBUGREGS
    0xaea3,      // KVM_GET_TSC_KHZ
    0x9000_aea4, // KVM_GET_XSAVE
    0x8188_aea6, // KVM_GET_XCRS
    0xc004_ae02, // KVM_GET_MSR_INDEX_LIST
];

/// ioctls of the thread that serves taps: what the driver negotiated. Nothing gives a tap to
/// another interface (TUNSETIFF), changes its filter or its owner.
const NET_IOCTLS: &[u64] = &[
    SIGNAL_MSI,
    0x4004_54d0, // TUNSETOFFLOAD
    0x4004_54d8, // TUNSETVNETHDRSZ
    0x4004_54d9, // TUNSETQUEUE
];

/// ioctls of the main thread: saving the machine, adding memory and vCPUs to it, and
/// interfaces.
const MAIN_IOCTLS: &[u64] = &[
    0xc208_ae62, // KVM_GET_IRQCHIP
    0x8030_ae7c, // KVM_GET_CLOCK
    0xae41,      // KVM_CREATE_VCPU
    0x4020_ae46, // KVM_SET_USER_MEMORY_REGION
    0xc008_ae05, // KVM_GET_SUPPORTED_CPUID
    0x4008_ae89, // KVM_SET_MSRS
    0x41a0_ae8d, // KVM_SET_FPU
    0x4400_ae8f, // KVM_SET_LAPIC
    0x4008_ae90, // KVM_SET_CPUID2
    0x8004_54d2, // TUNGETIFF
];

/// The compiled filters, made once before threads start.
#[derive(Clone)]
pub struct Filters(Arc<Compiled>);

struct Compiled {
    kinds: [(ThreadKind, BpfProgram); 5],
    /// Beside the main thread's own.
    no_clone3: BpfProgram,
}

impl Filters {
    /// Compiles them.
    ///
    /// # Errors
    /// When a list is malformed, which a unit test excludes.
    pub fn compile() -> Result<Filters, JailError> {
        let main = [MAIN, VCPU].concat();
        let kinds = [
            (ThreadKind::Main, program(&main, &[MAIN_IOCTLS, VCPU_IOCTLS].concat())?),
            (ThreadKind::Vcpu, program(VCPU, VCPU_IOCTLS)?),
            (ThreadKind::Devices, program(DEVICES, &[IRQ_LINE])?),
            (ThreadKind::Fs, program(FS, &[IRQ_LINE])?),
            (ThreadKind::Net, program(NET, NET_IOCTLS)?),
        ];
        Ok(Filters(Arc::new(Compiled { kinds, no_clone3: no_clone3()? })))
    }

    /// Puts the calling thread under its filter.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn apply(&self, kind: ThreadKind) -> Result<(), JailError> {
        let program = self.0.kinds.iter().find(|(candidate, _)| *candidate == kind);
        let (_, program) = program.ok_or_else(|| JailError::Filter(format!("no {kind:?}")))?;
        let apply = |program: &BpfProgram| {
            seccompiler::apply_filter(program).map_err(|error| JailError::Filter(error.to_string()))
        };
        if kind == ThreadKind::Main {
            apply(&self.0.no_clone3)?;
        }
        apply(program)
    }
}

/// clone3(2) has its flags in memory, where no filter sees them. ENOSYS makes the C
/// library take clone(2); of two filters the stricter answer holds.
fn no_clone3() -> Result<BpfProgram, JailError> {
    let failed = |error: seccompiler::BackendError| JailError::Filter(error.to_string());
    let filter = SeccompFilter::new(
        BTreeMap::from([(libc::SYS_clone3, Vec::new())]),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS as u32),
        TargetArch::x86_64,
    )
    .map_err(failed)?;
    filter.try_into().map_err(failed)
}

fn program(own: &[i64], ioctls: &[u64]) -> Result<BpfProgram, JailError> {
    let failed = |error: seccompiler::BackendError| JailError::Filter(error.to_string());
    let rule = |argument, operator, value| -> Result<SeccompRule, JailError> {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
            .and_then(|condition| SeccompRule::new(vec![condition]))
            .map_err(failed)
    };
    let equals = |argument, value| rule(argument, SeccompCmpOp::Eq, value);
    // Both of two arguments.
    let pair = |first: (u8, u64), second: (u8, u64)| -> Result<SeccompRule, JailError> {
        let condition = |(argument, value)| {
            SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
        };
        condition(first)
            .and_then(|first| SeccompRule::new(vec![first, condition(second)?]))
            .map_err(failed)
    };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        COMMON.iter().chain(own).map(|call| (*call, Vec::new())).collect();
    if !ioctls.is_empty() {
        let allowed: Result<Vec<_>, _> = ioctls.iter().map(|ioctl| equals(1, *ioctl)).collect();
        rules.insert(libc::SYS_ioctl, allowed?);
    }
    let fcntls: Result<Vec<_>, _> = FCNTLS.iter().map(|call| equals(1, *call as u64)).collect();
    rules.insert(libc::SYS_fcntl, fcntls?);
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        // No thread makes code.
        let executable = SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64);
        rules.insert(call, vec![rule(2, executable, 0)?]);
    }
    if own.contains(&libc::SYS_socketpair) {
        rules.insert(libc::SYS_socketpair, vec![equals(0, libc::AF_UNIX as u64)?]);
    }
    if own.contains(&libc::SYS_sched_setscheduler) {
        // The calling thread's own.
        let policies = [libc::SCHED_OTHER, libc::SCHED_BATCH];
        let policies = policies.map(|policy| pair((0, 0), (1, policy as u64)));
        let policies = policies.into_iter().collect::<Result<_, _>>();
        rules.insert(libc::SYS_sched_setscheduler, policies?);
    }
    if own.contains(&libc::SYS_clone) {
        rules.insert(libc::SYS_clone, vec![equals(0, THREAD as u64)?]);
        let prctls: Result<Vec<_>, _> = PRCTLS.iter().map(|call| equals(0, *call as u64)).collect();
        rules.insert(libc::SYS_prctl, prctls?);
        // No flags: a filter is for the calling thread alone, and has no listener.
        let mode = pair((0, u64::from(libc::SECCOMP_SET_MODE_FILTER)), (1, 0))?;
        rules.insert(libc::SYS_seccomp, vec![mode]);
    }
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        TargetArch::x86_64,
    )
    .map_err(failed)?;
    filter.try_into().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};

    const EXEC: &str = "execve";
    const CODE: &str = "mmap of code";
    const PROCESS: &str = "a new process";

    #[allow(unsafe_code)]
    fn die(forbidden: &str) -> ! {
        let (none, page) = (std::ptr::null_mut(), 4096);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: maps of its own memory, and the end of the process.
        unsafe {
            let data = libc::mmap(none, page, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
            if data == libc::MAP_FAILED {
                libc::_exit(1);
            }
            match forbidden {
                EXEC => drop(nix::unistd::execv(c"/bin/true", &[c"true"])),
                CODE => {
                    libc::mmap(none, page, libc::PROT_READ | libc::PROT_EXEC, flags, -1, 0);
                }
                _ => {
                    libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0);
                }
            }
            libc::_exit(0)
        }
    }

    /// Runs `child` in a process of its own.
    #[allow(unsafe_code)]
    fn forked(child: impl FnOnce()) -> WaitStatus {
        // SAFETY: the child's only thread is a copy of this one, and the C library makes
        // its allocator usable in it.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                child();
                // SAFETY: it ends the process without running what the test's owns.
                unsafe { libc::_exit(0) }
            }
            ForkResult::Parent { child } => waitpid(child, None).unwrap(),
        }
    }

    #[test]
    fn the_main_thread_can_add_a_vcpus_thread_which_is_confined_as_the_others() {
        let filters = Filters::compile().unwrap();
        let status = forked(|| {
            crate::jail::sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).unwrap();
            filters.apply(ThreadKind::Main).unwrap();
            let of_vcpu = filters.clone();
            let added = std::thread::Builder::new().name("vcpu1".into()).spawn(move || {
                of_vcpu.apply(ThreadKind::Vcpu).unwrap();
                std::hint::black_box(vec![1u8; 1 << 20]);
            });
            added.unwrap().join().unwrap();
        });
        assert!(matches!(status, WaitStatus::Exited(_, 0)), "{status:?}");
        let status = forked(|| {
            filters.apply(ThreadKind::Main).unwrap();
            let of_vcpu = filters.clone();
            let added = std::thread::spawn(move || {
                of_vcpu.apply(ThreadKind::Vcpu).unwrap();
                // The main thread's, not a vCPU's.
                let _ = nix::unistd::ftruncate(crate::event_loop::borrow(0), 0);
            });
            let _ = added.join();
        });
        assert!(
            matches!(status, WaitStatus::Signaled(_, nix::sys::signal::SIGSYS, _)),
            "{status:?}"
        );
    }

    /// clone3(2) with the flags of fork(2): whether it was refused with ENOSYS.
    #[allow(unsafe_code)]
    fn clone3_is_absent() -> bool {
        #[repr(C)]
        #[derive(Default)]
        struct Arguments {
            words: [u64; 8],
        }
        // exit_signal is the fifth.
        let mut arguments = Arguments::default();
        arguments.words[4] = libc::SIGCHLD as u64;
        // SAFETY: a child, if there is one, ends below as its parent does.
        let result = unsafe { libc::syscall(libc::SYS_clone3, &arguments, size_of::<Arguments>()) };
        result == -1 && nix::errno::Errno::last() == nix::errno::Errno::ENOSYS
    }

    #[test]
    fn nobody_makes_a_process_by_clone3() {
        let filters = Filters::compile().unwrap();
        let run = |kinds: &[ThreadKind]| {
            forked(|| {
                crate::jail::sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).unwrap();
                kinds.iter().for_each(|kind| filters.apply(*kind).unwrap());
                assert!(clone3_is_absent());
            })
        };
        let main = run(&[ThreadKind::Main]);
        assert!(matches!(main, WaitStatus::Exited(_, 0)), "{main:?}");
        for kind in [ThreadKind::Vcpu, ThreadKind::Devices, ThreadKind::Fs, ThreadKind::Net] {
            let status = run(&[kind]);
            assert!(
                matches!(status, WaitStatus::Signaled(_, nix::sys::signal::SIGSYS, _)),
                "{kind:?}: {status:?}"
            );
        }
        // One that the main thread made later has both.
        let added = run(&[ThreadKind::Main, ThreadKind::Vcpu]);
        assert!(matches!(added, WaitStatus::Signaled(_, nix::sys::signal::SIGSYS, _)), "{added:?}");
    }

    /// ioctl(2) of standard input, which is not KVM's: whether it was carried out, and refused.
    #[allow(unsafe_code)]
    fn reaches_the_kernel(ioctl: u64) -> bool {
        // SAFETY: no driver of a file that a test has as its input knows this number.
        unsafe { libc::ioctl(0, ioctl, 0) == -1 }
    }

    #[test]
    fn every_thread_can_interrupt_the_guest() {
        let filters = Filters::compile().unwrap();
        let run = |kind, ioctl| {
            forked(|| {
                crate::jail::sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).unwrap();
                filters.apply(kind).unwrap();
                assert!(reaches_the_kernel(ioctl));
            })
        };
        let devices = [ThreadKind::Devices, ThreadKind::Fs, ThreadKind::Net];
        let interrupts = [
            (ThreadKind::Devices, IRQ_LINE),
            (ThreadKind::Fs, IRQ_LINE),
            (ThreadKind::Net, SIGNAL_MSI),
            (ThreadKind::Main, IRQ_LINE),
            (ThreadKind::Main, SIGNAL_MSI),
            (ThreadKind::Vcpu, IRQ_LINE),
            (ThreadKind::Vcpu, SIGNAL_MSI),
            (ThreadKind::Vcpu, IOEVENTFD),
        ];
        for (kind, ioctl) in interrupts {
            let status = run(kind, ioctl);
            assert!(matches!(status, WaitStatus::Exited(_, 0)), "{kind:?}: {status:?}");
        }
        for kind in devices {
            let status = run(kind, KVM_RUN);
            let killed = matches!(status, WaitStatus::Signaled(_, nix::sys::signal::SIGSYS, _));
            assert!(killed, "{kind:?} runs no vCPU: {status:?}");
        }
    }

    #[test]
    fn the_thread_of_interfaces_chooses_its_own_policy_and_no_others() {
        let filters = Filters::compile().unwrap();
        let run = |thread: libc::pid_t, policy| {
            forked(|| {
                crate::jail::sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).unwrap();
                let mut manners = crate::sched::Manners::new().unwrap().unwrap();
                filters.apply(ThreadKind::Net).unwrap();
                manners.look().unwrap();
                crate::sched::set(thread, policy).unwrap();
            })
        };
        for policy in [libc::SCHED_OTHER, libc::SCHED_BATCH] {
            let own = run(0, policy);
            assert!(matches!(own, WaitStatus::Exited(_, 0)), "{policy}: {own:?}");
        }
        for (thread, policy) in [(0, libc::SCHED_FIFO), (0, libc::SCHED_IDLE), (1, 0)] {
            let other = run(thread, policy);
            let killed = matches!(other, WaitStatus::Signaled(_, nix::sys::signal::SIGSYS, _));
            assert!(killed, "{policy} of {thread}: {other:?}");
        }
    }

    #[test]
    fn the_lists_compile_and_bite() {
        let filters = Filters::compile().unwrap();
        let kinds = [
            ThreadKind::Main,
            ThreadKind::Vcpu,
            ThreadKind::Devices,
            ThreadKind::Fs,
            ThreadKind::Net,
        ];
        let all = |kind| [EXEC, CODE, PROCESS].map(|forbidden| (kind, forbidden));
        for (kind, forbidden) in kinds.into_iter().flat_map(all) {
            let status = forked(|| {
                crate::jail::sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).unwrap();
                filters.apply(kind).unwrap();
                die(forbidden);
            });
            assert!(
                matches!(status, WaitStatus::Signaled(_, nix::sys::signal::SIGSYS, _)),
                "{kind:?} {forbidden}: {status:?}"
            );
        }
    }
}
