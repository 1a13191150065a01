#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    bulkhead_vmm::devices::virtio::testing::hostile_function(data);
});
