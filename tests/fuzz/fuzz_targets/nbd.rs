#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringback_tests::hostile::nbd_client(data));
