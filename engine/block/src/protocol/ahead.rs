//! How far a regular file is longer than what was written into it.
//!
//! A write that ends behind the end of a file makes the file longer, and a file
//! system does that for one write at a time: ext4 keeps every other request to
//! the file out until the write has reached the device. So whoever knows that
//! it is going to write there asks for a longer file first. What is added is
//! sparse: it reads as zeroes and takes no space.
//!
//! # No write is cut
//!
//! A file is made longer by saying how long it shall be. A write behind that
//! which is faster would be cut off. So a write behind the known length counts
//! itself in and then waits for a change of length under way; who changes the
//! length does nothing if it finds one counted. Both go through one lock, so
//! one of them sees the other. Other writes pay one load.
//!
//! # No block is half behind the end
//!
//! A file that ends within a block of its file system has the rest of that block
//! zeroed, through the page cache, when it gets longer. A direct write to the
//! same block that is in flight collides with that: Linux warns of corruption,
//! and the next flush fails. So such a file is left as long as it is, until its
//! writes have brought the end to the start of a block; each step ends at one.

use std::sync::atomic::{AtomicU64, Ordering};

use ringback_ring::{Errno, File, IoResult, Shard};

use crate::exclusive::Exclusive;
use crate::planted::{self, Fault};

/// A step is a quarter of the file, within bounds: few steps, and after a crash
/// the file is not much longer than it was.
const STEPS_PER_FILE: u64 = 4;
const STEP_MIN: u64 = 64 << 10;
const STEP_MAX: u64 = 128 << 20;

/// The known length of a file.
#[derive(Debug)]
pub(super) struct Ahead {
    /// The file is at least so many bytes long.
    length: AtomicU64,
    /// Writes under way that end behind `length`.
    beyond: AtomicU64,
    /// Held while the file is made longer or shorter. The value says whether
    /// that is worth trying.
    resizing: Exclusive<bool>,
}

/// A write under way that ends behind the known length.
pub(super) struct Beyond<'a>(&'a AtomicU64);

impl Drop for Beyond<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

impl Ahead {
    /// For a file of this length; `can_grow` says whether it can get another.
    pub(super) fn new(length: u64, can_grow: bool) -> Self {
        Self {
            length: AtomicU64::new(length),
            beyond: AtomicU64::new(0),
            resizing: Exclusive::new(can_grow),
        }
    }

    pub(super) fn length(&self) -> u64 {
        self.length.load(Ordering::Acquire)
    }

    /// Something has been written up to here.
    pub(super) fn reach(&self, end: u64) {
        if self.length.load(Ordering::Relaxed) < end {
            self.length.fetch_max(end, Ordering::AcqRel);
        }
    }

    /// The file has this length now. Nothing else is in flight.
    pub(super) fn set(&self, length: u64) {
        self.length.store(length, Ordering::Release);
    }

    /// Before a write up to `end`; what it answers must live until the write has
    /// ended and [`Ahead::reach`] was told.
    pub(super) async fn enter(&self, end: u64) -> Option<Beyond<'_>> {
        if end <= self.length() || planted::is(Fault::WriteBehindEndNotCounted) {
            return None;
        }
        self.beyond.fetch_add(1, Ordering::AcqRel);
        let beyond = Beyond(&self.beyond);
        drop(self.resizing.lock().await);
        Some(beyond)
    }

    /// Makes the file longer than `end`, by a step, if that is possible now.
    pub(super) async fn grow(&self, shard: &Shard, file: &File, end: u64) {
        if end <= self.length() {
            return;
        }
        let mut is_worth_it = self.resizing.lock().await;
        if !*is_worth_it || self.beyond.load(Ordering::Acquire) > 0 {
            return;
        }
        // After that look: whoever has left has told how far the file reaches.
        let length = self.length();
        if end <= length {
            return;
        }
        let block = file.geometry().block_size;
        if !length.is_multiple_of(block) && !planted::is(Fault::GrowsFromWithinBlock) {
            return;
        }
        let step = (length / STEPS_PER_FILE).clamp(STEP_MIN, STEP_MAX);
        let wanted = end.checked_add(step);
        let Some(wanted) = wanted.and_then(|end| end.checked_next_multiple_of(block)) else {
            return;
        };
        match file.truncate(shard, wanted).await {
            Ok(()) => self.set(wanted),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            // Writes make it longer, as far as they can.
            Err(_) => *is_worth_it = false,
        }
    }

    /// Cuts the file off at `end`, which is how far it was written. Nothing else
    /// is in flight.
    pub(super) async fn cut(&self, shard: &Shard, file: &File, end: u64) -> IoResult<()> {
        let _alone = self.resizing.lock().await;
        if self.length() <= end {
            return Ok(());
        }
        file.truncate(shard, end).await?;
        self.set(end);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::rc::Rc;

    use ringback_ring::file::{Cache, Kind, OpenOptions};
    use ringback_ring::sim::{FileOptions, Sim};

    use super::*;
    use crate::protocol::FileProtocol;

    const FAR: u64 = 8 << 20;
    /// Of the simulator.
    const BLOCK: u64 = 4096;

    async fn open(shard: &Shard) -> Rc<FileProtocol> {
        let options = OpenOptions {
            path: PathBuf::from("file"),
            write: true,
            cache: Cache::Auto,
        };
        let file = File::open(shard, options).await.expect("a file");
        Rc::new(FileProtocol::new(file, true))
    }

    async fn write(shard: &Shard, file: &FileProtocol, offset: u64) {
        let mut buf = shard.buffer_now(4096);
        buf.fill(7);
        let (result, _) = file.write(shard, offset, buf, 0..4096).await;
        result.expect("written");
    }

    /// Of a request that is over before a change of length has happened.
    const FAST_NS: u64 = 20_000;
    /// Of one that is not.
    const SLOW_NS: u64 = 200_000;

    /// Runs on an empty file, and answers what is in it then.
    fn content_after<F: Future<Output = ()> + 'static>(
        kind: Kind,
        latency_ns: u64,
        act: impl FnOnce(Shard) -> F + Send + 'static,
    ) -> Vec<u8> {
        let mut sim = Sim::new(1, 1);
        let options = FileOptions {
            kind,
            latency_ns: (latency_ns, latency_ns),
            ..FileOptions::default()
        };
        let size = if kind == Kind::BlockDevice { FAR } else { 0 };
        sim.world().create("file", size, options);
        let answer = sim.shards().spawn_on(0, act);
        sim.run(&answer).expect("it ends");
        sim.world().content("file")
    }

    #[test]
    fn the_file_is_longer_than_the_disk_until_it_is_cut() {
        let content = content_after(Kind::Regular, FAST_NS, |shard| async move {
            let file = open(&shard).await;
            write(&shard, &file, 0).await;
            file.grow_ahead(&shard, 100_000).await;
            assert_eq!(file.size(), 4096);
            let length = (100_000 + STEP_MIN).next_multiple_of(BLOCK);
            assert_eq!(file.ahead().length(), length);
            file.grow_ahead(&shard, length).await;
            assert_eq!(file.ahead().length(), length, "it is so long");
            file.truncate(&shard, 10_240).await.expect("truncated");
            assert_eq!((file.size(), file.ahead().length()), (10_240, length));
            file.cut_ahead(&shard).await.expect("cut");
            assert_eq!(file.ahead().length(), 10_240);
        });
        assert_eq!(content.len(), 10_240);
        assert!(content[..4096].iter().all(|&byte| byte == 7));
        assert!(content[4096..].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn a_shorter_disk_ends_the_file() {
        let content = content_after(Kind::Regular, FAST_NS, |shard| async move {
            let file = open(&shard).await;
            write(&shard, &file, 4096).await;
            file.grow_ahead(&shard, 100_000).await;
            file.truncate(&shard, 512).await.expect("truncated");
            assert_eq!(file.ahead().length(), 512);
        });
        assert_eq!(content.len(), 512);
    }

    #[test]
    fn steps_grow_with_the_file() {
        drop(content_after(Kind::Regular, FAST_NS, |shard| async move {
            let file = open(&shard).await;
            write(&shard, &file, FAR - 4096).await;
            file.grow_ahead(&shard, FAR + 1).await;
            let length = (FAR + 1 + FAR / STEPS_PER_FILE).next_multiple_of(BLOCK);
            assert_eq!(file.ahead().length(), length);
        }));
    }

    #[test]
    fn a_device_stays_as_it_is() {
        let content = content_after(Kind::BlockDevice, FAST_NS, |shard| async move {
            let file = open(&shard).await;
            file.grow_ahead(&shard, FAR + 1).await;
            assert_eq!(file.ahead().length(), FAR);
            file.cut_ahead(&shard).await.expect("nothing to cut");
        });
        assert_eq!(content.len() as u64, FAR);
    }

    /// Somebody writes far behind the end, before or after the file begins to
    /// grow there.
    fn far_write(is_first: bool) -> Vec<u8> {
        content_after(Kind::Regular, FAST_NS, move |shard| async move {
            let file = open(&shard).await;
            let (writer, its_file) = (shard.clone(), Rc::clone(&file));
            let write = async move { write(&writer, &its_file, FAR).await };
            let (grower, its_file) = (shard.clone(), Rc::clone(&file));
            let grow = async move { its_file.grow_ahead(&grower, 4096).await };
            if is_first {
                let write = shard.spawn(write);
                shard.spawn(grow).join().await;
                write.join().await;
            } else {
                let grow = shard.spawn(grow);
                shard.spawn(write).join().await;
                grow.join().await;
            }
            assert_eq!(file.size(), FAR + 4096);
        })
    }

    #[test]
    fn a_write_under_way_is_not_cut() {
        for is_first in [true, false] {
            let content = far_write(is_first);
            assert_eq!(content.len() as u64, FAR + 4096, "{is_first}");
            let start = content.len() - 4096;
            assert!(content[start..].iter().all(|&byte| byte == 7));
        }
    }

    /// The file ends within a block to which a write is under way while it is
    /// told to grow; what a flush then says, and how long the file is.
    fn growth_from_within_a_block() -> (IoResult<()>, u64) {
        let (tell, told) = std::sync::mpsc::channel();
        drop(content_after(
            Kind::Regular,
            SLOW_NS,
            move |shard| async move {
                let file = open(&shard).await;
                file.truncate(&shard, BLOCK + 512).await.expect("truncated");
                let (writer, its_file) = (shard.clone(), Rc::clone(&file));
                let write = shard.spawn(async move {
                    let mut buf = writer.buffer_now(512);
                    buf.fill(7);
                    its_file.write(&writer, BLOCK, buf, 0..512).await.0
                });
                shard.sleep_ns(FAST_NS).await;
                file.grow_ahead(&shard, BLOCK + 1024).await;
                let length = file.ahead().length();
                write.join().await.expect("written");
                let flushed = file.flush(&shard).await;
                tell.send((flushed, length)).expect("heard");
            },
        ));
        told.recv().expect("told")
    }

    #[test]
    fn a_file_that_ends_within_a_block_is_left_to_its_writes() {
        assert_eq!(growth_from_within_a_block(), (Ok(()), BLOCK + 512));
    }

    #[cfg(debug_assertions)]
    #[test]
    fn growth_from_within_a_block_fails_a_flush() {
        let _planted = planted::plant(Fault::GrowsFromWithinBlock);
        assert_eq!(growth_from_within_a_block().0, Err(Errno::EIO));
    }

    #[cfg(debug_assertions)]
    #[test]
    fn a_write_that_is_not_counted_is_cut() {
        let _planted = planted::plant(Fault::WriteBehindEndNotCounted);
        for is_first in [true, false] {
            assert_eq!(far_write(is_first).len() as u64, BLOCK + STEP_MIN);
        }
    }
}
