//! A disk as commands use it: a hold on a node of a graph, and what that node
//! is. Whose graph it is does not matter here.
//!
//! Data operations answer an errno, as a guest would see it.

use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use ringback_block::event::Event;
use ringback_block::filter::blkdebug::BlkDebug;
use ringback_block::format::qcow2::Qcow2;
use ringback_block::format::qcow2::header::Header;
use ringback_block::graph::Graph;
use ringback_block::port::{Attachment, Port};
use ringback_block::request;
use ringback_block::span::Span;
use ringback_block::usage::{Operation, Started};
use ringback_qmp_shim::blockdev::{DetectZeroes, Discard, Settings};
use ringback_ring::{Buf, Errno, IoResult, Shard};

use super::output::Output;
use crate::open::{self, HEAD_BYTES, Opened, probed_format};

/// What is asked of a zero write.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ZeroFlags {
    pub(crate) may_unmap: bool,
    /// Fail rather than write zeroes as data.
    pub(crate) no_fallback: bool,
    /// Durable when answered.
    pub(crate) fua: bool,
}

/// What an image tells about itself.
#[derive(Clone, Debug)]
pub(crate) struct Info {
    pub(crate) format: String,
    /// There is no format above the protocol.
    pub(crate) is_protocol: bool,
    /// The size of a cluster and the offset of a machine's state, in bytes; not
    /// every driver has something to say.
    pub(crate) sizes: Option<(u64, u64)>,
    /// Lines of what only this format has.
    pub(crate) specific: Vec<String>,
}

/// What is done to zones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ZoneOperation {
    Open,
    Close,
    Finish,
    Reset,
}

/// One zone as reported, in sectors of 512 bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Zone {
    pub(crate) start: u64,
    pub(crate) len: u64,
    pub(crate) capacity: u64,
    pub(crate) write_pointer: u64,
    pub(crate) condition: u32,
    pub(crate) kind: u32,
}

/// What a disk's topmost node is, as far as commands must know.
pub(crate) struct Node {
    driver: &'static str,
    settings: Settings,
    /// Nobody said which format it has.
    was_probed: bool,
    /// Of a qcow2 image: its header as it was when it was opened.
    qcow2: Option<(Header, Arc<Qcow2>)>,
    /// There is a file at the bottom. What else may be there has no sizes to tell.
    has_file: bool,
    /// Where breakpoints are set.
    blkdebug: Option<Arc<BlkDebug>>,
}

impl Node {
    /// A node of a graph.
    pub(crate) fn new(graph: &Graph, opened: &Opened) -> Self {
        let image = graph.qcow2(&opened.node).map(Arc::clone);
        Self {
            driver: opened.driver,
            settings: opened.settings,
            was_probed: opened.was_probed,
            qcow2: opened.header.clone().zip(image),
            has_file: graph.file(&opened.node).is_some(),
            blkdebug: graph.blkdebug(&opened.node),
        }
    }
}

/// A disk that commands work on.
pub(crate) struct Disk {
    shard: Shard,
    attachment: Attachment,
    node: Node,
    /// Each write is followed by a flush.
    writethrough: bool,
}

impl Disk {
    /// A user's hold on a node, and what that node is. With `writethrough` all
    /// that was written is durable when it is answered.
    pub(crate) fn new(
        shard: &Shard,
        attachment: Attachment,
        node: Node,
        writethrough: bool,
    ) -> Self {
        Self {
            shard: shard.clone(),
            attachment,
            node,
            writethrough,
        }
    }

    /// The first bytes.
    async fn head(&self) -> IoResult<Vec<u8>> {
        let len = usize::try_from(self.size()?)
            .unwrap_or(usize::MAX)
            .min(HEAD_BYTES);
        let buf = self.shard.buffer(HEAD_BYTES).await;
        let (result, buf) = self.port().read(&self.shard, 0, buf, 0..len).await;
        result.map(|()| buf[..len].to_vec())
    }

    fn port(&self) -> Rc<Port> {
        self.attachment.port(&self.shard)
    }

    /// A request begins that counts in the disk's statistics.
    pub(crate) fn start_request(&self, operation: Operation, bytes: u64) -> Started {
        self.port().start_request(&self.shard, operation, bytes)
    }

    /// It has ended.
    pub(crate) fn end_request(&self, started: Started, is_ok: bool) {
        self.port().end_request(&self.shard, started, is_ok);
    }

    /// Counts a request that makes no sense.
    pub(crate) fn refuse_request(&self, operation: Operation) {
        self.port().refuse_request(&self.shard, operation);
    }

    /// Whether it was opened for writing.
    pub(crate) fn is_writable(&self) -> bool {
        !self.node.settings.read_only
    }

    /// Bytes.
    #[expect(clippy::unnecessary_wraps, reason = "other protocols have to ask")]
    pub(crate) fn size(&self) -> IoResult<u64> {
        Ok(self.port().size())
    }

    /// Whether a range lies inside: to be asked before memory is taken for it.
    pub(crate) fn check(&self, offset: u64, len: u64) -> IoResult<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size()? => Ok(()),
            _ => Err(Errno::EIO),
        }
    }

    /// Reads into a window of a buffer.
    pub(crate) async fn read(
        &self,
        offset: u64,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        self.port().read(&self.shard, offset, buf, window).await
    }

    /// Writes a window of a buffer; with `fua` it is durable when answered.
    pub(crate) async fn write(
        &self,
        offset: u64,
        buf: Buf,
        window: Range<usize>,
        fua: bool,
    ) -> (IoResult<()>, Buf) {
        if let Err(errno) = self.check_sector_0(offset, &buf[window.clone()]).await {
            return (Err(errno), buf);
        }
        let port = self.port();
        let (mut result, buf) = match self.zeroes_for(&buf[window.clone()]) {
            Some(flags) => {
                let span = Span::new(offset, window.len() as u64);
                (port.write_zeroes(&self.shard, span, flags).await, buf)
            }
            None => port.write(&self.shard, offset, buf, window).await,
        };
        if result.is_ok() {
            result = self.make_durable(fua).await;
        }
        (result, buf)
    }

    /// With `detect-zeroes`: how zeroes are to be written.
    fn zeroes_for(&self, bytes: &[u8]) -> Option<request::ZeroFlags> {
        let mode = self.node.settings.detect_zeroes;
        if mode == DetectZeroes::Off || bytes.iter().any(|&byte| byte != 0) {
            return None;
        }
        Some(request::ZeroFlags {
            may_unmap: mode == DetectZeroes::Unmap,
            no_fallback: false,
        })
    }

    /// Nobody said that the image is raw: a guest must not make it look like
    /// another format, whose header could name any file as its backing file.
    async fn check_sector_0(&self, offset: u64, data: &[u8]) -> IoResult<()> {
        if offset >= HEAD_BYTES as u64 || data.is_empty() || !self.node.was_probed {
            return Ok(());
        }
        let mut head = self.head().await?;
        let at = usize::try_from(offset).map_err(|_| Errno::EIO)?;
        for (old, new) in head.iter_mut().skip(at).zip(data) {
            *old = *new;
        }
        match probed_format(&head) {
            Some(_) => Err(Errno::EPERM),
            None => Ok(()),
        }
    }

    async fn make_durable(&self, fua: bool) -> IoResult<()> {
        if fua || self.writethrough {
            self.flush().await
        } else {
            Ok(())
        }
    }

    /// Makes a range read as zeroes.
    pub(crate) async fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        flags: ZeroFlags,
    ) -> IoResult<()> {
        self.check(offset, len)?;
        let unmaps = self.node.settings.discard == Discard::Unmap;
        let zero = request::ZeroFlags {
            may_unmap: flags.may_unmap && unmaps,
            no_fallback: flags.no_fallback,
        };
        let span = Span::new(offset, len);
        self.port().write_zeroes(&self.shard, span, zero).await?;
        self.make_durable(flags.fua).await
    }

    /// Writes clusters compressed, where the format can.
    pub(crate) async fn write_compressed(
        &self,
        offset: u64,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        let written = self
            .port()
            .write_compressed(&self.shard, offset, &buf[window])
            .await;
        let result = match written {
            Ok(()) => self.make_durable(false).await,
            Err(errno) => Err(errno),
        };
        (result, buf)
    }

    /// Gives a range up.
    pub(crate) async fn discard(&self, offset: u64, len: u64) -> IoResult<()> {
        self.check(offset, len)?;
        if self.node.settings.discard != Discard::Unmap {
            return Ok(());
        }
        let span = Span::new(offset, len);
        self.port().discard(&self.shard, span).await?;
        self.make_durable(false).await
    }

    /// Makes every write that was answered durable.
    pub(crate) async fn flush(&self) -> IoResult<()> {
        if self.node.settings.no_flush {
            return Ok(());
        }
        self.port().flush(&self.shard).await
    }

    /// What is to be done once the disk has got another size.
    ///
    /// # Errors
    ///
    /// What the flush answers, if there is one.
    pub(crate) async fn after_resize(&self) -> IoResult<()> {
        self.make_durable(false).await
    }

    /// Whether this image itself, not one below it, says what is at the start of
    /// a range inside it, and how far that holds.
    pub(crate) async fn allocated(&self, offset: u64, len: u64) -> IoResult<(bool, u64)> {
        self.check(offset, len)?;
        if len == 0 {
            return Ok((true, 0));
        }
        let (shard, port) = (&self.shard, self.port());
        let mut done = 0;
        let mut is_here = true;
        while done < len {
            let rest = Span::new(offset + done, len - done);
            let extent = port.extent(shard, rest).await?;
            let here = extent.depth == 1;
            if done == 0 {
                is_here = here;
            } else if here != is_here {
                break;
            }
            done += extent.len.min(rest.len);
        }
        Ok((is_here, done))
    }

    /// What the image tells about itself; none if its driver has nothing to say.
    pub(crate) fn info(&self) -> Option<Info> {
        let driver = self.node.driver;
        let mut info = Info {
            format: driver.into(),
            is_protocol: matches!(
                driver,
                "file" | "host_device" | "null-co" | "nbd" | "blkdebug"
            ),
            sizes: self.node.has_file.then_some((0, 0)),
            specific: Vec::new(),
        };
        if let Some((header, image)) = &self.node.qcow2 {
            info.sizes = Some((image.cluster_size(), image.vmstate_offset()));
            info.specific = open::describe(header, image.is_marked_corrupt());
        }
        Some(info)
    }

    /// Reads the state of a machine.
    pub(crate) async fn load_vmstate(
        &self,
        offset: u64,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        self.port()
            .load_vmstate(&self.shard, offset, buf, window)
            .await
    }

    /// Writes the state of a machine.
    pub(crate) async fn save_vmstate(
        &self,
        offset: u64,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        let (mut result, buf) = self
            .port()
            .save_vmstate(&self.shard, offset, buf, window)
            .await;
        if result.is_ok() {
            result = self.make_durable(false).await;
        }
        (result, buf)
    }

    fn blkdebug(&self) -> IoResult<&BlkDebug> {
        self.node.blkdebug.as_deref().ok_or(Errno::EOPNOTSUPP)
    }

    /// Suspends the next request that meets an event, under a tag. What happens
    /// to it is said on `out`.
    pub(crate) fn set_breakpoint(&self, out: &Output, event: &str, tag: &str) -> IoResult<()> {
        let filter = self.blkdebug()?;
        let mut all = Event::ALL.iter();
        let event = all.find(|known| known.name() == event);
        let event = event.ok_or(Errno::ENOENT)?;
        let out = out.clone();
        filter.listen(move |notice| out.line(&notice.to_string()));
        filter.set_breakpoint(*event, tag);
        Ok(())
    }

    /// Removes all breakpoints of a tag and resumes what they hold.
    pub(crate) fn remove_breakpoints(&self, tag: &str) -> IoResult<()> {
        self.blkdebug()?.remove_breakpoint(tag)
    }

    /// Resumes one request of a tag.
    pub(crate) fn resume(&self, tag: &str) -> IoResult<()> {
        self.blkdebug()?.resume(tag)
    }

    /// Waits until a request is suspended under a tag.
    pub(crate) async fn wait_suspended(&self, tag: &str) -> IoResult<()> {
        let filter = self.blkdebug()?;
        filter.wait_break(&self.shard, tag).await;
        Ok(())
    }

    /// At most so many zones from an offset on. No device here has zones.
    #[expect(clippy::unused_async, reason = "devices will")]
    pub(crate) async fn zone_report(&self, _offset: u64, _max: u32) -> IoResult<Vec<Zone>> {
        Err(Errno::EOPNOTSUPP)
    }

    /// Changes the state of zones.
    #[expect(clippy::unused_async, reason = "devices will")]
    pub(crate) async fn zone_manage(
        &self,
        _operation: ZoneOperation,
        offset: u64,
        len: u64,
    ) -> IoResult<()> {
        self.check(offset, len)?;
        Err(Errno::EOPNOTSUPP)
    }

    /// Appends to a zone; answers where the data went.
    #[expect(clippy::unused_async, reason = "devices will")]
    pub(crate) async fn zone_append(
        &self,
        _offset: u64,
        buf: Buf,
        _window: Range<usize>,
    ) -> (IoResult<u64>, Buf) {
        (Err(Errno::EOPNOTSUPP), buf)
    }
}
