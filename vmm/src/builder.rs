//! The boot recipe: from a description and descriptors to a machine that stands
//! at the kernel's entry. One flat list of steps; each is timed.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use protocol::machine::{FdIndex, MAX_NETS, MachineConfig, POWER_PORT, Timings};

use crate::boot::{cmdline, kernel, layout, mptable, paging};
use crate::control::Control;
use crate::devices::bus::{Bus, BusBuilder};
use crate::devices::console::{CONSOLE_PORT, CONSOLE_PORTS, Console};
use crate::devices::pci::{Face, Root, Space};
use crate::devices::power::{I8042_COMMAND_PORT, PowerButton, ResetPort};
use crate::devices::virtio::transport::{INTERRUPT_ACK, QUEUE_NOTIFY, Transport, Windows};
use crate::ending::{Ending, Reporter};
use crate::event_loop::EventLoop;
use crate::jail::{self, Filters, ThreadKind};
use crate::kvm::{KvmError, Vm};
use crate::machine::Machine;
use crate::memory::Memory;
use crate::sched::Manners;
use crate::vcpu::{self, ExitCounters, VcpuContext, VcpuHandle, probe, setup};

mod devices;
mod nets;

use devices::Row;
pub use devices::{Devices, Loops};
pub use nets::{NetTaps, Nets};

/// A stage that failed, in words.
#[derive(Debug, thiserror::Error)]
#[error("{stage}: {message}")]
pub struct BuildError {
    /// Name of the stage.
    pub stage: &'static str,
    /// What failed there.
    pub message: String,
}

/// For `map_err`: the whole chain of causes in one line.
fn at(stage: &'static str) -> impl Fn(&dyn std::error::Error) -> BuildError {
    move |error| {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            message = format!("{message}: {cause}");
            source = cause.source();
        }
        BuildError { stage, message }
    }
}

/// The descriptors that came with the description, each taken once.
pub struct Fds(Vec<Option<OwnedFd>>);

impl Fds {
    /// Takes them over.
    pub fn new(fds: Vec<OwnedFd>) -> Fds {
        Fds(fds.into_iter().map(Some).collect())
    }

    /// The descriptor at `index`.
    ///
    /// # Errors
    /// When there is none, or it was taken.
    pub fn take(&mut self, index: FdIndex) -> Result<OwnedFd, BuildError> {
        self.0.get_mut(index.0 as usize).and_then(Option::take).ok_or_else(|| BuildError {
            stage: "description",
            message: format!("descriptor {} was not sent, or is used twice", index.0),
        })
    }
}

/// Names each stage as it ends.
struct Clock {
    start: Instant,
    timings: Timings,
}

impl Clock {
    fn lap(&mut self, stage: &str) {
        let microseconds = self.start.elapsed().as_micros() as u64;
        self.timings.stages.push((stage.to_owned(), microseconds));
    }
}

/// Checks what only this process can check.
fn validate(config: &MachineConfig) -> Result<(), BuildError> {
    let refuse = |message: String| Err(BuildError { stage: "description", message });
    if config.version != protocol::PROTOCOL_VERSION {
        return refuse(format!(
            "the runtime speaks version {} of the machine protocol, this VMM version {}: \
             install both from one release",
            config.version,
            protocol::PROTOCOL_VERSION
        ));
    }
    if !(1..=mptable::MAX_CPUS).contains(&config.vcpus) {
        return refuse(format!("{} vCPUs are outside 1..={}", config.vcpus, mptable::MAX_CPUS));
    }
    if config.max_vcpus > mptable::MAX_CPUS {
        let (asked, most) = (config.max_vcpus, mptable::MAX_CPUS);
        return refuse(format!("room for {asked} vCPUs is asked for; there is for {most}"));
    }
    let nets = config.nets.len() + usize::from(config.net_slots);
    if nets > MAX_NETS {
        return refuse(format!("{nets} network interfaces; a machine has {MAX_NETS} at most"));
    }
    Ok(())
}

/// Builds the machine. `start` is the process's first instant.
///
/// # Errors
/// The stage that failed and why.
pub fn build(
    config: &MachineConfig,
    fds: Vec<OwnedFd>,
    control: &Arc<Control>,
    reporter: &Reporter,
    start: Instant,
) -> Result<(Machine, Timings), BuildError> {
    let mut clock = Clock { start, timings: Timings::default() };
    validate(config)?;
    let mut fds = Fds::new(fds);
    let kvm = fds.take(config.kvm)?;
    let mut kernel_file = File::from(fds.take(config.kernel)?);
    let mut initrd = File::from(fds.take(config.initrd)?);
    let shares = enter_jail(config, &mut fds)?;
    let filters = Filters::compile().map_err(|error| at("jail")(&error))?;
    clock.lap("jail");

    let memory = Memory::allocate(config.memory_mib).map_err(|error| at("memory")(&error))?;
    let ram = memory.ram().now();
    let vm = Arc::new(Vm::new(kvm, &ram).map_err(|error| at("kvm")(&error))?);
    clock.lap("kvm");

    // CPUs that there may be one day: the guest is told of them all.
    let max_vcpus = config.max_vcpus.max(config.vcpus);
    let mut vcpus = Vec::new();
    for index in 0..config.vcpus {
        let vcpu = vm.fd.create_vcpu(u64::from(index)).map_err(|error| at("vcpus")(&error))?;
        setup::configure(&vm, &vcpu, index, max_vcpus).map_err(|error| at("vcpus")(&error))?;
        vcpus.push(vcpu);
    }
    paging::write(&ram).map_err(|error| at("memory")(&error))?;
    probe::check(&mut vcpus[0], &ram).map_err(|message| BuildError { stage: "kvm", message })?;
    clock.lap("vcpus");

    let slow = Arc::new(event_loop("devices", &filters, ThreadKind::Devices)?);
    let files = Arc::new(event_loop("fs", &filters, ThreadKind::Fs)?);
    let net = (!config.nets.is_empty() || config.net_slots > 0)
        .then(|| net_loop(&filters).map(Arc::new))
        .transpose()?;
    let loops = devices::Loops { slow, files, net };
    let pins = (layout::IRQS - layout::FIRST_IRQ) as usize;
    let windows = Windows::new(pins).map_err(|error| at("devices")(&error))?;
    let row = Row::new(&vm, memory.ram(), &windows);
    let mut built = devices::build(config, &mut fds, row, &loops, shares, control)?;
    let console = Arc::new(
        Console::new(config.console.map(|index| fds.take(index)).transpose()?)
            .map_err(|error| at("console")(&error))?,
    );
    let mmio = mmio_bus(&vm, &built, &windows)?;
    for transport in &built.transports {
        watch(transport, reporter);
    }
    for net in &config.nets {
        let taps = NetTaps::take(net, &mut fds)?;
        let attached = built.nets.attach(&vm, reporter, None, net, taps);
        attached.map_err(|message| BuildError { stage: "net", message })?;
    }
    let pio = pio_bus(&console, reporter, built.nets.bus())?;
    clock.lap("devices");

    let line = cmdline::build(&cmdline::Words {
        devices: built.transports.len(),
        pci: built.nets.bus().is_some(),
        online: (max_vcpus > config.vcpus).then_some(config.vcpus),
        apparmor: config.apparmor,
        extra: &config.cmdline,
    });
    let line = line.map_err(|error| at("kernel")(&error))?;
    let entry = kernel::load(&ram, &mut kernel_file, &mut initrd, &line)
        .map_err(|error| at("kernel")(&error))?;
    mptable::write(&ram, max_vcpus).map_err(|error| at("kernel")(&error))?;
    setup::enter_at(&vcpus[0], entry).map_err(|error| at("kernel")(&error))?;
    clock.lap("kernel");

    let counters = Arc::new(ExitCounters::default());
    vcpu::install_kick_handler().map_err(|error| at("vcpus")(&error))?;
    let mut handles = Vec::new();
    let context = VcpuContext {
        mmio,
        pio,
        counters: counters.clone(),
        reporter: reporter.clone(),
        kvm: vm.clone(),
    };
    for (index, fd) in vcpus.into_iter().enumerate() {
        let prepare = confined(&filters, ThreadKind::Vcpu);
        let handle = VcpuHandle::spawn(index as u8, fd, context.clone(), prepare)
            .map_err(|(error, _)| at("vcpus")(&error))?;
        handles.push(handle);
    }
    jail::confine(&filters, ThreadKind::Main).map_err(|error| at("jail")(&error))?;
    clock.lap("threads");
    let machine = Machine {
        vcpus: handles,
        devices: built,
        console,
        counters,
        vm,
        memory,
        spare: None,
        loops,
        max_vcpus,
        context,
        filters,
        running: false,
    };
    Ok((machine, clock.timings))
}

fn enter_jail(config: &MachineConfig, fds: &mut Fds) -> Result<PathBuf, BuildError> {
    let mut shares = Vec::new();
    for share in &config.shares {
        shares.push((share.clone(), fds.take(share.mount)?));
    }
    jail::enter(&shares, &config.id).map_err(|error| at("jail")(&error))
}

/// What a new thread runs first. A thread that cannot be confined must not run.
fn confined(filters: &Filters, kind: ThreadKind) -> impl FnOnce() + Send + 'static {
    let filters = filters.clone();
    move || {
        if let Err(error) = jail::confine(&filters, kind) {
            panic!("cannot confine a {kind:?} thread: {error}");
        }
    }
}

fn event_loop(name: &str, filters: &Filters, kind: ThreadKind) -> Result<EventLoop, BuildError> {
    EventLoop::spawn(name, confined(filters, kind)).map_err(|error| at("threads")(&error))
}

/// One frame more, or an answer to those before, is there when the vCPU or the sender that woke
/// it has gone to sleep first: with 32 requests at a time, half as many wake-ups.
fn net_loop(filters: &Filters) -> Result<EventLoop, BuildError> {
    let confine = confined(filters, ThreadKind::Net);
    let prepare = move || {
        // Who may not choose has a machine that does the same.
        let manners = Manners::new().ok().flatten();
        confine();
        manners
    };
    EventLoop::spawn_polite("net", prepare).map_err(|error| at("threads")(&error))
}

/// Puts each transport at its window, with its notifications, and PCI where the guest will
/// have it.
fn mmio_bus(vm: &Vm, built: &devices::Devices, windows: &Windows) -> Result<Arc<Bus>, BuildError> {
    let mut bus = BusBuilder::default();
    for (index, transport) in built.transports.iter().enumerate() {
        let (address, _) = cmdline::device_slot(index as u64);
        bus.insert(address, layout::MMIO_WINDOW, transport.clone())
            .map_err(|error| at("devices")(&error))?;
        connect(vm, transport, address).map_err(|error| at("devices")(&error))?;
    }
    vm.show(windows.pages(), layout::MMIO, built.transports.len() as u64 * layout::MMIO_WINDOW)
        .map_err(|error| at("devices")(&error))?;
    if let Some(root) = built.nets.bus() {
        let base = layout::PCI_MEMORY;
        let face = Face::Registers(root.clone(), Space::Memory, base);
        bus.insert(base, layout::MMIO - base, Arc::new(face))
            .map_err(|error| at("devices")(&error))?;
    }
    Ok(Arc::new(bus.build()))
}

/// Gives the device in the window at `address` its notifications.
fn connect(vm: &Vm, transport: &Transport, address: u64) -> Result<(), KvmError> {
    for (queue, kick) in transport.kicks().iter().enumerate() {
        vm.connect_kick(kick, address + QUEUE_NOTIFY, queue as u32)?;
    }
    let (acknowledged, value) = transport.acknowledged();
    vm.connect_kick(acknowledged, address + INTERRUPT_ACK, value)
}

/// A device that its driver made fail is the machine's end: Linux has no way back
/// from DEVICE_NEEDS_RESET, and a guest would hang without a word.
fn watch(transport: &Transport, reporter: &Reporter) {
    let (name, reporter) = (transport.name(), reporter.clone());
    transport.on_failure(move |why| {
        let thread = format!("the virtio-{name} device");
        reporter.report(Ending::Internal { thread, message: why.into() });
    });
}

fn pio_bus(
    console: &Arc<Console>,
    reporter: &Reporter,
    pci: Option<&Arc<Root>>,
) -> Result<Arc<Bus>, BuildError> {
    let (off, reset) = (reporter.clone(), reporter.clone());
    let button = PowerButton::new(move || off.report(Ending::PowerOff));
    let reset = ResetPort::new(move || reset.report(Ending::Reset));
    let mut bus = BusBuilder::default();
    let mut insert = |port: u64, len, device| {
        bus.insert(port, len, device).map_err(|error| at("devices")(&error))
    };
    insert(CONSOLE_PORT.into(), CONSOLE_PORTS, console.clone())?;
    insert(I8042_COMMAND_PORT.into(), 1, Arc::new(reset))?;
    insert(POWER_PORT.into(), 1, Arc::new(button))?;
    if let Some(root) = pci {
        let config = Face::Config(root.clone());
        insert(layout::PCI_CONFIG, layout::PCI_CONFIG_PORTS, Arc::new(config))?;
        let first = layout::PCI_PORTS;
        let registers = Face::Registers(root.clone(), Space::Io, first);
        insert(first, 0x1_0000 - first, Arc::new(registers))?;
    }
    Ok(Arc::new(bus.build()))
}
