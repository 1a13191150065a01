//! The cases.

use std::time::{Duration, Instant};

use bulkhead_agent::state::Agent;
use bulkhead_agent::{boot, kmsg};
use protocol::agent::{Call, ErrorKind, Event, Message, Return, Stream};
use protocol::apparmor::Policy;
use protocol::machine::AddedMemory;
use protocol::network::{Ipv6, Item, Link, Network};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use crate::client::{Client, Failure, read, write};
use crate::spec::{ALL, NONE, OUT, TTY, create, exec, name, process, shell, spec};

type Outcome = Result<(), Failure>;

macro_rules! ensure {
    ($condition:expr, $($what:tt)*) => {
        if !$condition { return Err(format!($($what)*).into()); }
    };
}

macro_rules! cases {
    ($($name:ident)*) => {
        pub async fn run() {
            let only = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
            let only = only.split_whitespace().find_map(|word| word.strip_prefix("bulkhead.only="));
            let (mut good, mut bad) = (0, 0);
            $(if only.is_none_or(|only| stringify!($name).contains(only)) {
                let client = Client { agent: Agent::new() };
                let begin = Instant::now();
                let outcome = timeout(Duration::from_secs(60), $name(&client)).await;
                let took = begin.elapsed().as_millis();
                match outcome.unwrap_or_else(|_| Err("timed out".into())) {
                    Ok(()) => { good += 1; kmsg::log(&format!("ok {} ({took} ms)", stringify!($name))); }
                    Err(error) => {
                        bad += 1;
                        kmsg::log(&format!("FAILED {}: {error}", stringify!($name)));
                        tidy().await;
                    }
                }
            })*
            kmsg::log(&format!("in_guest: {good} passed, {bad} failed"));
        }
    };
}

/// Ends what a failed case left running, so that the next ones are not its victims.
async fn tidy() {
    let Ok(entries) = std::fs::read_dir(bulkhead_agent::boot::CGROUPS) else { return };
    let directories = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
    for directory in directories.collect::<Vec<_>>() {
        let _ = std::fs::write(directory.join("cgroup.kill"), "1");
        sleep(Duration::from_millis(200)).await;
        let _ = std::fs::remove_dir(directory);
    }
}

cases! {
    runs_a_process exit_status_and_signals missing_commands the_default_container bytes_both_ways
    a_closed_reader terminals execs binds_and_propagation hostile_paths identity_and_limits
    seccomp_profiles cgroup_limits out_of_memory freezing devices read_only_root copy_up
    user_namespaces persistent_upper pod_namespaces bad_specifications growth network nothing_stays throughput
}

async fn runs_a_process(client: &Client) -> Outcome {
    let (code, out) = client.script("c", "echo hi; cat /etc/layer /etc/hosts; exit 7").await?;
    ensure!(code == 7 && out == "hi\ntop\n127.0.0.1 box\n", "{code} {out:?}");
    Ok(())
}

async fn exit_status_and_signals(client: &Client) -> Outcome {
    client
        .create(create("c", spec(shell("trap 'exit 3' TERM; while :; do sleep 0.05; done")), NONE))
        .await?;
    client.start("c").await?;
    ensure!(client.start("c").await.unwrap_err().kind == ErrorKind::State, "started twice");
    sleep(Duration::from_millis(300)).await;
    client.call(Call::Signal { process: name("c", None), signal: 15, all: false }).await?;
    let exit = client.wait(name("c", None)).await?;
    ensure!(exit.code == Some(3), "{exit:?}");
    client.delete("c").await?;

    client.create(create("c", spec(process(&["sleep", "1000"])), NONE)).await?;
    client.start("c").await?;
    client.call(Call::Signal { process: name("c", None), signal: 9, all: true }).await?;
    let exit = client.wait(name("c", None)).await?;
    ensure!(exit.signal == Some(9) && !exit.oom, "{exit:?}");
    let error = client.call(Call::Signal { process: name("c", None), signal: 9, all: false }).await;
    ensure!(error.unwrap_err().kind == ErrorKind::State, "signal to the dead");
    client.delete("c").await?;
    ensure!(client.wait(name("c", None)).await.unwrap_err().kind == ErrorKind::NotFound, "deleted");
    Ok(())
}

async fn missing_commands(client: &Client) -> Outcome {
    for (command, kind) in [
        ("nonsense", ErrorKind::CommandNotFound),
        ("/bin/nonsense", ErrorKind::CommandNotFound),
        ("/etc/passwd", ErrorKind::NotExecutable),
        ("/etc", ErrorKind::NotExecutable),
    ] {
        let error = client.create(create("c", spec(process(&[command])), NONE)).await.unwrap_err();
        ensure!(error.kind == kind, "{command}: {error:?}");
    }
    // The id is free again at once; the cgroup goes in the background.
    sleep(Duration::from_millis(100)).await;
    ensure!(client.script("c", "true").await?.0 == 0, "the id was not given back");
    Ok(())
}

async fn the_default_container(client: &Client) -> Outcome {
    let script = "hostname; echo $$ $HOME; ls /dev | tr '\\n' ' '; readlink /dev/ptmx; \
        ls /proc/1/root/run 2>&1; cat /sys/fs/cgroup/cgroup.controllers >/dev/null && echo cg; \
        echo x > /proc/sys/kernel/domainname; ls /sys/firmware | wc -l; wc -c < /proc/kcore; \
        ls /proc | grep -c '^[0-9]'; grep -c bulkhead /proc/self/mountinfo";
    let (_, out) = client.script("c", script).await?;
    for word in ["box\n1 /root\n", "pts/ptmx", "cg\n", "Read-only file system", "full", "mqueue"] {
        ensure!(out.contains(word), "{word:?} is not in {out}");
    }
    Ok(())
}

async fn bytes_both_ways(client: &Client) -> Outcome {
    client.create(create("c", spec(process(&["cat"])), ALL)).await?;
    let stdin = client.stream(name("c", None), Stream::Stdin).await?;
    let again = client.stream(name("c", None), Stream::Stdin).await;
    ensure!(again.unwrap_err().kind == ErrorKind::Exists, "attached twice");
    let mut stdout = client.stream(name("c", None), Stream::Stdout).await?;
    client.start("c").await?;
    let bytes: Vec<u8> =
        (0..4u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let sender = tokio::task::spawn_local(write(stdin, bytes.clone()));
    sleep(Duration::from_millis(300)).await; // a slow reader
    let mut back = Vec::new();
    stdout.read_to_end(&mut back).await?;
    ensure!(back == bytes, "{} bytes came back", back.len());
    ensure!(client.wait(name("c", None)).await?.code == Some(0), "cat failed");
    let mut stdin = sender.await?;
    ensure!(stdin.read(&mut [0]).await? == 0, "stdin's stream was not closed");
    Ok(client.delete("c").await?)
}

async fn a_closed_reader(client: &Client) -> Outcome {
    client.create(create("c", spec(process(&["yes"])), OUT)).await?;
    let mut stdout = client.stream(name("c", None), Stream::Stdout).await?;
    client.start("c").await?;
    stdout.read_exact(&mut [0; 1000]).await?;
    drop(stdout);
    let exit = client.wait(name("c", None)).await?;
    // busybox's yes sees SIGPIPE (default action) or EPIPE.
    ensure!(exit.signal == Some(13) || exit.code == Some(1), "{exit:?}");
    Ok(client.delete("c").await?)
}

async fn terminals(client: &Client) -> Outcome {
    let mut process =
        shell("tty; stty size; ls -l /dev/console; read x; stty size; echo got $x; exit 4");
    process["terminal"] = json!(true);
    process["consoleSize"] = json!({"height": 11, "width": 33});
    client.create(create("c", spec(process.clone()), TTY)).await?;
    let mut terminal = client.stream(name("c", None), Stream::Terminal).await?;
    client.start("c").await?;
    sleep(Duration::from_millis(500)).await;
    client.call(Call::Resize { process: name("c", None), rows: 50, columns: 60 }).await?;
    terminal.write_all(b"word\r").await?;
    let out = read(terminal).await;
    for word in ["/dev/pts/0\r\n11 33\r\n", "console", "50 60", "got word"] {
        ensure!(out.contains(word), "{word:?} is not in {out:?}");
    }
    ensure!(client.wait(name("c", None)).await?.code == Some(4), "status");
    client.delete("c").await?;

    client.create(create("c", spec(self::process(&["sleep", "1000"])), NONE)).await?;
    client.start("c").await?;
    client.exec(exec("c", "e", process, TTY)).await?;
    let mut terminal = client.stream(name("c", Some("e")), Stream::Terminal).await?;
    terminal.write_all(b"two\r").await?;
    let out = read(terminal).await;
    ensure!(out.contains("11 33") && out.contains("got two"), "exec: {out:?}");
    Ok(client.delete("c").await?)
}

async fn execs(client: &Client) -> Outcome {
    client.create(create("c", spec(process(&["sleep", "1000"])), NONE)).await?;
    // Before the container's own process: its namespaces are there already.
    client.exec(exec("c", "e", process(&["true"]), NONE)).await?;
    ensure!(client.wait(name("c", Some("e"))).await?.status() == 0, "exec before start");
    client.start("c").await?;
    let mut asked = shell(
        "echo out; echo err >&2; hostname; pwd; id -u; cat /proc/1/comm; cat /proc/self/cgroup",
    );
    asked["cwd"] = json!("/tmp");
    asked["user"] = json!({"uid": 5, "gid": 6, "additionalGids": [7]});
    client.exec(exec("c", "e1", asked, OUT)).await?;
    let out = client.stream(name("c", Some("e1")), Stream::Stdout).await?;
    let err = client.stream(name("c", Some("e1")), Stream::Stderr).await?;
    let (out, err) = (read(out).await, read(err).await);
    ensure!(out == "out\nbox\n/tmp\n5\nsleep\n0::/\n" && err == "err\n", "{out:?} {err:?}");
    ensure!(client.wait(name("c", Some("e1"))).await?.code == Some(0), "status");
    let twice = client.exec(exec("c", "e1", process(&["true"]), NONE)).await.unwrap_err();
    ensure!(twice.kind == ErrorKind::Exists, "{twice:?}");

    let begin = Instant::now();
    let missing = client.exec(exec("c", "e2", process(&["nonsense"]), ALL)).await.unwrap_err();
    ensure!(missing.kind == ErrorKind::CommandNotFound, "{missing:?}");
    kmsg::log(&format!("  missing command answered in {} ms", begin.elapsed().as_millis()));

    // Each is reaped, however helper and process race: one that is not would keep
    // the container below from ending.
    for n in 0..20 {
        let id = format!("m{n}");
        let again = client.exec(exec("c", &id, process(&["nonsense"]), NONE)).await.unwrap_err();
        ensure!(again.kind == ErrorKind::CommandNotFound, "{again:?}");
    }

    let begin = Instant::now();
    for n in 0..10 {
        client.exec(exec("c", &format!("n{n}"), process(&["true"]), NONE)).await?;
        client.wait(name("c", Some(&format!("n{n}")))).await?;
    }
    kmsg::log(&format!("  exec and wait: {} us each", begin.elapsed().as_micros() / 10));
    client.exec(exec("c", "k", process(&["sleep", "1000"]), NONE)).await?;
    let Return::Processes(list) = client.call(Call::Processes { container: "c".into() }).await?
    else {
        return Err("no list".into());
    };
    ensure!(list.len() == 2 && list[0].command == "sleep 1000", "{list:?}");
    client.call(Call::Signal { process: name("c", Some("k")), signal: 15, all: false }).await?;
    ensure!(client.wait(name("c", Some("k"))).await?.signal == Some(15), "signal");
    client.call(Call::Signal { process: name("c", None), signal: 9, all: false }).await?;
    client.wait(name("c", None)).await?;
    let late = client.exec(exec("c", "late", process(&["true"]), NONE)).await.unwrap_err();
    ensure!(late.kind == ErrorKind::State, "{late:?}");
    Ok(client.delete("c").await?)
}

async fn binds_and_propagation(client: &Client) -> Outcome {
    let mut config = spec(shell(
        "cat /a/b/data /one; echo x > /a/b/new && rm /a/b/new; echo y > /ro/z; echo w > /one; \
         grep -E ' /(ro|a/b) ' /proc/self/mountinfo",
    ));
    let mounts = config["mounts"].as_array_mut().ok_or("mounts")?;
    mounts.extend([
        json!({"destination": "/a/b", "type": "bind", "source": "/host/volume",
            "options": ["rbind", "rprivate", "nosuid"]}),
        json!({"destination": "/ro", "source": "/host/volume", "options": ["bind", "rro", "rslave"]}),
        json!({"destination": "/one", "source": "/host/file", "options": ["bind", "ro"]}),
    ]);
    let (_, out) = client.run(create("c", config, OUT)).await?;
    ensure!(out.starts_with("volume\none file\n"), "{out}");
    ensure!(out.matches("Read-only file system").count() == 2, "{out}");
    ensure!(out.contains("/a/b rw,nosuid") && out.contains("/ro ro"), "{out}");
    Ok(())
}

async fn hostile_paths(client: &Client) -> Outcome {
    let mut config = spec(shell("ls -d /proc/here /gone/deep/x; cat /gone/deep/x/data"));
    let mounts = config["mounts"].as_array_mut().ok_or("mounts")?;
    // "/climb" is /../../../proc: inside the root it is the container's /proc,
    // where nothing can be made.
    mounts
        .push(json!({"destination": "/climb/here", "source": "/host/volume", "options": ["bind"]}));
    let error = client.create(create("c", config.clone(), OUT)).await.unwrap_err();
    ensure!(error.message.contains("/climb/here"), "{error:?}");
    let mounts = config["mounts"].as_array_mut().ok_or("mounts")?;
    mounts.pop();
    mounts
        .push(json!({"destination": "/dangling/x", "source": "/host/volume", "options": ["bind"]}));
    let (_, out) = client.run(create("d", config, OUT)).await?;
    ensure!(out.contains("volume\n"), "{out}");
    Ok(())
}

async fn identity_and_limits(client: &Client) -> Outcome {
    let mut process = shell(
        "id; umask; ulimit -n; grep -E 'Cap|NoNew|Sig(Ign|Blk)' /proc/self/status; pwd; \
         cat /proc/self/oom_score_adj; cat /proc/sys/net/ipv4/ip_forward; ls /proc/self/fd | wc -l",
    );
    process["user"] = json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 6], "umask": 63});
    process["cwd"] = json!("/made/here");
    process["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 99, "hard": 100}]);
    process["noNewPrivileges"] = json!(true);
    process["oomScoreAdj"] = json!(-500);
    process["ioPriority"] = json!({"class": "IOPRIO_CLASS_IDLE", "priority": 4});
    process["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 5});
    process["capabilities"] = json!({"bounding": ["CAP_KILL", "CAP_CHOWN"], "effective": ["CAP_KILL"],
        "permitted": ["CAP_KILL"], "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"]});
    let mut config = spec(process);
    config["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1", "kernel.shmmax": "12345"});
    let (_, out) = client.run(create("c", config, OUT)).await?;
    for word in [
        "uid=1000 gid=1001 groups=5,6",
        "0077\n99\n",
        "CapInh:\t0000000000000020",
        "CapPrm:\t0000000000000020",
        "CapEff:\t0000000000000020",
        "CapBnd:\t0000000000000021",
        "CapAmb:\t0000000000000020",
        "NoNewPrivs:\t1",
        "SigBlk:\t0000000000000000",
        "SigIgn:\t0000000000000000",
        "/made/here\n-500\n1\n4\n",
    ] {
        ensure!(out.contains(word), "{word:?} is not in {out}");
    }
    Ok(())
}

async fn seccomp_profiles(client: &Client) -> Outcome {
    let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
        {"names": ["kill"], "action": "SCMP_ACT_ERRNO",
         "args": [{"index": 1, "value": 10, "op": "SCMP_CMP_EQ"}]}]});
    for (privileges, id) in [(true, "c"), (false, "d")] {
        let script =
            "mkdir /x; kill -10 $$; echo alive; grep -E 'Seccomp:|CapEff' /proc/self/status";
        let mut config =
            spec(process(&["busybox", "sh", "-c", &script.replace("mkdir", "busybox mkdir")]));
        config["process"]["noNewPrivileges"] = json!(privileges);
        config["linux"]["seccomp"] = profile.clone();
        let (_, out) = client.run(create(id, config, OUT)).await?;
        let good = out.contains("No space left")
            && out.contains("alive")
            && out.contains("Seccomp:\t2")
            && out.contains("CapEff:\t00000000a80425fb");
        ensure!(good, "no_new_privs {privileges}: {out}");
    }
    Ok(())
}

async fn cgroup_limits(client: &Client) -> Outcome {
    let mut config = spec(process(&["sleep", "1000"]));
    config["linux"]["resources"]["pids"] = json!({"limit": 5});
    config["linux"]["resources"]["memory"] = json!({"limit": 33554432, "swap": 67108864});
    config["linux"]["resources"]["cpu"] = json!({"shares": 512, "quota": 50000, "period": 100000});
    client.create(create("c", config, NONE)).await?;
    client.start("c").await?;
    let Return::Stats(stats) = client.call(Call::Stats { container: "c".into() }).await? else {
        return Err("no stats".into());
    };
    ensure!(stats.get("pids.max").is_some_and(|max| max == "5\n"), "{stats:?}");
    ensure!(stats.get("memory.max").is_some_and(|max| max == "33554432\n"), "{stats:?}");
    ensure!(stats.get("cpu.max").is_some_and(|max| max == "50000 100000\n"), "{stats:?}");
    let resources = json!({"pids": {"limit": 50}, "cpu": {"quota": -1}});
    client.call(Call::Update { container: "c".into(), resources }).await?;
    let Return::Stats(stats) = client.call(Call::Stats { container: "c".into() }).await? else {
        return Err("no stats".into());
    };
    ensure!(stats["pids.max"] == "50\n" && stats["cpu.max"] == "max 100000\n", "{stats:?}");
    Ok(client.delete("c").await?)
}

async fn out_of_memory(client: &Client) -> Outcome {
    let mut config = spec(process(&["sleep", "1000"]));
    config["linux"]["resources"]["memory"] = json!({"limit": 16777216, "swap": 16777216});
    let mut events = client.connect(true).await;
    client.create(create("c", config, NONE)).await?;
    client.start("c").await?;
    let hog = shell(
        "dd if=/dev/zero of=/dev/shm/x bs=1M count=60; cat /dev/zero | head -c 40000000 | tail -c 39999999 >/dev/null",
    );
    client.exec(exec("c", "hog", hog, NONE)).await?;
    let exit = client.wait(name("c", Some("hog"))).await?;
    ensure!(exit.oom, "{exit:?}");
    let event = async {
        loop {
            if let Message::Event(event) = bulkhead_agent::server::read_message(&mut events).await?
            {
                return Ok::<_, std::io::Error>(event);
            }
        }
    };
    let event = timeout(Duration::from_secs(5), event).await??;
    ensure!(event == Event::Oom { container: "c".into() }, "{event:?}");
    Ok(client.delete("c").await?)
}

async fn freezing(client: &Client) -> Outcome {
    client.create(create("c", spec(shell("while :; do echo x; sleep 0.02; done")), OUT)).await?;
    let mut stdout = client.stream(name("c", None), Stream::Stdout).await?;
    client.start("c").await?;
    stdout.read_exact(&mut [0; 4]).await?;
    client.call(Call::Freeze { container: "c".into(), frozen: true }).await?;
    while timeout(Duration::from_millis(200), stdout.read(&mut [0; 64])).await.is_ok() {}
    let paused = client.exec(exec("c", "e", process(&["true"]), NONE)).await.unwrap_err();
    ensure!(paused.kind == ErrorKind::State, "{paused:?}");
    client.call(Call::Freeze { container: "c".into(), frozen: false }).await?;
    timeout(Duration::from_secs(5), stdout.read(&mut [0; 64])).await??;
    client.call(Call::Freeze { container: "c".into(), frozen: true }).await?;
    Ok(client.delete("c").await?)
}

async fn devices(client: &Client) -> Outcome {
    let script = "echo a > /dev/null && head -c 3 /dev/zero | wc -c; mknod /tmp/mem c 1 1; \
        cat /tmp/mem; stat -c '%a %t:%T %u' /dev/extra";
    let mut config = spec(shell(script));
    config["linux"]["devices"] = json!([{"path": "/dev/extra", "type": "c", "major": 1, "minor": 5,
        "fileMode": 432, "uid": 3, "gid": 4}]);
    let (_, out) = client.run(create("c", config, OUT)).await?;
    ensure!(out.contains("3\n") && out.contains("660 1:5 3"), "{out}");
    ensure!(out.contains("/tmp/mem") && out.contains("Operation not permitted"), "{out}");
    Ok(())
}

async fn read_only_root(client: &Client) -> Outcome {
    let mut config = spec(shell("touch /x; touch /dev/shm/y && echo written"));
    config["root"]["readonly"] = json!(true);
    let (_, out) = client.run(create("c", config, OUT)).await?;
    ensure!(out.contains("Read-only") && out.contains("written"), "{out}");
    Ok(())
}

async fn copy_up(client: &Client) -> Outcome {
    let mut config = spec(shell("cat /full/sub/file; touch /full/sub/new && echo written"));
    let mounts = config["mounts"].as_array_mut().ok_or("mounts")?;
    mounts.push(json!({"destination": "/full", "type": "tmpfs", "options": ["tmpcopyup"]}));
    let (_, out) = client.run(create("c", config, OUT)).await?;
    ensure!(out == "from the image\nwritten\n", "{out}");
    Ok(())
}

async fn user_namespaces(client: &Client) -> Outcome {
    let mut config = spec(shell(
        "id -u; cat /proc/self/uid_map; hostname inner && hostname; echo > /dev/null; ls /sys | wc -l",
    ));
    let list = config["linux"]["namespaces"].as_array_mut().ok_or("namespaces")?;
    list.push(json!({"type": "user"}));
    // As an engine does for such a container: everything of the image's belongs
    // to the mapped range; here the map is the identity but for its length.
    let map = json!([{"containerID": 0, "hostID": 0, "size": 65536}]);
    config["linux"]["uidMappings"] = map.clone();
    config["linux"]["gidMappings"] = map;
    config["process"]["capabilities"]["effective"] = json!(["CAP_SYS_ADMIN"]);
    config["process"]["capabilities"]["permitted"] = json!(["CAP_SYS_ADMIN"]);
    config["process"]["capabilities"]["bounding"] = json!(["CAP_SYS_ADMIN"]);
    client.create(create("c", config, OUT)).await?;
    let out = client.stream(name("c", None), Stream::Stdout).await?;
    client.start("c").await?;
    let out = read(out).await;
    ensure!(out.starts_with("0\n") && out.contains("65536") && out.contains("inner"), "{out}");
    Ok(client.delete("c").await?)
}

async fn persistent_upper(client: &Client) -> Outcome {
    let at = |id: &str, script: &str| {
        let mut create = create(id, spec(shell(script)), OUT);
        if let protocol::agent::Rootfs::Overlay { upper, .. } = &mut create.rootfs {
            *upper = protocol::agent::Upper::Share { path: "private/upper".into() };
        }
        create
    };
    client.run(at("c", "echo kept > /kept; rm /etc/passwd")).await?;
    let (_, out) = client.run(at("d", "cat /kept; ls /etc")).await?;
    ensure!(out.starts_with("kept\n") && !out.contains("passwd"), "{out}");
    Ok(())
}

async fn pod_namespaces(client: &Client) -> Outcome {
    let pid = client.create(create("a", spec(process(&["sleep", "1000"])), NONE)).await?;
    client.start("a").await?;
    let mut config = spec(shell("hostname; ps | grep -c 'sleep 1000'; cat /proc/1/comm"));
    config.as_object_mut().ok_or("spec")?.remove("hostname");
    let path = |kind: &str| format!("/proc/{pid}/ns/{kind}");
    config["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "cgroup"},
        {"type": "network", "path": "/var/run/netns/pod"},
        {"type": "uts", "path": path("uts")}, {"type": "ipc", "path": path("ipc")},
        {"type": "pid", "path": path("pid")}]);
    let (_, out) = client.run(create("b", config, OUT)).await?;
    ensure!(out.starts_with("box\n") && out.ends_with("sleep\n"), "{out}");
    Ok(client.delete("a").await?)
}

async fn bad_specifications(client: &Client) -> Outcome {
    for (path, value, word) in [
        ("/process/apparmorProfile", json!("docker-default"), "process.apparmorProfile"),
        ("/linux/intelRdt", json!({"closID": "x"}), "linux.intelRdt"),
        ("/mounts/0/type", json!("nonsense"), "mounts[/proc]"),
        ("/linux/resources/memory", json!({"swappiness": 60}), "swappiness"),
        ("/linux/resources/unified", json!({"no.such": "1"}), "no.such"),
        ("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_NOTIFY"}), "NOTIFY"),
    ] {
        let mut config = spec(process(&["true"]));
        let (parent, key) = path.rsplit_once('/').ok_or("path")?;
        config.pointer_mut(parent).ok_or("parent")?[key] = value;
        let error = client.create(create("c", config, NONE)).await.unwrap_err();
        ensure!(error.message.contains(word), "{word}: {error:?}");
        sleep(Duration::from_millis(50)).await;
    }
    let mut config = spec(process(&["true"]));
    config["process"]["apparmorProfile"] = json!("odd");
    let mut odd = create("c", config, NONE);
    odd.apparmor =
        vec![Policy { profile: "odd".into(), revision: 1, binary: b"no policy at all".to_vec() }];
    let error = client.create(odd).await.unwrap_err();
    ensure!(error.message.contains("does not take the policy of \"odd\""), "{error:?}");
    for id in ["", "..", "a/b", "a b", ".x"] {
        let error = client.create(create(id, spec(process(&["true"])), NONE)).await.unwrap_err();
        ensure!(error.kind == ErrorKind::Invalid, "{id:?}: {error:?}");
    }
    Ok(())
}

/// The machine has a second CPU that is not online, and no memory to add.
async fn growth(client: &Client) -> Outcome {
    let online = || std::fs::read_to_string("/sys/devices/system/cpu/online");
    ensure!(online()? == "0\n", "{:?} is online at the start", online()?);
    let grow = |memory, vcpus| client.call(Call::Grow { memory, vcpus });
    // Once more changes nothing.
    for _ in 0..2 {
        ensure!(grow(None, 2).await? == Return::Done, "no plain answer");
        ensure!(online()? == "0-1\n", "{:?} is online", online()?);
    }
    let (_, out) = client.script("c", "grep -c ^processor /proc/cpuinfo").await?;
    ensure!(out == "2\n", "{out}");
    let error = grow(None, 3).await.unwrap_err();
    ensure!(error.message.contains("cpu2/online"), "{error:?}");
    let crooked = AddedMemory { start: (4 << 30) + 4096, bytes: 128 << 20 };
    let error = grow(Some(crooked), 1).await.unwrap_err();
    ensure!(error.kind == ErrorKind::Invalid && error.message.contains("blocks"), "{error:?}");
    Ok(())
}

/// A message of rtnetlink(7) without its first header.
fn item(header: &[u8], attributes: &[(u16, &[u8])]) -> Item {
    let mut bytes = header.to_vec();
    for (kind, value) in attributes {
        bytes.extend((4 + value.len() as u16).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend_from_slice(value);
    }
    Item(bytes)
}

fn busybox(words: &[&str]) -> Result<String, Failure> {
    let program = std::path::Path::new(boot::SHARES).join("immutable/base/bin/busybox");
    let output = std::process::Command::new(program).args(words).output()?;
    ensure!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// An interface that the machine has becomes one of the host's, by its hardware address.
async fn network(client: &Client) -> Outcome {
    busybox(&["ip", "link", "add", "any", "type", "dummy"])?;
    let mac = [2, 0, 0, 0, 0, 7];
    busybox(&["ip", "link", "set", "any", "address", "02:00:00:00:00:07"])?;
    const INDEX: [u8; 4] = 77u32.to_ne_bytes();
    let [a, b, c, d] = INDEX;
    let link = |name: &str, mtu| Link {
        index: 77,
        name: name.into(),
        mac,
        mtu,
        up: true,
        device: None,
        ipv6: None,
    };
    let v4 =
        |last| item(&[2, 24, 0, 0, a, b, c, d], &[(1, &[10, 9, 0, last]), (2, &[10, 9, 0, last])]);
    let v6 = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
    let gateway: &[u8] = &[10, 9, 0, 1];
    let mut wanted = Network {
        links: vec![link("eth0", 1400)],
        addresses: vec![v4(2), item(&[10, 64, 0, 0, a, b, c, d], &[(1, &v6)])],
        routes: vec![
            // main table, static: blackhole 10.99.0.0/16, default by the gateway.
            item(&[2, 16, 0, 0, 254, 4, 0, 6, 0, 0, 0, 0], &[(1, &[10, 99, 0, 0])]),
            item(&[2, 0, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0], &[(5, gateway), (4, &INDEX)]),
        ],
        neighbours: vec![item(
            &[2, 0, 0, 0, a, b, c, d, 0x80, 0, 0, 0],
            &[(1, gateway), (2, &[2, 0, 0, 0, 0, 1, 0, 0])],
        )],
        resolver: None,
    };
    // A hardware address has six bytes, and padding.
    wanted.neighbours[0].0[20..22].copy_from_slice(&10u16.to_ne_bytes());
    let apply = |network: &Network| client.call(Call::Network(network.clone()));
    // Once more changes nothing.
    for _ in 0..2 {
        ensure!(apply(&wanted).await? == Return::Done, "no plain answer");
        let told = busybox(&["ip", "addr", "show", "eth0"])?;
        for text in ["mtu 1400", ",UP", "10.9.0.2/24", "fd00::9/64", "02:00:00:00:00:07"] {
            ensure!(told.contains(text) && !told.contains("tentative"), "{text}: {told}");
        }
        let routes = busybox(&["ip", "route"])?;
        for text in
            ["default via 10.9.0.1 dev eth0", "blackhole 10.99.0.0/16", "10.9.0.0/24 dev eth0"]
        {
            ensure!(routes.contains(text), "{text}: {routes}");
        }
        let neighbours = busybox(&["ip", "neigh"])?;
        ensure!(
            neighbours.contains("02:00:00:00:00:01") && neighbours.contains("PERM"),
            "{neighbours}"
        );
    }
    let (_, out) = client.script("c", "cat /sys/class/net/eth0/mtu").await?;
    ensure!(out == "1400\n", "{out}");
    wanted.links = vec![link("net1", 9000)];
    wanted.addresses[0] = v4(3);
    wanted.routes.remove(0);
    wanted.neighbours.clear();
    apply(&wanted).await?;
    let told = busybox(&["ip", "addr", "show", "net1"])?;
    ensure!(told.contains("mtu 9000") && told.contains("10.9.0.3/24"), "{told}");
    ensure!(!told.contains("10.9.0.2/24") && told.contains("fd00::9/64"), "{told}");
    let routes = busybox(&["ip", "route"])?;
    ensure!(routes.contains("default via 10.9.0.1 dev net1"), "{routes}");
    ensure!(!routes.contains("blackhole"), "{routes}");
    ensure!(!busybox(&["ip", "neigh"])?.contains("PERM"), "the neighbour is still there");
    for (field, wrong) in [
        (
            "hardware address",
            Network { links: vec![Link { mac: [9; 6], ..link("x", 1500) }], ..wanted.clone() },
        ),
        ("name", Network { links: vec![link("a/b", 1500)], ..wanted.clone() }),
        ("malformed", Network { addresses: vec![Item(vec![2; 5])], ..wanted.clone() }),
    ] {
        let error = apply(&wrong).await.unwrap_err();
        ensure!(error.message.contains(field), "{field}: {error:?}");
    }
    // What is refused leaves the others, and is told.
    wanted.addresses = vec![item(&[2, 99, 0, 0, a, b, c, d], &[(2, &[10, 9, 0, 5])]), v4(4)];
    let error = apply(&wanted).await.unwrap_err();
    ensure!(error.message.contains("adding the address"), "{error:?}");
    let told = busybox(&["ip", "addr", "show", "net1"])?;
    ensure!(told.contains("10.9.0.4/24") && !told.contains("10.9.0.3/24"), "{told}");
    // IPv6 goes with its setting, and comes back with it.
    wanted.addresses = vec![v4(4), item(&[10, 64, 0, 0, a, b, c, d], &[(1, &v6)])];
    for disable in [1, 0] {
        wanted.links[0].ipv6 = Some(Ipv6 { disable, ..Ipv6::default() });
        apply(&wanted).await?;
        let told = busybox(&["ip", "addr", "show", "net1"])?;
        ensure!(told.contains("10.9.0.4/24"), "{told}");
        ensure!(told.contains("fd00::9/64") == (disable == 0), "{disable}: {told}");
    }
    apply(&Network::default()).await?;
    busybox(&["ip", "link", "del", "net1"]).map(drop)
}

/// (mounts, cgroups, processes, descriptors)
fn count() -> (usize, usize, usize, usize) {
    let numbers = |path: &str| {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        entries.filter(|e| e.file_name().to_string_lossy().parse::<u32>().is_ok()).count()
    };
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let cgroups = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    let cgroups = cgroups.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir())).count();
    (mounts.lines().count(), cgroups, numbers("/proc"), numbers("/proc/self/fd"))
}

async fn nothing_stays(client: &Client) -> Outcome {
    client.script("warm", "true").await?;
    sleep(Duration::from_millis(300)).await;
    let before = count();
    let (mut created, mut started, mut deleted) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    for n in 0..50 {
        let id = format!("n{n}");
        let begin = Instant::now();
        client.create(create(&id, spec(process(&["true"])), OUT)).await?;
        created += begin.elapsed();
        let begin = Instant::now();
        client.start(&id).await?;
        started += begin.elapsed();
        client.wait(name(&id, None)).await?;
        let begin = Instant::now();
        client.delete(&id).await?;
        deleted += begin.elapsed();
    }
    let _ = client.create(create("x", spec(process(&["nonsense"])), OUT)).await;
    sleep(Duration::from_millis(300)).await;
    let after = count();
    // Kernel threads come and go; containers' processes must not stay.
    ensure!((before.0, before.1, before.3) == (after.0, after.1, after.3), "{before:?} {after:?}");
    ensure!(after.2 <= before.2 + 3, "{before:?} {after:?}");
    let each = |time: Duration| time.as_micros() / 50;
    let (created, started, deleted) = (each(created), each(started), each(deleted));
    kmsg::log(&format!("  create {created} us, start {started} us, delete {deleted} us"));
    Ok(())
}

async fn throughput(client: &Client) -> Outcome {
    const SIZE: u64 = 128 << 20;
    let count = format!("count={}", SIZE >> 16);
    let process = process(&["dd", "if=/dev/zero", "bs=64k", &count]);
    client.create(create("c", spec(process), OUT)).await?;
    let mut stdout = client.stream(name("c", None), Stream::Stdout).await?;
    client.start("c").await?;
    let begin = Instant::now();
    let mut buffer = vec![0; 256 << 10];
    let mut total = 0;
    loop {
        match stdout.read(&mut buffer).await? {
            0 => break,
            count => total += count as u64,
        }
    }
    ensure!(total == SIZE, "{total} bytes");
    let rate = total as f64 / begin.elapsed().as_secs_f64() / f64::from(1 << 20);
    kmsg::log(&format!("  stdout through a socket: {rate:.0} MiB/s"));
    Ok(client.delete("c").await?)
}
