//! The agent on a real kernel: this binary is `/init` of a machine (in QEMU's
//! TCG where there is no KVM), boots it with the agent's own code, and talks to
//! the agent over Unix sockets in place of vsock. `/busybox` of the initramfs
//! becomes the containers' image. Each case prints one line to the console:
//! `ok NAME` or `FAILED NAME: why`; the last line counts them.
//!
//! Started as an ordinary test (`cargo test`) it says that it was skipped.
//! The guest's kernel command line may name cases: `bulkhead.only=WORD`.

// A tool that nobody can hear may as well end.
#![allow(clippy::print_stderr, clippy::print_stdout)]

mod cases;
mod client;
mod spec;

use std::sync::OnceLock;

use bulkhead_agent::{boot, handlers, init, kmsg, roles};

static BUSYBOX: OnceLock<Vec<u8>> = OnceLock::new();

fn main() {
    roles::dispatch(&std::env::args_os().next().unwrap_or_default());
    if std::process::id() != 1 {
        println!("in_guest: skipped: it runs as /init of a machine (see its source)");
        return;
    }
    BUSYBOX.set(std::fs::read("/busybox").unwrap_or_default()).ok();
    init::main(run);
}

fn run() -> ! {
    image().unwrap_or_else(|error| kmsg::log(&format!("FAILED image: {error}")));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    if let Ok(runtime) = runtime {
        tokio::task::LocalSet::new().block_on(&runtime, cases::run());
    }
    handlers::power_off::now()
}

/// An image of two layers in the share tree's place, and a volume.
fn image() -> std::io::Result<()> {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let shares = std::path::Path::new(boot::SHARES);
    let base = shares.join("immutable/base");
    for directory in ["bin", "etc", "tmp", "proc", "sys", "dev", "full/sub"] {
        std::fs::create_dir_all(base.join(directory))?;
    }
    let busybox = base.join("bin/busybox");
    std::fs::write(&busybox, BUSYBOX.get().map(Vec::as_slice).unwrap_or_default())?;
    std::fs::set_permissions(&busybox, std::fs::Permissions::from_mode(0o755))?;
    for name in [
        "sh",
        "cat",
        "echo",
        "id",
        "ls",
        "stty",
        "tty",
        "sleep",
        "yes",
        "head",
        "wc",
        "mount",
        "hostname",
        "dd",
        "true",
        "grep",
        "kill",
        "env",
        "pwd",
        "touch",
        "mknod",
        "readlink",
        "sha256sum",
        "stat",
        "ps",
        "sed",
        "tr",
        "printf",
        "umask",
        "test",
        "rm",
        "date",
    ] {
        symlink("busybox", base.join("bin").join(name))?;
    }
    std::fs::write(base.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    std::fs::write(base.join("full/sub/file"), "from the image\n")?;
    // What a hostile image does: absolute and climbing links.
    symlink("/../../../proc", base.join("climb"))?;
    symlink("/gone/deep", base.join("dangling"))?;
    std::fs::create_dir_all(shares.join("immutable/top/etc"))?;
    std::fs::write(shares.join("immutable/top/etc/layer"), "top\n")?;
    std::fs::create_dir_all(shares.join("live/volume"))?;
    std::fs::create_dir_all(shares.join("private/upper"))?;
    std::fs::write(shares.join("live/volume/data"), "volume\n")?;
    std::fs::write(shares.join("live/file"), "one file\n")
}
