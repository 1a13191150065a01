//! One queue of a tap, as Linux has it (Documentation/networking/tuntap.rst).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use smallvec::SmallVec;
use virtio_bindings::virtio_net as net;
use vm_memory::volatile_memory::VolatileSlice;

use super::HEADER;

/// Most slices of one call: UIO_MAXIOV of the kernel, and one is for memory of ours.
pub(super) const MAX_SLICES: usize = 1023;

/// What most frames need lies on the stack.
type Vectors = SmallVec<[libc::iovec; 20]>;

/// A tap's queue. Reads and writes are of whole frames, each behind its header.
pub struct Tap {
    fd: OwnedFd,
    /// A socket, which tests use in its place, has neither header size nor offloads.
    #[cfg(any(test, feature = "fuzzing"))]
    socket: bool,
}

impl Tap {
    /// Takes over an attached /dev/net/tun.
    ///
    /// # Errors
    /// In words, when it is none, or is attached in another way.
    pub fn new(fd: OwnedFd) -> Result<Tap, String> {
        let words = |what: &'static str| move |error: nix::Error| format!("{what}: {error}");
        let flags = flags(fd.as_fd()).map_err(words("the descriptor is no tap (TUNGETIFF)"))?;
        let wanted = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        let kind = wanted | libc::IFF_TUN;
        if i32::from(flags) & kind != wanted {
            return Err(format!("a tap has the flags {flags:#x}, not {wanted:#x}"));
        }
        nonblocking(fd.as_fd()).map_err(words("O_NONBLOCK"))?;
        Ok(Tap {
            fd,
            #[cfg(any(test, feature = "fuzzing"))]
            socket: false,
        })
    }

    /// For tests: a socket that keeps the borders of messages.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn socket(fd: OwnedFd) -> Tap {
        nonblocking(fd.as_fd()).expect("a socket");
        Tap { fd, socket: true }
    }

    fn is_socket(&self) -> bool {
        #[cfg(any(test, feature = "fuzzing"))]
        return self.socket;
        #[cfg(not(any(test, feature = "fuzzing")))]
        false
    }

    /// Lets the kernel give frames as the driver can take them: with this header, without
    /// checksums and larger than the wire's as far as `features` go.
    pub(super) fn configure(&self, features: u64) -> nix::Result<()> {
        if self.is_socket() {
            return Ok(());
        }
        header_size(self.fd.as_fd(), HEADER as libc::c_int)?;
        offload(self.fd.as_fd(), offloads(features))
    }

    /// Whether the kernel is to put frames into this queue; there must be several.
    pub(super) fn enable(&self, on: bool) -> nix::Result<()> {
        if self.is_socket() {
            return Ok(());
        }
        let flag = if on { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
        match queue(self.fd.as_fd(), flag as libc::c_short) {
            // It is as it should be already.
            Err(nix::Error::EINVAL) => Ok(()),
            other => other,
        }
    }

    /// Whether a read would give a frame.
    pub(super) fn has_frame(&self) -> bool {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Reads a frame into `slices`, up to [`MAX_SLICES`], and what does not fit there into `beyond`; what does not
    /// fit there either is lost.
    #[allow(unsafe_code)]
    pub(super) fn read(&self, slices: &[VolatileSlice], beyond: &mut [u8]) -> nix::Result<usize> {
        let mut vectors = Vectors::new();
        let mut slices = slices.iter().map(vector);
        if let Some(mut piece) = slices.next() {
            for vector in slices {
                // Linux cuts buffers from one piece of memory after another: what is one piece
                // costs the kernel less as one.
                if piece.iov_base as usize + piece.iov_len == vector.iov_base as usize {
                    piece.iov_len += vector.iov_len;
                } else {
                    vectors.push(std::mem::replace(&mut piece, vector));
                }
            }
            vectors.push(piece);
        }
        if !beyond.is_empty() {
            vectors
                .push(libc::iovec { iov_base: beyond.as_mut_ptr().cast(), iov_len: beyond.len() });
        }
        let count = vectors.len() as libc::c_int;
        // SAFETY: each vector is a slice of guest memory, which is mapped for as long as the
        // slices live, and where the kernel may write as the guest may, since Rust holds no
        // reference; but the last one, `beyond`, which is borrowed for the call.
        let read = unsafe { libc::readv(self.fd.as_raw_fd(), vectors.as_ptr(), count) };
        usize::try_from(read).map_err(|_| nix::Error::last())
    }

    /// Writes a frame: `head`, then `rest`.
    #[allow(unsafe_code)]
    pub(super) fn write(&self, head: &[u8], rest: &[VolatileSlice]) -> nix::Result<usize> {
        let mut vectors = Vectors::new();
        // The kernel only reads there.
        vectors.push(libc::iovec { iov_base: head.as_ptr() as *mut _, iov_len: head.len() });
        vectors.extend(rest.iter().map(vector));
        let count = vectors.len() as libc::c_int;
        // SAFETY: as in `read`; `head` is borrowed for the call, and only read.
        let written = unsafe { libc::writev(self.fd.as_raw_fd(), vectors.as_ptr(), count) };
        usize::try_from(written).map_err(|_| nix::Error::last())
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The slice is used by the call that the vector is made for, before it can go away.
fn vector(slice: &VolatileSlice) -> libc::iovec {
    let guard = slice.ptr_guard_mut();
    libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() }
}

/// TUN_F_* for what was negotiated. The kernel refuses segments without checksums.
fn offloads(features: u64) -> libc::c_uint {
    let has = |bit: u32| features & 1 << bit != 0;
    if !has(net::VIRTIO_NET_F_GUEST_CSUM) {
        return 0;
    }
    let mut offloads = libc::TUN_F_CSUM;
    let (four, six) = (has(net::VIRTIO_NET_F_GUEST_TSO4), has(net::VIRTIO_NET_F_GUEST_TSO6));
    for (wanted, flag) in [
        (four, libc::TUN_F_TSO4),
        (six, libc::TUN_F_TSO6),
        ((four || six) && has(net::VIRTIO_NET_F_GUEST_ECN), libc::TUN_F_TSO_ECN),
    ] {
        offloads |= if wanted { flag } else { 0 };
    }
    offloads
}

fn nonblocking(fd: BorrowedFd) -> nix::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map(drop)
}

/// TUNGETIFF: IFF_* of an attached queue.
#[allow(unsafe_code)]
fn flags(fd: BorrowedFd) -> nix::Result<u16> {
    // SAFETY: zeros are a request without a name.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes a `struct ifreq`, which this is; another kind of file refuses
    // the number.
    nix::Error::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &mut request) })?;
    // SAFETY: TUNGETIFF fills this member of the union.
    Ok(unsafe { request.ifr_ifru.ifru_flags } as u16)
}

/// TUNSETVNETHDRSZ.
#[allow(unsafe_code)]
fn header_size(fd: BorrowedFd, size: libc::c_int) -> nix::Result<()> {
    // SAFETY: the kernel reads an int.
    nix::Error::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &size) })
        .map(drop)
}

/// TUNSETOFFLOAD.
#[allow(unsafe_code)]
fn offload(fd: BorrowedFd, offloads: libc::c_uint) -> nix::Result<()> {
    let offloads = libc::c_ulong::from(offloads);
    // SAFETY: the argument is a number, no pointer.
    nix::Error::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, offloads) })
        .map(drop)
}

/// TUNSETQUEUE.
#[allow(unsafe_code)]
fn queue(fd: BorrowedFd, flag: libc::c_short) -> nix::Result<()> {
    // SAFETY: zeros are a request without a name.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_flags = flag;
    // SAFETY: the kernel reads a `struct ifreq`.
    nix::Error::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETQUEUE, &request) })
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offloads_follow_from_what_was_negotiated() {
        let bits = |bits: &[u32]| bits.iter().fold(0, |all, bit| all | 1u64 << bit);
        let (csum, four, six, ecn) = (1, 7, 8, 9);
        assert_eq!(offloads(0), 0);
        assert_eq!(offloads(bits(&[four, six, ecn])), 0);
        assert_eq!(offloads(bits(&[csum, ecn])), 1);
        assert_eq!(offloads(bits(&[csum, four])), 3);
        assert_eq!(offloads(bits(&[csum, four, six, ecn])), 15);
    }

    #[test]
    fn another_file_is_no_tap() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(Tap::new(file.into()).is_err_and(|error| error.contains("no tap")));
    }

    /// The numbers that the seccomp filters allow.
    #[test]
    fn ioctl_numbers() {
        assert_eq!(libc::TUNGETIFF, 0x8004_54d2);
        assert_eq!(libc::TUNSETVNETHDRSZ, 0x4004_54d8);
        assert_eq!(libc::TUNSETOFFLOAD, 0x4004_54d0);
        assert_eq!(libc::TUNSETQUEUE, 0x4004_54d9);
    }
}
