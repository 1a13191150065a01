//! Starting a program in namespaces of its own: one clone3(2), then execveat(2).
//!
//! ```text
//! parent                                child (all namespaces new)
//!   | clone3 ------------------------->   | descriptors: 0,1 null, 2 stderr,
//!   | writes uid_map, gid_map             | 3 control, 4 go, 5 program; no other
//!   | Held::user_namespace()              | reads one byte of 4
//!   | Held::go(): one byte ----------->   | (end of file: exits)
//!   |                                     | becomes id 0 of its user namespace
//!   |                                     | execveat(5)
//! ```
//!
//! Between clone and exec the child is a copy of a process that may have had
//! other threads, so that it may call nothing that takes a lock or allocates:
//! raw system calls alone, on values that were prepared before the clone.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::pidfd::PidFd;

/// `CLONE_CLEAR_SIGHAND`: no handler of ours may run in the child.
const CLONE_CLEAR_SIGHAND: u64 = 1 << 32;
/// `CLONE_INTO_CGROUP`.
const CLONE_INTO_CGROUP: u64 = 1 << 33;
/// Descriptor of the go pipe in the child.
const GO_FD: RawFd = 4;
/// Descriptor of the program in the child.
const PROGRAM_FD: RawFd = 5;
/// Lowest number for the prepared descriptors: above all fixed ones.
const PREPARED_FROM: RawFd = 16;

/// What to start.
pub struct Program<'a> {
    /// The executable, opened.
    pub executable: BorrowedFd<'a>,
    /// argv[0].
    pub name: &'a CStr,
    /// Becomes descriptor 3.
    pub control: BorrowedFd<'a>,
    /// Becomes descriptor 2.
    pub stderr: BorrowedFd<'a>,
    /// Directory of the cgroup v2 to start in.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// A child that waits for [`Held::go`]. Dropped before, it ends by itself.
#[derive(Debug)]
pub struct Held {
    pidfd: PidFd,
    pid: i32,
    go: File,
}

/// `struct clone_args`.
#[repr(C, align(8))]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Everything that the child needs, as plain numbers and pointers.
struct Plan {
    null: RawFd,
    stderr: RawFd,
    control: RawFd,
    go: RawFd,
    program: RawFd,
    argv: [*const libc::c_char; 2],
    envp: [*const libc::c_char; 1],
}

/// Starts `program` in new user, pid, mount, ipc, uts and network namespaces.
///
/// # Errors
/// As clone3(2): EPERM without privilege, ENOSYS on a kernel before 5.7.
pub fn spawn_isolated(program: &Program) -> nix::Result<Held> {
    let namespaces = libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWNET;
    spawn(program, namespaces)
}

/// A user namespace with these maps, in which nothing ever runs: what id-mapped mounts
/// are made by.
///
/// # Errors
/// As clone3(2); EINVAL for maps that the kernel does not take.
pub fn user_namespace(uid_map: &str, gid_map: &str) -> std::io::Result<OwnedFd> {
    let write = |pid| write_maps(pid, uid_map, gid_map);
    user_namespace_by(write).and_then(|namespace| namespace)
}

/// A user namespace whose maps `map` writes, by a process in it that does nothing.
///
/// # Errors
/// As clone3(2); inside, those of `map`.
pub fn user_namespace_by<E>(
    map: impl FnOnce(i32) -> Result<(), E>,
) -> std::io::Result<Result<OwnedFd, E>> {
    let null = super::descriptors::null()?;
    let null = null.as_fd();
    let name = c"bulkhead-ids";
    let program = Program { executable: null, name, control: null, stderr: null, cgroup: None };
    let held = spawn(&program, libc::CLONE_NEWUSER)?;
    let mapped = map(held.pid());
    let namespace = held.user_namespace();
    held.abandon();
    match mapped {
        Ok(()) => namespace.map(Ok),
        Err(error) => Ok(Err(error)),
    }
}

fn spawn(program: &Program, namespaces: libc::c_int) -> nix::Result<Held> {
    let null = super::descriptors::null().map_err(to_errno)?;
    let (go_read, go_write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    // High copies, so that placing one at its number never overwrites another.
    let high = |fd: BorrowedFd| -> nix::Result<OwnedFd> {
        let copy = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(PREPARED_FROM))?;
        // SAFETY: fcntl has just made this descriptor for us.
        Ok(unsafe { OwnedFd::from_raw_fd(copy) })
    };
    let prepared = [
        high(null.as_fd())?,
        high(program.stderr)?,
        high(program.control)?,
        high(go_read.as_fd())?,
        high(program.executable)?,
    ];
    let plan = Plan {
        null: prepared[0].as_raw_fd(),
        stderr: prepared[1].as_raw_fd(),
        control: prepared[2].as_raw_fd(),
        go: prepared[3].as_raw_fd(),
        program: prepared[4].as_raw_fd(),
        argv: [program.name.as_ptr(), std::ptr::null()],
        envp: [std::ptr::null()],
    };
    let mut pidfd: RawFd = -1;
    let mut args = CloneArgs {
        flags: (namespaces | libc::CLONE_PIDFD) as u64 | CLONE_CLEAR_SIGHAND,
        pidfd: &raw mut pidfd as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = program.cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: args has the kernel's layout and lives over the call. Without
    // CLONE_VM the child has a copy of this address space and, with stack 0,
    // goes on on the copy of this stack; it calls only `child`, which never
    // returns and keeps to async-signal-safe system calls.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) };
    match pid {
        // SAFETY: this is the child of clone3.
        0 => unsafe { child(&plan) },
        -1 => Err(Errno::last()),
        pid => {
            // SAFETY: CLONE_PIDFD stored a new descriptor there.
            let pidfd = PidFd::new(unsafe { OwnedFd::from_raw_fd(pidfd) });
            Ok(Held { pidfd, pid: pid as i32, go: File::from(go_write) })
        }
    }
}

/// The child's part.
///
/// # Safety
/// Only in a process that clone3 has just made: it replaces descriptors 0 to 5
/// and closes all others.
unsafe fn child(plan: &Plan) -> ! {
    // SAFETY: each call takes numbers, or pointers to values of `plan` and of
    // this frame that live until execveat or _exit. None allocates or locks.
    unsafe {
        let no_signals = 0u64;
        let set = libc::SIG_SETMASK;
        libc::syscall(libc::SYS_rt_sigprocmask, set, &raw const no_signals, 0usize, 8usize);
        // Out of the terminal's reach: Ctrl-C is for the container alone.
        libc::syscall(libc::SYS_setsid);
        let places = [(plan.null, 0), (plan.null, 1), (plan.stderr, 2), (plan.control, 3)];
        for (from, to) in places {
            libc::syscall(libc::SYS_dup2, from, to);
        }
        libc::syscall(libc::SYS_dup2, plan.go, GO_FD);
        libc::syscall(libc::SYS_dup3, plan.program, PROGRAM_FD, libc::O_CLOEXEC);
        libc::syscall(libc::SYS_close_range, PROGRAM_FD + 1, u32::MAX, 0);
        let mut byte = 0u8;
        if libc::syscall(libc::SYS_read, GO_FD, &raw mut byte, 1usize) != 1 {
            libc::_exit(125);
        }
        libc::syscall(libc::SYS_close, GO_FD);
        let none = std::ptr::null::<libc::gid_t>();
        if libc::syscall(libc::SYS_setresgid, 0, 0, 0) != 0
            || libc::syscall(libc::SYS_setgroups, 0usize, none) != 0
            || libc::syscall(libc::SYS_setresuid, 0, 0, 0) != 0
        {
            fail(b"cannot become root of the new user namespace\n");
        }
        libc::syscall(
            libc::SYS_execveat,
            PROGRAM_FD,
            c"".as_ptr(),
            plan.argv.as_ptr(),
            plan.envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
        fail(match Errno::last_raw() {
            libc::EACCES => b"cannot execute the VMM: permission denied (must be mode 0755)\n",
            libc::ENOENT => b"cannot execute the VMM: its dynamic loader is missing\n",
            libc::ENOEXEC => b"cannot execute the VMM: it is not an executable for this machine\n",
            libc::ENOMEM => b"cannot execute the VMM: out of memory\n",
            _ => b"cannot execute the VMM\n",
        })
    }
}

/// Says why on descriptor 2 and ends.
///
/// # Safety
/// As [`child`].
unsafe fn fail(why: &[u8]) -> ! {
    // SAFETY: writes a static string and ends the process.
    unsafe {
        libc::syscall(libc::SYS_write, 2, why.as_ptr(), why.len());
        libc::_exit(126)
    }
}

impl Held {
    /// The child's number, valid until it is reaped.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Maps the ids of the child's user namespace, see user_namespaces(7).
    ///
    /// # Errors
    /// When the kernel refuses a map.
    pub fn map_ids(&self, uid_map: &str, gid_map: &str) -> std::io::Result<()> {
        write_maps(self.pid, uid_map, gid_map)
    }

    /// Gives the child as many descriptors as the kernel allows: its file server
    /// keeps one for each inode that the guest knows, and cannot raise the limit
    /// by itself.
    ///
    /// # Errors
    /// EPERM without CAP_SYS_RESOURCE.
    #[allow(unsafe_code)]
    pub fn raise_descriptors(&self) -> std::io::Result<()> {
        let most = std::fs::read_to_string("/proc/sys/fs/nr_open")?;
        let most = most.trim().parse().map_err(std::io::Error::other)?;
        let limit = libc::rlimit64 { rlim_cur: most, rlim_max: most };
        let old = std::ptr::null_mut();
        // SAFETY: the new limit outlives the call, the old one is not asked for.
        match unsafe { libc::prlimit64(self.pid, libc::RLIMIT_NOFILE, &raw const limit, old) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    }

    /// The child's user namespace.
    ///
    /// # Errors
    /// When the child has died.
    pub fn user_namespace(&self) -> std::io::Result<OwnedFd> {
        Ok(File::open(format!("/proc/{}/ns/user", self.pid))?.into())
    }

    /// Lets the child execute the program.
    ///
    /// # Errors
    /// When the child has died.
    pub fn go(mut self) -> std::io::Result<(PidFd, i32)> {
        if let Err(error) = self.go.write_all(b"!") {
            let _ = self.pidfd.signal(libc::SIGKILL);
            let _ = self.pidfd.wait();
            return Err(error);
        }
        Ok((self.pidfd, self.pid))
    }

    /// Ends and reaps the child.
    pub fn abandon(self) {
        let _ = self.pidfd.signal(libc::SIGKILL);
        let _ = self.pidfd.wait();
    }
}

/// The children of a process, as far as that is to be seen.
pub fn children(pid: i32) -> Vec<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("children"));
    let lists: Vec<String> = tasks.filter_map(|task| of(task).ok()).collect();
    let words = lists.iter().flat_map(|list| list.split_whitespace());
    words.filter_map(|word| word.parse().ok()).collect()
}

/// A process's name, of which Linux keeps 15 bytes.
pub fn name(pid: i32) -> Option<String> {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(name.trim_end().to_owned())
}

fn write_maps(pid: i32, uid_map: &str, gid_map: &str) -> std::io::Result<()> {
    for (file, map) in [("uid_map", uid_map), ("gid_map", gid_map)] {
        std::fs::write(format!("/proc/{pid}/{file}"), map)?;
    }
    Ok(())
}

fn to_errno(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

/// Gives `signal` back its default action.
///
/// # Errors
/// EINVAL for one that has no other.
pub fn default_action(signal: nix::sys::signal::Signal) -> nix::Result<()> {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, sigaction};
    let action = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: the default action runs no code of ours.
    unsafe { sigaction(signal, &action) }.map(drop)
}
