//! stdio, terminals and `exec`.

use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

use bulkhead_tests::bundle::Bundle;
use bulkhead_tests::program::{eventually, feed, run};
use bulkhead_tests::script;
use serde_json::json;

use super::both;

both!(streams_stay_apart_and_end, |runtime| {
    let bundle = Bundle::new(runtime, "cat; echo to stderr >&2; exit 5");
    let input = Box::new(std::io::Cursor::new(b"from stdin\n".to_vec()));
    let finished = feed(bundle.command(&["run", &bundle.id]), input).expect(5);
    assert_eq!(
        (finished.text().as_str(), finished.stderr.as_str()),
        ("from stdin\n", "to stderr\n")
    );
});

both!(no_byte_is_lost_to_a_slow_reader, |runtime| {
    let mib = std::env::var("BULKHEAD_STREAM_MIB").ok().and_then(|text| text.parse().ok());
    let bytes = mib.unwrap_or(16u64) << 20;
    let bundle = Bundle::new(runtime, &format!("yes 0123456789abcde | head -c {bytes}"));
    let command = bundle.command(&["run", &bundle.id]);
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
    // Reads nothing for a while, then all of it.
    let pipe = format!(
        "cd {}; {runtime} {} | (sleep 3; sha256sum); \
         yes 0123456789abcde | head -c {bytes} | sha256sum",
        bundle.path().display(),
        words.join(" ")
    );
    let sums = script(&pipe).ok();
    let sums: Vec<&str> = sums.lines().collect();
    assert_eq!(sums.len(), 2);
    assert_eq!(sums[0], sums[1]);
});

both!(a_reader_that_closes_is_noticed, |runtime| {
    let bundle = Bundle::new(runtime, "yes; echo status $? >&2");
    let command = bundle.command(&["run", &bundle.id]);
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
    let pipe = format!(
        "cd {}; {runtime} {} 2>&3 | head -c 10 >/dev/null",
        bundle.path().display(),
        words.join(" ")
    );
    let seen = script(&format!("exec 3>&1; {pipe}")).text();
    // 141 is SIGPIPE; busybox's own word for EPIPE is 1.
    assert!(seen.contains("status 141") || seen.contains("status 1\n"), "{seen}");
});

both!(exec_runs_a_further_process, |runtime| {
    let bundle = Bundle::new(runtime, "sleep 100");
    bundle.create();
    let exec = |words: &[&str]| bundle.verb(&[&["exec"], words].concat());
    exec(&[&bundle.id, "true"]).ok();
    bundle.verb(&["start", &bundle.id]).ok();
    exec(&[&bundle.id, "sh", "-c", "exit 9"]).expect(9);
    let told = exec(&[
        "--user",
        "1000:1001",
        "--cwd",
        "/etc",
        "--env",
        "A=b c",
        "-g",
        "29",
        &bundle.id,
        "sh",
        "-c",
        "id; pwd; echo $A; grep Groups /proc/self/status",
    ])
    .ok();
    assert!(told.contains("uid=1000(app) gid=1001(app)"), "{told}");
    assert!(told.contains("/etc\nb c\n") && told.contains("Groups:\t29"), "{told}");
    let missing = exec(&[&bundle.id, "nosuch"]);
    assert_eq!(missing.status, 255);
    assert!(missing.stderr.contains("executable file not found in $PATH"), "{}", missing.stderr);
    let process = json!({
        "cwd": "/tmp", "args": ["sh", "-c", "pwd; echo $B"], "env": ["PATH=/bin", "B=file"],
        "user": {"uid": 0, "gid": 0},
    });
    std::fs::write(bundle.file("process.json"), process.to_string()).unwrap();
    assert_eq!(exec(&["--process", &bundle.file("process.json"), &bundle.id]).ok(), "/tmp\nfile");
    let echo = bundle.command(&["exec", &bundle.id, "cat"]);
    let input = Box::new(std::io::Cursor::new(b"to exec\n".to_vec()));
    assert_eq!(feed(echo, input).ok(), "to exec");
});

both!(a_detached_exec_has_a_pid_of_its_own, |runtime| {
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    let bundle = Bundle::new(runtime, "sleep 100");
    let first = bundle.create();
    bundle.verb(&["start", &bundle.id]).ok();
    let pid_file = bundle.file("exec.pid");
    let words = ["exec", "--detach", "--pid-file", &pid_file, &bundle.id, "sh", "-c", "exit 6"];
    let mut command = bundle.command(&words);
    let null = || std::process::Stdio::null();
    assert!(command.stdin(null()).stdout(null()).stderr(null()).status().unwrap().success());
    let pid: i32 = std::fs::read_to_string(pid_file).unwrap().parse().unwrap();
    assert_ne!(pid, first);
    let status = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None).unwrap();
    assert_eq!(status, nix::sys::wait::WaitStatus::Exited(nix::unistd::Pid::from_raw(pid), 6));
});

/// The descriptor that comes over a console socket.
#[allow(unsafe_code)]
fn receive(listener: &UnixListener) -> OwnedFd {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    use std::os::fd::AsRawFd;
    let (stream, _) = listener.accept().expect("the runtime connects");
    let mut name = [0; 256];
    let mut space = nix::cmsg_space!(i32);
    let mut iov = [std::io::IoSliceMut::new(&mut name)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message =
        recvmsg::<()>(stream.as_raw_fd(), &mut iov, Some(&mut space), flags).expect("a message");
    let fds = message.cmsgs().expect("whole").find_map(|part| match part {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
        _ => None,
    });
    // SAFETY: the kernel has just made this descriptor for us.
    unsafe { OwnedFd::from_raw_fd(fds.expect("a descriptor")) }
}

both!(a_terminal_comes_over_the_console_socket, |runtime| {
    let script = "tty; trap 'stty size' WINCH; echo ready; read line; echo \"read $line\"; \
                  while :; do sleep 0.1; done";
    let mut bundle = Bundle::new(runtime, script);
    bundle.config["process"]["terminal"] = json!(true);
    let socket = bundle.file("console");
    let listener = UnixListener::bind(&socket).unwrap();
    let words = ["create", "--console-socket", &socket, &bundle.id];
    // Its streams end with the verb: engines wait for that.
    run(bundle.command(&words)).ok();
    let master = std::fs::File::from(receive(&listener));
    let text = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
    let (sink, mut reader) = (text.clone(), master.try_clone().unwrap());
    std::thread::spawn(move || {
        let mut buffer = [0; 1024];
        while let Ok(count @ 1..) = reader.read(&mut buffer) {
            sink.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    });
    let seen = |words: &str| eventually(words, || text.lock().unwrap().contains(words));
    bundle.verb(&["start", &bundle.id]).ok();
    seen("/dev/pts/0\r\nready\r\n");
    use std::io::Write;
    (&master).write_all(b"typed\n").unwrap();
    seen("typed\r\nread typed\r\n");
    resize(&master, 33, 101);
    seen("33 101");
    bundle.verb(&["kill", &bundle.id, "KILL"]).ok();
});

/// TIOCSWINSZ.
#[allow(unsafe_code)]
fn resize(terminal: &std::fs::File, rows: u16, columns: u16) {
    use std::os::fd::AsRawFd;
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the structure lives over the call.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &size) };
    assert_eq!(result, 0);
}

both!(further_descriptors_are_passed_on, |runtime| {
    let script = "read line <&3; echo got $line >&4; read word <&5; echo $word back >&5; \
                  [ -e /proc/self/fd/6 ] || echo no more; sleep 100";
    let bundle = Bundle::new(runtime, script);
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let peer = std::thread::spawn(move || {
        use std::io::{BufRead, BufReader, Write};
        let mut connection = server.accept().unwrap().0;
        connection.write_all(b"there and\n").unwrap();
        let mut line = String::new();
        BufReader::new(connection).read_line(&mut line).unwrap();
        line
    });
    let verb = bundle.command(&["run", "-d", "--preserve-fds", "3", &bundle.id]);
    let words: Vec<_> = verb.get_args().map(|word| word.to_string_lossy()).collect();
    let (out, four) = (bundle.file("out"), bundle.file("four"));
    // Of bash's own descriptors the last is not ours to pass on.
    script_in(
        &bundle,
        &format!(
            "exec 3< <(echo a line) 4>{four} 5<>/dev/tcp/127.0.0.1/{port} 7</dev/zero; \
             {runtime} {} >{out} 2>&1 </dev/null",
            words.join(" ")
        ),
    );
    assert_eq!(peer.join().unwrap(), "there and back\n");
    eventually("its output", || bundle.output() == "no more\n");
    assert_eq!(std::fs::read_to_string(&four).unwrap(), "got a line\n");
    for detach in ["", "--detach"] {
        let exec = bundle.command(&["exec", "--preserve-fds", "2"]);
        let words: Vec<_> = exec.get_args().map(|word| word.to_string_lossy()).collect();
        script_in(
            &bundle,
            &format!(
                "{runtime} {} {detach} {} sh -c 'cat <&3 >&4' 3<<<'{runtime}{detach}' 4>{four} \
                 >{out} 2>&1 </dev/null",
                words.join(" "),
                bundle.id
            ),
        );
        let wanted = format!("{runtime}{detach}\n");
        eventually("what it read", || std::fs::read_to_string(&four).unwrap() == wanted);
    }
    let closed = bundle.verb(&["exec", "--preserve-fds", "30", &bundle.id, "true"]);
    assert_ne!(closed.status, 0, "descriptors that are not open");
});

both!(processes_are_executed_in_cgroups_below, |runtime| {
    // As an init system or docker does: processes in a leaf, controllers for the leaves.
    let script = "mount -o remount,rw /sys/fs/cgroup; cd /sys/fs/cgroup; mkdir leaf other && \
                  echo 1 > leaf/cgroup.procs && echo +pids > cgroup.subtree_control && \
                  echo ready; sleep 100";
    let mut bundle = Bundle::new(runtime, script);
    if let Some(list) = bundle.config["linux"]["namespaces"].as_array_mut()
        && !list.iter().any(|namespace| namespace["type"] == "cgroup")
    {
        list.push(json!({"type": "cgroup"}));
    }
    for set in ["bounding", "effective", "permitted"] {
        let list = bundle.config["process"]["capabilities"][set].as_array_mut().unwrap();
        list.push(json!("CAP_SYS_ADMIN"));
    }
    bundle.create();
    bundle.verb(&["start", &bundle.id]).ok();
    eventually("its cgroups", || bundle.output() == "ready\n");
    let own = |words: &[&str]| {
        let words = [&["exec"], words, &[&bundle.id, "cat", "/proc/self/cgroup"]].concat();
        bundle.verb(&words)
    };
    // Its own cgroup takes no processes any more.
    assert_eq!(own(&[]).ok(), "0::/leaf");
    assert_eq!(own(&["--cgroup", "other"]).ok(), "0::/other");
    assert_ne!(own(&["--cgroup", "none"]).status, 0);
    assert_ne!(own(&["--cgroup", "../.."]).status, 0);
    bundle.verb(&["delete", "--force", &bundle.id]).ok();
});

both!(listening_sockets_are_passed_on, |runtime| {
    let mut bundle = Bundle::new(runtime, "");
    bundle.compile(include_str!("../../guests/activated.c"), "bin/activated");
    bundle.config["process"]["args"] = json!(["activated"]);
    let (path, port_file) = (bundle.file("socket"), bundle.file("port"));
    // The shell that makes the sockets becomes the runtime: LISTEN_PID is its own.
    let verb = bundle.command(&["run", "--detach", &bundle.id]);
    let mut python = std::process::Command::new("python3");
    let script = "import os, socket, sys\n\
        tcp = socket.create_server(('127.0.0.1', 0)); unix = socket.socket(socket.AF_UNIX)\n\
        unix.bind(sys.argv[1]); unix.listen()\n\
        open(sys.argv[2], 'w').write(str(tcp.getsockname()[1]))\n\
        a, b = os.dup(tcp.fileno()), os.dup(unix.fileno())\n\
        os.dup2(a, 3); os.dup2(b, 4)\n\
        os.environ.update(LISTEN_FDS='2', LISTEN_PID=str(os.getpid()))\n\
        os.execvp(sys.argv[3], sys.argv[3:])\n";
    python.args(["-c", script, &path, &port_file]).arg(verb.get_program()).args(verb.get_args());
    let out = std::fs::File::create(bundle.file("out")).unwrap();
    python.stdin(std::process::Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out);
    let status = python.current_dir(bundle.path()).status().unwrap();
    assert!(status.success(), "{}", bundle.output());
    eventually("its readiness", || bundle.output() == "2 sockets\n");
    let port: u16 = std::fs::read_to_string(port_file).unwrap().parse().unwrap();
    // More than any buffer on the way holds.
    let sent: Vec<u8> = (0..1_500_000u32).map(|index| (index % 251) as u8).collect();
    for _ in 0..2 {
        assert!(echoed(std::net::TcpStream::connect(("127.0.0.1", port)).unwrap(), &sent));
        assert!(echoed(std::os::unix::net::UnixStream::connect(&path).unwrap(), &sent));
    }
    bundle.verb(&["kill", &bundle.id, "KILL"]).ok();
});

/// Whether `sent` comes back over `connection`.
fn echoed(connection: impl Into<std::os::fd::OwnedFd>, sent: &[u8]) -> bool {
    use std::io::Write;
    // Either kind of socket, as one of them: shutdown(2) is the same.
    let mut stream = std::os::unix::net::UnixStream::from(connection.into());
    stream.write_all(sent).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    back == sent
}

#[track_caller]
fn script_in(bundle: &Bundle, text: &str) {
    let finished = script(&format!("cd {}; {text}", bundle.path().display()));
    assert_eq!(finished.status, 0, "{} {}", finished.stderr, bundle.output());
}
