//! vCPU threads.
//!
//! ```text
//!            Pause                 Save -> state
//!   running --------> paused  ----------------------> paused
//!      ^                 |
//!      +------ Resume ---+        (a thread ends with the process)
//! ```
//!
//! A thread is born paused. A command reaches a running thread by a signal,
//! which makes KVM_RUN return; it is sent until the thread answers, so that one
//! that arrives just before KVM_RUN is not lost.

pub mod probe;
pub mod setup;
pub mod state;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::devices::bus::Bus;
use crate::ending::{Ending, Reporter, given_up};
use state::VcpuState;

/// How often a vCPU left the guest for this process, by kind.
#[derive(Debug, Default)]
pub struct ExitCounters {
    /// Port reads and writes.
    pub io: AtomicU64,
    /// Device register reads and writes that no eventfd took.
    pub mmio: AtomicU64,
    /// Everything else, signals included.
    pub other: AtomicU64,
}

enum Command {
    Pause,
    Resume,
    Save,
}

enum Reply {
    Done,
    State(Box<Result<VcpuState, String>>),
}

/// What a vCPU thread needs.
#[derive(Clone)]
pub struct VcpuContext {
    /// Guest-physical addresses that are not RAM.
    pub mmio: Arc<Bus>,
    /// Ports.
    pub pio: Arc<Bus>,
    /// Shared by all vCPUs.
    pub counters: Arc<ExitCounters>,
    /// Where the machine's end is reported.
    pub reporter: Reporter,
    /// For MSR lists.
    pub kvm: Arc<crate::kvm::Vm>,
}

/// The main thread's end of a vCPU thread.
pub struct VcpuHandle {
    commands: Sender<Command>,
    replies: Receiver<Reply>,
    thread: JoinHandle<()>,
}

/// Between the first two signals to a thread that has not answered yet.
const FIRST_KICK: Duration = Duration::from_millis(2);
/// The longest time between two.
const LAST_KICK: Duration = Duration::from_millis(256);

fn kick_signal() -> i32 {
    SIGRTMIN()
}

extern "C" fn ignore(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Installs the handler that makes [`kick_signal`] harmless. Once per process.
///
/// # Errors
/// As sigaction(2).
pub fn install_kick_handler() -> Result<(), vmm_sys_util::errno::Error> {
    register_signal_handler(kick_signal(), ignore)
}

impl VcpuHandle {
    /// Starts the thread of vCPU `index`, paused. `prepare` runs on it first.
    ///
    /// # Errors
    /// When no thread can be made. The vCPU comes back: KVM makes no second one of that
    /// number.
    pub fn spawn(
        index: u8,
        fd: VcpuFd,
        context: VcpuContext,
        prepare: impl FnOnce() + Send + 'static,
    ) -> Result<VcpuHandle, (std::io::Error, VcpuFd)> {
        let (give, take) = channel();
        let (commands, inbox) = channel();
        let (outbox, replies) = channel();
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{index}"))
            .stack_size(128 << 10)
            .spawn(move || {
                prepare();
                if let Ok(fd) = take.recv() {
                    Vcpu { index, fd, context, inbox, outbox }.paused();
                }
            });
        let thread = match thread {
            Ok(thread) => thread,
            Err(error) => return Err((error, fd)),
        };
        // A thread that cannot be confined panics, which ends the machine.
        let _ = give.send(fd);
        Ok(VcpuHandle { commands, replies, thread })
    }

    /// Stops the vCPU at an instruction boundary; returns once it stands.
    pub fn pause(&self) {
        self.call(Command::Pause);
    }

    /// Lets a paused vCPU run.
    pub fn resume(&self) {
        self.call(Command::Resume);
    }

    /// State of a paused vCPU.
    ///
    /// # Errors
    /// What KVM said.
    pub fn save(&self) -> Result<VcpuState, String> {
        match self.call(Command::Save) {
            Some(Reply::State(state)) => *state,
            _ => Err("the vCPU's thread has ended".into()),
        }
    }

    fn call(&self, command: Command) -> Option<Reply> {
        self.commands.send(command).ok()?;
        // A kick just before KVM_RUN is lost, so that others must follow; ever
        // later ones, or a slow thread would do nothing but take them.
        let mut patience = FIRST_KICK;
        loop {
            // A thread that has ended cannot be signalled, and its reply is lost:
            // recv tells so.
            let _ = self.thread.kill(kick_signal());
            match self.replies.recv_timeout(patience) {
                Ok(reply) => return Some(reply),
                Err(RecvTimeoutError::Timeout) if given_up() => return None,
                Err(RecvTimeoutError::Timeout) => patience = (patience * 2).min(LAST_KICK),
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }
}

/// Whether a vCPU may enter the guest again.
enum Next {
    Run,
    Ended,
}

struct Vcpu {
    index: u8,
    fd: VcpuFd,
    context: VcpuContext,
    inbox: Receiver<Command>,
    outbox: Sender<Reply>,
}

impl Vcpu {
    /// Waits for commands; returns when the handle is gone.
    fn paused(mut self) {
        while let Ok(command) = self.inbox.recv() {
            let resume = matches!(command, Command::Resume);
            self.answer(command);
            if resume && !self.running() {
                return;
            }
        }
    }

    fn answer(&mut self, command: Command) {
        let reply = match command {
            Command::Pause | Command::Resume => Reply::Done,
            Command::Save => Reply::State(Box::new(
                state::save(&self.context.kvm.kvm, &self.fd).map_err(|error| error.to_string()),
            )),
        };
        // The main thread waits for it, or the process is ending.
        let _ = self.outbox.send(reply);
    }

    /// Runs the guest until it is paused (true) or the handle is gone (false).
    fn running(&mut self) -> bool {
        loop {
            match self.inbox.try_recv() {
                Ok(Command::Pause) => {
                    self.settle();
                    self.answer(Command::Pause);
                    return true;
                }
                Ok(other) => self.answer(other),
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return false,
            }
            if let Next::Ended = self.step() {
                // The end is reported; the main thread ends the process, or saves
                // this vCPU for a post-mortem.
                return true;
            }
        }
    }

    /// Completes an I/O instruction that is half done, so that the registers are
    /// those of an instruction boundary.
    fn settle(&mut self) {
        self.fd.set_kvm_immediate_exit(1);
        let _ = self.fd.run();
        self.fd.set_kvm_immediate_exit(0);
    }

    fn step(&mut self) -> Next {
        let counters = &self.context.counters;
        let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        let exit = match self.fd.run() {
            Ok(exit) => exit,
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                count(&counters.other);
                return Next::Run;
            }
            Err(error) => return self.failed(format!("KVM_RUN failed: {error}")),
        };
        match exit {
            VcpuExit::IoIn(port, data) => {
                count(&counters.io);
                self.context.pio.read(u64::from(port), data);
                Next::Run
            }
            VcpuExit::IoOut(port, data) => {
                count(&counters.io);
                self.context.pio.write(u64::from(port), data);
                Next::Run
            }
            VcpuExit::MmioRead(address, data) => {
                count(&counters.mmio);
                self.context.mmio.read(address, data);
                Next::Run
            }
            VcpuExit::MmioWrite(address, data) => {
                count(&counters.mmio);
                self.context.mmio.write(address, data);
                Next::Run
            }
            VcpuExit::Intr | VcpuExit::Hlt => {
                count(&counters.other);
                Next::Run
            }
            VcpuExit::Shutdown => {
                self.context.reporter.report(Ending::TripleFault { vcpu: self.index });
                Next::Ended
            }
            VcpuExit::InternalError => {
                let what = internal_error(self.fd.get_kvm_run());
                self.failed(what)
            }
            VcpuExit::FailEntry(reason, cpu) => self.failed(format!(
                "KVM_EXIT_FAIL_ENTRY: the hardware refused to enter the guest, reason \
                 {reason:#x} on host CPU {cpu}"
            )),
            other => {
                let what = format!("an exit that this VMM does not know: {other:?}");
                self.failed(what)
            }
        }
    }

    fn failed(&self, what: String) -> Next {
        self.context.reporter.report(Ending::KvmFailure { vcpu: self.index, what });
        Next::Ended
    }
}

/// KVM_EXIT_INTERNAL_ERROR in words (include/uapi/linux/kvm.h).
fn internal_error(run: &kvm_bindings::kvm_run) -> String {
    #[allow(unsafe_code)]
    // SAFETY: KVM fills this member of the union for KVM_EXIT_INTERNAL_ERROR, the
    // exit that was just returned; all its fields are integers.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    let name = match internal.suberror {
        kvm_bindings::KVM_INTERNAL_ERROR_EMULATION => {
            "emulation failure: an instruction that KVM's emulator does not know"
        }
        kvm_bindings::KVM_INTERNAL_ERROR_SIMUL_EX => "simultaneous exceptions",
        kvm_bindings::KVM_INTERNAL_ERROR_DELIVERY_EV => "a fault while delivering an event",
        _ => "unexpected exit reason",
    };
    let data = &internal.data[..(internal.ndata as usize).min(internal.data.len())];
    format!("KVM_EXIT_INTERNAL_ERROR, suberror {} ({name}), data {data:x?}", internal.suberror)
}
