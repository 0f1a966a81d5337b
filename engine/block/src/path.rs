//! The data path of a disk: what one request goes through, top to bottom.
//!
//! A path is made by the graph when something attaches to a node, never changes
//! afterwards, and is replaced as a whole while nothing is in flight. It is a
//! list of layers, the top node first, above a base that holds the bytes. I/O
//! never looks at the graph.
//!
//! # Order of a write
//!
//! Down through the layers, each of which may delay or veto; the bytes move;
//! up again, each layer marks its dirty bitmaps. Only then does the caller
//! learn of it (B1), also when the write failed: part of it may have reached
//! the disk.

use std::ops::Range;
use std::sync::Arc;

use ringback_ring::{Buf, Errno, IoResult, Shard};

use crate::bitmap::DirtyBitmap;
use crate::child::Child;
use crate::copy::guest::GuestWatch;
use crate::event::Event;
use crate::extent::Extent;
use crate::filter::blkdebug::BlkDebug;
use crate::filter::copy_before_write::{self, CopyBeforeWrite};
use crate::filter::copy_on_read::CopyOnRead;
use crate::filter::snapshot_access::SnapshotAccess;
use crate::filter::throttle::{Direction, Throttle};
use crate::format::Image;
use crate::planted::{self, Fault};
use crate::request::{Limits, Preallocation, ZeroFlags};
use crate::resize::ResizeError;
use crate::span::Span;
use crate::storage::Storage;
use crate::traffic::Traffic;
use crate::units::is_zero;

/// One node's part of a path: what it does to changes, and which bitmaps record
/// them.
#[derive(Clone, Debug, Default)]
pub struct Layer {
    /// Copies old data away before it is overwritten.
    pub copy_before_write: Option<Arc<CopyBeforeWrite>>,
    /// Reads from the disk that this filter stands on what it has not saved here:
    /// the node is its target, and an overlay of that disk.
    pub fleecing: Option<Arc<CopyBeforeWrite>>,
    /// Holds requests back that come too fast.
    pub throttle: Option<Arc<Throttle>>,
    /// Bitmaps that record now.
    pub recorders: Vec<Arc<DirtyBitmap>>,
    /// Counts what comes by; none where the base counts by itself.
    pub traffic: Option<Arc<Traffic>>,
    /// What becomes of zeroes and discards.
    pub treatment: Treatment,
}

/// What a node does with zeroes and discards, whatever its kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Treatment {
    /// Discards are answered and forgotten, and zeroes keep their space
    /// (`discard=ignore`).
    pub ignores_discards: bool,
    /// Zeroes that are written as data are made in this way (`detect-zeroes`);
    /// none: nobody looks for them.
    pub zeroes: Option<ZeroFlags>,
}

/// What holds the bytes.
#[derive(Clone, Debug)]
pub enum Base {
    /// A protocol.
    Storage(Arc<Storage>),
    /// A format on a node below.
    Image(Arc<Image>),
    /// The point-in-time view of a copy-before-write filter.
    Snapshot(Arc<SnapshotAccess>),
    /// A filter that makes requests fail, and the node below it.
    BlkDebug(Arc<BlkDebug>, Child),
    /// A filter that fills the topmost image, and the node below it.
    CopyOnRead(Arc<CopyOnRead>, Child),
}

/// An immutable way from the top of a disk to its bytes.
#[derive(Clone, Debug)]
pub struct Path {
    layers: Arc<[Layer]>,
    base: Base,
    /// How requests are cut below, if some layer wants to count them.
    counted: Option<Limits>,
    /// Of the first layer that reads beside a guest.
    fleecing: Option<Arc<CopyBeforeWrite>>,
    /// Those of filters that requests pass and for whom they are a guest's.
    watched: Arc<[Arc<GuestWatch>]>,
    /// Of all layers together.
    treatment: Treatment,
}

impl Base {
    fn limits(&self) -> Limits {
        match self {
            Self::Storage(_) | Self::Snapshot(_) => Limits::default(),
            Self::Image(image) => image.limits(),
            Self::BlkDebug(filter, child) => filter.limits().and(child.limits()),
            Self::CopyOnRead(_, child) => child.limits(),
        }
    }
}

/// What kind of change goes down.
#[derive(Clone, Copy)]
enum Change {
    Write,
    Zero,
    Discard,
}

impl Path {
    /// Layers from the top down, above a base.
    pub fn new(layers: Vec<Layer>, base: Base) -> Self {
        let counts = layers.iter().any(|layer| layer.throttle.is_some());
        let treatments = || layers.iter().map(|layer| layer.treatment);
        let treatment = Treatment {
            ignores_discards: treatments().any(|treatment| treatment.ignores_discards),
            zeroes: treatments().find_map(|treatment| treatment.zeroes),
        };
        Self {
            treatment,
            fleecing: layers.iter().find_map(|layer| layer.fleecing.clone()),
            watched: layers
                .iter()
                .filter_map(|layer| layer.copy_before_write.as_ref())
                .map(|filter| Arc::clone(filter.guests()))
                .collect(),
            layers: layers.into(),
            counted: counts.then(|| base.limits()),
            base,
        }
    }

    /// How long the requests may be that go through.
    pub(crate) fn limits(&self) -> Limits {
        self.base.limits()
    }

    /// Unit in which it is told who holds what, in bytes; a power of two.
    pub(crate) fn allocation_unit(&self) -> u64 {
        match &self.base {
            Base::Storage(storage) => storage.protocol().request_alignment(),
            Base::Image(image) => image.allocation_unit(),
            Base::Snapshot(_) => 1,
            Base::BlkDebug(_, child) | Base::CopyOnRead(_, child) => child.allocation_unit(),
        }
    }

    /// Every throttle that a request may meet on its way, or that something
    /// may meet which a request waits for. Some are visited twice.
    pub(crate) fn for_each_throttle(&self, act: &dyn Fn(&Arc<Throttle>)) {
        for layer in self.layers.iter() {
            if let Some(throttle) = &layer.throttle {
                act(throttle);
            }
            if let Some(filter) = &layer.copy_before_write {
                filter.source().for_each_throttle(act);
                filter.target().for_each_throttle(act);
            }
        }
        match &self.base {
            Base::Storage(_) => {}
            Base::Image(image) => image.for_each_throttle(act),
            Base::Snapshot(snapshot) => {
                snapshot.filter().source().for_each_throttle(act);
                snapshot.filter().target().for_each_throttle(act);
            }
            Base::BlkDebug(_, child) | Base::CopyOnRead(_, child) => child.for_each_throttle(act),
        }
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        match &self.base {
            Base::Storage(storage) => storage.size(),
            Base::Image(image) => image.size(),
            Base::Snapshot(snapshot) => snapshot.size(),
            Base::BlkDebug(_, child) | Base::CopyOnRead(_, child) => child.size(),
        }
    }

    /// Whether a write may end behind the end.
    pub(crate) fn can_grow(&self) -> bool {
        match &self.base {
            Base::Storage(storage) => storage.can_grow(),
            Base::Image(image) => image.can_grow(),
            Base::Snapshot(_) => false,
            Base::BlkDebug(_, child) | Base::CopyOnRead(_, child) => child.can_grow(),
        }
    }

    fn check(&self, span: Span) -> IoResult<()> {
        let end = span.offset.checked_add(span.len).ok_or(Errno::EIO)?;
        if end > self.size() {
            Err(Errno::EIO)
        } else {
            Ok(())
        }
    }

    /// A node that cannot grow ends where it ends.
    fn check_growing(&self, span: Span) -> IoResult<()> {
        if self.can_grow() {
            Ok(())
        } else {
            self.check(span).map_err(|_| Errno::ENOSPC)
        }
    }

    /// Reads `window.len()` bytes from `offset` into the window. A range behind
    /// the end is EIO.
    pub async fn read(
        &self,
        shard: &Shard,
        offset: u64,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        let span = Span {
            offset,
            len: window.len() as u64,
        };
        if let Err(errno) = self.check(span) {
            return (Err(errno), buf);
        }
        if let Some(limits) = self.counted {
            // Boxed: rare, and not to make every request large.
            Box::pin(self.before_read(shard, span, limits)).await;
        }
        if span.is_empty() {
            return (Ok(()), buf);
        }
        if let Some(filter) = &self.fleecing {
            // Boxed, as above.
            return Box::pin(self.read_fleecing(filter, shard, span, buf, window)).await;
        }
        self.read_base(shard, span, buf, window).await
    }

    /// While the range is registered, no guest overwrites what the filter had not
    /// saved when this looked for it. If the snapshot breaks, the disk below holds
    /// newer data, which is not handed out.
    async fn read_fleecing(
        &self,
        filter: &CopyBeforeWrite,
        shard: &Shard,
        span: Span,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        let _reading = filter.enter_reader(shard, span).await;
        let (result, buf) = self.read_base(shard, span, buf, window).await;
        (result.and_then(|()| check_whole(filter)), buf)
    }

    async fn read_base(
        &self,
        shard: &Shard,
        span: Span,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        let watching = self.watch(shard);
        let answer = match &self.base {
            Base::Storage(storage) => storage.read(shard, span, buf, window).await,
            Base::Image(image) => image.read(shard, span, buf, window).await,
            // Boxed: a snapshot reads through paths of its own.
            Base::Snapshot(snapshot) => Box::pin(snapshot.read(shard, span, buf, window)).await,
            // Boxed, here and below, for the same reason.
            Base::BlkDebug(filter, image) => {
                Box::pin(filter.read(shard, image, span, buf, window)).await
            }
            Base::CopyOnRead(filter, file) => {
                Box::pin(filter.read(shard, file, span, buf, window)).await
            }
        };
        drop(watching);
        answer
    }

    /// Writes the window's bytes to `offset`. A range behind the end is EIO.
    pub async fn write(
        &self,
        shard: &Shard,
        offset: u64,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        let span = Span {
            offset,
            len: window.len() as u64,
        };
        if let Err(errno) = self.check(span) {
            return (Err(errno), buf);
        }
        self.write_within(shard, span, buf, window).await
    }

    /// As [`Path::write`], for a format above, which may make the node grow.
    pub(crate) async fn write_growing(
        &self,
        shard: &Shard,
        span: Span,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        match self.check_growing(span) {
            Ok(()) => self.write_within(shard, span, buf, window).await,
            Err(errno) => (Err(errno), buf),
        }
    }

    async fn write_within(
        &self,
        shard: &Shard,
        span: Span,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        if let Some(flags) = self.treatment.zeroes
            && is_zero(&buf[window.clone()])
            && !span.is_empty()
        {
            // Boxed: rare, and not to make every request large.
            return (Box::pin(self.zero_within(shard, span, flags)).await, buf);
        }
        let watching = match self.before_change(shard, span, Change::Write).await {
            Ok(watching) => watching,
            Err(errno) => return (Err(errno), buf),
        };
        if span.is_empty() {
            return (Ok(()), buf);
        }
        let (result, buf) = match &self.base {
            Base::Storage(storage) => storage.write(shard, span, buf, window).await,
            Base::Image(image) => image.write(shard, span, buf, window).await,
            Base::Snapshot(_) => (Err(Errno::EOPNOTSUPP), buf),
            Base::BlkDebug(filter, image) => {
                Box::pin(filter.write(shard, image, span, buf, window)).await
            }
            Base::CopyOnRead(filter, file) => {
                Box::pin(filter.write(shard, file, span, buf, window)).await
            }
        };
        drop(watching);
        self.after_change(shard, span, Change::Write);
        (result, buf)
    }

    /// Writes whole clusters in compressed form, where the format can.
    pub async fn write_compressed(&self, shard: &Shard, offset: u64, bytes: &[u8]) -> IoResult<()> {
        let span = Span {
            offset,
            len: bytes.len() as u64,
        };
        self.check(span)?;
        let _watching = self.before_change(shard, span, Change::Write).await?;
        let result = match &self.base {
            Base::Image(image) => image.write_compressed(shard, span, bytes).await,
            Base::CopyOnRead(filter, file) => {
                filter.write_compressed(shard, file, span, bytes).await
            }
            Base::Storage(_) | Base::Snapshot(_) | Base::BlkDebug(..) => Err(Errno::EOPNOTSUPP),
        };
        self.after_change(shard, span, Change::Write);
        result
    }

    /// Makes a range read as zeroes.
    pub async fn write_zeroes(&self, shard: &Shard, span: Span, flags: ZeroFlags) -> IoResult<()> {
        self.check(span)?;
        self.zero_within(shard, span, flags).await
    }

    /// As [`Path::write_zeroes`], for a format above.
    pub(crate) async fn write_zeroes_growing(
        &self,
        shard: &Shard,
        span: Span,
        flags: ZeroFlags,
    ) -> IoResult<()> {
        self.check_growing(span)?;
        self.zero_within(shard, span, flags).await
    }

    async fn zero_within(&self, shard: &Shard, span: Span, flags: ZeroFlags) -> IoResult<()> {
        let flags = ZeroFlags {
            may_unmap: flags.may_unmap && !self.treatment.ignores_discards,
            ..flags
        };
        self.before_change(shard, span, Change::Zero).await?;
        let result = match &self.base {
            Base::Storage(storage) => storage.write_zeroes(shard, span, flags).await,
            Base::Image(image) => image.write_zeroes(shard, span, flags).await,
            Base::Snapshot(_) => Err(Errno::EOPNOTSUPP),
            Base::BlkDebug(filter, image) => {
                Box::pin(filter.write_zeroes(shard, image, span, flags)).await
            }
            Base::CopyOnRead(filter, file) => {
                Box::pin(filter.write_zeroes(shard, file, span, flags)).await
            }
        };
        self.after_change(shard, span, Change::Zero);
        result
    }

    /// A hint that the range's content is no longer needed.
    pub async fn discard(&self, shard: &Shard, span: Span) -> IoResult<()> {
        self.check(span)?;
        if self.treatment.ignores_discards {
            return Ok(());
        }
        self.before_change(shard, span, Change::Discard).await?;
        let result = match &self.base {
            Base::Storage(storage) => storage.discard(shard, span).await,
            Base::Image(image) => image.discard(shard, span).await,
            Base::Snapshot(snapshot) => Box::pin(snapshot.discard(shard, span)).await,
            Base::BlkDebug(filter, image) => Box::pin(filter.discard(shard, image, span)).await,
            Base::CopyOnRead(filter, file) => Box::pin(filter.discard(shard, file, span)).await,
        };
        self.after_change(shard, span, Change::Discard);
        result
    }

    /// Makes every acknowledged write durable.
    pub async fn flush(&self, shard: &Shard) -> IoResult<()> {
        match &self.base {
            Base::Storage(storage) => storage.flush(shard).await,
            Base::Image(image) => image.flush(shard).await,
            Base::Snapshot(_) => Ok(()),
            Base::BlkDebug(filter, image) => Box::pin(filter.flush(shard, image)).await,
            Base::CopyOnRead(_, file) => file.flush(shard).await,
        }
    }

    /// What is at the start of `span` (not empty), and how far that holds.
    pub async fn extent(&self, shard: &Shard, span: Span) -> IoResult<Extent> {
        self.check(span)?;
        let Some(filter) = &self.fleecing else {
            return self.extent_of_base(shard, span).await;
        };
        let span = Span::new(span.offset, span.len.min(copy_before_write::EXTENT_MAX));
        let _reading = filter.enter_reader(shard, span).await;
        let extent = Box::pin(self.extent_of_base(shard, span)).await?;
        check_whole(filter).map(|()| extent)
    }

    async fn extent_of_base(&self, shard: &Shard, span: Span) -> IoResult<Extent> {
        match &self.base {
            Base::Storage(storage) => storage.extent(shard, span).await,
            Base::Image(image) => image.extent(shard, span).await,
            Base::Snapshot(snapshot) => Box::pin(snapshot.extent(shard, span)).await,
            Base::BlkDebug(filter, image) => Box::pin(filter.extent(shard, image, span)).await,
            Base::CopyOnRead(_, file) => file.extent(shard, span).await,
        }
    }

    /// Makes the disk exactly this long. Nothing else may be in flight.
    pub(crate) async fn truncate(
        &self,
        shard: &Shard,
        size: u64,
        preallocation: Preallocation,
    ) -> Result<(), ResizeError> {
        match &self.base {
            Base::Storage(storage) => storage.truncate(shard, size, preallocation).await,
            Base::Image(image) => image.truncate(shard, size, preallocation).await,
            Base::Snapshot(_) => Err(ResizeError::Unsupported),
            Base::BlkDebug(filter, image) => {
                Box::pin(filter.truncate(shard, image, size, preallocation)).await
            }
            Base::CopyOnRead(_, file) => file.truncate(shard, size, preallocation).await,
        }
    }

    /// See [`Child::grow_ahead`]. No bytes change, so no layer hears of it; what
    /// is not a file takes no hint.
    pub(crate) async fn grow_ahead(&self, shard: &Shard, end: u64) {
        if let Base::Storage(storage) = &self.base {
            storage.grow_ahead(shard, end).await;
        }
    }

    /// See [`Child::cut_ahead`].
    pub(crate) async fn cut_ahead(&self, shard: &Shard) -> IoResult<()> {
        match &self.base {
            Base::Storage(storage) => storage.cut_ahead(shard).await,
            _ => Ok(()),
        }
    }

    /// Reads a machine's state, which a format can keep behind the end of its
    /// disk: what was saved, and zeroes elsewhere. EOPNOTSUPP if nothing here
    /// can keep one.
    pub async fn load_vmstate(
        &self,
        shard: &Shard,
        position: u64,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        match &self.base {
            Base::Image(image) => image.load_vmstate(shard, position, buf, window).await,
            Base::BlkDebug(_, child) | Base::CopyOnRead(_, child) => {
                child.load_vmstate(shard, position, buf, window).await
            }
            Base::Storage(_) | Base::Snapshot(_) => (Err(Errno::EOPNOTSUPP), buf),
        }
    }

    /// Writes a machine's state, which may grow. It is no part of the disk: no
    /// filter and no bitmap hears of it. EOPNOTSUPP if nothing here can keep
    /// one, EFBIG if it becomes too long.
    pub async fn save_vmstate(
        &self,
        shard: &Shard,
        position: u64,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        match &self.base {
            Base::Image(image) => image.save_vmstate(shard, position, buf, window).await,
            Base::BlkDebug(_, child) | Base::CopyOnRead(_, child) => {
                child.save_vmstate(shard, position, buf, window).await
            }
            Base::Storage(_) | Base::Snapshot(_) => (Err(Errno::EOPNOTSUPP), buf),
        }
    }

    /// A format directly above passes a point. Only the node directly below it
    /// hears of it.
    pub(crate) async fn event(&self, shard: &Shard, event: Event) {
        if let Base::BlkDebug(filter, _) = &self.base
            && self.layers.len() <= 1
        {
            filter.event(shard, event).await;
        }
    }

    /// Unit of requests of the topmost node, in bytes.
    pub(crate) fn request_alignment(&self) -> u64 {
        match &self.base {
            _ if self.layers.len() > 1 => 1,
            Base::Storage(storage) => storage.protocol().request_alignment(),
            Base::BlkDebug(filter, _) => filter.request_alignment(),
            Base::Image(_) | Base::Snapshot(_) | Base::CopyOnRead(..) => 1,
        }
    }

    /// Only where some layer counts requests.
    async fn before_read(&self, shard: &Shard, span: Span, limits: Limits) {
        for throttle in self
            .layers
            .iter()
            .filter_map(|layer| layer.throttle.as_ref())
        {
            admit(throttle, shard, Direction::Read, span, limits.transfer).await;
        }
    }

    /// A request begins, if somebody wants to know how long it takes from here on.
    fn watch<'a>(&'a self, shard: &'a Shard) -> Option<Watching<'a>> {
        if !self.watched.iter().any(|watch| watch.is_wanted()) {
            return None;
        }
        let since_ns = shard.now_ns();
        for watch in self.watched.iter() {
            watch.begin(shard.index(), since_ns);
        }
        Some(Watching {
            path: self,
            shard,
            since_ns,
        })
    }

    fn traffic(&self) -> impl Iterator<Item = &Traffic> {
        let layers = self.layers.iter();
        layers.filter_map(|layer| layer.traffic.as_deref())
    }

    /// A write is watched from the first filter on that copies before it: what it
    /// waits for there competes with copies, too.
    async fn before_change<'a>(
        &'a self,
        shard: &'a Shard,
        span: Span,
        change: Change,
    ) -> IoResult<Option<Watching<'a>>> {
        let mut watching = None;
        if !matches!(change, Change::Discard) && !span.is_empty() {
            for traffic in self.traffic() {
                traffic.before_write(span.end());
            }
        }
        for layer in self.layers.iter() {
            if let (Some(throttle), Some(limits)) = (&layer.throttle, self.counted) {
                let len_max = match change {
                    Change::Write => limits.transfer,
                    Change::Zero => limits.zero,
                    Change::Discard => limits.discard,
                };
                Box::pin(admit(throttle, shard, Direction::Write, span, len_max)).await;
            }
            if let Some(filter) = &layer.copy_before_write {
                if watching.is_none() && matches!(change, Change::Write) && !span.is_empty() {
                    watching = self.watch(shard);
                }
                filter.before_change(shard, span).await?;
            }
        }
        Ok(watching)
    }

    fn after_change(&self, shard: &Shard, span: Span, change: Change) {
        if !matches!(change, Change::Discard) {
            for traffic in self.traffic() {
                traffic.after_write(shard, span.end());
            }
        }
        if planted::is(Fault::MarkAfterAcknowledgement) {
            let (path, late) = (self.clone(), shard.clone());
            shard.spawn(async move {
                late.sleep_ns(50_000).await;
                path.mark(&late, span);
            });
            return;
        }
        self.mark(shard, span);
    }

    fn mark(&self, shard: &Shard, span: Span) {
        for layer in self.layers.iter() {
            for bitmap in &layer.recorders {
                bitmap.mark(shard.index(), span.offset, span.len);
            }
        }
    }
}

/// A request that is watched, until it is dropped.
struct Watching<'a> {
    path: &'a Path,
    shard: &'a Shard,
    since_ns: u64,
}

impl Drop for Watching<'_> {
    fn drop(&mut self) {
        let now_ns = self.shard.now_ns();
        for watch in self.path.watched.iter() {
            watch.end(self.shard.index(), self.since_ns, now_ns);
        }
    }
}

/// EACCES once a filter's snapshot is broken.
fn check_whole(filter: &CopyBeforeWrite) -> IoResult<()> {
    match filter.broken() {
        Some(_) => Err(Errno::EACCES),
        None => Ok(()),
    }
}

/// A request is counted as it will be cut below; an empty one counts too.
async fn admit(
    throttle: &Throttle,
    shard: &Shard,
    direction: Direction,
    span: Span,
    len_max: Option<u64>,
) {
    if span.is_empty() {
        throttle.admit(shard, direction, 0).await;
    }
    for piece in span.pieces(len_max.unwrap_or(u64::MAX)) {
        throttle.admit(shard, direction, piece.len).await;
    }
}
