//! A root file system of real servers, nginx, Redis and PostgreSQL, as
//! `build/images/servers.ext4`: Debian's packages, unpacked and never installed, so that no
//! service begins anywhere. A file system in a file, since a test host is slow to unpack a
//! layer and quick to mount one.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::apt::{self, Source};
use crate::paths::Tree;
use crate::sh::{self, cmd};

/// Goes up when what is built here changes.
const RECIPE: &str = "1";

/// The servers, and the libraries that they are linked with. PostgreSQL's compiler of queries
/// (LLVM, 110 MB) is left out, and its clusters' scripts (Perl).
const PACKAGES: [&str; 48] = [
    "nginx",
    "redis-server",
    "redis-tools",
    "postgresql-15",
    "postgresql-client-15",
    "libpq5",
    "tzdata",
    "libc6",
    "libgcc-s1",
    "libstdc++6",
    "zlib1g",
    "libcrypt1",
    "libpcre2-8-0",
    "libssl3",
    "libjemalloc2",
    "liblzf1",
    "libatomic1",
    "libsystemd0",
    "libcap2",
    "libgcrypt20",
    "libgpg-error0",
    "liblz4-1",
    "liblzma5",
    "libzstd1",
    "libgssapi-krb5-2",
    "libkrb5-3",
    "libk5crypto3",
    "libkrb5support0",
    "libcom-err2",
    "libkeyutils1",
    "libldap-2.5-0",
    "libsasl2-2",
    "libpam0g",
    "libaudit1",
    "libcap-ng0",
    "libxml2",
    "libicu72",
    "libreadline8",
    "libtinfo6",
    "libgnutls30",
    "libp11-kit0",
    "libidn2-0",
    "libunistring2",
    "libtasn1-6",
    "libnettle8",
    "libhogweed6",
    "libgmp10",
    "libffi8",
];

/// What nobody reads there.
const LEFT_OUT: [&str; 7] = [
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
    "usr/share/lintian",
    "usr/lib/postgresql/15/lib/bitcode",
    "usr/lib/x86_64-linux-gnu/gconv",
];

/// Name and id of each account.
const ACCOUNTS: [(&str, u32); 4] =
    [("root", 0), ("www-data", 33), ("postgres", POSTGRES), ("redis", 101)];
const POSTGRES: u32 = 100;
const PROGRAMS: &str = "/usr/lib/postgresql/15/bin";
const DATA: &str = "/var/lib/postgresql/data";

/// Files stay open: what is measured is the network, and not the two calls of the file server
/// that an open and a close cost.
const NGINX: &str = "\
user www-data;
worker_processes 1;
daemon off;
error_log stderr;
pid /run/nginx.pid;
events { worker_connections 4096; }
http {
    access_log off;
    keepalive_requests 1000000;
    open_file_cache max=16;
    open_file_cache_valid 1d;
    server {
        listen 80;
        listen [::]:80;
        root /srv;
    }
}
";

/// For tests: neither a disk that is slow nor one that fails is what they are about.
const POSTGRESQL: &str = "
listen_addresses = '*'
unix_socket_directories = '/tmp'
shared_buffers = 16MB
max_connections = 50
fsync = off
";

/// Builds it, unless it is there, and returns the file.
pub fn run(tree: &Tree) -> Result<PathBuf> {
    let _alone = tree.lock("servers")?;
    let image = tree.build("images/servers.ext4");
    let mark = tree.build("images/servers.recipe");
    if fs::read_to_string(&mark).is_ok_and(|recipe| recipe == RECIPE) && image.is_file() {
        return Ok(image);
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("building an image needs root (chroot, device nodes)");
    }
    let work = tree.build("images/servers-work");
    if work.exists() {
        fs::remove_dir_all(&work)?;
    }
    let root = work.join("root");
    sh::step("fetching nginx, Redis and PostgreSQL", || {
        let packages = Source::Machine.download(&PACKAGES, &work.join("packages"))?;
        apt::unpack(&packages, &root)
    })?;
    sh::step("packing a file system of servers", || {
        complete(&root)?;
        database(&root)?;
        fs::remove_dir_all(root.join("dev"))?;
        pack(&root, &image)
    })?;
    fs::remove_dir_all(&work)?;
    fs::write(mark, RECIPE)?;
    Ok(image)
}

/// What packages leave to a system's other parts.
fn complete(root: &Path) -> Result<()> {
    for path in LEFT_OUT {
        let path = root.join(path);
        if path.exists() {
            fs::remove_dir_all(&path)?;
        }
    }
    for directory in ["dev", "etc", "proc", "run", "srv", "sys", "tmp", "var/lib/nginx"] {
        fs::create_dir_all(root.join(directory))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    symlink("usr/bin", root.join("bin"))?;
    symlink("usr/sbin", root.join("sbin"))?;
    fs::copy("/bin/busybox", root.join("usr/bin/busybox"))
        .context("busybox-static is not installed")?;
    for applet in ["cat", "echo", "head", "ls", "nc", "seq", "sh", "sleep", "wget"] {
        symlink("busybox", root.join("usr/bin").join(applet))?;
    }
    let lines = |line: fn(&str, u32) -> String| -> String {
        ACCOUNTS.iter().map(|(name, id)| line(name, *id)).collect()
    };
    fs::write(
        root.join("etc/passwd"),
        lines(|name, id| format!("{name}:x:{id}:{id}::/:/bin/sh\n")),
    )?;
    fs::write(root.join("etc/group"), lines(|name, id| format!("{name}:x:{id}:\n")))?;
    fs::create_dir_all(root.join("etc/nginx"))?;
    fs::write(root.join("etc/nginx/nginx.conf"), NGINX)?;
    fs::create_dir_all(root.join("var/log/nginx"))?;
    fs::write(root.join("srv/index.html"), "x".repeat(1023) + "\n")?;
    Ok(())
}

/// A cluster with pgbench's tables, as its user in a chroot: minutes in an emulated guest.
fn database(root: &Path) -> Result<()> {
    for (name, minor) in [("null", 3), ("urandom", 9)] {
        use nix::sys::stat::{Mode, SFlag, makedev, mknod};
        let path = root.join("dev").join(name);
        mknod(&path, SFlag::S_IFCHR, Mode::empty(), makedev(1, minor))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
    }
    let home = root.join("var/lib/postgresql");
    fs::create_dir_all(&home)?;
    chown(&home, Some(POSTGRES), Some(POSTGRES))?;
    let script = format!(
        "set -e; export PGDATA={DATA} PATH={PROGRAMS}:/bin
         initdb --encoding UTF8 --locale C --auth trust --wal-segsize 1 --no-sync
         echo 'host all all all trust' >>$PGDATA/pg_hba.conf
         pg_ctl -s -w -o '-c listen_addresses= -c unix_socket_directories=/tmp -F' start
         pgbench -h /tmp -q -i postgres
         pg_ctl -s -w stop"
    );
    let mut inside = Command::new("chroot");
    inside.arg(format!("--userspec={POSTGRES}:{POSTGRES}")).arg(root);
    sh::output(inside.args(["/bin/sh", "-c", &script]))?;
    let file = home.join("data/postgresql.conf");
    let told = fs::read_to_string(&file)?;
    Ok(fs::write(file, told + POSTGRESQL)?)
}

fn pack(root: &Path, image: &Path) -> Result<()> {
    let used = sh::output(cmd("du", ["-sm", "--apparent-size"]).arg(root))?;
    let used = used.split_whitespace().next().and_then(|mib| mib.parse::<u64>().ok());
    let blocks = used.context("du told no size")? * 5 / 4 + 16;
    let fresh = image.with_extension("new");
    let _ = fs::remove_file(&fresh);
    let mut make = cmd("mke2fs", ["-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d"]);
    sh::output(make.arg(root).arg(&fresh).arg(format!("{blocks}M")))?;
    Ok(fs::rename(fresh, image)?)
}
