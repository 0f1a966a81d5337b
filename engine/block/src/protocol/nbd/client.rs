//! The disk: which lane a request takes, and in which pieces.

use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ringback_net::Address;
use ringback_ring::{Buf, Errno, IoResult, Shard, Shards};

use super::call::{Answer, Failure, errno};
use super::connect::{ATTEMPT_NS, Connected, SECOND_NS, Server, attempt, attempts};
use super::error::NbdError;
use super::lane::Lane;
use super::lanes::Lanes;
use super::negotiation::{Tls, Wishes};
use super::shared::Shared;
use super::wire::{Request, STRING_MAX, allocation, command, export_flags as has, request_flags};
use crate::extent::{Content, Extent};
use crate::request::ZeroFlags;
use crate::span::Span;
use crate::units::{SECTOR, in_memory};

/// How long a server that is there may take for the flush before it is left.
const LAST_FLUSH_NS: u64 = ATTEMPT_NS;

/// How an export is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the server is.
    pub address: Address,
    /// The export's name.
    pub export: String,
    /// The context of metadata to be asked for instead of `base:allocation`.
    pub context: Option<String>,
    /// The name of a bitmap that is to be read with [`NbdProtocol::dirty_areas`]. It need
    /// not be there: [`NbdProtocol::has_bitmap`].
    pub bitmap: Option<String>,
    /// Under TLS, on every connection; or in the clear.
    pub tls: Option<Tls>,
    /// So long requests wait for a server that is gone, in seconds.
    pub reconnect_delay_s: u32,
    /// So long the server is waited for when the node is opened, in seconds; 0: it is
    /// tried once.
    pub open_timeout_s: u32,
    /// For writing too.
    pub write: bool,
    /// An export that cannot be written is opened for reading.
    pub auto_read_only: bool,
}

/// An export of a server as a disk.
pub struct NbdProtocol {
    shared: Arc<Shared>,
    set: Shards,
    /// Where there is no such bitmap.
    offered_bitmaps: Option<Vec<String>>,
    /// Discards are passed on, or ignored.
    discard: AtomicBool,
    /// Flushes are answered and forgotten.
    no_flush: AtomicBool,
    /// Changes since the last flush.
    is_dirty: AtomicBool,
}

impl std::fmt::Debug for NbdProtocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NbdProtocol")
            .field("server", &self.shared.server)
            .field("terms", &self.shared.terms)
            .finish_non_exhaustive()
    }
}

/// A node that is dropped without having been closed hangs up.
impl Drop for NbdProtocol {
    fn drop(&mut self) {
        let node = self.shared.node;
        for index in 0..self.set.count() {
            self.set.run_on(index, move |shard| {
                if let Some(lane) = shard.local::<Lanes>().remove(node) {
                    shard.spawn(async move { lane.close().await });
                }
            });
        }
    }
}

impl NbdProtocol {
    /// Connects and chooses the export. This shard becomes the owner.
    ///
    /// # Errors
    ///
    /// See [`NbdError`].
    pub async fn open(shard: &Shard, options: Options) -> Result<Self, NbdError> {
        if shard.set().is_simulated() {
            return Err(NbdError::NoNetwork);
        }
        if options.export.len() > STRING_MAX {
            return Err(NbdError::NameTooLong);
        }
        let wishes = Wishes {
            export: options.export,
            context: options.context,
            bitmap: options.bitmap,
            tls: options.tls,
        };
        let queries = [wishes.context.clone(), wishes.bitmap_context()];
        if queries
            .iter()
            .flatten()
            .any(|query| query.len() > STRING_MAX)
        {
            return Err(NbdError::QueryTooLong);
        }
        let server = Server {
            address: options.address,
            wishes,
        };
        let connected = match u64::from(options.open_timeout_s) {
            0 => attempt(shard, &server, ATTEMPT_NS).await?,
            seconds => attempts(shard, &server, seconds * SECOND_NS).await?,
        };
        let terms = connected.terms;
        let is_read_only = terms.has(has::READ_ONLY);
        let refused = if server.wishes.context.is_some() && terms.contexts.usual.is_none() {
            Some(NbdError::NoContext)
        } else if options.write && is_read_only && !options.auto_read_only {
            Some(NbdError::ReadOnly)
        } else {
            None
        };
        if let Some(error) = refused {
            connected.leave().await;
            return Err(error);
        }
        let shared = Shared::new(
            shard.index(),
            server,
            u64::from(options.reconnect_delay_s) * SECOND_NS,
            options.write && !is_read_only,
            terms,
        );
        Ok(Self::begin(shard, shared, connected))
    }

    fn begin(shard: &Shard, shared: Arc<Shared>, mut connected: Connected) -> Self {
        let offered_bitmaps = connected.offered_bitmaps.take();
        let lane = Lane::start(shard, &shared, connected, true);
        shard.local::<Lanes>().insert(shared.node, lane);
        Self {
            shared,
            set: shard.set().clone(),
            offered_bitmaps,
            discard: AtomicBool::new(true),
            no_flush: AtomicBool::new(false),
            is_dirty: AtomicBool::new(false),
        }
    }

    /// Makes what was written durable and takes leave of the server on every shard.
    /// Nothing may be in flight. A server that does not answer the flush is left all
    /// the same, after `reconnect-delay` and half a minute.
    pub(crate) async fn close(&self, shard: &Shard) {
        let limit_ns = self.shared.reconnect_delay_ns + LAST_FLUSH_NS;
        self.close_within(shard, limit_ns).await;
    }

    pub(super) async fn close_within(&self, shard: &Shard, limit_ns: u64) {
        if self.is_dirty.load(Ordering::Relaxed) && self.shared.is_up() {
            let deadline_ns = shard.now_ns().saturating_add(limit_ns);
            let server = &self.shared.server.address;
            match shard.within(deadline_ns, self.flush(shard)).await {
                Some(Ok(())) => {}
                Some(Err(errno)) => {
                    let why = ringback_ring::error_text(errno);
                    tracing::warn!(%server, "the last flush has failed: {why}");
                }
                None => tracing::warn!(
                    %server,
                    "the last flush was not answered within {} s: what was written last may \
                     be lost if the server fails",
                    limit_ns / SECOND_NS
                ),
            }
        }
        let node = self.shared.node;
        self.set
            .on_each(move |shard| async move {
                if let Some(lane) = shard.local::<Lanes>().remove(node) {
                    lane.close().await;
                }
            })
            .await;
    }

    /// Whether discards are passed on, and whether flushes are left out.
    pub(crate) fn set_policy(&self, discard: bool, no_flush: bool) {
        self.discard.store(discard, Ordering::Relaxed);
        self.no_flush.store(no_flush, Ordering::Relaxed);
    }

    /// Whether the server lets nobody write.
    pub fn is_read_only_export(&self) -> bool {
        self.shared.terms.has(has::READ_ONLY)
    }

    /// Whether it is open for writing.
    pub fn is_writable(&self) -> bool {
        self.shared.is_writable()
    }

    /// Nobody is interested any more in what waits for a server that is gone: it
    /// fails at once. The server is still looked for.
    pub fn stop_waiting(&self) {
        let node = self.shared.node;
        self.set.run_on(self.shared.owner, move |shard| {
            if let Some(lane) = shard.local::<Lanes>().get(node) {
                lane.stop_waiting();
            }
        });
    }

    /// Whether it will be written from now on.
    pub(crate) fn set_writable(&self, is_writable: bool) {
        self.shared.set_writable(is_writable);
    }

    pub(crate) fn discards(&self) -> bool {
        self.discard.load(Ordering::Relaxed) && self.shared.terms.has(has::SEND_TRIM)
    }

    pub(crate) fn size(&self) -> u64 {
        self.shared.terms.size.next_multiple_of(SECTOR)
    }

    pub(crate) fn request_alignment(&self) -> u64 {
        self.shared.terms.unit
    }

    /// What lies behind the export's end, in the last sector, reads as zeroes.
    pub(crate) async fn read(
        &self,
        shard: &Shard,
        offset: u64,
        mut buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        let terms = &self.shared.terms;
        let inside = terms.clip(offset, window.len() as u64);
        buf[window.start + in_memory(inside.len)..window.end].fill(0);
        for piece in inside.pieces(terms.transfer_max()) {
            let request = request(command::READ, piece.offset, piece.len, 0);
            let start = window.start + in_memory(piece.offset - offset);
            let cargo = (buf, start..start + in_memory(piece.len));
            let (result, back) = self.transfer(shard, request, cargo).await;
            buf = back;
            if result.is_err() {
                return (result, buf);
            }
        }
        (Ok(()), buf)
    }

    /// What lies behind the export's end, in the last sector, is forgotten.
    pub(crate) async fn write(
        &self,
        shard: &Shard,
        offset: u64,
        mut buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        let terms = &self.shared.terms;
        let inside = terms.clip(offset, window.len() as u64);
        for piece in inside.pieces(terms.transfer_max()) {
            let request = request(command::WRITE, piece.offset, piece.len, 0);
            let start = window.start + in_memory(piece.offset - offset);
            let cargo = (buf, start..start + in_memory(piece.len));
            let (result, back) = self.transfer(shard, request, cargo).await;
            buf = back;
            if result.is_err() {
                return (result, buf);
            }
            self.set_dirty();
        }
        (Ok(()), buf)
    }

    /// False where the server cannot, or not so fast as is wanted.
    pub(crate) async fn write_zeroes(
        &self,
        shard: &Shard,
        offset: u64,
        len: u64,
        flags: ZeroFlags,
    ) -> IoResult<bool> {
        let terms = &self.shared.terms;
        if !terms.has(has::SEND_WRITE_ZEROES)
            || (flags.no_fallback && !terms.has(has::SEND_FAST_ZERO))
        {
            return Ok(false);
        }
        let mut sent = 0;
        if !(flags.may_unmap && self.discard.load(Ordering::Relaxed)) {
            sent |= request_flags::NO_HOLE;
        }
        if flags.no_fallback {
            sent |= request_flags::FAST_ZERO;
        }
        for piece in terms.clip(offset, len).pieces(terms.zero_max()) {
            let request = request(command::WRITE_ZEROES, piece.offset, piece.len, sent);
            match self.exchange(shard, request, None).await.0 {
                Ok(_) => self.set_dirty(),
                Err(Errno::EOPNOTSUPP) => return Ok(false),
                Err(errno) => return Err(errno),
            }
        }
        Ok(true)
    }

    /// A hint: a server that does not take it has done all it must.
    pub(crate) async fn discard(&self, shard: &Shard, offset: u64, len: u64) -> IoResult<()> {
        if !self.discards() {
            return Ok(());
        }
        let terms = &self.shared.terms;
        for piece in terms.clip(offset, len).pieces(terms.range_max()) {
            let request = request(command::TRIM, piece.offset, piece.len, 0);
            match self.exchange(shard, request, None).await.0 {
                Ok(_) => self.set_dirty(),
                Err(Errno::EOPNOTSUPP) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// One flush is enough for all connections: a server that allows several says so.
    pub(crate) async fn flush(&self, shard: &Shard) -> IoResult<()> {
        if self.no_flush.load(Ordering::Relaxed) || !self.shared.terms.has(has::SEND_FLUSH) {
            return Ok(());
        }
        self.is_dirty.store(false, Ordering::Relaxed);
        let request = request(command::FLUSH, 0, 0, 0);
        let result = self.exchange(shard, request, None).await.0;
        if result.is_err() {
            self.set_dirty();
        }
        result.map(drop)
    }

    /// Without a context of metadata everything is data.
    pub(crate) async fn extent(&self, shard: &Shard, offset: u64, len: u64) -> IoResult<Extent> {
        let terms = &self.shared.terms;
        if terms.contexts.usual.is_none() {
            return Ok(Extent::here(Content::Data, len));
        }
        // A question may begin and end anywhere; the server's units are whole.
        let unit = terms.unit;
        let start = offset & !(unit - 1);
        let wide = offset - start + len;
        let asked = terms.clip(start, wide.next_multiple_of(unit).min(terms.range_max()));
        if asked.is_empty() {
            return Ok(Extent::here(Content::Zero, len));
        }
        let request = Request {
            flags: request_flags::REQ_ONE,
            ..request(command::BLOCK_STATUS, asked.offset, asked.len, 0)
        };
        match self.exchange(shard, request, None).await.0? {
            Answer::Extent { len: told, flags } => {
                let (told, flags) = match told.min(asked.len) {
                    // Less than a unit says nothing of the whole unit.
                    short if short < unit => (unit, 0),
                    long => (long & !(unit - 1), flags),
                };
                let len = told.saturating_sub(offset - start).clamp(1, len);
                Ok(self.extent_of(len, flags))
            }
            Answer::Done | Answer::Runs(_) => Err(Errno::EIO),
        }
    }

    /// Bytes of the export; need not be whole sectors.
    pub fn export_size(&self) -> u64 {
        self.shared.terms.size
    }

    /// Whether the export has the bitmap that was asked for.
    pub fn has_bitmap(&self) -> bool {
        self.shared.terms.contexts.bitmap.is_some()
    }

    /// The bitmaps that the export has instead of the one that was asked for; none: the
    /// server has not said.
    pub fn offered_bitmaps(&self) -> Option<&[String]> {
        self.offered_bitmaps.as_deref()
    }

    /// What is dirty in the bitmap from an offset on, in ascending order, and up to where
    /// the answer goes: at least one unit of the server further. The offset is in bytes:
    /// 0, or where the last answer has ended.
    ///
    /// # Errors
    ///
    /// There is no bitmap; or as for a read.
    pub async fn dirty_areas(&self, shard: &Shard, from: u64) -> IoResult<(Vec<Span>, u64)> {
        let terms = &self.shared.terms;
        if !self.has_bitmap() {
            return Err(Errno::ENOTSUP);
        }
        let asked = terms.clip(from, terms.range_max());
        if asked.is_empty() {
            return Ok((Vec::new(), self.size()));
        }
        let request = request(command::BLOCK_STATUS, asked.offset, asked.len, 0);
        let Answer::Runs(runs) = self.exchange(shard, request, None).await.0? else {
            return Err(Errno::EIO);
        };
        let (mut areas, mut at) = (Vec::new(), asked.offset);
        for run in runs {
            let end = at.saturating_add(run.len).min(asked.end());
            if run.is_dirty && end > at {
                areas.push(Span::between(at, end));
            }
            at = end;
        }
        let unit = terms.unit;
        let whole = at & !(unit - 1);
        if whole == asked.offset {
            // Less than a unit: what is said of its beginning may be otherwise behind it.
            let end = (whole + unit).min(asked.end());
            return Ok((vec![Span::between(whole, end)], end));
        }
        areas.retain(|area| area.offset < whole);
        for area in &mut areas {
            *area = Span::between(area.offset, area.end().min(whole));
        }
        Ok((areas, whole))
    }

    fn extent_of(&self, len: u64, flags: u32) -> Extent {
        // Other contexts have meanings of their own for their bits: none of them may
        // pass for zeroes that need not be read.
        let is_usual = self.shared.server.wishes.context.is_none();
        let is_hole = flags & allocation::HOLE != 0;
        if is_usual && flags & allocation::ZERO != 0 {
            return Extent::here(Content::Zero, len);
        }
        Extent {
            content: Content::Data,
            len,
            depth: u32::from(!is_hole),
        }
    }

    fn set_dirty(&self) {
        if !self.is_dirty.load(Ordering::Relaxed) {
            self.is_dirty.store(true, Ordering::Relaxed);
        }
    }

    async fn transfer(
        &self,
        shard: &Shard,
        request: Request,
        cargo: (Buf, Range<usize>),
    ) -> (IoResult<()>, Buf) {
        let (result, buf) = self.exchange(shard, request, Some(cargo)).await;
        let buf = buf.expect("a call gives its buffer back");
        (result.map(drop), buf)
    }

    /// Sends one request, which a server takes as it is, and waits for the answer.
    async fn exchange(
        &self,
        shard: &Shard,
        request: Request,
        mut cargo: Option<(Buf, Range<usize>)>,
    ) -> (IoResult<Answer>, Option<Buf>) {
        if self.shared.is_dead() {
            return (Err(Errno::EIO), cargo.map(|(buf, _)| buf));
        }
        if let Some(lane) = self.lane_here(shard) {
            let window = cargo.as_ref().map(|(_, window)| window.clone());
            let (outcome, buf) = lane.call(request, cargo).await;
            let is_retried = outcome == Err(Failure::Lost) && self.shared.reconnect_delay_ns > 0;
            if !is_retried {
                return (errno(outcome), buf);
            }
            cargo = buf.zip(window);
        }
        self.through_owner(shard, request, cargo).await
    }

    /// This shard's own lane. One that could have one gets it, but not for this
    /// request.
    fn lane_here(&self, shard: &Shard) -> Option<Rc<Lane>> {
        let lanes = shard.local::<Lanes>();
        let lane = lanes.get(self.shared.node);
        if lane.is_none() && shard.index() != self.shared.owner && self.shared.may_join() {
            lanes.connect(shard, &self.shared);
        }
        lane
    }

    /// By message to the owner's shard. Buffers do not leave theirs: bytes are copied.
    async fn through_owner(
        &self,
        shard: &Shard,
        request: Request,
        mut cargo: Option<(Buf, Range<usize>)>,
    ) -> (IoResult<Answer>, Option<Buf>) {
        let node = self.shared.node;
        let len = cargo.as_ref().map_or(0, |(_, window)| window.len());
        let is_read = request.command == command::READ;
        let outgoing = match &cargo {
            Some((buf, window)) if !is_read => buf[window.clone()].to_vec(),
            _ => Vec::new(),
        };
        let answer = shard
            .set()
            .spawn_on(self.shared.owner, move |shard| async move {
                let Some(lane) = shard.local::<Lanes>().get(node) else {
                    return (Err(Errno::EIO), Vec::new());
                };
                let cargo = (len > 0).then(|| {
                    let mut buf = shard.buffer_now(len);
                    buf[..outgoing.len()].copy_from_slice(&outgoing);
                    (buf, 0..len)
                });
                drop(outgoing);
                let (outcome, buf) = lane.call(request, cargo).await;
                let incoming = match buf {
                    Some(buf) if is_read && outcome.is_ok() => buf[..len].to_vec(),
                    _ => Vec::new(),
                };
                (errno(outcome), incoming)
            });
        let (result, incoming) = answer.await.unwrap_or((Err(Errno::EIO), Vec::new()));
        if let Some((buf, window)) = &mut cargo
            && result.is_ok()
            && is_read
        {
            buf[window.clone()].copy_from_slice(&incoming);
        }
        (result, cargo.map(|(buf, _)| buf))
    }
}

fn request(command: u16, offset: u64, len: u64, flags: u16) -> Request {
    Request {
        flags,
        command,
        // Given when it is sent.
        cookie: 0,
        offset,
        len,
    }
}
