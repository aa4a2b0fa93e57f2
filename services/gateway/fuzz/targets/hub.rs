#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| stepcast_gateway::fuzz::hub(data));
