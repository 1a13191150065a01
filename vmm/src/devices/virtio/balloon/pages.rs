//! From what the driver wrote to ranges of whole pages inside guest memory.

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemory};

use crate::devices::virtio::serve::Chain;
use crate::memory::GuestRam;

/// The unit of the inflate and deflate queues (section 5.5.6), and the host's
/// page size.
pub(super) const PAGE: u64 = 4096;
/// Most page numbers of one buffer that are looked at. Linux sends 256.
pub(super) const MAX_PFNS: usize = 4096;
/// Most descriptors of a chain that are looked at. Linux reports up to 32
/// ranges at once.
const MAX_DESCRIPTORS: usize = 64;

/// Part of guest memory, in whole pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) gpa: u64,
    pub(super) len: u64,
}

/// The page numbers in the readable buffers of an inflate request, merged into
/// as few ranges as there are.
pub(super) fn inflated(memory: &GuestRam, chain: Chain) -> Vec<Range> {
    let mut pfns: Vec<u32> = Vec::new();
    let readable = |descriptor: &Descriptor| !descriptor.is_write_only();
    for descriptor in chain.take(MAX_DESCRIPTORS).filter(readable) {
        let count = (descriptor.len() as usize / 4).min(MAX_PFNS - pfns.len());
        let mut bytes = vec![0; count * 4];
        if memory.read_slice(&mut bytes, descriptor.addr()).is_err() {
            break;
        }
        let (words, _) = bytes.as_chunks::<4>();
        pfns.extend(words.iter().map(|&word| u32::from_le_bytes(word)));
    }
    pfns.sort_unstable();
    pfns.dedup();
    merge(pfns.into_iter().map(u64::from).filter(|&pfn| inside(memory, pfn * PAGE, PAGE)))
}

/// The free ranges of a report: the chain's writable buffers themselves. The
/// driver aligns them; what is not a whole page stays.
pub(super) fn reported(memory: &GuestRam, chain: Chain) -> Vec<Range> {
    let writable = chain.take(MAX_DESCRIPTORS).filter(|descriptor| descriptor.is_write_only());
    writable
        .filter_map(|descriptor| {
            let (start, len) = (descriptor.addr().0, u64::from(descriptor.len()));
            let end = start.checked_add(len)? / PAGE * PAGE;
            let gpa = start.checked_next_multiple_of(PAGE)?;
            let len = end.checked_sub(gpa)?;
            (len > 0 && inside(memory, gpa, len)).then_some(Range { gpa, len })
        })
        .collect()
}

fn inside(memory: &GuestRam, gpa: u64, len: u64) -> bool {
    usize::try_from(len).is_ok_and(|len| memory.check_range(GuestAddress(gpa), len))
}

/// Merges neighbours of a sorted sequence of distinct page numbers.
fn merge(pfns: impl Iterator<Item = u64>) -> Vec<Range> {
    let mut ranges: Vec<Range> = Vec::new();
    for gpa in pfns.map(|pfn| pfn * PAGE) {
        match ranges.last_mut() {
            Some(last) if last.gpa + last.len == gpa => last.len += PAGE,
            _ => ranges.push(Range { gpa, len: PAGE }),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_merged() {
        let ranges = merge([1, 2, 3, 5, 9, 10].into_iter());
        let expected = [(1, 3), (5, 1), (9, 2)];
        let expected = expected.map(|(pfn, n)| Range { gpa: pfn * PAGE, len: n * PAGE });
        assert_eq!(ranges, expected);
    }
}
