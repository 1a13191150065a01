//! Passing descriptors over `SOCK_SEQPACKET` sockets, and a few calls on one.
#![allow(unsafe_code)]

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use tokio::io::unix::AsyncFd;

use super::pidfd::PidFd;

/// Closes every descriptor from `first` on. For a process that has just been
/// executed, before it opens anything.
pub fn close_from(first: u32) {
    // SAFETY: takes numbers. Nothing of this process owns a descriptor yet but
    // the standard three, which callers leave out. A kernel without the call
    // (before 5.9) leaves them open, which is what was asked to be avoided, not
    // an error to end for.
    unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
}

/// Sends one packet with descriptors beside it.
///
/// # Errors
/// As sendmsg(2).
pub fn send_packet(socket: BorrowedFd, bytes: &[u8], fds: &[BorrowedFd]) -> nix::Result<()> {
    let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights[..] };
    let iov = [IoSlice::new(bytes)];
    sendmsg::<()>(socket.as_raw_fd(), &iov, control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// A received packet: its length and the descriptors that came with it.
pub struct Packet {
    /// Bytes that were written to the buffer. Zero is end of file.
    pub length: usize,
    /// Descriptors, all close-on-exec.
    pub fds: Vec<OwnedFd>,
    /// Whether the packet was longer than the buffer, or carried more
    /// descriptors than were asked for.
    pub truncated: bool,
}

/// Receives one packet into `buffer`, and up to 8 descriptors.
///
/// # Errors
/// As recvmsg(2).
pub fn receive_packet(socket: BorrowedFd, buffer: &mut [u8]) -> nix::Result<Packet> {
    let mut control = nix::cmsg_space!([std::os::fd::RawFd; 8]);
    let mut iov = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut iov, Some(&mut control), flags)?;
    let mut fds = Vec::new();
    // With MSG_CTRUNC nix refuses to iterate, and the kernel installed only
    // what fitted; those are leaked, for which the caller ends the VMM.
    for part in message.cmsgs().into_iter().flatten() {
        if let ControlMessageOwned::ScmRights(raw) = part {
            // SAFETY: the kernel has just installed these numbers for this
            // packet alone, so that nobody else owns them.
            fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    let truncated = message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC);
    Ok(Packet { length: message.bytes, fds, truncated })
}

/// Lets tokio watch a descriptor, which must be non-blocking to be of use.
///
/// # Errors
/// When it cannot be watched (a regular file, say).
pub fn watch_fd(fd: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd gives the same open descriptor for all its life.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

/// Lets tokio watch a process; it becomes readable when the process ends.
///
/// # Errors
/// When it cannot be watched.
pub fn watch_process(process: Arc<PidFd>) -> std::io::Result<AsyncFd<Arc<PidFd>>> {
    // SAFETY: a PidFd owns its descriptor and never exchanges it.
    Ok(unsafe { AsyncFd::register(process) }?)
}

/// Takes a connection from the listening socket `fd`.
///
/// # Errors
/// As accept4(2).
pub fn accept(fd: BorrowedFd) -> nix::Result<OwnedFd> {
    let raw = nix::sys::socket::accept4(fd.as_raw_fd(), nix::sys::socket::SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: accept4 has just made this number for nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Rows and columns of the terminal `fd`.
///
/// # Errors
/// ENOTTY when it is none.
pub fn window_size(fd: BorrowedFd) -> nix::Result<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one `winsize`, which `size` is, and the
    // descriptor is borrowed for the call.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ, &mut size) };
    nix::errno::Errno::result(result)?;
    Ok((size.ws_row, size.ws_col))
}

/// /dev/null, opened once: a cgroup may forbid it to a process that enters it later.
///
/// # Errors
/// When it cannot be opened.
pub fn null() -> std::io::Result<&'static OwnedFd> {
    static NULL: std::sync::OnceLock<OwnedFd> = std::sync::OnceLock::new();
    if let Some(null) = NULL.get() {
        return Ok(null);
    }
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    Ok(NULL.get_or_init(|| null.into()))
}

/// Puts /dev/null in the place of this process's standard streams.
///
/// # Errors
/// When it cannot be opened.
pub fn leave_stdio() -> std::io::Result<()> {
    let null = null()?;
    nix::unistd::dup2_stdin(null)?;
    nix::unistd::dup2_stdout(null)?;
    nix::unistd::dup2_stderr(null)?;
    Ok(())
}

/// Sets rows and columns of the terminal `fd`.
///
/// # Errors
/// ENOTTY when it is none.
pub fn set_window_size(fd: BorrowedFd, (rows, columns): (u16, u16)) -> nix::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one `winsize`, which `size` is, and the descriptor is
    // borrowed for the call.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSWINSZ, &size) };
    nix::errno::Errno::result(result).map(drop)
}

/// Makes the terminal `fd` the controlling one of this session's leader.
///
/// # Errors
/// EPERM when the process leads no session, or another one has the terminal.
pub fn control_terminal(fd: BorrowedFd) -> nix::Result<()> {
    // SAFETY: TIOCSCTTY takes a number, and the descriptor is borrowed for the call.
    nix::errno::Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSCTTY, 0) })?;
    Ok(())
}

/// Takes over a descriptor that this process was started with.
///
/// # Errors
/// EBADF when it was not.
pub fn inherited(number: i32) -> nix::Result<OwnedFd> {
    // SAFETY: F_GETFD takes a number and tells whether it is open.
    nix::errno::Errno::result(unsafe { libc::fcntl(number, libc::F_GETFD) })?;
    // SAFETY: whoever started this program opened it for it; callers take each
    // number once, before anything of this process opens a descriptor.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
    Ok(fd)
}

/// Descriptors that a program is started with, beside its standard three.
#[derive(Debug, Clone)]
pub struct Inherit(Vec<(i32, i32)>);

impl Inherit {
    /// Pairs of a descriptor of ours and its number there. For a negative one, that
    /// number is closed there, whatever this process has open by it.
    pub fn new(places: Vec<(i32, i32)>) -> Inherit {
        Inherit(places)
    }

    /// Has `command` place them. Ours must stay open until it is spawned.
    pub fn apply(self, command: &mut std::process::Command) {
        use std::os::unix::process::CommandExt;
        let above = self.0.iter().map(|(_, to)| to + 1).max().unwrap_or(0);
        let mut high = vec![-1; self.0.len()];
        let place = move || -> std::io::Result<()> {
            for (copy, (from, _)) in high.iter_mut().zip(&self.0) {
                if *from >= 0 {
                    // SAFETY: takes numbers; the copy lies above all targets, so that
                    // none is overwritten before its turn, and is closed by exec.
                    *copy = unsafe { libc::fcntl(*from, libc::F_DUPFD_CLOEXEC, above) };
                    nix::errno::Errno::result(*copy)?;
                }
            }
            for (copy, (_, to)) in high.iter().zip(&self.0) {
                let result = if *copy < 0 {
                    // SAFETY: as below. That it is not open is no error.
                    unsafe { libc::close(*to) }.max(0)
                } else {
                    // SAFETY: takes numbers; nothing in this child owns `to`, since
                    // it executes another program next.
                    unsafe { libc::dup2(*copy, *to) }
                };
                nix::errno::Errno::result(result)?;
            }
            Ok(())
        };
        // SAFETY: the closure runs between fork and exec. It calls fcntl, dup2 and
        // close alone, which are async-signal-safe, and allocates nothing.
        unsafe { command.pre_exec(place) };
    }
}

/// Duplicates one of this process's own standard streams (0, 1 or 2).
///
/// # Errors
/// When it is closed.
pub fn own_stdio(number: i32) -> std::io::Result<OwnedFd> {
    assert!((0..=2).contains(&number));
    // SAFETY: std opens the three standard descriptors at the process's start
    // and nothing of ours closes them; a closed one only makes dup fail.
    unsafe { BorrowedFd::borrow_raw(number) }.try_clone_to_owned()
}

/// The value of an extended attribute of the file `fd` (opened, not O_PATH), if
/// it has it and it is at most 64 bytes long.
pub fn small_xattr(fd: BorrowedFd, name: &std::ffi::CStr) -> Option<Vec<u8>> {
    let mut value = [0u8; 64];
    // SAFETY: name is NUL-terminated, and the kernel writes at most the given
    // length to `value`.
    let length = unsafe {
        libc::fgetxattr(fd.as_raw_fd(), name.as_ptr(), value.as_mut_ptr().cast(), value.len())
    };
    usize::try_from(length).ok().map(|length| value[..length].to_vec())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    use super::*;

    #[test]
    fn descriptors_travel_with_their_packet() {
        let kind = SockType::SeqPacket;
        let (a, b) = socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"through").unwrap();
        send_packet(a.as_fd(), b"hello", &[file.as_fd()]).unwrap();
        send_packet(a.as_fd(), b"long one", &[]).unwrap();
        let mut buffer = [0; 5];
        let packet = receive_packet(b.as_fd(), &mut buffer).unwrap();
        assert_eq!((&buffer[..packet.length], packet.truncated), (&b"hello"[..], false));
        let mut file = std::fs::File::from(packet.fds.into_iter().next().unwrap());
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        assert!(receive_packet(b.as_fd(), &mut buffer).unwrap().truncated);
    }
}
