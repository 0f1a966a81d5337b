//! Copy on read: what is read from a backing file is copied into the topmost
//! image on the way, so that it is there the next time.
//!
//! # Order
//!
//! What lacks is copied in the image's units, alone on them: changes that
//! come through this filter wait for it, and it waits for those in flight.
//! Alone, the copier looks again at what lacks. So it never overwrites what a
//! guest has written. A read of what is there already waits for nobody.
//!
//! A run that reads as zeroes becomes a zero write, whether the image says so
//! or the bytes are.
//!
//! A copy changes nothing that a reader sees, but bitmaps of nodes below the
//! filter record it, and filters there save what it overwrites.

use std::ops::Range;

use ringback_ring::{Buf, IoResult, Shard};

use crate::child::Child;
use crate::extent::{Content, Extent};
use crate::in_flight::InFlight;
use crate::request::ZeroFlags;
use crate::span::Span;
use crate::units::{in_memory, is_zero};

/// A copy takes at most this many bytes at once, or one unit.
const SLICE: u64 = 1 << 20;

/// What the filter asks of the node below it.
pub(crate) trait Below {
    fn size(&self) -> u64;
    fn allocation_unit(&self) -> u64;
    async fn read(
        &self,
        shard: &Shard,
        span: Span,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf);
    async fn write(
        &self,
        shard: &Shard,
        span: Span,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf);
    async fn write_zeroes(&self, shard: &Shard, span: Span, flags: ZeroFlags) -> IoResult<()>;
    async fn extent(&self, shard: &Shard, span: Span) -> IoResult<Extent>;
}

impl Below for Child {
    fn size(&self) -> u64 {
        Child::size(self)
    }

    fn allocation_unit(&self) -> u64 {
        Child::allocation_unit(self)
    }

    async fn read(
        &self,
        shard: &Shard,
        span: Span,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        Child::read(self, shard, span, buf, window).await
    }

    async fn write(
        &self,
        shard: &Shard,
        span: Span,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        Child::write(self, shard, span, buf, window).await
    }

    async fn write_zeroes(&self, shard: &Shard, span: Span, flags: ZeroFlags) -> IoResult<()> {
        Child::write_zeroes(self, shard, span, flags).await
    }

    async fn extent(&self, shard: &Shard, span: Span) -> IoResult<Extent> {
        Child::extent(self, shard, span).await
    }
}

/// Bytes that the topmost image does not hold.
struct Missing {
    span: Span,
    /// All of them are known to be zeroes.
    is_zero: bool,
}

/// The filter's state, shared by all shards.
#[derive(Debug)]
pub struct CopyOnRead {
    in_flight: InFlight,
}

impl CopyOnRead {
    /// A filter that `shards` shards will use.
    pub fn new(shards: usize) -> Self {
        Self {
            in_flight: InFlight::new(shards),
        }
    }

    /// Copies what lacks, then reads. A copy that fails fails the read.
    pub(crate) async fn read<B: Below>(
        &self,
        shard: &Shard,
        file: &B,
        span: Span,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        match self.fill(shard, file, span).await {
            Ok(()) => file.read(shard, span, buf, window).await,
            Err(errno) => (Err(errno), buf),
        }
    }

    async fn fill<B: Below>(&self, shard: &Shard, file: &B, span: Span) -> IoResult<()> {
        let unit = file.allocation_unit();
        let mut rest = span;
        while let Some(missing) = first_missing(shard, file, rest).await? {
            let whole = missing.span.widen(unit);
            let slice = Span::new(whole.offset, whole.len.min(SLICE.max(unit)));
            let slice = slice.clip(&Span::new(0, file.size()));
            self.copy(shard, file, slice).await?;
            rest = Span::between(slice.end().min(rest.end()), rest.end());
        }
        Ok(())
    }

    /// Whole units, as far as the image reaches.
    async fn copy<B: Below>(&self, shard: &Shard, file: &B, slice: Span) -> IoResult<()> {
        let _turn = self.in_flight.enter_exclusive(shard, slice).await;
        let mut rest = slice;
        while let Some(missing) = first_missing(shard, file, rest).await? {
            copy_run(shard, file, &missing).await?;
            rest = Span::between(missing.span.end(), rest.end());
        }
        Ok(())
    }

    pub(crate) async fn write<B: Below>(
        &self,
        shard: &Shard,
        file: &B,
        span: Span,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        let _turn = self.in_flight.enter_shared(shard, span).await;
        file.write(shard, span, buf, window).await
    }

    pub(crate) async fn write_zeroes<B: Below>(
        &self,
        shard: &Shard,
        file: &B,
        span: Span,
        flags: ZeroFlags,
    ) -> IoResult<()> {
        let _turn = self.in_flight.enter_shared(shard, span).await;
        file.write_zeroes(shard, span, flags).await
    }

    pub(crate) async fn write_compressed(
        &self,
        shard: &Shard,
        file: &Child,
        span: Span,
        bytes: &[u8],
    ) -> IoResult<()> {
        let _turn = self.in_flight.enter_shared(shard, span).await;
        file.write_compressed(shard, span, bytes).await
    }

    pub(crate) async fn discard(&self, shard: &Shard, file: &Child, span: Span) -> IoResult<()> {
        let _turn = self.in_flight.enter_shared(shard, span).await;
        file.discard(shard, span).await
    }
}

/// The first run that the topmost image does not hold, however it is divided
/// among those below; of a long one, a slice or more.
async fn first_missing<B: Below>(shard: &Shard, file: &B, span: Span) -> IoResult<Option<Missing>> {
    let mut rest = span;
    let mut found: Option<Missing> = None;
    while !rest.is_empty() {
        let extent = file.extent(shard, rest).await?.at_most(rest.len);
        let run = Span::new(rest.offset, extent.len);
        let is_zero = extent.content == Content::Zero;
        if extent.depth != 1 {
            let missing = found.get_or_insert(Missing {
                span: Span::new(run.offset, 0),
                is_zero: true,
            });
            missing.span = Span::between(missing.span.offset, run.end());
            missing.is_zero &= is_zero;
        }
        let is_complete = |missing: &Missing| extent.depth == 1 || missing.span.len >= SLICE;
        if found.as_ref().is_some_and(is_complete) {
            break;
        }
        rest = Span::between(run.end(), rest.end());
    }
    Ok(found)
}

/// The caller is alone on these bytes.
async fn copy_run<B: Below>(shard: &Shard, file: &B, missing: &Missing) -> IoResult<()> {
    let span = missing.span;
    if missing.is_zero {
        return file.write_zeroes(shard, span, ZeroFlags::KEEP).await;
    }
    let window = 0..in_memory(span.len);
    let buf = shard.buffer_now(window.len());
    let (result, buf) = file.read(shard, span, buf, window.clone()).await;
    result?;
    if is_zero(&buf[window.clone()]) {
        return file.write_zeroes(shard, span, ZeroFlags::KEEP).await;
    }
    file.write(shard, span, buf, window).await.0
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::rc::Rc;

    use ringback_ring::file::Cache;
    use ringback_ring::sim::{FileOptions, Random, Sim};

    use super::*;
    use crate::graph::{Access, Graph, GraphError, NodeSpec};
    use crate::planted::{self, Fault};

    const CLUSTER: u64 = 4096;
    const SIZE: u64 = 8 * CLUSTER + 512;
    /// The backing file is shorter, and ends inside a cluster.
    const BACKING: u64 = 5 * CLUSTER + 1000;

    /// An image above a backing file, in memory. Each operation takes a while
    /// and happens at one instant of it.
    struct Overlay {
        top: RefCell<Vec<u8>>,
        present: RefCell<Vec<bool>>,
        zeroed: Cell<u64>,
        written: Cell<u64>,
        random: RefCell<Random>,
    }

    /// No byte of the third cluster is anything but zero.
    fn backing(at: u64) -> u8 {
        if at >= BACKING || at / CLUSTER == 2 {
            0
        } else {
            u8::try_from(at % 251 + 1).expect("small")
        }
    }

    fn at(offset: u64) -> usize {
        usize::try_from(offset).expect("small")
    }

    impl Overlay {
        fn new(seed: u64) -> Self {
            Self {
                top: RefCell::new(vec![0; at(SIZE)]),
                present: RefCell::new(vec![false; at(SIZE.div_ceil(CLUSTER))]),
                zeroed: Cell::new(0),
                written: Cell::new(0),
                random: RefCell::new(Random::new(seed)),
            }
        }

        async fn pause(&self, shard: &Shard) {
            let pause_ns = self.random.borrow_mut().below(100_000);
            shard.sleep_ns(pause_ns).await;
        }

        /// A cluster that is touched is filled from the backing file first.
        fn change(&self, span: Span, put: impl FnOnce(&mut [u8])) {
            let mut top = self.top.borrow_mut();
            for cluster in span.offset / CLUSTER..span.end().div_ceil(CLUSTER) {
                if !std::mem::replace(&mut self.present.borrow_mut()[at(cluster)], true) {
                    for byte in cluster * CLUSTER..SIZE.min((cluster + 1) * CLUSTER) {
                        top[at(byte)] = backing(byte);
                    }
                }
            }
            put(&mut top[at(span.offset)..at(span.end())]);
        }

        fn byte(&self, offset: u64) -> u8 {
            if self.present.borrow()[at(offset / CLUSTER)] {
                self.top.borrow()[at(offset)]
            } else {
                backing(offset)
            }
        }
    }

    impl Below for Overlay {
        fn size(&self) -> u64 {
            SIZE
        }

        fn allocation_unit(&self) -> u64 {
            CLUSTER
        }

        async fn read(
            &self,
            shard: &Shard,
            span: Span,
            mut buf: Buf,
            window: Range<usize>,
        ) -> (IoResult<()>, Buf) {
            self.pause(shard).await;
            for (byte, offset) in buf[window].iter_mut().zip(span.offset..) {
                *byte = self.byte(offset);
            }
            self.pause(shard).await;
            (Ok(()), buf)
        }

        async fn write(
            &self,
            shard: &Shard,
            span: Span,
            buf: Buf,
            window: Range<usize>,
        ) -> (IoResult<()>, Buf) {
            self.pause(shard).await;
            self.written.set(self.written.get() + span.len);
            self.change(span, |bytes| bytes.copy_from_slice(&buf[window]));
            self.pause(shard).await;
            (Ok(()), buf)
        }

        async fn write_zeroes(&self, shard: &Shard, span: Span, _: ZeroFlags) -> IoResult<()> {
            self.pause(shard).await;
            self.zeroed.set(self.zeroed.get() + span.len);
            self.change(span, |bytes| bytes.fill(0));
            Ok(())
        }

        async fn extent(&self, shard: &Shard, span: Span) -> IoResult<Extent> {
            self.pause(shard).await;
            let in_cluster = CLUSTER - span.offset % CLUSTER;
            let here = self.present.borrow()[at(span.offset / CLUSTER)];
            let (content, depth, len) = if here {
                (Content::Data, 1, in_cluster)
            } else if span.offset < BACKING {
                (Content::Data, 2, in_cluster.min(BACKING - span.offset))
            } else {
                (Content::Zero, 0, in_cluster)
            };
            let extent = Extent {
                content,
                len,
                depth,
            };
            Ok(extent.at_most(span.len))
        }
    }

    async fn read_all(shard: &Shard, filter: &CopyOnRead, file: &Overlay, span: Span) -> Vec<u8> {
        let window = 0..at(span.len);
        let buf = shard.buffer(window.len()).await;
        let (result, buf) = filter.read(shard, file, span, buf, window.clone()).await;
        result.expect("nothing fails here");
        buf[window].to_vec()
    }

    #[test]
    fn what_is_read_is_there_afterwards_and_zeroes_are_zero_writes() {
        let mut sim = Sim::new(1, 1);
        let answer = sim.shards().spawn_on(0, |shard| async move {
            let (file, filter) = (Overlay::new(1), CopyOnRead::new(1));
            // One byte brings its cluster.
            let read = read_all(&shard, &filter, &file, Span::new(5000, 1)).await;
            assert_eq!(read, [backing(5000)]);
            assert_eq!((file.written.get(), file.zeroed.get()), (CLUSTER, 0));
            // What is there is not copied again.
            read_all(&shard, &filter, &file, Span::new(CLUSTER, CLUSTER)).await;
            assert_eq!(file.written.get(), CLUSTER);
            // The bytes of the third cluster are zeroes.
            read_all(&shard, &filter, &file, Span::new(2 * CLUSTER, 10)).await;
            assert_eq!((file.written.get(), file.zeroed.get()), (CLUSTER, CLUSTER));
            // Behind the end of the backing file nothing is read.
            read_all(&shard, &filter, &file, Span::new(SIZE - 512, 512)).await;
            assert_eq!(file.zeroed.get(), CLUSTER + 512);
            let whole = read_all(&shard, &filter, &file, Span::new(0, SIZE)).await;
            let expected: Vec<u8> = (0..SIZE).map(backing).collect();
            assert_eq!(whole, expected);
            assert!(file.present.borrow().iter().all(|&present| present));
        });
        sim.run(&answer).expect("it ends");
    }

    #[test]
    fn the_image_must_be_writable_and_nobody_writes_around_the_filter() {
        let mut sim = Sim::new(2, 1);
        sim.world().create("disk", SIZE, FileOptions::default());
        let answer = sim.shards().spawn_on(0, |shard| async move {
            let mut graph = Graph::new();
            for (name, write) in [("file", true), ("fixed", false)] {
                let file = NodeSpec::File {
                    path: "disk".into(),
                    write,
                    cache: Cache::Auto,
                    discard: false,
                };
                graph.add(&shard, name, file).await.expect("a file");
            }
            let above = |file: &str| NodeSpec::CopyOnRead { file: file.into() };
            let refused = graph.add(&shard, "cor", above("fixed")).await;
            assert_eq!(
                refused.map_err(|error| error.to_string()),
                Err("Can't use copy-on-read on read-only device".into())
            );
            graph
                .add(&shard, "cor", above("file"))
                .await
                .expect("it fits");
            let (reader, writer) = (
                Access {
                    read: true,
                    ..Access::default()
                },
                Access {
                    read: true,
                    write: true,
                    alone_writing: false,
                    ..Access::default()
                },
            );
            // While nobody uses the filter, it minds nothing.
            let (user, _) = graph
                .attach(&shard, "file", "other", writer)
                .await
                .expect("it shares");
            let refused = graph.attach(&shard, "cor", "test", reader).await;
            assert!(matches!(refused, Err(GraphError::Conflict { .. })));
            graph.detach(user).await;
            let (_, through) = graph
                .attach(&shard, "cor", "test", writer)
                .await
                .expect("it is alone");
            let refused = graph.attach(&shard, "file", "other", writer).await;
            assert!(matches!(refused, Err(GraphError::Conflict { .. })));
            graph
                .attach(&shard, "cor", "other", writer)
                .await
                .expect("through the filter");
            // What a file holds is there: all of it goes through.
            let port = through.port(&shard);
            let mut buf = shard.buffer(700).await;
            buf.fill(7);
            let (result, buf) = port.write(&shard, 100, buf, 0..700).await;
            result.expect("a write");
            port.write_zeroes(&shard, Span::new(200, 100), ZeroFlags::KEEP)
                .await
                .expect("zeroes");
            port.discard(&shard, Span::new(0, 64))
                .await
                .expect("a hint");
            port.flush(&shard).await.expect("a flush");
            let (result, buf) = port.read(&shard, 100, buf, 0..700).await;
            result.expect("a read");
            assert!(
                buf[..700]
                    .iter()
                    .enumerate()
                    .all(|(at, &byte)| byte == if (100..200).contains(&at) { 0 } else { 7 })
            );
        });
        sim.run(&answer).expect("it ends");
    }

    /// Guests write while others read; the first byte that is lost.
    fn race(seed: u64) -> Option<u64> {
        let mut sim = Sim::new(seed, 1);
        let answer = sim.shards().spawn_on(0, move |shard| async move {
            let file = Rc::new(Overlay::new(seed));
            let filter = Rc::new(CopyOnRead::new(1));
            let mut random = Random::new(seed ^ 77);
            let mut expected: Vec<u8> = (0..SIZE).map(backing).collect();
            let mut tasks = Vec::new();
            // Writers have parts of their own, which share clusters.
            for (writer, start) in (0..SIZE - 1500).step_by(1500).enumerate() {
                let span = Span::new(start + random.below(700), 1 + random.below(800));
                let value = u8::try_from(writer % 200).expect("small") + 1;
                let zeroes = random.below(4) == 0;
                expected[at(span.offset)..at(span.end())].fill(if zeroes { 0 } else { value });
                let (shard, file, filter) = (shard.clone(), Rc::clone(&file), Rc::clone(&filter));
                let delay_ns = random.below(400_000);
                tasks.push(shard.clone().spawn(async move {
                    shard.sleep_ns(delay_ns).await;
                    if zeroes {
                        let zero = filter.write_zeroes(&shard, &*file, span, ZeroFlags::KEEP);
                        return zero.await.expect("nothing fails here");
                    }
                    let mut buf = shard.buffer(at(span.len)).await;
                    buf.fill(value);
                    let (result, _) = filter
                        .write(&shard, &*file, span, buf, 0..at(span.len))
                        .await;
                    result.expect("nothing fails here");
                }));
            }
            for _ in 0..8 {
                let start = random.below(SIZE - 1);
                let span = Span::new(start, 1 + random.below(SIZE - start));
                let (shard, file, filter) = (shard.clone(), Rc::clone(&file), Rc::clone(&filter));
                let delay_ns = random.below(200_000);
                tasks.push(shard.clone().spawn(async move {
                    shard.sleep_ns(delay_ns).await;
                    read_all(&shard, &filter, &file, span).await;
                }));
            }
            for task in tasks {
                task.join().await;
            }
            (0..SIZE).find(|&offset| file.byte(offset) != expected[at(offset)])
        });
        sim.run(&answer).expect("it ends")
    }

    #[test]
    fn no_guests_write_is_lost() {
        for seed in 0..300 {
            assert_eq!(race(seed), None, "seed {seed}");
        }
    }

    #[test]
    #[cfg(debug_assertions)]
    fn without_turns_writes_are_lost() {
        let _planted = planted::plant(Fault::UnalignedNotSerialised);
        assert!((0..50).any(|seed| race(seed).is_some()));
    }
}
