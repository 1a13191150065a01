#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    bulkhead_vmm::devices::virtio::net::hostile::hostile_net(data);
});
