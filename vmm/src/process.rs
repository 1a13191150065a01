//! The process from its first instruction to its last message.
//!
//! ```text
//! wait for Boot -> build -> Running -> serve commands until the machine ends
//!                    |                                |
//!                    +-------> Exited(reason) <-------+  -> exit
//! ```

use std::io::Write;
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use protocol::machine::{Command, Event, ExitReason, Reply, Request, Size};

use crate::builder;
use crate::control::{Control, ControlError};
use crate::ending::{Ending, Endings, Reporter, endings, give_up};
use crate::event_loop::borrow;
use crate::machine::Machine;

/// Runs the process; `start` is its first instant. Exit status 0 means that the
/// end was reported to the runtime, 1 that it could not be, 2 that the process
/// was started by hand.
pub fn run(start: Instant) -> ExitCode {
    let control = match Control::inherit() {
        Ok(control) => Arc::new(control),
        Err(error) => {
            say(&error.to_string());
            return ExitCode::from(2);
        }
    };
    let reason = match life(&control, start) {
        Ok(reason) => reason,
        Err(ControlError::Closed) => return ExitCode::SUCCESS,
        Err(error) => internal("control", &error),
    };
    match control.event(Event::Exited(reason)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn internal(thread: &str, error: &dyn std::error::Error) -> ExitReason {
    let message = match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    };
    ExitReason::Internal { thread: thread.into(), message }
}

fn life(control: &Arc<Control>, start: Instant) -> Result<ExitReason, ControlError> {
    let (command, fds) = control.receive()?;
    let Request::Boot(config) = command.request else {
        control.reply(command.id, Err("the first request must be Boot".into()))?;
        return Ok(ExitReason::Killed);
    };
    let (reporter, endings) = match endings() {
        Ok(pair) => pair,
        Err(error) => return Ok(internal("main", &error)),
    };
    report_panics(reporter.clone());
    let epoll = watch(control, &endings)?;
    let built = builder::build(&config, fds, control, &reporter, start);
    let (mut machine, timings) = match built {
        Ok(built) => built,
        Err(error) => {
            control.reply(command.id, Err(error.to_string()))?;
            return Ok(ExitReason::Setup { stage: error.stage.into(), message: error.message });
        }
    };
    control.reply(command.id, Ok(Reply::Done))?;
    control.event(Event::Running(timings))?;
    machine.resume();
    let reason = serve(control, &mut machine, &endings, &epoll);
    machine.console.flush();
    // Threads and mappings go with the process; an orderly teardown would only
    // delay the news.
    std::mem::forget(machine);
    reason
}

/// On standard error, which the runtime or nobody reads: neither is a reason to panic.
fn say(words: &str) {
    let _ = writeln!(std::io::stderr(), "bulkhead-vmm: {words}");
}

/// A panic of any thread ends the machine with its message instead of a SIGABRT
/// that tells nothing.
fn report_panics(reporter: Reporter) {
    std::panic::set_hook(Box::new(move |info| {
        let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
        let message = info.to_string();
        say(&format!("{thread}: {message}"));
        reporter.report(Ending::Internal { thread, message });
        give_up();
        // The main thread reports it and ends the process before abort would;
        // if the main thread is the one that panicked, abort is the report.
        if std::thread::current().name() != Some("main") {
            loop {
                std::thread::park();
            }
        }
    }));
}

const COMMAND: u64 = 0;
const ENDING: u64 = 1;

/// What the main thread waits for; made before its seccomp filter forbids it.
fn watch(control: &Control, endings: &Endings) -> nix::Result<Epoll> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let event = |token| EpollEvent::new(EpollFlags::EPOLLIN, token);
    epoll.add(borrow(control.fd()), event(COMMAND))?;
    epoll.add(borrow(endings.wake.as_raw_fd()), event(ENDING))?;
    Ok(epoll)
}

fn serve(
    control: &Control,
    machine: &mut Machine,
    endings: &Endings,
    epoll: &Epoll,
) -> Result<ExitReason, ControlError> {
    loop {
        let mut events = [EpollEvent::empty(); 2];
        let count = match epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(count) => count,
            Err(nix::Error::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        if let Some(ending) = endings.take() {
            return Ok(explain(ending, machine));
        }
        let commanded = events[..count].iter().any(|event| event.data() == COMMAND);
        if commanded && !obey(control, machine)? {
            return Ok(ExitReason::Killed);
        }
    }
}

/// Obeys one command; false when the machine must end.
fn obey(control: &Control, machine: &mut Machine) -> Result<bool, ControlError> {
    let (Command { id, request }, fds) = match control.receive() {
        // No VMM outlives its supervisor.
        Err(ControlError::Closed) => return Ok(false),
        other => other?,
    };
    let reply = match request {
        Request::Boot(_) => Err("the machine runs already".to_owned()),
        Request::Pause => {
            machine.pause();
            Ok(Reply::Done)
        }
        Request::Resume => {
            machine.resume();
            Ok(Reply::Done)
        }
        Request::Balloon { mib } => machine.devices.set_balloon(mib).map(|()| Reply::Done),
        Request::Stats => Ok(Reply::Stats(machine.stats())),
        Request::Attach { shares } => match <[_; 1]>::try_from(fds) {
            Ok([mounts]) => {
                machine.devices.attach(&machine.loops, &shares, mounts).map(|()| Reply::Done)
            }
            Err(fds) => Err(format!("{} descriptors came with the shares", fds.len())),
        },
        Request::Detach { names } => {
            machine.devices.detach(&machine.loops, names);
            Ok(Reply::Done)
        }
        Request::Grow { memory_mib, vcpus } => machine
            .grow(Size { memory_mib, vcpus })
            .map(|()| Reply::Grown { size: machine.size(), added: machine.memory.added() }),
        Request::AttachNet { slot, net } => {
            machine.attach_net(slot, &net, fds).map(|device| Reply::Net { device })
        }
        Request::DetachNet { device } => machine.detach_net(device).map(|()| Reply::Done),
        Request::NetCounters => Ok(Reply::NetCounters(machine.devices.nets.counters())),
        Request::Kill => {
            control.reply(id, Ok(Reply::Done))?;
            return Ok(false);
        }
    };
    control.reply(id, reply)?;
    Ok(true)
}

/// The ending with the guest's last words.
fn explain(ending: Ending, machine: &Machine) -> ExitReason {
    let console = || machine.console.tail();
    match ending {
        Ending::PowerOff => ExitReason::PowerOff,
        Ending::Reset => ExitReason::GuestPanic { console: console() },
        Ending::TripleFault { vcpu } => ExitReason::TripleFault { vcpu, console: console() },
        Ending::KvmFailure { vcpu, what } => ExitReason::KvmFailure { vcpu, what },
        Ending::Internal { thread, message } => ExitReason::Internal { thread, message },
    }
}
