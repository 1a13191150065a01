//! virtio-fs (virtio 1.2, section 5.11): the share tree, served in this process.
//!
//! ```text
//!  device.rs     identity, configuration; makes the handler
//!  handler.rs    rings
//!    request.rs    one chain: checked, served, always answered
//!      tree.rs       the shares under one root, with pseudo.rs above them;
//!                    operations.rs is what FUSE asks of it
//!        share.rs      one share: fuse-backend-rs's PassthroughFs, guarded
//!        policy.rs     what the guest may cache of it
//!  thread.rs     what the serving thread must be allowed to do
//!  state.rs      what is saved
//! ```

mod device;
mod handler;
mod operations;
pub mod policy;
mod pseudo;
pub mod request;
mod share;
pub mod state;
mod thread;
pub mod tree;

pub use device::{Fs, FsHandle};
pub use policy::ShareConfig;
pub use thread::prepare_thread;
