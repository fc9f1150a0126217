#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| pilot_fuzz::run("router", input));
