//! How host and guest find each other over vsock.
//!
//! Host to guest: a process connects to the sandbox's Unix socket, writes
//! `CONNECT <port>\n`, reads `OK <host port>\n` and then has a byte stream to
//! that port of the guest. Firecracker's clients speak the same handshake.
//! A refused or absent guest port closes the connection without `OK`.
//!
//! Guest to host: the guest connects to [`HOST_CID`] and a port; the VMM makes a
//! socket pair and sends one end to the runtime
//! ([`crate::machine::Event::GuestConnect`]).

/// Context id of the guest. Each VMM has its own number space, so that one
/// constant serves all.
pub const GUEST_CID: u64 = 3;
/// Context id of the host (VMADDR_CID_HOST).
pub const HOST_CID: u64 = 2;
/// Guest port on which the agent serves [`crate::agent::Message`]s.
pub const AGENT_PORT: u32 = 1024;
/// Guest port on which the agent accepts stdio streams
/// ([`crate::agent::StreamHello`]).
pub const STREAM_PORT: u32 = 1025;
/// Host port that the agent dials once it is up. That connection serves
/// [`crate::agent::Message`]s like those made to [`AGENT_PORT`].
pub const READY_PORT: u32 = 1026;
/// Host port that the agent dials for each question to the resolver of an engine
/// ([`crate::network::Resolve`]).
pub const RESOLVER_PORT: u32 = 1027;

/// Longest handshake line in bytes, newline included.
pub const MAX_LINE: usize = 32;

/// The line that asks for guest port `port`.
pub fn connect_line(port: u32) -> String {
    format!("CONNECT {port}\n")
}

/// The port that `line` (without newline) asks for.
pub fn parse_connect(line: &[u8]) -> Option<u32> {
    std::str::from_utf8(line).ok()?.strip_prefix("CONNECT ")?.trim_end().parse().ok()
}

/// Whether `line` (without newline) grants the connection.
pub fn is_ok(line: &[u8]) -> bool {
    line.starts_with(b"OK ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connect_round_trips() {
        let line = connect_line(AGENT_PORT);
        assert_eq!(parse_connect(line.trim_end().as_bytes()), Some(AGENT_PORT));
    }

    #[test]
    fn nonsense_is_refused() {
        for line in [&b"CONNECT"[..], b"CONNECT x", b"CONNECT 99999999999", b"GET /", b"\xff\xfe"] {
            assert_eq!(parse_connect(line), None);
        }
    }
}
