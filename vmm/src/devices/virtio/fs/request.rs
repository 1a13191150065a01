//! One FUSE request in one descriptor chain: checked, served, and answered
//! whatever happens.

use std::io::Write;
use std::sync::Arc;

use fuse_backend_rs::abi::fuse_abi::{InHeader, Opcode, OutHeader};
use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::transport::{Reader, VirtioFsWriter, Writer};
use virtio_queue::DescriptorChain;
use vm_memory::{ByteValued, GuestMemory, GuestMemoryMmap};

use super::tree::ShareTree;

/// Largest payload of a request: the library's max_pages of 256.
const MAX_DATA: usize = 1 << 20;
/// Room for the headers beside it.
const MAX_HEADERS: usize = 8 << 10;
/// Most descriptors: a page each, the headers, and some to spare.
const MAX_DESCRIPTORS: usize = 600;

/// A chain as this device sees it.
pub type Chain<'a> = DescriptorChain<&'a GuestMemoryMmap>;

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Served {
    /// Bytes written to the chain.
    pub written: u32,
    /// The request's opcode, when there was one.
    pub opcode: Option<u32>,
}

const NOTHING: Served = Served { written: 0, opcode: None };

/// Serves the request in `chain`. A chain that is no request is given back
/// empty; a request that the library refuses to answer gets EIO, or the guest's
/// process would wait for ever.
pub fn serve(server: &Server<Arc<ShareTree>>, memory: &GuestMemoryMmap, chain: Chain) -> Served {
    if !is_sound(memory, chain.clone()) {
        return NOTHING;
    }
    let Ok(mut peek) = Reader::from_descriptor_chain(memory, chain.clone()) else { return NOTHING };
    let Ok(header) = peek.read_obj::<InHeader>() else { return NOTHING };
    let Ok(reader) = Reader::from_descriptor_chain(memory, chain.clone()) else { return NOTHING };
    let Ok(writer) = VirtioFsWriter::new(memory, chain) else { return NOTHING };
    // Another vCPU may have changed the table since it was looked at.
    if reader.available_bytes().max(writer.available_bytes()) > MAX_DATA + MAX_HEADERS {
        return NOTHING;
    }
    let mut spare = writer.clone();
    let opcode = Some(header.opcode);
    let written = match server.handle_message(reader, Writer::VirtioFs(writer), None, None) {
        Ok(written) => written as u32,
        Err(_) if answers(header.opcode) => refuse(&mut spare, header.unique),
        Err(_) => 0,
    };
    Served { written, opcode }
}

/// Whether every descriptor lies in memory and the sums are bounded. The library
/// checks addresses as well, but adds lengths and allocates before.
fn is_sound(memory: &GuestMemoryMmap, chain: Chain) -> bool {
    let (mut count, mut readable, mut writable) = (0, 0usize, 0usize);
    for descriptor in chain {
        count += 1;
        let len = descriptor.len() as usize;
        // Readable ones come first (2.7.4.2).
        let order = descriptor.is_write_only() || writable == 0;
        let sum = if descriptor.is_write_only() { &mut writable } else { &mut readable };
        *sum = sum.saturating_add(len);
        if count > MAX_DESCRIPTORS
            || *sum > MAX_DATA + MAX_HEADERS
            || !order
            || memory.get_slice(descriptor.addr(), len).is_err()
        {
            return false;
        }
    }
    true
}

/// FORGET and its kin have no answer.
fn answers(opcode: u32) -> bool {
    ![Opcode::Forget as u32, Opcode::BatchForget as u32, Opcode::Interrupt as u32].contains(&opcode)
}

fn refuse(writer: &mut VirtioFsWriter, unique: u64) -> u32 {
    let len = size_of::<OutHeader>() as u32;
    let header = OutHeader { len, error: -libc::EIO, unique };
    if writer.write_all(header.as_slice()).is_ok() { len } else { 0 }
}

#[cfg(test)]
#[path = "request_tests/mod.rs"]
mod tests;
