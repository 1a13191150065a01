//! bulkhead-vmm: started by bulkhead's runtime with a control socket on
//! descriptor 3; see `protocol::machine`.

use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    bulkhead_vmm::process::run(Instant::now())
}
