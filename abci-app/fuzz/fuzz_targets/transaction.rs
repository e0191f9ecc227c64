//! `polylink_abci_app::fuzzing::transaction` under libFuzzer.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| polylink_abci_app::fuzzing::transaction(data));
