//! `blkdebug`: makes chosen requests fail, holds requests up at chosen points,
//! and narrows what the node below can do.
//!
//! # Events
//!
//! A format directly above names the points that its requests pass. The filter
//! adds those of its own write path: the reads of an unaligned write's edges,
//! the write, its end. Each event moves the rules (see `rules`) and may meet a
//! breakpoint.
//!
//! # What a rule sees
//!
//! Requests as they go down to the node below: widened to `align`, cut by the
//! limits, each fragment for itself.
//!
//! # What is otherwise than in QEMU
//!
//! An unaligned write whose edges cannot be read fails; QEMU writes undefined
//! bytes around it. Parts of a discard that are no whole unit are left out;
//! QEMU crashes on some.

mod breakpoints;
mod options;
mod rules;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ringback_ring::{Buf, Errno, IoResult, Shard, WaitQueue};

pub use breakpoints::Notice;
pub use options::{InjectError, IoType, LimitError, Options, SetState};

use crate::child::Child;
use crate::event::Event;
use crate::extent::Extent;
use crate::in_flight::{InFlight, Turn};
use crate::request::{Limits, Preallocation, ZeroFlags};
use crate::resize::ResizeError;
use crate::span::Span;
use crate::units::in_memory;
use breakpoints::{Breakpoints, HoldId};
use rules::Rules;

/// Zeroes are written in requests of this many bytes where the node below has
/// no better way and no limit of its own. QEMU's number.
const ZERO_WRITE_MAX: u64 = 16 << 20;

/// Zeroes are written from one buffer of this size.
const ZERO_BUFFER: u64 = 1 << 20;

/// Who is told what happens.
type Listener = Box<dyn Fn(&Notice) + Send + Sync>;

/// A filter's state, shared by all shards. It is a tool for tests: one lock,
/// held for steps in memory, is good enough.
pub struct BlkDebug {
    options: Options,
    /// Unit of requests.
    unit: u64,
    state: Mutex<State>,
    /// Woken when a request is held up or let go.
    changed: WaitQueue,
    in_flight: InFlight,
    /// Something was written since the last flush; a flush without is free.
    dirty: AtomicBool,
}

struct State {
    rules: Rules,
    breakpoints: Breakpoints,
    listener: Option<Listener>,
}

impl State {
    fn tell(&self, notice: &Notice) {
        if let Some(listener) = &self.listener {
            listener(notice);
        }
    }
}

impl std::fmt::Debug for BlkDebug {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlkDebug")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// A request that breakpoints hold; if it is dropped, they hold nothing.
struct Held<'a> {
    filter: &'a BlkDebug,
    ids: Vec<HoldId>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.filter.lock().breakpoints.forget(&self.ids);
    }
}

impl BlkDebug {
    /// A filter above a node whose requests come in units of `below` bytes,
    /// for `shards` shards. The event `none` has fired.
    ///
    /// # Errors
    ///
    /// [`LimitError`].
    pub fn new(options: Options, below: u64, shards: usize) -> Result<Self, LimitError> {
        options.check(below)?;
        let mut rules = Rules::new(options.inject_error.clone(), options.set_state.clone());
        rules.fire(Event::None);
        Ok(Self {
            unit: options.align.max(1),
            options,
            state: Mutex::new(State {
                rules,
                breakpoints: Breakpoints::default(),
                listener: None,
            }),
            changed: WaitQueue::new(),
            in_flight: InFlight::new(shards),
            dirty: AtomicBool::new(false),
        })
    }

    /// As it was made.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Unit of requests in bytes.
    pub fn request_alignment(&self) -> u64 {
        self.unit
    }

    /// How long requests may be that go through.
    pub(crate) fn limits(&self) -> Limits {
        let limit = |value: u64| (value > 0).then_some(value);
        Limits {
            transfer: limit(self.options.max_transfer),
            zero: limit(self.options.max_write_zero),
            discard: limit(self.options.max_discard),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// After a change of the holds.
    fn wake(&self) {
        fence(Ordering::SeqCst);
        self.changed.wake_all();
    }

    // --- Breakpoints -----------------------------------------------------

    /// Whom to tell of requests that are held up and let go. It is called in
    /// the order of what happens, on any shard, and must not call back.
    pub fn listen(&self, listener: impl Fn(&Notice) + Send + Sync + 'static) {
        self.lock().listener = Some(Box::new(listener));
    }

    /// The next request that passes this event is held up.
    pub fn set_breakpoint(&self, event: Event, tag: &str) {
        self.lock().breakpoints.set(event, tag.into());
    }

    /// Removes all breakpoints with this tag and lets its requests go on.
    ///
    /// # Errors
    ///
    /// ENOENT if there is no such breakpoint, as QEMU says even if requests
    /// were let go.
    pub fn remove_breakpoint(&self, tag: &str) -> IoResult<()> {
        let found = self.lock().breakpoints.remove(tag);
        while self.resume(tag).is_ok() {}
        if found { Ok(()) } else { Err(Errno::ENOENT) }
    }

    /// Lets one request with this tag go on, the one held up last.
    ///
    /// # Errors
    ///
    /// ENOENT if there is none.
    pub fn resume(&self, tag: &str) -> IoResult<()> {
        {
            let mut state = self.lock();
            if !state.breakpoints.resume(tag) {
                return Err(Errno::ENOENT);
            }
            state.tell(&Notice::Resuming(tag.into()));
        }
        self.wake();
        Ok(())
    }

    /// Removes every breakpoint and lets every request go on: before a node is
    /// closed, which would wait for them for ever.
    pub fn resume_all(&self) {
        {
            let mut state = self.lock();
            for tag in state.breakpoints.clear() {
                state.tell(&Notice::Resuming(tag));
            }
        }
        self.wake();
    }

    /// Whether a request with this tag is held up.
    pub fn is_suspended(&self, tag: &str) -> bool {
        self.lock().breakpoints.is_suspended(tag)
    }

    /// Waits until a request with this tag is held up: for ever, if none is.
    pub async fn wait_break(&self, shard: &Shard, tag: &str) {
        shard
            .wait(&[&self.changed], None, || self.is_suspended(tag))
            .await;
    }

    // --- Events and rules ------------------------------------------------

    /// A request passes a point.
    pub(crate) async fn event(&self, shard: &Shard, event: Event) {
        if event == Event::FlushToDisk && !self.dirty.load(Ordering::Acquire) {
            // Nothing has been written: there is nothing to tell the disk.
            return;
        }
        let ids: Vec<HoldId> = {
            let mut state = self.lock();
            state.rules.fire(event);
            let held = state.breakpoints.hit(event);
            for (_, tag) in &held {
                state.tell(&Notice::Suspended(tag.clone()));
            }
            held.into_iter().map(|(id, _)| id).collect()
        };
        if ids.is_empty() {
            return;
        }
        self.wake();
        let held = Held { filter: self, ids };
        let is_free = || !self.lock().breakpoints.is_held(&held.ids);
        shard.wait(&[&self.changed], None, is_free).await;
    }

    /// An error if a rule says so.
    async fn judge(&self, shard: &Shard, io_type: IoType, span: Span) -> IoResult<()> {
        let injection = self.lock().rules.pick(io_type, span);
        match injection {
            None => Ok(()),
            Some(injection) => {
                if !injection.immediately {
                    shard.yield_now().await;
                }
                Err(Errno::from_raw(injection.errno))
            }
        }
    }

    // --- Requests --------------------------------------------------------

    /// An aligned change's turn, where others may be unaligned.
    async fn turn(&self, shard: &Shard, span: Span) -> Option<Turn<'_>> {
        match self.unit {
            1 => None,
            _ => Some(self.in_flight.enter_shared(shard, span).await),
        }
    }

    pub(crate) async fn read(
        &self,
        shard: &Shard,
        image: &Child,
        span: Span,
        mut buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        if span.is_aligned(self.unit) {
            return self.read_units(shard, image, span, buf, window).await;
        }
        let wide = span.widen(self.unit);
        let whole = 0..in_memory(wide.len);
        let bounce = shard.buffer_now(whole.len());
        let (result, bounce) = self.read_units(shard, image, wide, bounce, whole).await;
        if result.is_ok() {
            let start = in_memory(span.offset - wide.offset);
            buf[window.clone()].copy_from_slice(&bounce[start..start + window.len()]);
        }
        (result, buf)
    }

    async fn read_units(
        &self,
        shard: &Shard,
        image: &Child,
        span: Span,
        mut buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        for piece in span.pieces(self.transfer_max()) {
            let mut result = self.judge(shard, IoType::Read, piece).await;
            if result.is_ok() {
                let part = part_of(&window, span, piece);
                (result, buf) = image.read(shard, piece, buf, part).await;
            }
            if result.is_err() {
                return (result, buf);
            }
        }
        (Ok(()), buf)
    }

    fn transfer_max(&self) -> u64 {
        self.limits().transfer.unwrap_or(u64::MAX)
    }

    pub(crate) async fn write(
        &self,
        shard: &Shard,
        image: &Child,
        span: Span,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        if span.is_aligned(self.unit) {
            let _turn = self.turn(shard, span).await;
            return self.write_units(shard, image, span, buf, window).await;
        }
        let wide = span.widen(self.unit);
        let whole = 0..in_memory(wide.len);
        let mut bounce = shard.buffer_now(whole.len());
        let _turn = self.in_flight.enter_exclusive(shard, wide).await;
        let result;
        (result, bounce) = self.read_edges(shard, image, span, bounce).await;
        if result.is_err() {
            return (result, buf);
        }
        let start = in_memory(span.offset - wide.offset);
        bounce[start..start + window.len()].copy_from_slice(&buf[window]);
        let (result, _) = self.write_units(shard, image, wide, bounce, whole).await;
        (result, buf)
    }

    /// Reads the units at the ends of an unaligned span to where they belong in
    /// a buffer for the widened span. One or two neighbouring units are one
    /// read.
    async fn read_edges(
        &self,
        shard: &Shard,
        image: &Child,
        span: Span,
        mut buf: Buf,
    ) -> (IoResult<()>, Buf) {
        let wide = span.widen(self.unit);
        let (head, tail) = (span.offset > wide.offset, span.end() < wide.end());
        let first = Span::new(wide.offset, self.unit);
        let last = Span::new(wide.end() - self.unit, self.unit);
        let at_once = first == last || (head && tail && first.end() == last.offset);
        let reads = if at_once {
            vec![(wide, head, tail)]
        } else {
            let mut reads = Vec::new();
            if head {
                reads.push((first, true, false));
            }
            if tail {
                reads.push((last, false, true));
            }
            reads
        };
        for (edge, head, tail) in reads {
            if head {
                self.event(shard, Event::PwritevRmwHead).await;
            }
            if tail {
                self.event(shard, Event::PwritevRmwTail).await;
            }
            let at = in_memory(edge.offset - wide.offset);
            let part = at..at + in_memory(edge.len);
            let result;
            (result, buf) = self.read_units(shard, image, edge, buf, part).await;
            if result.is_err() {
                return (result, buf);
            }
            if head {
                self.event(shard, Event::PwritevRmwAfterHead).await;
            }
            if tail {
                self.event(shard, Event::PwritevRmwAfterTail).await;
            }
        }
        (Ok(()), buf)
    }

    /// Writes whole units; the caller has the turn.
    async fn write_units(
        &self,
        shard: &Shard,
        image: &Child,
        span: Span,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        self.event(shard, Event::Pwritev).await;
        let (result, buf) = self.write_pieces(shard, image, span, buf, window).await;
        self.event(shard, Event::PwritevDone).await;
        (result, buf)
    }

    async fn write_pieces(
        &self,
        shard: &Shard,
        image: &Child,
        span: Span,
        mut buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        self.dirty.store(true, Ordering::Release);
        for piece in span.pieces(self.transfer_max()) {
            let mut result = self.judge(shard, IoType::Write, piece).await;
            if result.is_ok() {
                let part = part_of(&window, span, piece);
                (result, buf) = image.write(shard, piece, buf, part).await;
            }
            if result.is_err() {
                return (result, buf);
            }
        }
        (Ok(()), buf)
    }

    pub(crate) async fn write_zeroes(
        &self,
        shard: &Shard,
        image: &Child,
        span: Span,
        flags: ZeroFlags,
    ) -> IoResult<()> {
        if span.is_aligned(self.unit) {
            let _turn = self.turn(shard, span).await;
            return self.zero_units(shard, image, span, flags).await;
        }
        self.zero_widened(shard, image, span, flags).await
    }

    /// The units at the ends are read, changed and written; what is between
    /// them is zeroed.
    async fn zero_widened(
        &self,
        shard: &Shard,
        image: &Child,
        span: Span,
        flags: ZeroFlags,
    ) -> IoResult<()> {
        let (wide, body) = (span.widen(self.unit), span.shrink(self.unit));
        let _turn = self.in_flight.enter_exclusive(shard, wide).await;
        let ends = if body.is_empty() {
            [span, Span::default()]
        } else {
            [
                Span::between(span.offset, body.offset),
                Span::between(body.end(), span.end()),
            ]
        };
        let mut edges = Vec::new();
        for end in ends.into_iter().filter(|end| !end.is_empty()) {
            let unit = end.widen(self.unit);
            let buf = shard.buffer_now(in_memory(unit.len));
            let (result, mut buf) = self.read_edges(shard, image, end, buf).await;
            result?;
            let start = in_memory(end.offset - unit.offset);
            buf[start..start + in_memory(end.len)].fill(0);
            edges.push((unit, buf));
        }
        let (before, after): (Vec<_>, Vec<_>) = edges
            .into_iter()
            .partition(|(unit, _)| body.is_empty() || unit.offset < body.offset);
        self.write_edges(shard, image, before).await?;
        if !body.is_empty() {
            self.zero_units(shard, image, body, flags).await?;
        }
        self.write_edges(shard, image, after).await
    }

    async fn write_edges(
        &self,
        shard: &Shard,
        image: &Child,
        edges: Vec<(Span, Buf)>,
    ) -> IoResult<()> {
        for (unit, buf) in edges {
            let whole = 0..in_memory(unit.len);
            let (result, _) = self.write_units(shard, image, unit, buf, whole).await;
            result?;
        }
        Ok(())
    }

    /// Zeroes whole units; the caller has the turn.
    async fn zero_units(
        &self,
        shard: &Shard,
        image: &Child,
        span: Span,
        flags: ZeroFlags,
    ) -> IoResult<()> {
        self.event(shard, Event::PwritevZero).await;
        let result = self.zero_pieces(shard, image, span, flags).await;
        self.event(shard, Event::PwritevDone).await;
        result
    }

    async fn zero_pieces(
        &self,
        shard: &Shard,
        image: &Child,
        span: Span,
        flags: ZeroFlags,
    ) -> IoResult<()> {
        self.dirty.store(true, Ordering::Release);
        let unit = self.unit.max(self.options.opt_write_zero);
        for piece in cut(span, unit, self.limits().zero) {
            match self.zero_piece(shard, image, piece, unit, flags).await {
                Err(Errno::EOPNOTSUPP) if !flags.no_fallback => {
                    self.write_zero_bytes(shard, image, piece).await?;
                }
                result => result?,
            }
        }
        Ok(())
    }

    /// What is shorter than a unit is not even judged.
    async fn zero_piece(
        &self,
        shard: &Shard,
        image: &Child,
        piece: Span,
        unit: u64,
        flags: ZeroFlags,
    ) -> IoResult<()> {
        if piece.len < unit {
            return Err(Errno::EOPNOTSUPP);
        }
        self.judge(shard, IoType::WriteZeroes, piece).await?;
        image.write_zeroes(shard, piece, flags).await
    }

    async fn write_zero_bytes(&self, shard: &Shard, image: &Child, span: Span) -> IoResult<()> {
        let mut buf = shard.buffer_now(in_memory(span.len.min(ZERO_BUFFER)));
        buf.fill(0);
        for request in span.pieces(self.transfer_max().min(ZERO_WRITE_MAX)) {
            self.judge(shard, IoType::Write, request).await?;
            for piece in request.pieces(ZERO_BUFFER) {
                let window = 0..in_memory(piece.len);
                let result;
                (result, buf) = image.write(shard, piece, buf, window).await;
                result?;
            }
        }
        Ok(())
    }

    /// A hint; only whole units are passed on.
    pub(crate) async fn discard(&self, shard: &Shard, image: &Child, span: Span) -> IoResult<()> {
        let inner = span.shrink(self.unit);
        if inner.is_empty() {
            return Ok(());
        }
        let _turn = self.turn(shard, inner).await;
        self.dirty.store(true, Ordering::Release);
        let unit = self.unit.max(self.options.opt_discard);
        for piece in cut(inner, unit, self.limits().discard) {
            let mut result = self.judge(shard, IoType::Discard, piece).await;
            if result.is_ok() {
                result = image.discard(shard, piece).await;
            }
            match result {
                // It is a hint.
                Ok(()) | Err(Errno::EOPNOTSUPP) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// Rules are asked only if there is something to flush.
    pub(crate) async fn flush(&self, shard: &Shard, image: &Child) -> IoResult<()> {
        let dirty = self.dirty.swap(false, Ordering::AcqRel);
        let mut result = Ok(());
        if dirty {
            result = self.judge(shard, IoType::Flush, Span::default()).await;
        }
        if result.is_ok() {
            result = image.flush(shard).await;
        }
        if dirty && result.is_err() {
            self.dirty.store(true, Ordering::Release);
        }
        result
    }

    /// No rule is asked.
    pub(crate) async fn truncate(
        &self,
        shard: &Shard,
        image: &Child,
        size: u64,
        preallocation: Preallocation,
    ) -> Result<(), ResizeError> {
        self.dirty.store(true, Ordering::Release);
        image.truncate(shard, size, preallocation).await
    }

    pub(crate) async fn extent(
        &self,
        shard: &Shard,
        image: &Child,
        span: Span,
    ) -> IoResult<Extent> {
        self.judge(shard, IoType::BlockStatus, span.widen(self.unit))
            .await?;
        image.extent(shard, span).await
    }
}

/// Where a piece of `span` lies in the window of the whole.
fn part_of(window: &Range<usize>, span: Span, piece: Span) -> Range<usize> {
    let start = window.start + in_memory(piece.offset - span.offset);
    start..start + in_memory(piece.len)
}

/// Cuts a span at multiples of `unit`, which need not be a power of two: what
/// precedes the first, whole units in requests of at most `len_max` bytes, what
/// follows the last.
fn cut(span: Span, unit: u64, len_max: Option<u64>) -> Vec<Span> {
    let len_max = len_max.unwrap_or(options::SIZE_MAX);
    let len_max = (len_max - len_max % unit).max(unit);
    let body_start = span.offset.next_multiple_of(unit).min(span.end());
    let body_end = (span.end() - span.end() % unit).max(body_start);
    let (head, body, tail) = (
        Span::between(span.offset, body_start),
        Span::between(body_start, body_end),
        Span::between(body_end, span.end()),
    );
    [head, body, tail]
        .into_iter()
        .flat_map(|part| part.pieces(len_max))
        .collect()
}
