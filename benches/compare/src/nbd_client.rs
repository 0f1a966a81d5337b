//! A plain client of NBD on a UNIX socket: fixed newstyle, simple replies, one
//! connection, one thread, several requests in flight.
//!
//! fio's nbd engine is not used as the guest: with a rate it counts latency from
//! the submission, so that a stall counts once and not for every request that it
//! held back, it cannot write each cluster exactly once, and what it writes cannot
//! be told apart afterwards.

use std::io::{BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use nix::sys::prctl;
use ringback_block::protocol::nbd::wire::{
    GREETING_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, Request, SIMPLE_REPLY_BYTES,
    SIMPLE_REPLY_MAGIC, command, info, option, option_reply,
};

use crate::pattern;

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
        let mut client = Self {
            reader: BufReader::with_capacity(256 << 10, stream),
            size: 0,
        };
        client.greet()?;
        client.go(export)?;
        Ok(client)
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
            self.reader.read_exact(&mut said).map_err(failed)?;
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
        self.reader.read_exact(&mut bytes).map_err(failed)?;
        Ok(bytes)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
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
    fn reply(&mut self) -> Result<(u32, u64), String> {
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

    fn has_reply(&self) -> bool {
        self.reader.buffer().len() >= SIMPLE_REPLY_BYTES
    }
}

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Work {
    /// Writes content of this generation; reads without one.
    pub(crate) generation: Option<u16>,
    pub(crate) offset: u64,
    pub(crate) len: usize,
}

impl Work {
    fn overlaps(&self, other: &Self) -> bool {
        self.offset < other.offset + other.len as u64
            && other.offset < self.offset + self.len as u64
    }
}

/// When things happened to a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// When it should have been sent; without a pace, when it was.
    pub(crate) due: Instant,
    pub(crate) answered: Instant,
}

/// Who says what is to be done, and is told of what was done.
pub(crate) trait Feed {
    /// The next request, which is due then; none, and that is all.
    fn next(&mut self, due: Instant) -> Option<Work>;

    /// One was answered, with these bytes if it was a read. An error ends it all.
    fn done(&mut self, work: &Work, bytes: &[u8], times: Times) -> Result<(), String>;
}

/// How fast requests come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// As soon as one of so many is answered.
    Depth(usize),
    /// Every so often, one at a time: what is due while another one is in flight
    /// waits, and its latency counts from when it was due.
    Every(Duration),
}

/// Carries out what a feed wants.
///
/// Two writes that overlap are never in flight together: whose data is there
/// afterwards would be anybody's guess.
///
/// # Errors
///
/// A request fails, the connection breaks, or the feed says so.
pub(crate) fn drive(client: &mut Client, pace: Pace, feed: &mut impl Feed) -> Result<(), String> {
    let depth = match pace {
        Pace::Depth(depth) => depth,
        Pace::Every(_) => 1,
    };
    let mut slots: Vec<Option<(Work, Times)>> = vec![None; depth];
    let mut in_flight = 0;
    let mut held_back: Option<Work> = None;
    let mut due = Instant::now();
    let (mut out, mut data) = (Vec::new(), Vec::new());
    loop {
        out.clear();
        while in_flight < depth {
            if let Pace::Depth(_) = pace {
                due = Instant::now();
            }
            let Some(work) = held_back.take().or_else(|| feed.next(due)) else {
                break;
            };
            let others = slots.iter().flatten();
            if work.generation.is_some()
                && others.into_iter().any(|(other, _)| work.overlaps(other))
            {
                held_back = Some(work);
                break;
            }
            let times = Times { due, answered: due };
            if let Pace::Every(interval) = pace {
                sleep(due.saturating_duration_since(Instant::now()));
                due += interval;
            }
            let free = slots.iter().position(Option::is_none);
            let slot = free.ok_or("NBD client: no slot is free")?;
            encode(&mut out, slot, &work);
            slots[slot] = Some((work, times));
            in_flight += 1;
        }
        if in_flight == 0 {
            return Ok(());
        }
        if !out.is_empty() {
            client.send(&out)?;
        }
        loop {
            let (error, cookie) = client.reply()?;
            let slot = usize::try_from(cookie).ok();
            let slot = slot.and_then(|slot| slots.get_mut(slot)?.take());
            let (work, times) = slot.ok_or("NBD client: a reply to nothing")?;
            if error != 0 {
                let what = work.generation.map_or("read", |_| "write");
                let Work { offset, len, .. } = work;
                return Err(format!(
                    "a {what} of {len} bytes at {offset} failed with error {error}"
                ));
            }
            data.resize(
                if work.generation.is_some() {
                    0
                } else {
                    work.len
                },
                0,
            );
            client.reader.read_exact(&mut data).map_err(failed)?;
            in_flight -= 1;
            let answered = Instant::now();
            feed.done(&work, &data, Times { answered, ..times })?;
            if !client.has_reply() {
                break;
            }
        }
    }
}

/// A feed that is carried out on a thread of its own. Cut off when dropped: whoever
/// fails leaves nobody behind who still writes.
#[derive(Debug)]
pub(crate) struct Driven<T> {
    who: &'static str,
    connection: UnixStream,
    /// Until it is joined.
    thread: Option<JoinHandle<Result<T, String>>>,
}

impl<T: Send + 'static> Driven<T> {
    /// `finish` makes of the feed what [`Self::join`] answers, as soon as there is no
    /// more.
    pub(crate) fn start<F: Feed + Send + 'static>(
        who: &'static str,
        mut client: Client,
        pace: Pace,
        mut feed: F,
        finish: impl FnOnce(F) -> T + Send + 'static,
    ) -> Result<Self, String> {
        let connection = client.reader.get_ref().try_clone().map_err(failed)?;
        let thread = std::thread::spawn(move || {
            // A request is due at a time, not fifty microseconds later.
            prctl::set_timerslack(1).map_err(|errno| format!("timer slack: {errno}"))?;
            drive(&mut client, pace, &mut feed).map_err(|error| format!("{who}: {error}"))?;
            Ok(finish(feed))
        });
        Ok(Self {
            who,
            connection,
            thread: Some(thread),
        })
    }

    /// Waits until the feed has no more.
    pub(crate) fn join(mut self) -> Result<T, String> {
        let panicked = || format!("{} panicked", self.who);
        let thread = self.thread.take().ok_or_else(panicked)?;
        thread.join().map_err(|_| panicked())?
    }
}

impl<T> Drop for Driven<T> {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        // Not an orderly end: what is in flight may never be answered.
        let _ = self.connection.shutdown(Shutdown::Both);
        let _ = thread.join();
    }
}

fn encode(out: &mut Vec<u8>, slot: usize, work: &Work) {
    let request = Request {
        flags: 0,
        command: match work.generation {
            Some(_) => command::WRITE,
            None => command::READ,
        },
        cookie: slot as u64,
        offset: work.offset,
        len: work.len as u64,
    };
    out.extend_from_slice(&request.encode());
    if let Some(generation) = work.generation {
        let from = out.len();
        out.resize(from + work.len, 0);
        pattern::fill(&mut out[from..], work.offset, generation);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(offset: u64, len: usize) -> Work {
        let generation = Some(1);
        Work {
            generation,
            offset,
            len,
        }
    }

    #[test]
    fn neighbours_do_not_overlap() {
        assert!(write(4096, 4096).overlaps(&write(0, 8192)));
        assert!(!write(4096, 4096).overlaps(&write(0, 4096)));
        assert!(!write(4096, 4096).overlaps(&write(8192, 4096)));
    }
}
