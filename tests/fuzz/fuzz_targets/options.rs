#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| ringback_tests::hostile::options(text));
