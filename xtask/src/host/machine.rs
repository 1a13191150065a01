//! One throw-away host: its initial file system, its disk, its file server and
//! its QEMU. Dropping it ends both processes and removes its directory.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::artifacts::{self, HostKernel, Qemu};
use super::{CgroupChoice, Options, job, view};
use crate::cpio::Archive;
use crate::paths::Tree;
use crate::sh::{self, cmd};

/// Size of the sparse scratch disk.
const DISK_BYTES: u64 = 32 << 30;
/// Kernel command line of the host. Its console is for failures only.
const COMMAND_LINE: &str = "console=ttyS0 quiet loglevel=4 oops=panic panic=-1 mitigations=off nokaslr tsc=reliable \
    i8042.noaux i8042.nokbd i8042.nopnp audit=0 swiotlb=noforce rdinit=/init";

/// Without what tells kernels and libraries that `rep stosb` and `rep movsb` are the quickest
/// way to fill and copy memory: TCG carries each byte out, and `-icount` counts it.
const CPU: &str = "max,+svm,-erms,-fsrm,-fzrm,-fsrs";

/// Our ends of the machine's streams.
pub struct Streams {
    /// What we write becomes the command's standard input.
    pub stdin: UnixStream,
    /// The command's standard output.
    pub stdout: UnixStream,
    /// The command's standard error.
    pub stderr: UnixStream,
    /// Lines of the host itself: `start`, `exit N`, `fail REASON`.
    pub control: UnixStream,
}

/// A running host. The fields are dropped in this order.
pub struct Machine {
    qemu: Guarded,
    _file_server: Guarded,
    directory: Directory,
}

impl Machine {
    /// Starts a host that runs `options.command`.
    pub fn start(tree: &Tree, options: &Options) -> Result<(Self, Streams)> {
        let alone = tree.lock("host")?;
        let kernel = artifacts::kernel(tree, options.kernel)?;
        let qemu = artifacts::qemu(tree)?;
        drop(alone);
        let virtiofsd = artifacts::virtiofsd()?;
        let directory = Directory::make(&tree.build("host"))?;
        let at = |name: &str| directory.0.join(name);

        fs::write(at("initramfs"), initramfs(tree, &kernel, options)?)?;
        fs::File::create(at("disk"))?.set_len(DISK_BYTES)?;
        sh::output(
            cmd("/sbin/mkfs.ext4", ["-q", "-F", "-O", "^has_journal", "-E", "lazy_itable_init=1"])
                .arg(at("disk")),
        )?;
        view::make(&at("root"))?;
        let mut file_server = Guarded(start_file_server(&virtiofsd, &directory.0)?);
        let (command, streams, theirs) = qemu_command(&qemu, &kernel, options, &directory.0)?;
        wait_for(&at("fs.sock"), &mut file_server.0)
            .with_context(|| format!("the file server did not start:\n{}", directory.logs()))?;
        let qemu = Guarded(start(command)?);
        drop(theirs);
        Ok((Self { qemu, _file_server: file_server, directory }, streams))
    }

    /// Whether QEMU has ended, and how.
    pub fn ended(&mut self) -> Option<String> {
        match self.qemu.0.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => Some(status.to_string()),
            Err(error) => Some(error.to_string()),
        }
    }

    /// Ends the machine now. What it had sent can still be read from its streams.
    pub fn kill(&mut self) {
        self.qemu.kill();
    }

    /// The last lines of the host's console and of its processes' messages.
    pub fn logs(&self) -> String {
        self.directory.logs()
    }
}

/// A child process that does not outlive this value.
struct Guarded(Child);

impl Guarded {
    fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The directory of one run. Removed name by name and never recursively: the
/// machine's own / is mounted below it.
struct Directory(PathBuf);

impl Directory {
    const FILES: [&str; 7] =
        ["initramfs", "disk", "fs.sock", "fs.sock.pid", "console.log", "qemu.log", "fs.log"];

    /// Makes `run-PID` below `base`, and clears what killed runs have left.
    fn make(base: &Path) -> Result<Self> {
        for entry in fs::read_dir(base)?.flatten() {
            let name = entry.file_name();
            let pid = name.to_str().and_then(|n| n.strip_prefix("run-"));
            if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
                drop(Self(entry.path()));
            }
        }
        let path = base.join(format!("run-{}", std::process::id()));
        fs::create_dir_all(path.join("root"))
            .with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }

    fn logs(&self) -> String {
        let mut text = String::new();
        for name in ["console.log", "qemu.log", "fs.log"] {
            let data = fs::read(self.0.join(name)).unwrap_or_default();
            let data = String::from_utf8_lossy(&data).replace('\r', "");
            let lines: Vec<&str> = data.lines().collect();
            for line in &lines[lines.len().saturating_sub(15)..] {
                text.push_str(&format!("  {name}: {line}\n"));
            }
        }
        text
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0.join("root"), nix::mount::MntFlags::MNT_DETACH);
        // The last host's console is kept: an oops may precede what is noticed by
        // a quarter of an hour.
        let _ = fs::rename(self.0.join("console.log"), self.0.with_file_name("console.log"));
        for name in Self::FILES {
            let _ = fs::remove_file(self.0.join(name));
        }
        let _ = fs::remove_dir(self.0.join("root"));
        let _ = fs::remove_dir(&self.0);
    }
}

/// The initial file system: busybox, a few modules, and the job.
fn initramfs(tree: &Tree, kernel: &HostKernel, options: &Options) -> Result<Vec<u8>> {
    let read =
        |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let mut archive = Archive::new(Vec::new());
    for directory in ["bin", "dev", "proc", "sys", "low", "upper", "new", "modules", "job"] {
        archive.directory(directory, 0o755)?;
    }
    archive.character("dev/console", 0o600, (5, 1))?;
    archive.character("dev/null", 0o666, (1, 3))?;
    let busybox = read(Path::new("/bin/busybox"))
        .context("package busybox-static: run `cargo xtask setup`")?;
    archive.file("bin/busybox", 0o755, &busybox)?;
    for (number, path) in kernel.early_modules()?.iter().enumerate() {
        // Loaded in the order of their names.
        archive.file(&format!("modules/{number:02}.ko"), 0o644, &read(path)?)?;
    }
    archive.file("init", 0o755, &read(&tree.at("tests/host/init.sh"))?)?;
    archive.file("job/stage2.sh", 0o755, &read(&tree.at("tests/host/stage2.sh"))?)?;
    archive.file("job/job.conf", 0o644, job::configuration(kernel, options).as_bytes())?;
    archive.file("job/job.sh", 0o755, job::script(tree, options)?.as_bytes())?;
    Ok(archive.finish()?)
}

fn start_file_server(program: &Path, directory: &Path) -> Result<Child> {
    let log = fs::File::create(directory.join("fs.log"))?;
    let mut command = until_we_die(program);
    command
        .arg(format!("--socket-path={}", directory.join("fs.sock").display()))
        .args(["--thread-pool-size=2", "-o"])
        .arg(format!(
            "source={},sandbox=chroot,cache=always,xattr",
            directory.join("root").display()
        ))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    start(command)
}

fn wait_for(socket: &Path, server: &mut Child) -> Result<()> {
    let start = Instant::now();
    while !socket.exists() {
        if let Some(status) = server.try_wait()? {
            bail!("it ended with {status}");
        }
        if start.elapsed() > Duration::from_secs(10) {
            bail!("no socket after 10 s");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// A command that is killed by the kernel when this process ends in any way.
fn until_we_die(program: &Path) -> Command {
    let mut command = cmd("setpriv", ["--pdeathsig", "KILL"]);
    command.arg(program);
    command
}

fn start(mut command: Command) -> Result<Child> {
    command.spawn().with_context(|| format!("cannot start `{}`", sh::show(&command)))
}

/// QEMU's command line, our ends of its streams, and its ends of them, which
/// are to be closed here once it has started.
fn qemu_command(
    qemu: &Qemu,
    kernel: &HostKernel,
    options: &Options,
    directory: &Path,
) -> Result<(Command, Streams, Vec<UnixStream>)> {
    let at = |name: &str| directory.join(name).display().to_string();
    let log = fs::File::create(at("qemu.log"))?;
    let mut command = until_we_die(&qemu.program);
    for firmware in &qemu.firmware {
        command.arg("-L").arg(firmware);
    }
    let (accelerator, cpus, line) = match options.icount {
        Some(_) => ("tcg,thread=single", 1, COMMAND_LINE.to_owned()),
        // One processor more than is used: no guest may run on the first one
        // (tests/host/README.md). Every guest's kernel is new code to QEMU, hence its
        // largest buffer for what it translates.
        None => (
            "tcg,thread=multi,tb-size=2000",
            options.cpus + 1,
            format!("{COMMAND_LINE} isolcpus=0"),
        ),
    };
    let line = match options.cgroup {
        CgroupChoice::V1 => line,
        CgroupChoice::V2 => line + " cgroup_no_v1=all",
    };
    if let Some(shift) = options.icount {
        command.args(["-icount", &format!("shift={shift}")]);
    }
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine"]);
    command
        .args(["q35,memory-backend=mem,usb=off,smbus=off,sata=off,vmport=off,hpet=off,i8042=off"]);
    command.args(["-accel", accelerator, "-cpu", CPU, "-smp", &cpus.to_string()]);
    command.args(["-m", &options.memory.to_string(), "-object"]);
    command.arg(format!("memory-backend-memfd,id=mem,size={}M,share=on", options.memory));
    command.arg("-kernel").arg(&kernel.vmlinux).args([
        "-initrd",
        &at("initramfs"),
        "-append",
        &line,
    ]);
    command.args(["-serial", &format!("file:{}", at("console.log"))]);
    command.args(["-chardev", &format!("socket,id=fs,path={}", at("fs.sock"))]);
    command.args(["-device", "vhost-user-fs-pci,chardev=fs,tag=root,queue-size=1024"]);
    command.args([
        "-drive",
        &format!(
            "file={},format=raw,if=none,id=disk,cache=unsafe,aio=threads,discard=unmap",
            at("disk")
        ),
    ]);
    command.args(["-device", "virtio-blk-pci,drive=disk"]);
    command.args(["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"]);

    let (mut ours, mut inherited) = (Vec::new(), Vec::new());
    for (number, name) in [(1, "stdin"), (2, "stdout"), (3, "stderr"), (4, "control")] {
        let (mine, theirs) = UnixStream::pair()?;
        fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty()))
            .context("cannot hand a stream to QEMU")?;
        command.arg("-chardev").arg(format!("socket,id={name},fd={}", theirs.as_raw_fd()));
        inherited.push(theirs);
        command
            .arg("-device")
            .arg(format!("virtserialport,chardev={name},name={name},nr={number}"));
        ours.push(mine);
    }
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let [stdin, stdout, stderr, control] =
        <[UnixStream; 4]>::try_from(ours).map_err(|_| anyhow::anyhow!("four streams were made"))?;
    Ok((command, Streams { stdin, stdout, stderr, control }, inherited))
}
