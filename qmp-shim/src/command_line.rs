//! The command line of `ringback daemon`: that of qemu-storage-daemon 10.0, and some more.
//!
//! | option | what it says |
//! | --- | --- |
//! | `--blockdev` | a node: [`crate::blockdev`] |
//! | `--chardev` | where a monitor speaks: [`chardev`] |
//! | `--monitor` | who may give commands: [`monitor`] |
//! | `--object` | limits, threads, secrets, credentials: [`object`] |
//! | `--nbd-server` | where NBD clients come in: [`nbd_server`] |
//! | `--export` | a disk for clients: [`export`] |
//! | `--drive`, `--device` | ours: a disk as QEMU's system emulator knows it: [`drive`], [`device`] |
//! | `--metrics` | ours: where latencies are given out: [`SocketAddress::parse_word`] |
//! | `--pidfile`, `--daemonize`, `--trace`, `--help`, `--version` | the process itself |
//! | `--shards`, `--poll`, `-v` | ours: how many threads do the work, how long they look for it, how much is told |
//!
//! # Two passes
//!
//! As in qemu-storage-daemon, the whole line is looked through for what concerns the process
//! (`-h`, `-V`, `--pidfile`, `--daemonize`, `-v`) before the first other option is looked at: so
//! `x --help` shows help, and a misspelt option is found whatever stands before it. Then the others are read in their order, since
//! each may refer to those before it.
//!
//! Here all of this is over before anything is made. Of two mistakes it may thus report the
//! second one, where the first can only be seen by opening a file.

use std::num::NonZeroU16;
use std::time::Duration;

use crate::blockdev::BlockdevOptions;
use crate::error::OptionError;
use crate::keyval::take_value;
use crate::number::parse_u64;
use crate::opts;

pub mod address;
pub mod chardev;
pub mod device;
pub mod drive;
pub mod error;
pub mod export;
mod getopt;
mod help;
pub mod monitor;
mod names;
pub mod nbd_server;
pub mod object;

pub use address::{InetAddress, SocketAddress, UnixAddress};
pub use chardev::{Backend, Chardev};
pub use device::Device;
pub use drive::Drive;
pub use error::ArgumentError;
pub use export::{Export, ExportBitmap, ExportKind, NbdExport};
pub use monitor::Monitor;
pub use nbd_server::NbdServer;
pub use object::{ObjectKind, ObjectOptions};

use chardev::ChardevRequest;
use getopt::{Flag, Given};
use names::Names;
use object::ObjectRequest;

/// Most shards that can be asked for.
pub const MAX_SHARDS: u16 = 1024;
/// Longest time that a shard can be asked to look for work: a second.
pub const MAX_POLL_US: u64 = 1_000_000;

/// A command line that makes sense.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CommandLine {
    /// What is to be made, in this order.
    pub options: Vec<Placed>,
    /// Where the process writes its number.
    pub pidfile: Option<String>,
    /// Whether the process goes into the background when it is up.
    pub daemonize: bool,
    /// How many threads do the work; none is left to the daemon.
    pub shards: Option<NonZeroU16>,
    /// The longest that a thread looks for work before it sleeps; none is left to the
    /// daemon.
    pub poll: Option<Duration>,
    /// How many times `-v` was said.
    pub verbosity: usize,
}

/// An option and the words in which it was given.
#[derive(Debug, Clone, PartialEq)]
pub struct Placed {
    /// The words: `--export nbd,...`.
    pub words: String,
    /// What they say.
    pub option: Opt,
}

impl Placed {
    /// The line that says what is wrong with this option.
    #[must_use]
    pub fn complain(&self, program: &str, error: &str) -> String {
        format!("{program}: {}: {error}", self.words)
    }
}

/// Something to be made.
#[derive(Debug, Clone, PartialEq)]
pub enum Opt {
    /// A node.
    Blockdev(Box<BlockdevOptions>),
    /// A character device.
    Chardev(Chardev),
    /// A monitor.
    Monitor(Monitor),
    /// An object.
    Object(ObjectOptions),
    /// The NBD server.
    NbdServer(NbdServer),
    /// An export.
    Export(Export),
    /// A disk.
    Drive(Box<Drive>),
    /// What a guest sees.
    Device(Device),
    /// Where the engine's latencies are given out.
    Metrics(SocketAddress),
}

/// What a command line asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// To run.
    Run(Box<CommandLine>),
    /// This text on standard output, and an end with status 0.
    Show(String),
}

/// What a command line amounts to.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Lines for standard error, before anything else. Some have two lines.
    pub warnings: Vec<String>,
    /// What it asks for, or the last line on standard error. Then the status is 1.
    pub request: Result<Request, String>,
}

/// Reads the words behind the program's name.
///
/// ```
/// use ringback_qmp_shim::command_line::{Request, parse};
///
/// let answer = parse("ringback daemon", &["--export".to_owned(), "foo".to_owned()]);
/// let wanted = "ringback daemon: --export foo: Parameter 'type' does not accept value 'foo'";
/// assert_eq!(answer.request, Err(wanted.to_owned()));
/// ```
#[must_use]
pub fn parse(program: &str, words: &[String]) -> Answer {
    let mut parser = Parser {
        program,
        warnings: Vec::new(),
        line: CommandLine::default(),
        names: Names::default(),
    };
    let request = parser.parse(words);
    Answer {
        warnings: parser.warnings,
        request,
    }
}

struct Parser<'a> {
    program: &'a str,
    warnings: Vec<String>,
    line: CommandLine,
    names: Names,
}

impl Parser<'_> {
    fn parse(&mut self, words: &[String]) -> Result<Request, String> {
        let mut given = Vec::new();
        let mut getopt = getopt::Getopt::new(words);
        while let Some(next) = getopt.next() {
            let option = next.map_err(|text| format!("{}: {text}", self.program))?;
            match self.first_pass(&option) {
                First::Show(text) => return Ok(Request::Show(text)),
                First::Done => {}
                First::Later => given.push(option),
            }
        }
        for option in given {
            if let Some(text) = self.second_pass(option)? {
                return Ok(Request::Show(text));
            }
        }
        Ok(Request::Run(Box::new(std::mem::take(&mut self.line))))
    }

    /// What concerns the process.
    fn first_pass(&mut self, given: &Given) -> First {
        match given.flag {
            Flag::Help => return First::Show(help::usage(self.program)),
            Flag::Version => return First::Show(help::version(self.program)),
            Flag::Daemonize => self.line.daemonize = true,
            Flag::Pidfile => self.line.pidfile = Some(given.value.clone()),
            Flag::Verbose => self.line.verbosity += 1,
            _ => return First::Later,
        }
        First::Done
    }

    /// Everything else.
    fn second_pass(&mut self, given: Given) -> Result<Option<String>, String> {
        let Given { flag, value, words } = given;
        let mut warnings = Vec::new();
        let read = read_option(flag, &value, &mut warnings);
        self.warn(&words, warnings);
        let option = match read {
            Ok(Read::Option(option)) => option,
            Ok(Read::Nothing) => return Ok(None),
            Ok(Read::Shards(shards)) => {
                self.line.shards = Some(shards);
                return Ok(None);
            }
            Ok(Read::Poll(poll)) => {
                self.line.poll = Some(poll);
                return Ok(None);
            }
            Ok(Read::Help(text)) => return Ok(Some(text)),
            Err(error) => return Err(self.complain(&words, &error)),
        };
        if let Err(error) = self.names.add(&option) {
            return Err(self.complain(&words, &error));
        }
        self.line.options.push(Placed { words, option });
        Ok(None)
    }

    fn warn(&mut self, words: &str, warnings: Vec<String>) {
        let program = self.program;
        let lines = warnings
            .into_iter()
            .map(|warning| format!("{program}: {words}: warning: {warning}"));
        self.warnings.extend(lines);
    }

    fn complain(&self, words: &str, error: &ArgumentError) -> String {
        format!("{}: {words}: {error}", self.program)
    }
}

/// What the first pass makes of an option.
enum First {
    Show(String),
    Done,
    Later,
}

/// What one option comes to.
enum Read {
    Option(Opt),
    Help(String),
    Shards(NonZeroU16),
    Poll(Duration),
    /// Nothing more: the first pass has seen to it, or there is nothing to see to.
    Nothing,
}

fn read_option(flag: Flag, value: &str, warnings: &mut Vec<String>) -> error::Result<Read> {
    Ok(Read::Option(match flag {
        Flag::Blockdev => Opt::Blockdev(Box::new(BlockdevOptions::parse(value)?)),
        Flag::Chardev => match Chardev::parse(value, warnings)? {
            ChardevRequest::Make(chardev) => Opt::Chardev(chardev),
            ChardevRequest::Help(text) => return Ok(Read::Help(text)),
        },
        Flag::Monitor => Opt::Monitor(Monitor::parse(value)?),
        Flag::Object => match ObjectOptions::parse(value)? {
            ObjectRequest::Make(object) => Opt::Object(object),
            ObjectRequest::Help(text) => return Ok(Read::Help(text)),
        },
        Flag::NbdServer => Opt::NbdServer(NbdServer::parse(value)?),
        Flag::Export => Opt::Export(Export::parse(value)?),
        Flag::Drive => Opt::Drive(Box::new(Drive::parse(value, warnings)?)),
        Flag::Device => Opt::Device(Device::parse(value, warnings)?),
        Flag::Metrics => Opt::Metrics(SocketAddress::parse_word(value)?),
        Flag::Word => return Err(ArgumentError::UnexpectedWord),
        Flag::Shards => return Ok(Read::Shards(read_shards(value)?)),
        Flag::Poll => return Ok(Read::Poll(read_poll(value)?)),
        Flag::Trace => return read_trace(value, warnings),
        Flag::Daemonize | Flag::Help | Flag::Pidfile | Flag::Verbose | Flag::Version => {
            return Ok(Read::Nothing);
        }
    }))
}

fn read_shards(text: &str) -> error::Result<NonZeroU16> {
    let number = parse_u64(text).and_then(|number| u16::try_from(number).ok());
    number
        .filter(|number| *number <= MAX_SHARDS)
        .and_then(NonZeroU16::new)
        .ok_or(ArgumentError::Shards { max: MAX_SHARDS })
}

fn read_poll(text: &str) -> error::Result<Duration> {
    parse_u64(text)
        .filter(|us| *us <= MAX_POLL_US)
        .map(Duration::from_micros)
        .ok_or(ArgumentError::Poll { max: MAX_POLL_US })
}

/// There are no trace events: each that is asked for is one that does not exist.
fn read_trace(text: &str, warnings: &mut Vec<String>) -> error::Result<Read> {
    let (first, _) = take_value(text);
    if matches!(first.as_str(), "help" | "?") {
        return Ok(Read::Help(String::new()));
    }
    let pairs = opts::split(text, Some("enable"));
    if let Some(id) = pairs.iter().find(|pair| pair.key == "id") {
        opts::check_id(&id.value)?;
    }
    let mut pattern = None;
    let mut unsupported = None;
    for pair in pairs {
        warnings.extend(pair.warning);
        match pair.key.as_str() {
            "enable" => pattern = Some(pair.value),
            "events" | "file" => unsupported = Some(pair.key),
            "id" => {}
            _ => return Err(ArgumentError::UnknownKey { key: pair.key }),
        }
    }
    if let Some(path) = unsupported {
        return Err(OptionError::UnsupportedOption { path }.into());
    }
    // A pattern may match nothing.
    if let Some(pattern) = &pattern
        && !pattern.contains(['*', '?'])
    {
        // A dash switches events off.
        let event = pattern.strip_prefix('-').unwrap_or(pattern);
        warnings.push(format!("trace event '{event}' does not exist"));
    }
    Ok(Read::Nothing)
}

#[cfg(test)]
mod tests;
