//! Many requests through one connection, several in flight: what a guest does, a
//! reader of a snapshot, or who verifies.
//!
//! fio's nbd engine is not used as the guest: with a rate it counts latency from
//! the submission, so that a stall counts once and not for every request that it
//! held back, it cannot write each cluster exactly once, and what it writes cannot
//! be told apart afterwards.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use nix::sys::prctl;
use ringback_block::protocol::nbd::wire::{Request, command};

use crate::command::LIMIT;
use crate::nbd_client::Client;
use crate::pattern;

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
            client.fill(&mut data)?;
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
    result: Receiver<Result<T, String>>,
    /// Until it is dropped.
    thread: Option<JoinHandle<()>>,
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
        let connection = client.stream()?;
        let run = move || {
            // A request is due at a time, not fifty microseconds later.
            prctl::set_timerslack(1).map_err(|errno| format!("timer slack: {errno}"))?;
            drive(&mut client, pace, &mut feed).map_err(|error| format!("{who}: {error}"))?;
            Ok(finish(feed))
        };
        let (sender, result) = channel();
        let thread = std::thread::spawn(move || {
            // Nobody listens any more if it is cut off.
            let _ = sender.send(run());
        });
        Ok(Self {
            who,
            connection,
            result,
            thread: Some(thread),
        })
    }

    /// Waits until the feed has no more.
    ///
    /// # Errors
    ///
    /// It fails, or does not come to an end.
    pub(crate) fn join(self) -> Result<T, String> {
        self.join_within(LIMIT)
    }

    fn join_within(self, limit: Duration) -> Result<T, String> {
        let who = self.who;
        match self.result.recv_timeout(limit) {
            Ok(result) => result,
            Err(RecvTimeoutError::Disconnected) => Err(format!("{who} panicked")),
            Err(RecvTimeoutError::Timeout) => {
                let limit = limit.as_secs_f64();
                Err(format!("{who} has not come to an end after {limit} s"))
            }
        }
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

    /// Writes for ever.
    struct Endless;

    impl Feed for Endless {
        fn next(&mut self, _due: Instant) -> Option<Work> {
            Some(write(0, 4096))
        }

        fn done(&mut self, _: &Work, _: &[u8], _: Times) -> Result<(), String> {
            Ok(())
        }
    }

    #[test]
    fn who_is_not_answered_is_cut_off() {
        let (near, _silent) = UnixStream::pair().unwrap();
        let client = Client::over(near);
        let endless = Driven::start("the guest", client, Pace::Depth(1), Endless, drop).unwrap();
        let error = endless.join_within(Duration::from_millis(50)).unwrap_err();
        assert!(
            error.ends_with("not come to an end after 0.05 s"),
            "{error}"
        );
    }
}
