//! Parsers of what a person or a program writes.

use ringback_qmp_shim::blockdev::Settings;
use ringback_qmp_shim::blockdev::blkdebug::config;
use ringback_qmp_shim::{BlockdevOptions, ThrottleGroupOptions, json, keyval, open, opts, size};

/// Everything that reads options.
///
/// # Panics
///
/// What was read and written again is not what it was.
pub fn options(text: &str) {
    if let Ok(members) = keyval::parse_keyval(text, None)
        && let Ok(written) = keyval::write_keyval(&members)
    {
        let again = keyval::parse_keyval(&written, None);
        assert_eq!(again.as_ref(), Ok(&members), "{written:?}");
    }
    let _ = json::parse_value(text);
    let _ = size::parse_size(text);
    if let Ok(blockdev) = BlockdevOptions::parse(text) {
        let again = BlockdevOptions::from_arguments(&blockdev.to_json());
        assert_eq!(again.as_ref(), Ok(&blockdev));
    }
    let _ = ThrottleGroupOptions::parse(text);
    let _ = open::open(Some(text), &serde_json::Map::new(), &Settings::default());
    if let Ok(opts) = opts::parse(text) {
        let _ = open::open(None, &opts.options, &Settings::default());
    }
}

/// The file of rules that `blkdebug` reads.
pub fn blkdebug_config(text: &str) {
    let _ = config::parse(text);
}
