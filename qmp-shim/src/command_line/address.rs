//! Addresses of sockets.

use std::num::IntErrorKind;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::error::{ArgumentError, Result};
use crate::number::skip_blanks;
use crate::visit::{Reader, words};

/// Where a socket listens, or what it connects to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SocketAddress {
    /// A port of a host.
    Inet(InetAddress),
    /// A socket in the file system, or Linux's abstract name for one.
    Unix(UnixAddress),
    /// A socket that exists: the number of a descriptor, or the name under which a monitor
    /// was given one.
    Fd(String),
}

/// A port of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InetAddress {
    /// Name or number; empty is every one of this machine.
    pub host: String,
    /// Number, or name of a service.
    pub port: String,
    /// Whether host and port are numbers that need not be looked up.
    pub numeric: bool,
    /// The last port to be tried; none is the first.
    pub to: Option<u16>,
    /// Whether IPv4 may be used; none is whatever there is.
    pub ipv4: Option<bool>,
    /// Whether IPv6 may be used.
    pub ipv6: Option<bool>,
    /// Whether a dead peer is found out.
    pub keep_alive: bool,
}

/// A UNIX socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnixAddress {
    /// Path or abstract name, without NUL characters and not empty.
    pub path: String,
    /// Whether it is an abstract name.
    pub is_abstract: bool,
    /// Whether an abstract name ends where it ends, and not with NULs up to the longest.
    pub is_tight: bool,
}

/// Longest path of a UNIX socket, in bytes: Linux's `sun_path`.
pub const MAX_PATH: usize = 108;

words! {
    /// Types of addresses.
    enum Type {
        /// IPv4 and IPv6.
        Inet = "inet",
        /// A UNIX socket.
        Unix = "unix",
        /// A hypervisor's.
        Vsock = "vsock",
        /// A descriptor.
        Fd = "fd",
    }
}

impl SocketAddress {
    /// Reads an address in one word: `HOST:PORT`, where an IPv6 number stands in brackets and
    /// no host is every address of this machine, or `unix:PATH`.
    ///
    /// # Errors
    ///
    /// See [`ArgumentError`].
    pub fn parse_word(text: &str) -> Result<Self> {
        let address = if let Some(path) = text.strip_prefix("unix:") {
            Self::Unix(UnixAddress {
                path: path.to_owned(),
                is_abstract: false,
                is_tight: true,
            })
        } else {
            let no_address = || ArgumentError::AddressWord {
                text: text.to_owned(),
            };
            let (host, port) = text.rsplit_once(':').ok_or_else(no_address)?;
            let number = host
                .strip_prefix('[')
                .and_then(|host| host.strip_suffix(']'));
            // A number of IPv6 without brackets does not show where it ends.
            if number.is_none() && host.contains([':', '[', ']']) || port.parse::<u16>().is_err() {
                return Err(no_address());
            }
            Self::Inet(InetAddress {
                host: number.unwrap_or(host).to_owned(),
                port: port.to_owned(),
                ..InetAddress::default()
            })
        };
        address.check()?;
        Ok(address)
    }

    /// Reads a flat address: `type` beside the members of that type. The reader is read to
    /// its end. What needs no network is checked.
    ///
    /// # Errors
    ///
    /// See [`ArgumentError`].
    pub fn read(mut reader: Reader<'_>) -> Result<Self> {
        let kind = reader.required("type", Reader::word::<Type>)?;
        let address = Self::read_members(&mut reader, kind)?;
        reader.finish()?;
        address.ok_or(ArgumentError::Vsock)
    }

    /// Reads QMP's older form: the members of the type in an object `data`.
    ///
    /// # Errors
    ///
    /// See [`ArgumentError`].
    pub fn read_legacy(mut reader: Reader<'_>) -> Result<Self> {
        let kind = reader.required("type", Reader::word::<Type>)?;
        let mut data = reader.required("data", Reader::object)?;
        let address = Self::read_members(&mut data, kind)?;
        data.finish()?;
        reader.finish()?;
        address.ok_or(ArgumentError::Vsock)
    }

    /// The members of an address; none for a type that is not here.
    fn read_members(reader: &mut Reader<'_>, kind: Type) -> Result<Option<Self>> {
        Ok(Some(match kind {
            Type::Inet => Self::Inet(InetAddress::read(reader)?),
            Type::Unix => Self::Unix(UnixAddress {
                path: reader.required("path", Reader::text)?,
                is_abstract: reader.boolean("abstract")?.unwrap_or(false),
                is_tight: reader.boolean("tight")?.unwrap_or(true),
            }),
            Type::Fd => Self::Fd(reader.required("str", Reader::text)?),
            Type::Vsock => {
                reader.required("cid", Reader::text)?;
                reader.required("port", Reader::text)?;
                return Ok(None);
            }
        }))
    }

    /// What can be wrong with it without asking the network. Whether a descriptor is one,
    /// [`SocketAddress::descriptor`] says.
    ///
    /// # Errors
    ///
    /// See [`ArgumentError`].
    pub fn check(&self) -> Result<()> {
        match self {
            Self::Inet(address) => address.check(),
            Self::Unix(address) => address.check(),
            Self::Fd(_) => Ok(()),
        }
    }

    /// The number of an address's descriptor, where nobody gives descriptors names.
    ///
    /// # Errors
    ///
    /// When the text is no number, or a negative one. An address of another type has no
    /// descriptor, which is no error.
    pub fn descriptor(&self) -> Result<Option<i32>> {
        let Self::Fd(text) = self else {
            return Ok(None);
        };
        let number = match skip_blanks(text).parse::<i32>() {
            Ok(number) => number,
            Err(error) => {
                let text = text.clone();
                return Err(match error.kind() {
                    IntErrorKind::PosOverflow | IntErrorKind::NegOverflow => {
                        ArgumentError::DescriptorRange { text }
                    }
                    _ => ArgumentError::NoDescriptor { text },
                });
            }
        };
        if number < 0 {
            return Err(ArgumentError::NotASocket { text: text.clone() });
        }
        Ok(Some(number))
    }
}

/// The flat form, from which [`SocketAddress::read`] makes the same address.
impl Serialize for SocketAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut members = serializer.serialize_map(None)?;
        match self {
            Self::Inet(inet) => {
                members.serialize_entry("type", "inet")?;
                members.serialize_entry("host", &inet.host)?;
                members.serialize_entry("port", &inet.port)?;
                for (name, is_set) in [("numeric", inet.numeric), ("keep-alive", inet.keep_alive)] {
                    if is_set {
                        members.serialize_entry(name, &true)?;
                    }
                }
                if let Some(to) = inet.to {
                    members.serialize_entry("to", &to)?;
                }
                for (name, allowed) in [("ipv4", inet.ipv4), ("ipv6", inet.ipv6)] {
                    if let Some(allowed) = allowed {
                        members.serialize_entry(name, &allowed)?;
                    }
                }
            }
            Self::Unix(unix) => {
                members.serialize_entry("type", "unix")?;
                members.serialize_entry("path", &unix.path)?;
                if unix.is_abstract {
                    members.serialize_entry("abstract", &true)?;
                }
                if !unix.is_tight {
                    members.serialize_entry("tight", &false)?;
                }
            }
            Self::Fd(text) => {
                members.serialize_entry("type", "fd")?;
                members.serialize_entry("str", text)?;
            }
        }
        members.end()
    }
}

impl InetAddress {
    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        let address = Self {
            host: reader.required("host", Reader::text)?,
            port: reader.required("port", Reader::text)?,
            numeric: reader.boolean("numeric")?.unwrap_or(false),
            to: reader.unsigned_16("to")?,
            ipv4: reader.boolean("ipv4")?,
            ipv6: reader.boolean("ipv6")?,
            keep_alive: reader.boolean("keep-alive")?.unwrap_or(false),
        };
        reader.unsupported("mptcp")?;
        Ok(address)
    }

    fn check(&self) -> Result<()> {
        if self.host.contains('\0') {
            return Err(ArgumentError::Nul { path: "host" });
        }
        if self.port.contains('\0') {
            return Err(ArgumentError::Nul { path: "port" });
        }
        if self.ipv4 == Some(false) && self.ipv6 == Some(false) {
            return Err(ArgumentError::NoIpVersion);
        }
        Ok(())
    }
}

impl UnixAddress {
    fn check(&self) -> Result<()> {
        // An abstract name has a NUL before it.
        let max = if self.is_abstract {
            MAX_PATH - 1
        } else {
            MAX_PATH
        };
        if self.path.is_empty() {
            return Err(ArgumentError::EmptyPath);
        }
        if self.path.contains('\0') {
            return Err(ArgumentError::Nul { path: "path" });
        }
        if self.path.len() > max {
            return Err(ArgumentError::PathTooLong {
                path: self.path.clone(),
                max,
            });
        }
        Ok(())
    }
}
