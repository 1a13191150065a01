//! Entropy for the guest (virtio 1.2, section 5.4).

mod device;
mod entropy;
mod handler;

pub use device::Rng;

#[cfg(test)]
mod tests;
