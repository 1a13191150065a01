//! A host beyond the host, and what is asked of servers.

use crate::program::{Finished, eventually, script};

/// GET on the host, by the shell.
#[track_caller]
pub fn get(address: &str, port: u16) -> String {
    script(&ask(address, port)).text()
}

/// The same for any bash.
pub fn ask(address: &str, port: u16) -> String {
    transfer(address, port, "os-release").replace("60 cat", "20 cat")
}

/// Of any file.
pub fn transfer(address: &str, port: u16, file: &str) -> String {
    format!(
        "exec 3<>/dev/tcp/{address}/{port} && \
         printf \"GET /{file} HTTP/1.0\\r\\n\\r\\n\" >&3 && timeout 60 cat <&3"
    )
}

/// A host beyond the host: 203.0.113.2, with servers on ports 80 and 81.
#[derive(Debug)]
pub struct Outside(std::process::Child);

impl Outside {
    /// Also a server of the host's own, on port 18081.
    ///
    /// # Panics
    /// When it cannot be made.
    #[track_caller]
    pub fn set_up() -> Outside {
        let mut command = std::process::Command::new("unshare");
        let child = command.args(["-n", "sleep", "100000"]).spawn().expect("unshare");
        let pid = child.id();
        let outside = Outside(child);
        eventually("its namespace", || {
            let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
            of(&pid.to_string()) != of("self")
        });
        script(&format!(
            "set -e; ip link add out0 type veth peer name out1 netns {pid}
             ip addr add 203.0.113.1/24 dev out0; ip link set out0 up
             in='nsenter -t {pid} -n'
             $in ip addr add 203.0.113.2/24 dev out1; $in ip link set out1 up
             $in busybox httpd -p 80 -h /usr/lib; $in busybox httpd -p 81 -h /usr/lib
             busybox httpd -p 18081 -h /usr/lib"
        ))
        .ok();
        outside
    }

    /// Gives it addresses of the Internet, which no packet of this host's reaches otherwise.
    #[track_caller]
    pub fn on_the_internet(&self) -> [&'static str; 2] {
        let [four, six] = ["1.1.1.1", "2606:4700:4700::1111"];
        script(&format!(
            "set -e; in='nsenter -t {} -n'
             $in ip addr add {four}/32 dev out1; $in ip addr add {six}/128 dev out1 nodad
             ip addr add 2001:db8:99::1/64 dev out0 nodad
             $in ip addr add 2001:db8:99::2/64 dev out1 nodad
             ip route add {four} via 203.0.113.2; ip route add {six} via 2001:db8:99::2",
            self.0.id()
        ))
        .ok();
        [four, six]
    }

    /// A command there.
    #[track_caller]
    pub fn run(&self, command: &str) -> Finished {
        script(&format!("nsenter -t {} -n {command}", self.0.id()))
    }

    /// GET there, by its own shell.
    #[track_caller]
    pub fn get(&self, address: &str, port: u16) -> Finished {
        let ask = ask(address, port).replace("20 cat", "10 cat");
        self.run(&format!("timeout 10 bash -c '{ask}'"))
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        // Servers in the namespace keep it alive; its end takes a moment, and counts.
        script(
            "for pid in $(pidof busybox); do tr '\\0' ' ' </proc/$pid/cmdline | \
             grep -q '^busybox httpd' && kill $pid; done
             for try in $(seq 100); do ip link show out0 >/dev/null 2>&1 || break; sleep 0.1; done",
        );
    }
}
