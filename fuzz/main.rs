//! Every fuzz target: which one it is, the name of the program says.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| litestream::fuzz::run(env!("CARGO_BIN_NAME"), data));
