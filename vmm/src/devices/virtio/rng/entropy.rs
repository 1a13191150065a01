//! The host kernel's random bytes.

/// Fills `buffer`; false when the kernel gives none (it always does once the
/// host has booted, so this is for completeness).
#[allow(unsafe_code)]
pub(super) fn fill(buffer: &mut [u8]) -> bool {
    let mut filled = 0;
    while filled < buffer.len() {
        let rest = &mut buffer[filled..];
        // SAFETY: pointer and length are those of `rest`, which is writable.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(got) {
            Ok(0) => return false,
            Ok(got) => filled += got,
            Err(_) if nix::Error::last() == nix::Error::EINTR => {}
            Err(_) => return false,
        }
    }
    true
}
