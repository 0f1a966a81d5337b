//! File names with a meaning: `json:{...}`, `blkdebug:CONF:IMAGE`, `file:PATH`; those of NBD
//! are in `nbd_name`.
//!
//! A prefix is what stands before the first colon, unless a slash comes earlier. A prefix
//! that names no protocol is an error; `./a:b` is a way to write such a path.

use serde_json::{Map, Value};

use super::flat::flatten;
use super::nbd_name;
use crate::blockdev::Driver;
use crate::error::{OptionError, Result};
use crate::json::{self, JsonError};
use crate::keyval::MAX_TEXT;
use crate::visit::Word;

/// The name, or the text behind `json:`.
pub(super) fn split_json(name: &str) -> std::result::Result<&str, &str> {
    name.strip_prefix("json:").map_or(Ok(name), Err)
}

/// Flat options from the text behind `json:`.
pub(super) fn parse_json(text: &str) -> Result<Map<String, Value>> {
    if text.len() > MAX_TEXT {
        return Err(OptionError::TextTooLong {
            len: text.len(),
            max: MAX_TEXT,
        });
    }
    let refuse = |error: JsonError| OptionError::JsonName(error.to_string());
    if text.trim_matches([' ', '\t', '\r', '\n']).is_empty() {
        return Err(OptionError::JsonName("Expecting a JSON value".to_owned()));
    }
    match json::parse_value(text).map_err(refuse)? {
        Value::Object(tree) => flatten(&tree),
        _ => Err(OptionError::NotAnObject),
    }
}

/// Whether a name has a prefix.
pub(super) fn has_protocol(name: &str) -> bool {
    name.find([':', '/'])
        .is_some_and(|at| name[at..].starts_with(':'))
}

/// The protocol that a name's prefix names; [`Driver::File`] without one.
pub(super) fn find_protocol(name: &str) -> Result<Driver> {
    let Some((prefix, _)) = name.split_once(':').filter(|_| has_protocol(name)) else {
        return Ok(Driver::File);
    };
    if matches!(prefix, "nbd+tcp" | "nbd+unix") {
        return Ok(Driver::Nbd);
    }
    Driver::from_word(prefix)
        .filter(|driver| driver.is_protocol())
        .ok_or_else(|| OptionError::UnknownProtocol {
            // QEMU cuts it, too.
            protocol: prefix.chars().take(MAX_PREFIX).collect(),
        })
}

/// Longest prefix in an error.
const MAX_PREFIX: usize = 127;

/// The options which a file name stands for.
pub(super) fn parse(driver: Driver, name: &str) -> Result<Vec<(&'static str, String)>> {
    let behind = |prefix: &str| name.strip_prefix(prefix).unwrap_or(name).to_owned();
    Ok(match driver {
        Driver::Blkdebug => match name.strip_prefix("blkdebug:") {
            None => vec![("x-image", name.to_owned())],
            Some(rest) => {
                let (config, image) = rest.split_once(':').ok_or(OptionError::BlkdebugName)?;
                let config =
                    Some(("config", config.to_owned())).filter(|(_, text)| !text.is_empty());
                let image = ("x-image", image.to_owned());
                config.into_iter().chain([image]).collect()
            }
        },
        Driver::NullCo if name != "null-co://" => return Err(OptionError::NullName),
        Driver::NullCo => Vec::new(),
        Driver::Nbd => return nbd_name::parse(name),
        Driver::HostDevice => vec![("filename", behind("host_device:"))],
        _ => vec![("filename", behind("file:"))],
    })
}
