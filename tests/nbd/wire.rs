//! A client of NBD that sends whatever it is told to.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use ringback_block::protocol::nbd::wire::{
    self, CHUNK_MAGIC, EXTENDED_CHUNK_MAGIC, GREETING_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC,
    Request, SIMPLE_REPLY_MAGIC, chunk, command, option, option_reply,
};
use ringback_tests::process::LIMIT;

/// A reply to an option: its type and what it says.
pub(crate) type OptionReply = (u32, Vec<u8>);

/// What a request has brought, whatever shape it came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Done, or the bytes that were read.
    Bytes(Vec<u8>),
    /// Extents by context: lengths and flags.
    Status(Vec<(u32, Vec<(u64, u64)>)>),
    /// A number, and a text where there is one.
    Error(u32, String),
    /// The server has hung up.
    Gone,
}

/// What was agreed upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Simple,
    Structured,
    Extended,
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Client {
    stream: UnixStream,
    pub(crate) mode: Mode,
    next_cookie: u64,
}

/// A reply that does not come.
#[derive(Debug)]
pub(crate) struct Gone;

impl Client {
    /// Connects, reads the greeting, and sends flags.
    #[track_caller]
    pub(crate) fn connect(path: &Path, flags: u32) -> Self {
        let mut client = Self::connect_silent(path);
        client.send(&flags.to_be_bytes());
        client
    }

    /// Connects and reads the greeting.
    #[track_caller]
    pub(crate) fn connect_silent(path: &Path) -> Self {
        let end = Instant::now() + LIMIT;
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() >= end => panic!("{}: {error}", path.display()),
                Err(_) => sleep(Duration::from_millis(2)),
            }
        };
        stream.set_read_timeout(Some(LIMIT)).expect("a time limit");
        stream.set_write_timeout(Some(LIMIT)).expect("a time limit");
        let mut client = Self {
            stream,
            mode: Mode::Simple,
            next_cookie: 1,
        };
        let greeting = client.receive(18).expect("a greeting");
        assert_eq!(greeting[..8], GREETING_MAGIC.to_be_bytes());
        assert_eq!(greeting[8..16], OPTION_MAGIC.to_be_bytes());
        assert_eq!(greeting[16..], [0, 3]);
        client
    }

    /// Sends bytes as they are. A server that has hung up is no failure.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        match self.stream.write_all(bytes) {
            Ok(()) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
                ) => {}
            Err(error) => panic!("nobody receives: {error}"),
        }
    }

    /// Exactly so many bytes.
    pub(crate) fn receive(&mut self, len: usize) -> Result<Vec<u8>, Gone> {
        let mut bytes = vec![0; len];
        match self.stream.read_exact(&mut bytes) {
            Ok(()) => Ok(bytes),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset
                ) =>
            {
                Err(Gone)
            }
            Err(error) => panic!("nothing comes: {error}"),
        }
    }

    /// Whether the server hangs up without another byte.
    pub(crate) fn is_hung_up(&mut self) -> bool {
        self.receive(1).is_err()
    }

    /// Ends the sending side.
    pub(crate) fn hang_up(&self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
    }

    pub(crate) fn send_option(&mut self, kind: u32, payload: &[u8]) {
        let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
        bytes.extend_from_slice(&kind.to_be_bytes());
        let len = u32::try_from(payload.len()).expect("a short payload");
        bytes.extend_from_slice(&len.to_be_bytes());
        bytes.extend_from_slice(payload);
        self.send(&bytes);
    }

    /// All replies to an option, to the last one.
    pub(crate) fn option(&mut self, kind: u32, payload: &[u8]) -> Result<Vec<OptionReply>, Gone> {
        self.send_option(kind, payload);
        let mut replies = Vec::new();
        loop {
            let header = self.receive(20)?;
            assert_eq!(header[..8], OPTION_REPLY_MAGIC.to_be_bytes());
            assert_eq!(number(&header[8..12]), u64::from(kind));
            let reply = u32::try_from(number(&header[12..16])).expect("four bytes");
            let len = usize::try_from(number(&header[16..20])).expect("short");
            replies.push((reply, self.receive(len)?));
            if reply == option_reply::ACK || reply & option_reply::ERROR != 0 {
                return Ok(replies);
            }
        }
    }

    /// An option that must work.
    #[track_caller]
    pub(crate) fn agree(&mut self, kind: u32, payload: &[u8]) -> Vec<OptionReply> {
        let Ok(mut replies) = self.option(kind, payload) else {
            panic!("hung up on option {kind}");
        };
        let last = replies.pop().expect("a reply");
        assert_eq!(last.0, option_reply::ACK, "{last:?}");
        replies
    }

    /// Agrees upon a mode, chooses contexts of an export, and the export.
    #[track_caller]
    pub(crate) fn go(path: &Path, mode: Mode, export: &str, contexts: &[&str]) -> Self {
        let mut client = Self::connect(path, 3);
        match mode {
            Mode::Simple => {}
            Mode::Structured => drop(client.agree(option::STRUCTURED_REPLY, &[])),
            Mode::Extended => drop(client.agree(option::EXTENDED_HEADERS, &[])),
        }
        client.mode = mode;
        if !contexts.is_empty() {
            let payload = meta_payload(export, contexts);
            let granted = client.agree(option::SET_META_CONTEXT, &payload);
            assert_eq!(granted.len(), contexts.len(), "{granted:?}");
        }
        client.agree(option::GO, &info_payload(export, &[]));
        client
    }

    /// Sends a request with its payload, and answers its cookie.
    pub(crate) fn send_request(&mut self, request: Request, payload: &[u8]) -> u64 {
        let request = Request {
            cookie: self.next_cookie,
            ..request
        };
        self.next_cookie += 1;
        let mut bytes = match self.mode {
            Mode::Extended => request.encode_extended().to_vec(),
            _ => request.encode().to_vec(),
        };
        bytes.extend_from_slice(payload);
        self.send(&bytes);
        request.cookie
    }

    /// Sends a request and waits for its answer; no other may be in flight.
    pub(crate) fn request(&mut self, request: Request, payload: &[u8]) -> Answer {
        let cookie = self.send_request(request, payload);
        let expected = match request.command {
            command::READ => usize::try_from(request.len).expect("a short read"),
            _ => 0,
        };
        self.answer(cookie, request.offset, expected)
            .unwrap_or(Answer::Gone)
    }

    fn answer(&mut self, cookie: u64, offset: u64, expected: usize) -> Result<Answer, Gone> {
        let mut bytes = vec![0; expected];
        let mut filled = 0;
        let mut status = Vec::new();
        let mut failure = None;
        loop {
            let magic = self.receive(4)?;
            let magic = u32::try_from(number(&magic)).expect("four bytes");
            if magic == SIMPLE_REPLY_MAGIC {
                assert_ne!(self.mode, Mode::Extended, "no simple replies");
                let rest = self.receive(12)?;
                assert_eq!(number(&rest[4..]), cookie);
                let error = u32::try_from(number(&rest[..4])).expect("four bytes");
                if error != 0 {
                    assert_eq!(self.mode, Mode::Simple, "errors come in chunks");
                    return Ok(Answer::Error(error, String::new()));
                }
                if self.mode != Mode::Simple {
                    assert_eq!(expected, 0, "bytes come in chunks");
                }
                return Ok(Answer::Bytes(self.receive(expected)?));
            }
            let header = if magic == EXTENDED_CHUNK_MAGIC {
                assert_eq!(self.mode, Mode::Extended);
                let header = self.receive(28)?;
                assert_eq!(number(&header[12..20]), offset);
                header
            } else {
                assert_eq!((magic, self.mode), (CHUNK_MAGIC, Mode::Structured));
                self.receive(16)?
            };
            assert_eq!(number(&header[4..12]), cookie);
            let flags = u16::try_from(number(&header[..2])).expect("two bytes");
            let kind = u16::try_from(number(&header[2..4])).expect("two bytes");
            let len_at = if self.mode == Mode::Extended { 20 } else { 12 };
            let len = usize::try_from(number(&header[len_at..])).expect("short");
            let payload = self.receive(len)?;
            match kind {
                chunk::NONE => assert!(payload.is_empty()),
                chunk::OFFSET_DATA => {
                    let at = usize::try_from(number(&payload[..8]) - offset).expect("near");
                    let data = &payload[8..];
                    bytes[at..at + data.len()].copy_from_slice(data);
                    filled += data.len();
                }
                chunk::OFFSET_HOLE => {
                    let at = usize::try_from(number(&payload[..8]) - offset).expect("near");
                    let len = usize::try_from(number(&payload[8..12])).expect("near");
                    bytes[at..at + len].fill(0);
                    filled += len;
                }
                chunk::BLOCK_STATUS => {
                    let id = u32::try_from(number(&payload[..4])).expect("four bytes");
                    let extents = payload[4..].chunks(8);
                    let extents = extents.map(|it| (number(&it[..4]), number(&it[4..])));
                    status.push((id, extents.collect()));
                }
                chunk::BLOCK_STATUS_EXTENDED => {
                    let id = u32::try_from(number(&payload[..4])).expect("four bytes");
                    let extents = payload[8..].chunks(16);
                    let extents: Vec<_> = extents
                        .map(|it| (number(&it[..8]), number(&it[8..])))
                        .collect();
                    assert_eq!(number(&payload[4..8]), extents.len() as u64);
                    status.push((id, extents));
                }
                chunk::ERROR => {
                    let error = u32::try_from(number(&payload[..4])).expect("four bytes");
                    let len = usize::try_from(number(&payload[4..6])).expect("short");
                    let text = String::from_utf8_lossy(&payload[6..6 + len]).into_owned();
                    failure = Some(Answer::Error(error, text));
                }
                other => panic!("a chunk of type {other}"),
            }
            if flags & chunk::DONE != 0 {
                break;
            }
        }
        Ok(match failure {
            Some(failure) => failure,
            None if !status.is_empty() => Answer::Status(status),
            None => {
                assert_eq!(filled, expected, "not everything has come");
                Answer::Bytes(bytes)
            }
        })
    }
}

/// A number, most significant byte first.
pub(crate) fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |number, &byte| number << 8 | u64::from(byte))
}

fn text(bytes: &mut Vec<u8>, text: &[u8]) {
    let len = u32::try_from(text.len()).expect("a short text");
    bytes.extend_from_slice(&len.to_be_bytes());
    bytes.extend_from_slice(text);
}

/// What `INFO` and `GO` carry.
pub(crate) fn info_payload(export: &str, infos: &[u16]) -> Vec<u8> {
    let mut bytes = Vec::new();
    text(&mut bytes, export.as_bytes());
    let count = u16::try_from(infos.len()).expect("few");
    bytes.extend_from_slice(&count.to_be_bytes());
    infos
        .iter()
        .for_each(|info| bytes.extend_from_slice(&info.to_be_bytes()));
    bytes
}

/// What the options of contexts carry.
pub(crate) fn meta_payload(export: &str, queries: &[&str]) -> Vec<u8> {
    let mut bytes = Vec::new();
    text(&mut bytes, export.as_bytes());
    let count = u32::try_from(queries.len()).expect("few");
    bytes.extend_from_slice(&count.to_be_bytes());
    queries
        .iter()
        .for_each(|query| text(&mut bytes, query.as_bytes()));
    bytes
}

/// A request without flags.
pub(crate) fn request(command: u16, offset: u64, len: u64) -> Request {
    Request {
        flags: 0,
        command,
        cookie: 0,
        offset,
        len,
    }
}

/// Most bytes of a read or write.
pub(crate) const PAYLOAD_MAX: u64 = wire::PAYLOAD_MAX as u64;
