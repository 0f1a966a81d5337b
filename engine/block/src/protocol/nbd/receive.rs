//! Replies. Every number of the server is checked before it is used, and nothing
//! that it says makes us take memory: bytes go into the buffers of those who asked.

use std::rc::Rc;

use ringback_net::{ReadError, Reader};
use ringback_ring::{Errno, error_text};

use super::call::{Call, Run};
use super::session::{End, Session};
use super::terms::Headers;
use super::wire::{
    self, CHUNK_BYTES, CHUNK_MAGIC, EXTENDED_CHUNK_BYTES, EXTENDED_CHUNK_MAGIC, SIMPLE_REPLY_BYTES,
    SIMPLE_REPLY_MAGIC, chunk, command, dirty_bitmap, field, request_flags,
};

/// Longest chunk that answers a question about one extent, in bytes: some servers
/// send more extents than they were asked for.
const STATUS_MAX: u64 = 1000;
/// Most extents in the answer to a question about all of a range: no server that is
/// known sends more.
const EXTENTS_MAX: u64 = 1 << 20;
/// So many of them are received at once.
const EXTENTS_AT_ONCE: u64 = 4096;
/// Longest chunk with an error, in bytes: a text whose length has 16 bits, and an
/// offset.
const ERROR_MAX: u64 = 6 + 0xffff + 8;

/// Why nothing more can be received.
struct Broken {
    end: End,
    /// The request that it came with.
    culprit: Option<Rc<Call>>,
}

impl From<ReadError> for Broken {
    fn from(error: ReadError) -> Self {
        let text = match error {
            ReadError::Io(errno) => error_text(errno),
            other => other.to_string(),
        };
        Self {
            end: End::Lost(text),
            culprit: None,
        }
    }
}

fn violation<T>(what: &'static str) -> Result<T, Broken> {
    Err(Broken {
        end: End::Violation(what),
        culprit: None,
    })
}

/// The beginning of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Header {
    Simple { cookie: u64, error: u32 },
    Chunk(Chunk),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Chunk {
    cookie: u64,
    is_last: bool,
    kind: u16,
    /// Bytes of the payload.
    len: u64,
}

impl Chunk {
    /// From the bytes behind the magic.
    fn decode(bytes: &[u8], len: u64) -> Self {
        Self {
            cookie: u64::from_be_bytes(field(bytes, 4)),
            is_last: u16::from_be_bytes(field(bytes, 0)) & chunk::DONE != 0,
            kind: u16::from_be_bytes(field(bytes, 2)),
            len,
        }
    }
}

/// Which header comes, the magic tells; which may come, has been negotiated.
async fn header(reader: &mut Reader, headers: Headers) -> Result<Header, Broken> {
    let magic = u32::from_be_bytes(reader.take_array().await?);
    match (magic, headers) {
        (SIMPLE_REPLY_MAGIC, Headers::Simple | Headers::Structured) => {
            let bytes: [u8; SIMPLE_REPLY_BYTES - 4] = reader.take_array().await?;
            Ok(Header::Simple {
                error: u32::from_be_bytes(field(&bytes, 0)),
                cookie: u64::from_be_bytes(field(&bytes, 4)),
            })
        }
        (CHUNK_MAGIC, Headers::Structured) => {
            let bytes: [u8; CHUNK_BYTES - 4] = reader.take_array().await?;
            let len = u32::from_be_bytes(field(&bytes, 12));
            Ok(Header::Chunk(Chunk::decode(&bytes, len.into())))
        }
        (EXTENDED_CHUNK_MAGIC, Headers::Extended) => {
            let bytes: [u8; EXTENDED_CHUNK_BYTES - 4] = reader.take_array().await?;
            let len = u64::from_be_bytes(field(&bytes, 20));
            Ok(Header::Chunk(Chunk::decode(&bytes, len)))
        }
        _ => violation("a reply that does not begin as one"),
    }
}

impl Session {
    /// Receives until there is nothing more to receive.
    pub(super) async fn receive_all(&self, reader: &mut Reader) -> End {
        loop {
            if let Err(broken) = self.receive(reader).await {
                if let Some(culprit) = broken.culprit {
                    culprit.fail(Errno::EINVAL);
                }
                return broken.end;
            }
        }
    }

    async fn receive(&self, reader: &mut Reader) -> Result<(), Broken> {
        let header = header(reader, self.terms.headers).await?;
        let (Header::Simple { cookie, .. } | Header::Chunk(Chunk { cookie, .. })) = header;
        let Some(call) = self.call(cookie) else {
            return violation("a reply to no request");
        };
        let received = match header {
            Header::Simple { error, .. } => self.simple(reader, cookie, &call, error).await,
            Header::Chunk(chunk) => self.chunk(reader, &call, chunk).await,
        };
        received.map_err(|mut broken| {
            if matches!(broken.end, End::Violation(_)) {
                broken.culprit = Some(call);
            }
            broken
        })
    }

    async fn simple(
        &self,
        reader: &mut Reader,
        cookie: u64,
        call: &Call,
        error: u32,
    ) -> Result<(), Broken> {
        let request = &call.request;
        if request.command == command::READ && self.terms.headers != Headers::Simple {
            return violation("a simple reply where there must be chunks");
        }
        if error != 0 {
            let errno = wire::error_from_wire(error);
            self.with_flight(cookie, |flight| flight.error = Some(errno));
        } else if request.command == command::READ {
            self.data(reader, cookie, call, request.offset, request.len)
                .await?;
        }
        self.land(cookie);
        Ok(())
    }

    async fn chunk(&self, reader: &mut Reader, call: &Call, chunk: Chunk) -> Result<(), Broken> {
        let is_read = call.request.command == command::READ;
        match chunk.kind {
            chunk::NONE if chunk.len != 0 || !chunk.is_last => {
                return violation("an empty chunk that is not empty or not the last");
            }
            chunk::NONE => {}
            chunk::OFFSET_DATA if is_read && chunk.len > 8 => {
                let offset = u64::from_be_bytes(reader.take_array().await?);
                self.data(reader, chunk.cookie, call, offset, chunk.len - 8)
                    .await?;
            }
            chunk::OFFSET_HOLE if is_read && chunk.len == 12 => {
                let bytes: [u8; 12] = reader.take_array().await?;
                let offset = u64::from_be_bytes(field(&bytes, 0));
                let len = u32::from_be_bytes(field(&bytes, 8));
                self.hole(chunk.cookie, call, offset, len.into())?;
            }
            chunk::BLOCK_STATUS if self.terms.headers == Headers::Structured => {
                self.status(reader, call, chunk).await?;
            }
            chunk::BLOCK_STATUS_EXTENDED if self.terms.headers == Headers::Extended => {
                self.status(reader, call, chunk).await?;
            }
            kind if kind & chunk::ERROR_BIT != 0 => self.error(reader, chunk).await?,
            _ => return violation("a chunk of a kind or length that cannot be here"),
        }
        if chunk.is_last {
            self.land(chunk.cookie);
        }
        Ok(())
    }

    /// Where in a read's buffer some bytes go, which have not come before.
    fn place(
        &self,
        cookie: u64,
        call: &Call,
        offset: u64,
        len: u64,
    ) -> Result<std::ops::Range<usize>, Broken> {
        let request = &call.request;
        let start = offset.checked_sub(request.offset);
        let Some(start) =
            start.filter(|start| len > 0 && *start <= request.len && len <= request.len - *start)
        else {
            return violation("bytes that nobody has asked for");
        };
        let is_new = self.with_flight(cookie, |flight| flight.coverage.add(start..start + len));
        if is_new != Some(true) {
            return violation("bytes that have come before");
        }
        let at = call.window.start + crate::units::in_memory(start);
        Ok(at..at + crate::units::in_memory(len))
    }

    async fn data(
        &self,
        reader: &mut Reader,
        cookie: u64,
        call: &Call,
        offset: u64,
        len: u64,
    ) -> Result<(), Broken> {
        let window = self.place(cookie, call, offset, len)?;
        let Some(buf) = call.lend() else {
            return violation("bytes for a request without a buffer");
        };
        let (result, buf) = reader.take_into(buf, window).await;
        call.give_back(buf);
        Ok(result?)
    }

    fn hole(&self, cookie: u64, call: &Call, offset: u64, len: u64) -> Result<(), Broken> {
        let window = self.place(cookie, call, offset, len)?;
        let Some(mut buf) = call.lend() else {
            return violation("bytes for a request without a buffer");
        };
        buf[window].fill(0);
        call.give_back(buf);
        Ok(())
    }

    /// Extents of one context. Of a question about one extent the first counts; a
    /// server may have sent more of them.
    async fn status(&self, reader: &mut Reader, call: &Call, chunk: Chunk) -> Result<(), Broken> {
        let is_long = chunk.kind == chunk::BLOCK_STATUS_EXTENDED;
        let (head_len, extent_len) = if is_long { (8, 16) } else { (4, 8) };
        let extents_len = chunk.len.saturating_sub(head_len);
        let asks_one = call.request.flags & request_flags::REQ_ONE != 0;
        let len_max = if asks_one {
            STATUS_MAX
        } else {
            head_len + EXTENTS_MAX * extent_len
        };
        if call.request.command != command::BLOCK_STATUS
            || chunk.len > len_max
            || extents_len == 0
            || !extents_len.is_multiple_of(extent_len)
        {
            return violation("extents that nobody has asked for, or of a wrong length");
        }
        let context = Some(u32::from_be_bytes(reader.take_array().await?));
        let count = extents_len / extent_len;
        if is_long && u64::from(u32::from_be_bytes(reader.take_array().await?)) != count {
            return violation("another number of extents than there is room for");
        }
        let is_first = if context == self.terms.contexts.bitmap && !asks_one {
            let runs = runs(reader, count, is_long).await?;
            self.with_flight(chunk.cookie, |flight| flight.runs.replace(runs).is_none())
        } else if context == self.terms.contexts.usual {
            let extent = extent(reader, is_long).await?;
            reader.skip(extents_len - extent_len).await?;
            self.with_flight(chunk.cookie, |flight| {
                flight.extent.replace(extent).is_none()
            })
        } else if context == self.terms.contexts.bitmap {
            // Every question is answered for all contexts.
            reader.skip(extents_len).await?;
            self.with_flight(chunk.cookie, |flight| {
                flight.runs.replace(Vec::new()).is_none()
            })
        } else {
            return violation("extents of another context");
        };
        if is_first != Some(true) {
            return violation("extents of one context twice");
        }
        Ok(())
    }

    async fn error(&self, reader: &mut Reader, chunk: Chunk) -> Result<(), Broken> {
        if chunk.len < 6 || chunk.len > ERROR_MAX {
            return violation("an error of a wrong length");
        }
        let bytes: [u8; 6] = reader.take_array().await?;
        let number = u32::from_be_bytes(field(&bytes, 0));
        let text_len = u16::from_be_bytes(field(&bytes, 4));
        if number == 0 || u64::from(text_len) > chunk.len - 6 {
            return violation("an error that is none, or a text behind its end");
        }
        reader.skip(chunk.len - 6).await?;
        let errno = wire::error_from_wire(number);
        self.with_flight(chunk.cookie, |flight| {
            flight.error.get_or_insert(errno);
        });
        Ok(())
    }
}

/// The next extent: its length, which is not 0, and its flags.
async fn extent(reader: &mut Reader, is_long: bool) -> Result<(u64, u32), Broken> {
    let extent = if is_long {
        long_extent(&reader.take_array::<16>().await?)
    } else {
        short_extent(&reader.take_array::<8>().await?)
    };
    if extent.0 == 0 {
        return violation("an extent without a length");
    }
    Ok(extent)
}

fn short_extent(bytes: &[u8]) -> (u64, u32) {
    let len = u32::from_be_bytes(field(bytes, 0));
    (len.into(), u32::from_be_bytes(field(bytes, 4)))
}

fn long_extent(bytes: &[u8]) -> (u64, u32) {
    let flags = u64::from_be_bytes(field(bytes, 8));
    // Those above have no meaning here.
    let flags = u32::try_from(flags & u64::from(u32::MAX)).expect("32 bits");
    (u64::from_be_bytes(field(bytes, 0)), flags)
}

/// So many extents of a bitmap. Neighbours that say the same become one.
async fn runs(reader: &mut Reader, count: u64, is_long: bool) -> Result<Vec<Run>, Broken> {
    let extent_len = if is_long { 16 } else { 8 };
    let mut runs: Vec<Run> = Vec::new();
    let mut left = count;
    while left > 0 {
        let now = left.min(EXTENTS_AT_ONCE);
        left -= now;
        let bytes = reader
            .take(crate::units::in_memory(now) * extent_len)
            .await?;
        for bytes in bytes.chunks_exact(extent_len) {
            let (len, flags) = if is_long {
                long_extent(bytes)
            } else {
                short_extent(bytes)
            };
            if len == 0 {
                return violation("an extent without a length");
            }
            let is_dirty = flags & dirty_bitmap::DIRTY != 0;
            match runs.last_mut() {
                Some(last) if last.is_dirty == is_dirty => last.len = last.len.saturating_add(len),
                _ => runs.push(Run { len, is_dirty }),
            }
        }
    }
    Ok(runs)
}
