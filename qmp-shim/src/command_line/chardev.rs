//! `--chardev`: where monitors speak. The text is QEMU's older one, [`crate::opts`].

use serde_json::{Map, Value};

use super::address::{InetAddress, SocketAddress, UnixAddress};
use super::error::{ArgumentError, Result};
use crate::error::OptionError;
use crate::keyval::MAX_TEXT;
use crate::opts::{check_id, split};
use crate::visit::{Owner, Reader, opts_number, opts_size};

/// A character device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chardev {
    /// Its name.
    pub id: String,
    /// What is behind it.
    pub backend: Backend,
}

/// What is behind a character device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// A connection.
    Socket(Socket),
    /// The daemon's own input and output.
    Stdio {
        /// Whether the terminal's keys still stop the daemon.
        signal: bool,
    },
    /// Nobody.
    Null,
    /// A file that is written, and perhaps one that is read.
    File {
        /// The one that is written.
        path: String,
        /// Whether what is there stays.
        append: bool,
        /// The one that is read.
        input_path: Option<String>,
    },
    /// One pipe for both ways, or `PATH.in` and `PATH.out`.
    Pipe {
        /// Its path.
        path: String,
    },
}

/// A connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socket {
    /// Where it is.
    pub address: SocketAddress,
    /// Who connects.
    pub side: Side,
    /// Whether small packets are sent at once, over TCP.
    pub no_delay: bool,
}

/// Who connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The others do.
    Server {
        /// Whether the start waits for the first of them.
        wait: bool,
    },
    /// We do.
    Client {
        /// Milliseconds until the next try after a connection has failed or ended; 0: no other.
        reconnect_ms: u64,
    },
}

/// What an option's value is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Boolean,
    Number,
    Size,
}

/// Every option of every backend of QEMU's: their names and types are checked first, whatever
/// the backend.
const OPTIONS: &[(&str, Kind)] = &[
    ("abstract", Kind::Boolean),
    ("append", Kind::Boolean),
    ("backend", Kind::Text),
    ("chardev", Kind::Text),
    ("chardevs.0", Kind::Text),
    ("chardevs.1", Kind::Text),
    ("chardevs.2", Kind::Text),
    ("chardevs.3", Kind::Text),
    ("clipboard", Kind::Boolean),
    ("cols", Kind::Number),
    ("debug", Kind::Number),
    ("delay", Kind::Boolean),
    ("fd", Kind::Text),
    ("height", Kind::Number),
    ("host", Kind::Text),
    ("input-path", Kind::Text),
    ("ipv4", Kind::Boolean),
    ("ipv6", Kind::Boolean),
    ("localaddr", Kind::Text),
    ("localport", Kind::Text),
    ("logappend", Kind::Boolean),
    ("logfile", Kind::Text),
    ("mouse", Kind::Boolean),
    ("mux", Kind::Boolean),
    ("name", Kind::Text),
    ("nodelay", Kind::Boolean),
    ("path", Kind::Text),
    ("port", Kind::Text),
    ("reconnect-ms", Kind::Number),
    ("reconnect", Kind::Number),
    ("rows", Kind::Number),
    ("server", Kind::Boolean),
    ("signal", Kind::Boolean),
    ("size", Kind::Size),
    ("telnet", Kind::Boolean),
    ("tight", Kind::Boolean),
    ("tls-authz", Kind::Text),
    ("tls-creds", Kind::Text),
    ("tn3270", Kind::Boolean),
    ("to", Kind::Number),
    ("wait", Kind::Boolean),
    ("websocket", Kind::Boolean),
    ("width", Kind::Number),
];

/// The backends of qemu-storage-daemon that are not here.
const UNSUPPORTED: &[&str] = &[
    "hub", "memory", "mux", "parallel", "pty", "ringbuf", "serial", "udp",
];

/// What `--chardev` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChardevRequest {
    /// Make this one.
    Make(Chardev),
    /// Print this text.
    Help(String),
}

impl Chardev {
    /// Reads and checks the argument. Warnings are added for short forms.
    ///
    /// # Errors
    ///
    /// See [`ArgumentError`].
    pub fn parse(text: &str, warnings: &mut Vec<String>) -> Result<ChardevRequest> {
        if text.len() > MAX_TEXT {
            return Err(OptionError::TextTooLong {
                len: text.len(),
                max: MAX_TEXT,
            }
            .into());
        }
        let pairs = split(text, Some("backend"));
        let id = pairs.iter().find(|pair| pair.key == "id");
        if let Some(id) = id {
            check_id(&id.value)?;
        }
        let id = id.map(|pair| pair.value.clone());
        let mut options = Map::new();
        for pair in pairs {
            if matches!(pair.key.as_str(), "help" | "?") && pair.value == "on" {
                return Ok(ChardevRequest::Help(help()));
            }
            warnings.extend(pair.warning);
            if pair.key == "id" {
                continue;
            }
            check_type(&pair.key, &pair.value)?;
            options.insert(pair.key, Value::from(pair.value));
        }
        let backend = options.remove("backend");
        let backend = backend.as_ref().and_then(Value::as_str);
        if matches!(backend, Some("help" | "?")) {
            return Ok(ChardevRequest::Help(backends()));
        }
        let id = id.ok_or(ArgumentError::NoChardevId)?;
        let Some(backend) = backend else {
            return Err(ArgumentError::NoBackend { id });
        };
        let backend = read_backend(backend, &options)?;
        Ok(ChardevRequest::Make(Self { id, backend }))
    }
}

fn check_type(key: &str, value: &str) -> Result<()> {
    let known = OPTIONS.iter().find(|(name, _)| *name == key);
    let Some((name, kind)) = known else {
        let key = key.to_owned();
        return Err(ArgumentError::UnknownKey { key });
    };
    match kind {
        Kind::Text => {}
        Kind::Number => {
            opts_number(name, value)?;
        }
        Kind::Size => {
            opts_size(name, value)?;
        }
        Kind::Boolean => {
            let one = Map::from_iter([(key.to_owned(), Value::from(value))]);
            Reader::flat(&one, Owner::Nobody).boolean(name)?;
        }
    }
    Ok(())
}

fn read_backend(name: &str, options: &Map<String, Value>) -> Result<Backend> {
    let mut reader = Reader::flat(options, Owner::Nobody);
    let (backend, what) = match name {
        "socket" => (read_socket(&mut reader)?, "this socket"),
        "stdio" => {
            let signal = reader.boolean("signal")?.unwrap_or(true);
            (Backend::Stdio { signal }, "the backend 'stdio'")
        }
        "null" => (Backend::Null, "the backend 'null'"),
        "file" => (
            Backend::File {
                path: reader.text("path")?.ok_or(ArgumentError::NoChardevFile)?,
                append: reader.boolean("append")?.unwrap_or(false),
                input_path: reader.text("input-path")?,
            },
            "the backend 'file'",
        ),
        "pipe" => (
            Backend::Pipe {
                path: reader.text("path")?.ok_or(ArgumentError::NoChardevPipe)?,
            },
            "the backend 'pipe'",
        ),
        _ if UNSUPPORTED.contains(&name) => {
            let backend = name.to_owned();
            return Err(ArgumentError::UnsupportedBackend { backend });
        }
        _ => {
            let backend = name.to_owned();
            return Err(ArgumentError::UnknownBackend { backend });
        }
    };
    if reader.boolean("mux")?.unwrap_or(false) {
        return Err(unsupported_on("mux"));
    }
    reader.unsupported("logfile")?;
    reader.unsupported("logappend")?;
    match reader.finish() {
        Err(OptionError::Unexpected { path }) => {
            Err(ArgumentError::Meaningless { key: path, what })
        }
        Err(error) => Err(error.into()),
        Ok(()) => Ok(backend),
    }
}

fn unsupported_on(key: &'static str) -> ArgumentError {
    ArgumentError::UnsupportedValue { key, value: "on" }
}

fn read_socket(reader: &mut Reader<'_>) -> Result<Backend> {
    let path = reader.text("path")?;
    let fd = reader.text("fd")?;
    let host = reader.text("host")?;
    let given = [&path, &fd, &host].into_iter().flatten().count();
    if given > 1 {
        return Err(ArgumentError::SeveralAddresses);
    }
    let is_inet = host.is_some();
    let port = if is_inet { reader.text("port")? } else { None };
    if is_inet && port.is_none() {
        return Err(ArgumentError::NoPort);
    }
    let delay = reader.boolean("delay")?;
    let nodelay = reader.boolean("nodelay")?;
    if delay.is_some() && nodelay.is_some() {
        return Err(ArgumentError::DelayTwice);
    }
    let address = match (path, host) {
        (Some(path), _) => SocketAddress::Unix(UnixAddress {
            path,
            is_abstract: reader.boolean("abstract")?.unwrap_or(false),
            is_tight: reader.boolean("tight")?.unwrap_or(true),
        }),
        (None, Some(host)) => SocketAddress::Inet(InetAddress {
            host,
            port: port.unwrap_or_default(),
            to: read_to(reader)?,
            ipv4: reader.boolean("ipv4")?,
            ipv6: reader.boolean("ipv6")?,
            ..InetAddress::default()
        }),
        (None, None) => SocketAddress::Fd(fd.unwrap_or_default()),
    };
    let side = read_side(reader, &address)?;
    for key in ["telnet", "tn3270", "websocket"] {
        if reader.boolean(key)?.unwrap_or(false) {
            return Err(unsupported_on(key));
        }
    }
    reader.unsupported("tls-creds")?;
    address.check()?;
    address.descriptor()?;
    Ok(Backend::Socket(Socket {
        address,
        side,
        no_delay: nodelay.unwrap_or_else(|| delay.is_some_and(|delay| !delay)),
    }))
}

fn read_to(reader: &mut Reader<'_>) -> Result<Option<u16>> {
    let Some(to) = reader.unsigned("to")? else {
        return Ok(None);
    };
    let to = u16::try_from(to).map_err(|_| ArgumentError::NumberRange {
        key: "to",
        min: 0,
        max: u16::MAX.into(),
    })?;
    Ok(Some(to))
}

/// Who connects, and what must not be said about the other side.
fn read_side(reader: &mut Reader<'_>, address: &SocketAddress) -> Result<Side> {
    let is_server = reader.boolean("server")?.unwrap_or(false);
    let wait = reader.boolean("wait")?;
    let seconds = reader.unsigned("reconnect")?;
    let milliseconds = reader.unsigned("reconnect-ms")?;
    let is_descriptor = matches!(address, SocketAddress::Fd(_));
    let option = match (seconds, milliseconds) {
        (Some(_), _) => Some("reconnect"),
        (None, Some(_)) => Some("reconnect-ms"),
        (None, None) => None,
    };
    if let Some(option) = option.filter(|_| is_descriptor) {
        return Err(ArgumentError::ReconnectDescriptor { option });
    }
    if reader.text("tls-authz")?.is_some() && reader.text("tls-creds")?.is_none() {
        return Err(ArgumentError::AuthzWithoutCreds);
    }
    if is_server {
        return match option {
            Some(option) => Err(ArgumentError::ReconnectListener { option }),
            None => Ok(Side::Server {
                wait: wait.unwrap_or(true),
            }),
        };
    }
    if reader.boolean("websocket")?.unwrap_or(false) {
        return Err(unsupported_on("websocket"));
    }
    if wait.is_some() {
        return Err(ArgumentError::WaitClient);
    }
    if seconds.is_some() && milliseconds.is_some() {
        return Err(ArgumentError::ReconnectTwice);
    }
    let range = |key| ArgumentError::NumberRange {
        key,
        min: 0,
        max: u32::MAX.into(),
    };
    let bounded = |value: Option<u64>, key| match value {
        Some(value) if value > u32::MAX.into() => Err(range(key)),
        value => Ok(value.unwrap_or(0)),
    };
    let from_seconds = bounded(seconds, "reconnect")? * 1000;
    let reconnect_ms = bounded(milliseconds, "reconnect-ms")? + from_seconds;
    Ok(Side::Client { reconnect_ms })
}

/// The backends, as `--chardev help` lists them.
fn backends() -> String {
    "Available chardev backend types: \n  file\n  stdio\n  socket\n  null\n  pipe\n".to_owned()
}

/// The options of those backends.
fn help() -> String {
    const OURS: &[&str] = &[
        "abstract",
        "append",
        "delay",
        "fd",
        "host",
        "input-path",
        "ipv4",
        "ipv6",
        "nodelay",
        "path",
        "port",
        "reconnect-ms",
        "reconnect",
        "server",
        "signal",
        "tight",
        "to",
        "wait",
    ];
    let mut text = "chardev options:\n".to_owned();
    for (name, kind) in OPTIONS.iter().filter(|(name, _)| OURS.contains(name)) {
        let kind = match kind {
            Kind::Text => "str",
            Kind::Boolean => "bool (on/off)",
            Kind::Number => "num",
            Kind::Size => "size",
        };
        text.push_str(&format!("  {name}=<{kind}>\n"));
    }
    text
}
