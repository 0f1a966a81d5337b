//! A plain client of NBD on a UNIX socket: fixed newstyle, simple replies, one
//! connection.

use std::io::{BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use ringback_block::protocol::nbd::wire::{
    GREETING_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, Request, SIMPLE_REPLY_BYTES,
    SIMPLE_REPLY_MAGIC, command, info, option, option_reply,
};

/// Longer than any pause that is measured.
const LIMIT: Duration = Duration::from_secs(300);
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// A connection to an export.
#[derive(Debug)]
pub(crate) struct Client {
    reader: BufReader<UnixStream>,
    /// Bytes of the disk.
    pub(crate) size: u64,
}

#[expect(clippy::needless_pass_by_value, reason = "what map_err hands over")]
fn failed(error: std::io::Error) -> String {
    format!("NBD client: {error}")
}

impl Client {
    /// Connects to a server that listens, or is about to, and chooses an export.
    pub(crate) fn connect(socket: &Path, export: &str) -> Result<Self, String> {
        let end = Instant::now() + CONNECT_LIMIT;
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() >= end => {
                    return Err(format!("{}: {error}", socket.display()));
                }
                Err(_) => sleep(Duration::from_millis(2)),
            }
        };
        stream.set_read_timeout(Some(LIMIT)).map_err(failed)?;
        stream.set_write_timeout(Some(LIMIT)).map_err(failed)?;
        let mut client = Self::over(stream);
        client.greet()?;
        client.go(export)?;
        Ok(client)
    }

    /// Before anything was said.
    pub(crate) fn over(stream: UnixStream) -> Self {
        Self {
            reader: BufReader::with_capacity(256 << 10, stream),
            size: 0,
        }
    }

    /// To cut it off while somebody else has the client.
    pub(crate) fn stream(&self) -> Result<UnixStream, String> {
        self.reader.get_ref().try_clone().map_err(failed)
    }

    fn greet(&mut self) -> Result<(), String> {
        let greeting: [u8; 18] = self.receive()?;
        let words = [GREETING_MAGIC.to_be_bytes(), OPTION_MAGIC.to_be_bytes()].concat();
        if greeting[..16] != words[..] {
            return Err("NBD client: no newstyle server".into());
        }
        // Fixed newstyle, no zeroes.
        self.send(&3_u32.to_be_bytes())
    }

    fn go(&mut self, export: &str) -> Result<(), String> {
        let name_len = u32::try_from(export.len()).unwrap_or(u32::MAX);
        let mut payload = name_len.to_be_bytes().to_vec();
        payload.extend_from_slice(export.as_bytes());
        payload.extend_from_slice(&0_u16.to_be_bytes());
        let payload_len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
        bytes.extend_from_slice(&option::GO.to_be_bytes());
        bytes.extend_from_slice(&payload_len.to_be_bytes());
        bytes.extend_from_slice(&payload);
        self.send(&bytes)?;
        loop {
            let magic = u64::from_be_bytes(self.receive()?);
            let [_, kind, len] = [self.number()?, self.number()?, self.number()?];
            if magic != OPTION_REPLY_MAGIC || len > 1 << 16 {
                return Err("NBD client: a reply that is none".into());
            }
            let mut said = vec![0; usize::try_from(len).unwrap_or(0)];
            self.fill(&mut said)?;
            if kind == option_reply::ACK {
                return Ok(());
            }
            if kind & option_reply::ERROR != 0 {
                let said = String::from_utf8_lossy(&said);
                return Err(format!("NBD client: export '{export}' is refused: {said}"));
            }
            if let Some((what, rest)) = said.split_first_chunk::<2>()
                && u16::from_be_bytes(*what) == info::EXPORT
                && let Some((size, _)) = rest.split_first_chunk::<8>()
            {
                self.size = u64::from_be_bytes(*size);
            }
        }
    }

    fn number(&mut self) -> Result<u32, String> {
        self.receive().map(u32::from_be_bytes)
    }

    fn receive<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    /// Receives so many bytes.
    pub(crate) fn fill(&mut self, bytes: &mut [u8]) -> Result<(), String> {
        self.reader.read_exact(bytes).map_err(failed)
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        let mut stream = self.reader.get_ref();
        stream.write_all(bytes).map_err(failed)
    }

    /// What was answered is durable.
    pub(crate) fn flush(&mut self) -> Result<(), String> {
        let flush = Request {
            flags: 0,
            command: command::FLUSH,
            cookie: 0,
            offset: 0,
            len: 0,
        };
        self.send(&flush.encode())?;
        match self.reply()? {
            (0, _) => Ok(()),
            (error, _) => Err(format!("a flush failed with error {error}")),
        }
    }

    /// Error number and cookie of the next reply.
    pub(crate) fn reply(&mut self) -> Result<(u32, u64), String> {
        let bytes: [u8; SIMPLE_REPLY_BYTES] = self.receive()?;
        let number = |from: usize| {
            let mut field = [0; 4];
            field.copy_from_slice(&bytes[from..from + 4]);
            u32::from_be_bytes(field)
        };
        if number(0) != SIMPLE_REPLY_MAGIC {
            return Err("NBD client: no simple reply".into());
        }
        let cookie = u64::from(number(8)) << 32 | u64::from(number(12));
        Ok((number(4), cookie))
    }

    /// Whether another reply has come already.
    pub(crate) fn has_reply(&self) -> bool {
        self.reader.buffer().len() >= SIMPLE_REPLY_BYTES
    }
}
