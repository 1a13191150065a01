#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    runtime::networks::passt::hostile::hostile_frames(data);
});
