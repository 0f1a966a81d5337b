//! File names of NBD exports: `nbd://HOST:PORT/EXPORT`, `nbd+unix:///EXPORT?socket=PATH`,
//! and the older `nbd:HOST:PORT:exportname=EXPORT` and `nbd:unix:PATH`.

use crate::blockdev::nbd::NBD_PORT;
use crate::error::{OptionError, Result};

/// Options by their names.
type Options = Vec<(&'static str, String)>;

/// Options that a file name gives, and which nobody may give beside it. One that ends in a
/// dot is all below it.
pub(super) const NAMED_OPTIONS: [&str; 5] = ["host", "port", "path", "export", "server."];

/// What stands between an address and an export in the older form.
const EXPORT_MARK: &str = ":exportname=";

/// The options which a file name stands for; none where it names no server.
pub(super) fn parse(name: &str) -> Result<Options> {
    if let Some((scheme, rest)) = name.split_once("://") {
        return parse_url(scheme, rest).ok_or(OptionError::NbdUrl);
    }
    let rest = name.strip_prefix("nbd:").ok_or(OptionError::NbdName)?;
    let (address, export) = match rest.split_once(EXPORT_MARK) {
        Some((_, "")) => return Ok(Options::new()),
        Some((address, export)) => (address, Some(export)),
        None => (rest, None),
    };
    if address.is_empty() {
        return Ok(Options::new());
    }
    let mut options = match address.strip_prefix("unix:") {
        Some(path) => unix(path.to_owned()),
        None => {
            let (host, port) = split_host(address).ok_or_else(|| OptionError::NbdAddress {
                address: address.to_owned(),
            })?;
            inet(host.to_owned(), port.to_owned())
        }
    };
    options.extend(export.map(|export| ("export", export.to_owned())));
    Ok(options)
}

fn unix(path: String) -> Options {
    vec![("server.type", "unix".to_owned()), ("server.path", path)]
}

fn inet(host: String, port: String) -> Options {
    vec![
        ("server.type", "inet".to_owned()),
        ("server.host", host),
        ("server.port", port),
    ]
}

/// A host, which is in brackets if it has colons, and what stands behind its colon.
fn split_host(text: &str) -> Option<(&str, &str)> {
    match text.strip_prefix('[') {
        Some(text) => {
            let (host, rest) = text.split_once(']')?;
            Some((host, rest.strip_prefix(':')?))
        }
        None => text.split_once(':'),
    }
}

fn parse_url(scheme: &str, rest: &str) -> Option<Options> {
    let rest = rest.split_once('#').map_or(rest, |(before, _)| before);
    let (rest, query) = match rest.split_once('?') {
        Some((rest, query)) => (rest, Some(query)),
        None => (rest, None),
    };
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    let mut options = match scheme {
        "nbd+unix" if authority.is_empty() => unix(socket(query?)?),
        "nbd" | "nbd+tcp" if query.is_none() => {
            let (host, port) = parse_authority(authority)?;
            inet(host, port)
        }
        _ => return None,
    };
    let export = decode(path.strip_prefix('/').unwrap_or(path))?;
    if !export.is_empty() {
        options.push(("export", export));
    }
    Some(options)
}

/// Host and port.
fn parse_authority(authority: &str) -> Option<(String, String)> {
    let place = authority
        .rsplit_once('@')
        .map_or(authority, |(_, place)| place);
    let (host, port) = if place.starts_with('[') && place.ends_with(']') {
        (&place[1..place.len() - 1], "")
    } else {
        split_host(place).unwrap_or((place, ""))
    };
    let host = decode(host)?;
    let port = match port {
        "" => 0,
        digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse::<u16>().ok()?,
        _ => return None,
    };
    let port = match port {
        0 => NBD_PORT.to_owned(),
        port => port.to_string(),
    };
    (!host.is_empty()).then_some((host, port))
}

/// The path of the one parameter that there may be; the last of them counts.
fn socket(query: &str) -> Option<String> {
    let mut path = None;
    for parameter in query.split('&') {
        let (name, value) = parameter.split_once('=')?;
        if decode(name)? != "socket" {
            return None;
        }
        path = Some(decode(value)?);
    }
    path
}

/// A part of a URI with bytes in the place of `%41` and the like; None if they are no
/// text, or one of them is zero.
pub fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, behind)) = rest.split_first() {
        if byte != b'%' {
            bytes.push(byte);
            rest = behind;
            continue;
        }
        let (digits, behind) = behind.split_at_checked(2)?;
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let value = digit(digits[0])? * 16 + digit(digits[1])?;
        bytes.push(u8::try_from(value).ok().filter(|byte| *byte != 0)?);
        rest = behind;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The options in one line.
    fn shown(name: &str) -> String {
        match parse(name) {
            Ok(options) => {
                let texts = options.iter().map(|(key, value)| {
                    let key = key.trim_start_matches("server.");
                    format!("{key}={value}")
                });
                texts.collect::<Vec<_>>().join(" ")
            }
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn names_of_both_forms() {
        for (name, wanted) in [
            ("nbd://h/e", "type=inet host=h port=10809 export=e"),
            ("nbd+tcp://h:0", "type=inet host=h port=10809"),
            (
                "nbd://u@[::1]:1/%41%2fb",
                "type=inet host=::1 port=1 export=A/b",
            ),
            ("nbd://[::1]/", "type=inet host=::1 port=10809"),
            (
                "nbd+unix:///e?socket=/p%20q",
                "type=unix path=/p q export=e",
            ),
            ("nbd+unix:////e?socket=p", "type=unix path=p export=/e"),
            ("nbd+unix://?socket=p", "type=unix path=p"),
            ("nbd+unix:///?socket=a&socket=b", "type=unix path=b"),
            ("nbd:h:1", "type=inet host=h port=1"),
            (
                "nbd:[::1]:1:exportname=e",
                "type=inet host=::1 port=1 export=e",
            ),
            ("nbd:unix:/p:exportname=e:f", "type=unix path=/p export=e:f"),
            ("nbd:unix:/p:exportname=", ""),
            ("nbd:", ""),
        ] {
            assert_eq!(shown(name), wanted, "{name}");
        }
    }

    #[test]
    fn names_that_are_none() {
        for name in [
            "nbd://",
            "nbd://h:65536",
            "nbd://h:x",
            "nbd://h?a=b",
            "nbd://h/%4",
            "nbd://h/%00",
            "nbd+unix://h/e?socket=p",
            "nbd+unix:///e",
            "nbd+unix:///e?sock=p",
            "nbd+unix:///e?socket",
        ] {
            assert_eq!(shown(name), "No valid URL specified", "{name}");
        }
        assert_eq!(shown("nbd:localhost"), "error parsing address 'localhost'");
        let prefix = "File name string for NBD must start with 'nbd:'";
        assert_eq!(shown("nbd+unix:e?socket=p"), prefix);
        assert_eq!(shown("e"), prefix);
    }
}
