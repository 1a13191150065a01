//! `create`, the verb's side: see the drawing in the module above.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command};

use serde_json::Value;

use super::handshake::{Built, Channel, Word};
use super::occupant::Occupancy;
use super::plan::{Host, Neighbours, Plan};
use super::preserved::Preserved;
use super::store::{Container, Live, Lock, Phase, Record, Root, VERSION, valid_id};
use super::{Bundle, OciError, console, hooks};
use crate::sandbox::cgroup::{self, CgroupConfig};
use crate::sys::descriptors;
use crate::time::Timestamp;

/// Descriptor of the monitor's end of the conversation.
const CHANNEL_FD: i32 = 3;
/// Descriptor of the console socket in the monitor.
const CONSOLE_FD: i32 = 4;
/// Descriptor of a file with what an exec's monitor needs.
const ORDER_FD: i32 = 5;
/// Descriptor of the first that the container's process gets.
const DESCRIPTORS_FD: i32 = 6;

/// The word on a monitor's command line that says that it has a console socket.
pub const CONSOLE_WORD: &str = "--console";
/// The same for the number of descriptors that the process gets.
pub const DESCRIPTORS_WORD: &str = "--descriptors";

/// What a monitor was started with.
#[derive(Debug)]
pub struct Inherited {
    pub(super) channel: UnixStream,
    pub(super) console: Option<UnixStream>,
    pub(super) order: Option<OwnedFd>,
    pub(super) descriptors: Vec<OwnedFd>,
}

impl Inherited {
    /// Takes it over and closes all else but the standard streams. Before the process
    /// opens anything: it would get a number that it takes for one of these.
    ///
    /// # Errors
    /// When one is missing: people do not start monitors, and their descriptors are
    /// told apart by number alone.
    pub fn take(console: bool, order: bool, descriptors: u16) -> Result<Inherited, OciError> {
        let take = |number| {
            descriptors::inherited(number).map_err(|errno| {
                let message = format!("descriptor {number} of a monitor: {}", errno.desc());
                OciError::Descriptors(message)
            })
        };
        let if_wanted = |wanted: bool, number| wanted.then(|| take(number)).transpose();
        let inherited = Inherited {
            channel: take(CHANNEL_FD)?.into(),
            console: if_wanted(console, CONSOLE_FD)?.map(UnixStream::from),
            order: if_wanted(order, ORDER_FD)?,
            descriptors: (DESCRIPTORS_FD..)
                .take(descriptors.into())
                .map(take)
                .collect::<Result<_, _>>()?,
        };
        descriptors::close_from(DESCRIPTORS_FD as u32 + u32::from(descriptors));
        Ok(inherited)
    }
}

/// What `create` is asked for.
#[derive(Debug, Default)]
pub struct CreateOptions {
    /// Where the bundle is.
    pub bundle: PathBuf,
    /// Who gets the terminal.
    pub console_socket: Option<PathBuf>,
    /// The same, connected.
    pub console: Option<UnixStream>,
    /// Words of this program's command line that the monitor gets as well: `--root`,
    /// `--log` and the like.
    pub globals: Vec<String>,
    /// What the process gets beside its stdio.
    pub preserved: Preserved,
    /// Whether systemd makes the cgroup.
    pub systemd: bool,
}

/// Creates a container; its pid. Its stdio is that of this process.
///
/// # Errors
/// With the reason; nothing is left then.
pub fn create(root: &Root, id: &str, options: &CreateOptions) -> Result<i32, OciError> {
    if !valid_id(id) {
        return Err(OciError::InvalidId(id.into()));
    }
    let bundle = Bundle::load(&options.bundle)?;
    let host = Host { systemd: options.systemd, version: cgroup::Version::of_host() };
    // Until the container is there: who names the same namespace finds its machine then.
    let Occupancy { network, lock: _reserved } = Occupancy::of(root, &bundle)?;
    let beside = Neighbours { network, of_process: &|pid| root.neighbour(pid) };
    let mut plan = Plan::new(id, &bundle, host, &beside)?;
    plan.activate(options.preserved.activated);
    let socket = connect_console(&plan, options)?;
    let annotations = bundle.spec.annotations().clone().unwrap_or_default();
    let record = Record {
        version: VERSION,
        id: id.into(),
        oci_version: bundle.spec.version().clone(),
        bundle: bundle.path.clone(),
        created: Timestamp::now(),
        annotations: annotations.into_iter().collect(),
        plan,
        hooks: bundle.spec.hooks().clone(),
    };
    let (container, lock) = root.claim(record)?;
    let mut begun = false;
    match bring_up(&container, &lock, options, socket, &mut begun) {
        Ok(pid) => Ok(pid),
        Err(error) => {
            let hooks = container.record.hooks.clone();
            let state = state_json(&container, "stopped", 0);
            if begun {
                super::verbs::remove_rest(&container);
            }
            let _ = container.erase(lock);
            if begun {
                // As after `delete`: what its other hooks made is theirs to undo.
                let poststop = hooks.as_ref().and_then(|hooks| hooks.poststop().as_ref());
                super::hooks::run_all("poststop", poststop, &state);
            }
            Err(error)
        }
    }
}

fn connect_console(plan: &Plan, options: &CreateOptions) -> Result<Option<UnixStream>, OciError> {
    let wrong = |reason: &str| Err(super::bundle::field("process.terminal", reason).into());
    match (plan.terminal, &options.console, &options.console_socket) {
        (true, Some(socket), _) => {
            Ok(Some(socket.try_clone().map_err(OciError::io("the console socket"))?))
        }
        (true, None, Some(path)) => Ok(Some(console::connect(path)?)),
        (true, None, None) => wrong("is true, which needs --console-socket"),
        (false, None, None) => Ok(None),
        (false, ..) => wrong("is false, so that --console-socket is of no use"),
    }
}

fn bring_up(
    container: &Container,
    lock: &Lock,
    options: &CreateOptions,
    socket: Option<UnixStream>,
    begun: &mut bool,
) -> Result<i32, OciError> {
    let plan = &container.record.plan;
    if cgroup::populated(&plan.cgroup) {
        // Whoever lives there is not ours to limit, nor to kill at the end.
        let reason = format!("{} has processes already", plan.cgroup.display());
        return Err(super::bundle::field("linux.cgroupsPath", reason).into());
    }
    let mut words = options.globals.clone();
    words.push("monitor".into());
    let mut helper = Helper::spawn(words, container.id(), socket, None, &options.preserved)?;
    let pid = helper.pid();
    helper.expect(&Word::Opened)?;
    let config = CgroupConfig { path: plan.cgroup.clone(), limits: plan.cgroup_limits.clone() };
    container.note_cgroup(lock)?;
    *begun = true;
    plan.manager.make(&config, pid)?;
    helper.go();
    helper.expect(&Word::Namespaces)?;
    let of = container.record.hooks.as_ref();
    let state = state_json(container, "creating", pid);
    // Deprecated, and all that older engines know.
    #[allow(deprecated)]
    hooks::run("prestart", of.and_then(|hooks| hooks.prestart().as_ref()), &state)?;
    hooks::run("createRuntime", of.and_then(|hooks| hooks.create_runtime().as_ref()), &state)?;
    hooks::run("createContainer", of.and_then(|hooks| hooks.create_container().as_ref()), &state)?;
    helper.go();
    let Built { timings, guest_pid } = helper.ready()?;
    let status = Live::Created;
    let pid_start = start_of(pid);
    let phase =
        Phase { pid, pid_start, status, started: false, changing: false, timings, guest_pid };
    container.write_phase(lock, &phase)?;
    helper.go();
    helper.release();
    Ok(pid)
}

/// `state` of the runtime specification.
pub fn state_json(container: &Container, status: &str, pid: i32) -> Value {
    let record = &container.record;
    let mut state = serde_json::json!({
        "ociVersion": record.oci_version,
        "id": record.id,
        "status": status,
        "bundle": record.bundle,
        "annotations": record.annotations,
    });
    if pid != 0 {
        state["pid"] = pid.into();
    }
    state
}

/// When process `pid` was started, in clock ticks since boot; 0 when there is none.
/// See proc_pid_stat(5).
pub fn start_of(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(") ").map(|(_, fields)| fields);
    fields.and_then(|fields| fields.split(' ').nth(19)?.parse().ok()).unwrap_or(0)
}

/// This program again, with our stdio, as a process that outlives us. Killed when it
/// is dropped.
pub(super) struct Helper {
    child: Option<Child>,
    channel: Channel,
}

impl Helper {
    /// Starts it with `words` and `id`; `console` becomes its descriptor 4, `order` 5,
    /// and the preserved ones follow.
    pub(super) fn spawn(
        mut words: Vec<String>,
        id: &str,
        console: Option<UnixStream>,
        order: Option<OwnedFd>,
        preserved: &Preserved,
    ) -> Result<Helper, OciError> {
        words.extend(console.as_ref().map(|_| CONSOLE_WORD.to_owned()));
        words.push(format!("{DESCRIPTORS_WORD}={}", preserved.fds.len()));
        words.push(id.to_owned());
        let program = "/proc/self/exe";
        let socket = || UnixStream::pair().map_err(OciError::io("a socket pair"));
        let (ours, theirs) = socket()?;
        let mut command = Command::new(program);
        // What engines tell apart by name is our program, not "exe".
        command.arg0("bulkhead-runtime").args(words);
        let mut places = vec![
            (theirs.as_fd().as_raw_fd(), CHANNEL_FD),
            (console.as_ref().map_or(-1, AsRawFd::as_raw_fd), CONSOLE_FD),
            (order.as_ref().map_or(-1, AsRawFd::as_raw_fd), ORDER_FD),
        ];
        places.extend(preserved.fds.iter().map(AsRawFd::as_raw_fd).zip(DESCRIPTORS_FD..));
        descriptors::Inherit::new(places).apply(&mut command);
        let child = command.spawn().map_err(OciError::io(program))?;
        Ok(Helper { child: Some(child), channel: Channel::new(ours) })
    }

    pub(super) fn pid(&self) -> i32 {
        self.child.as_ref().map_or(0, |child| child.id() as i32)
    }

    pub(super) fn expect(&mut self, word: &Word) -> Result<(), OciError> {
        match self.hear()? {
            heard if heard == *word => Ok(()),
            _ => Err(OciError::Monitor("the container's monitor spoke out of turn".into())),
        }
    }

    pub(super) fn go(&mut self) {
        self.channel.go();
    }

    /// Waits for the word that it is ready.
    pub(super) fn ready(&mut self) -> Result<Built, OciError> {
        match self.hear()? {
            Word::Ready(built) => Ok(*built),
            _ => Err(OciError::Monitor("the container's monitor spoke out of turn".into())),
        }
    }

    fn hear(&mut self) -> Result<Word, OciError> {
        match self.channel.hear() {
            Some(Word::Failed(message)) => Err(OciError::Monitor(message)),
            Some(word) => Ok(word),
            None => {
                // It has ended, or said what nobody understands.
                if let Some(child) = &mut self.child {
                    let _ = child.kill();
                }
                let status = self.child.as_mut().and_then(|child| child.wait().ok());
                let how = status.map(|status| status.to_string()).unwrap_or_default();
                Err(OciError::Monitor(format!("the container's monitor died ({how})")))
            }
        }
    }

    /// Leaves it to whoever adopts our children.
    pub(super) fn release(mut self) {
        self.child = None;
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
