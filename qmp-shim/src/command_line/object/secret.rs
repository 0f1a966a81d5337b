//! `secret`.

use std::fmt;

use crate::command_line::error::{ArgumentError, Result};
use crate::error::OptionError;
use crate::visit::{Reader, words};

/// Where a secret is and how it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretOptions {
    /// Where it is.
    pub source: SecretSource,
    /// How it is written there.
    pub format: SecretFormat,
}

/// Where a secret is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// In the option itself.
    Data(Secret),
    /// In a file of this name.
    File(String),
}

/// Bytes that do not show in debug output.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub Vec<u8>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

words! {
    /// How a secret is written.
    pub enum SecretFormat {
        /// As it is.
        Raw = "raw",
        /// In Base64.
        Base64 = "base64",
    }
}

impl SecretFormat {
    /// The secret, from how it is written.
    ///
    /// # Errors
    ///
    /// When it is no Base64 and should be.
    pub fn decode(self, written: &[u8]) -> Result<Secret> {
        match self {
            Self::Raw => Ok(Secret(written.to_vec())),
            Self::Base64 => decode_base64(written).map(Secret),
        }
    }

    /// A secret as it would be written. What is no UTF-8 cannot be written as it is, and
    /// shows replacement characters.
    #[must_use]
    pub fn encode(self, secret: &Secret) -> String {
        match self {
            Self::Raw => String::from_utf8_lossy(&secret.0).into_owned(),
            Self::Base64 => encode_base64(&secret.0),
        }
    }
}

/// The members, before anything is known of how they go together.
pub(super) struct Members {
    format: SecretFormat,
    keyid: Result<()>,
    iv: Result<()>,
    data: Option<String>,
    file: Option<String>,
}

impl Members {
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self> {
        let format = reader.word("format")?.unwrap_or_default();
        let encrypted = |given: Option<String>, path: &str| match given {
            None => Ok(()),
            Some(_) => Err(ArgumentError::Option(OptionError::UnsupportedOption {
                path: path.to_owned(),
            })),
        };
        Ok(Self {
            format,
            keyid: encrypted(reader.text("keyid")?, "keyid"),
            iv: encrypted(reader.text("iv")?, "iv"),
            data: reader.text("data")?,
            file: reader.text("file")?,
        })
    }

    pub(super) fn check(self) -> Result<SecretOptions> {
        let format = self.format;
        let source = match (self.data, self.file) {
            (Some(_), Some(_)) => return Err(ArgumentError::SecretTwice),
            (None, None) => return Err(ArgumentError::NoSecret),
            (Some(data), None) => SecretSource::Data(format.decode(data.as_bytes())?),
            (None, Some(file)) if file.contains('\0') => {
                return Err(ArgumentError::Nul { path: "file" });
            }
            (None, Some(file)) => SecretSource::File(file),
        };
        self.keyid?;
        self.iv?;
        Ok(SecretOptions { source, format })
    }
}

fn decode_base64(text: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count, mut padding) = (0u32, 0u32, 0u32);
    for &byte in text {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'\n' => continue,
            b'=' => {
                padding += 1;
                continue;
            }
            _ => return Err(ArgumentError::NotBase64),
        };
        if padding > 0 {
            return Err(ArgumentError::IncompleteBase64);
        }
        bits = (bits << 6) | u32::from(digit);
        count += 1;
        if count == 4 {
            bytes.extend_from_slice(&bits.to_be_bytes()[1..]);
            (bits, count) = (0, 0);
        }
    }
    match (count, padding) {
        (0, 0) => {}
        (2, 2) => bytes.extend_from_slice(&(bits << 12).to_be_bytes()[1..2]),
        (3, 1) => bytes.extend_from_slice(&(bits << 6).to_be_bytes()[1..3]),
        _ => return Err(ArgumentError::IncompleteBase64),
    }
    Ok(bytes)
}

fn encode_base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |index: usize| usize::from(group.get(index).copied().unwrap_or(0));
        let bits = (byte(0) << 16) | (byte(1) << 8) | byte(2);
        for place in 0..4 {
            // A group of one byte fills two digits, one of two bytes three.
            text.push(if place <= group.len() {
                char::from(DIGITS[(bits >> (18 - 6 * place)) & 63])
            } else {
                '='
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_decoded() {
        for (text, wanted) in [
            ("", &b""[..]),
            ("eA==", b"x"),
            ("eHk=", b"xy"),
            ("eHl6", b"xyz"),
            ("eH\nl6\n", b"xyz"),
            ("/+8=", b"\xff\xef"),
        ] {
            let found = SecretFormat::Base64.decode(text.as_bytes()).unwrap();
            assert_eq!(found.0, wanted, "{text}");
        }
        for text in ["e", "eH", "eH=", "eHl6=", "e===", "eA==eA==", "="] {
            let found = SecretFormat::Base64.decode(text.as_bytes());
            assert_eq!(found, Err(ArgumentError::IncompleteBase64), "{text}");
        }
        let found = SecretFormat::Base64.decode(b"e H=");
        assert_eq!(found, Err(ArgumentError::NotBase64));
        let raw = SecretFormat::Raw.decode(b"e H=").unwrap();
        assert_eq!(raw.0, b"e H=");
    }

    #[test]
    fn secrets_are_written_as_they_were_given() {
        for text in ["", "eA==", "eHk=", "eHl6", "/+8=", "aGVsbG8="] {
            let secret = SecretFormat::Base64.decode(text.as_bytes()).unwrap();
            assert_eq!(SecretFormat::Base64.encode(&secret), text);
        }
        let secret = SecretFormat::Raw.decode("h\u{e9}".as_bytes()).unwrap();
        assert_eq!(SecretFormat::Raw.encode(&secret), "h\u{e9}");
    }

    #[test]
    fn secrets_do_not_show() {
        let secret = SecretFormat::Raw.decode(b"swordfish").unwrap();
        assert_eq!(format!("{secret:?}"), "***");
    }
}
