//! The open image: the only part of the shell that touches the engine.
//!
//! Data operations answer an errno, as a guest would see it; what changes the
//! image answers a text.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;

use ringback_block::event::Event;
use ringback_block::filter::blkdebug::{self, BlkDebug};
use ringback_block::graph::{Access, Graph, GraphError, NodeSpec, UserId};
use ringback_block::notice::{Notice, Notify};
use ringback_block::port::{Attachment, Port};
use ringback_block::request;
use ringback_block::span::Span;
use ringback_qmp_shim::ThrottleGroupOptions;
use ringback_qmp_shim::blockdev::{DetectZeroes, Discard, Settings};
use ringback_qmp_shim::open::open as resolve;
use ringback_ring::file::Cache;
use ringback_ring::{Buf, Errno, IoResult, Shard};
use serde_json::{Map, Value};

use super::options::{CacheMode, Options};
use super::output::{Output, complain};
use crate::open::{self, Chain, HEAD_BYTES, probed_format};
use ringback_ring::error_text;

/// A user-defined object (`--object`).
#[derive(Clone, Debug)]
pub(crate) enum Object {
    /// Limits that several nodes share.
    ThrottleGroup(ThrottleGroupOptions),
}

impl Object {
    /// From the text of the option.
    ///
    /// # Errors
    ///
    /// The line to print.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let kind = text.split(',').next().unwrap_or(text);
        let kind = kind.strip_prefix("qom-type=").unwrap_or(kind);
        if kind == "throttle-group" {
            return ThrottleGroupOptions::parse(text)
                .map(Self::ThrottleGroup)
                .map_err(|error| error.to_string());
        }
        if OBJECT_TYPES.contains(&kind) {
            Err(format!("objects of type '{kind}' are not supported yet"))
        } else {
            Err(format!(
                "Parameter 'qom-type' does not accept value '{kind}'"
            ))
        }
    }
}

const OBJECT_TYPES: &[&str] = &[
    "iothread",
    "main-loop",
    "secret",
    "secret_keyring",
    "tls-cipher-suites",
    "tls-creds-anon",
    "tls-creds-psk",
    "tls-creds-x509",
];

/// How an image is opened, beside the options of its driver.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OpenFlags {
    pub(crate) read_only: bool,
    pub(crate) cache: CacheMode,
    /// Discards reach the image.
    pub(crate) discard: bool,
    /// The aio mode that demands direct I/O.
    pub(crate) native_aio: bool,
    /// Writes go to an overlay that is thrown away.
    pub(crate) snapshot: bool,
    pub(crate) copy_on_read: bool,
    /// Takes no locks.
    pub(crate) force_share: bool,
}

impl Default for OpenFlags {
    fn default() -> Self {
        Self {
            read_only: false,
            cache: CacheMode::default(),
            discard: true,
            native_aio: false,
            snapshot: false,
            copy_on_read: false,
            force_share: false,
        }
    }
}

/// What is asked of a zero write.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ZeroFlags {
    pub(crate) may_unmap: bool,
    /// Fail rather than write zeroes as data.
    pub(crate) no_fallback: bool,
    /// Durable when answered.
    pub(crate) fua: bool,
}

/// How a longer image gets its new space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Preallocation {
    Off,
    Metadata,
    Falloc,
    Full,
}

/// What is to change in [`Disk::reopen`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Changes {
    /// Also gives up, or takes back, the right to write.
    pub(crate) read_only: Option<bool>,
    pub(crate) cache: Option<CacheMode>,
    pub(crate) options: Options,
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

/// An open image.
pub(crate) struct Disk {
    shard: Shard,
    out: Output,
    /// None while it is exchanged, and when closed.
    state: RefCell<Option<State>>,
}

/// What reopening exchanges.
struct State {
    graph: Graph,
    chain: Chain,
    user: UserId,
    attachment: Attachment,
    plan: Plan,
}

/// What was asked for.
#[derive(Clone, Debug)]
struct Plan {
    objects: Vec<Object>,
    name: Option<String>,
    options: Map<String, Value>,
    flags: OpenFlags,
    /// The user has asked to write: then the file cannot become read-only
    /// without the user's consent.
    user_writes: bool,
}

impl Disk {
    /// Opens an image: a name, options, or both.
    ///
    /// # Errors
    ///
    /// The reason, without what could not be opened.
    pub(crate) async fn open(
        shard: &Shard,
        out: &Output,
        objects: &[Object],
        name: Option<&str>,
        options: Options,
        flags: OpenFlags,
    ) -> Result<Self, String> {
        let plan = Plan::new(objects, name, &options, flags)?;
        let state = State::new(shard, out, plan, true).await?;
        Ok(Self {
            shard: shard.clone(),
            out: out.clone(),
            state: RefCell::new(Some(state)),
        })
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

    /// Flushes and lets go. Nothing may be in flight; an error is not told.
    pub(crate) async fn close(&self) {
        if self.is_writable() {
            let _ = self.flush().await;
        }
        if let Some(state) = self.take() {
            state.end(&self.shard).await;
        }
    }

    /// Opens the same image in another way. Nothing may be in flight.
    ///
    /// # Errors
    ///
    /// The reason; the image is as it was then, if it can be opened again.
    pub(crate) async fn reopen(&self, changes: Changes) -> Result<(), String> {
        let new = self.state(|state| state.changed(&changes))?;
        if self.is_writable() {
            self.flush().await.map_err(error_text)?;
        }
        let Some(old) = self.take() else {
            return Ok(());
        };
        let old_plan = old.plan.clone();
        old.end(&self.shard).await;
        let mut result = State::new(&self.shard, &self.out, new, false).await;
        let mut error = None;
        if let Err(reason) = result {
            result = State::new(&self.shard, &self.out, old_plan, false).await;
            error = Some(reason);
        }
        *self.state.borrow_mut() = Some(result?);
        error.map_or(Ok(()), Err)
    }

    fn take(&self) -> Option<State> {
        self.state.borrow_mut().take()
    }

    fn state<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(self.state.borrow().as_ref().expect("an open disk"))
    }

    fn port(&self) -> std::rc::Rc<Port> {
        self.state(|state| state.attachment.port(&self.shard))
    }

    fn is_probed(&self) -> bool {
        self.state(|state| state.chain.top.was_probed)
    }

    fn cache(&self) -> CacheMode {
        self.state(|state| state.plan.flags.cache)
    }

    fn is_writable(&self) -> bool {
        self.state(|state| !state.chain.top.settings.read_only)
    }

    /// The user wants to write from now on.
    ///
    /// # Errors
    ///
    /// The reason why not.
    pub(crate) fn claim_writing(&self) -> Result<(), String> {
        match self.state.borrow_mut().as_mut() {
            Some(state) if !state.chain.top.settings.read_only => {
                state.plan.user_writes = true;
                Ok(())
            }
            _ => Err(GraphError::ReadOnly.to_string()),
        }
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
        let mode = self.state(|state| state.chain.top.settings.detect_zeroes);
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
        if offset >= HEAD_BYTES as u64 || data.is_empty() || !self.is_probed() {
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
        if fua || self.cache().writethrough {
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
        let unmaps = self.state(|state| state.chain.top.settings.discard == Discard::Unmap);
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
        if self.state(|state| state.chain.top.settings.discard != Discard::Unmap) {
            return Ok(());
        }
        let span = Span::new(offset, len);
        self.port().discard(&self.shard, span).await?;
        self.make_durable(false).await
    }

    /// Makes every write that was answered durable.
    pub(crate) async fn flush(&self) -> IoResult<()> {
        if self.state(|state| state.chain.top.settings.no_flush) {
            return Ok(());
        }
        self.port().flush(&self.shard).await
    }

    /// Gives the image another size.
    ///
    /// # Errors
    ///
    /// The reason.
    pub(crate) async fn truncate(&self, size: u64, mode: Preallocation) -> Result<(), String> {
        let mode = match mode {
            Preallocation::Off => request::Preallocation::Off,
            Preallocation::Metadata => request::Preallocation::Metadata,
            Preallocation::Falloc => request::Preallocation::Falloc,
            Preallocation::Full => request::Preallocation::Full,
        };
        let Some(mut state) = self.take() else {
            return Err(error_text(Errno::ENOMEDIUM));
        };
        let result = if size > SIZE_MAX {
            Err(format!("offset({size}) exceeds maximum({SIZE_MAX})"))
        } else {
            let top = state.chain.top.node.clone();
            let resized = state.graph.resize(&self.shard, &top, size, mode).await;
            resized.map_err(open::reason)
        };
        *self.state.borrow_mut() = Some(state);
        result?;
        self.make_durable(false).await.map_err(error_text)
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
        self.state(|state| {
            let top = &state.chain.top;
            let mut info = Info {
                format: top.driver.into(),
                is_protocol: matches!(top.driver, "file" | "host_device" | "null-co" | "blkdebug"),
                sizes: (top.driver != "null-co").then_some((0, 0)),
                specific: Vec::new(),
            };
            if let (Some(header), Some(image)) = (&top.header, state.graph.qcow2(&top.node)) {
                info.sizes = Some((image.cluster_size(), image.vmstate_offset()));
                info.specific = open::describe(header, image.is_marked_corrupt());
            }
            Some(info)
        })
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

    fn blkdebug(&self) -> IoResult<std::sync::Arc<BlkDebug>> {
        self.state(|state| state.graph.blkdebug(&state.chain.top.node))
            .ok_or(Errno::EOPNOTSUPP)
    }

    /// Suspends the next request that meets an event, under a tag.
    pub(crate) fn set_breakpoint(&self, event: &str, tag: &str) -> IoResult<()> {
        let filter = self.blkdebug()?;
        let mut all = Event::ALL.iter();
        let event = all.find(|known| known.name() == event);
        filter.set_breakpoint(*event.ok_or(Errno::ENOENT)?, tag);
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

impl State {
    /// The first time, a format that was only guessed is told.
    async fn new(shard: &Shard, out: &Output, plan: Plan, is_first: bool) -> Result<Self, String> {
        let settings = plan.settings();
        let node = resolve(plan.name.as_deref(), &plan.options, &settings)
            .map_err(|error| error.to_string())?;
        let mut graph = Graph::new();
        for Object::ThrottleGroup(group) in &plan.objects {
            graph
                .add_throttle_group(shard, &group.id, open::limits(&group.limits))
                .map_err(|error| error.to_string())?;
        }
        let mut chain = open::open(
            shard,
            &mut graph,
            notify(),
            node,
            is_first,
            &mut BTreeMap::new(),
        )
        .await?;
        for warning in &chain.warnings {
            complain(&format!("qemu-io: warning: {warning}"));
        }
        if let Some(filter) = graph.blkdebug(&chain.top.node) {
            listen(&filter, out);
        }
        if plan.flags.snapshot {
            let overlaid = open::overlay(shard, &mut graph, &mut chain, plan.flags.read_only).await;
            if let Err(error) = overlaid {
                let _ = open::close(shard, &mut graph, &chain.nodes).await;
                return Err(error);
            }
        }
        let mut entry = chain.top.node.clone();
        if plan.flags.copy_on_read {
            let file = entry;
            let added = graph
                .add_unnamed(shard, NodeSpec::CopyOnRead { file })
                .await;
            entry = match added {
                Ok(entry) => entry,
                Err(error) => {
                    let _ = open::close(shard, &mut graph, &chain.nodes).await;
                    return Err(open::reason(error));
                }
            };
            chain.nodes.push(entry.clone());
        }
        let access = Access {
            read: true,
            write: !chain.top.settings.read_only || plan.user_writes,
            alone_writing: false,
            resize: false,
        };
        let attached = graph.attach(shard, &entry, "qemu-io", access).await;
        match attached {
            Ok((user, attachment)) => Ok(Self {
                graph,
                chain,
                user,
                attachment,
                plan,
            }),
            Err(error) => {
                let _ = open::close(shard, &mut graph, &chain.nodes).await;
                Err(open::reason(error))
            }
        }
    }

    /// The same image opened in another way.
    fn changed(&self, changes: &Changes) -> Result<Plan, String> {
        let mut plan = self.plan.clone();
        for (key, value) in changes.options.iter() {
            let given = plan.options.get(key).and_then(Value::as_str);
            let own = own_name(key);
            let driver = match key {
                "driver" => Some(self.chain.top.driver),
                "file.driver" => Some("file"),
                "backing.driver" => self.chain.backing_driver,
                _ => None,
            };
            let is_same = given == Some(value) || driver == Some(value);
            if is_same {
                continue;
            }
            if !can_change(own) {
                return Err(format!("Cannot change the option '{own}'"));
            }
            for other in displaced(key) {
                if changes.options.get(other).is_none() {
                    plan.options.shift_remove(*other);
                }
            }
            plan.options.insert(key.into(), Value::from(value));
        }
        if let Some(cache) = changes.cache {
            plan.flags.cache = cache;
            plan.options.shift_remove("cache.direct");
            plan.options.shift_remove("cache.no-flush");
        }
        let asked = changes.options.get("read-only") == Some("on");
        if asked && plan.user_writes && !self.chain.top.settings.read_only {
            let node = &self.chain.top.node;
            return Err(format!(
                "Read-only block node '{node}' cannot support read-write users"
            ));
        }
        if let Some(read_only) = changes.read_only {
            plan.flags.read_only = read_only;
            plan.options.shift_remove("read-only");
            plan.user_writes &= !read_only;
        }
        Ok(plan)
    }

    async fn end(mut self, shard: &Shard) {
        self.graph.detach(self.user).await;
        match open::close(shard, &mut self.graph, &self.chain.nodes).await {
            // The image itself has told.
            Ok(()) | Err(GraphError::Close { .. }) => {}
            Err(error) => complain(&format!("qemu-io: {error}")),
        }
    }
}

/// Largest size of an image, in bytes: QEMU keeps the last GiB below 2^63 free.
const SIZE_MAX: u64 = (i64::MAX as u64) & !((1 << 30) - 1);

/// An option without the nodes that lead to its own.
fn own_name(key: &str) -> &str {
    let own = key.rsplit_once("backing.").map_or(key, |(_, own)| own);
    own.strip_prefix("file.").unwrap_or(own)
}

/// Options that make no sense beside a new one.
fn displaced(key: &str) -> &'static [&'static str] {
    match key {
        "overlap-check" => &["overlap-check.template"],
        "overlap-check.template" => &["overlap-check"],
        "cache-size" | "l2-cache-size" | "refcount-cache-size" => {
            &["cache-size", "l2-cache-size", "refcount-cache-size"]
        }
        _ => &[],
    }
}

/// Options that may change while an image is open, of any node of it.
fn can_change(own: &str) -> bool {
    matches!(
        own,
        "read-only"
            | "cache.direct"
            | "cache.no-flush"
            | "discard"
            | "detect-zeroes"
            | "force-share"
            | "auto-read-only"
            | "backing"
            | "lazy-refcounts"
            | "pass-discard-request"
            | "pass-discard-snapshot"
            | "pass-discard-other"
            | "discard-no-unref"
            | "cache-size"
            | "l2-cache-size"
            | "l2-cache-entry-size"
            | "refcount-cache-size"
            | "cache-clean-interval"
            | "throttle-group"
    ) || own.starts_with("overlap-check")
}

/// What the engine has to say goes to standard error.
fn notify() -> Notify {
    Notify::new(|notice| match notice {
        Notice::ImageCorrupt { message, fatal, .. } => {
            let line = if fatal {
                format!(
                    "qcow2: Marking image as corrupt: {message}; further corruption events will \
                     be suppressed"
                )
            } else {
                format!(
                    "qcow2: Image is corrupt: {message}; further non-fatal corruption events \
                     will be suppressed"
                )
            };
            complain(&line);
        }
        Notice::Error(text) => complain(&format!("qemu-io: {text}")),
        Notice::Warning(text) => complain(&format!("qemu-io: warning: {text}")),
        Notice::Message(text) => complain(&text),
    })
}

/// Breakpoints speak through the shell's own output.
fn listen(filter: &BlkDebug, out: &Output) {
    let out = out.clone();
    filter.listen(move |notice| {
        let line = match notice {
            blkdebug::Notice::Suspended(tag) => format!("blkdebug: Suspended request '{tag}'"),
            blkdebug::Notice::Resuming(tag) => format!("blkdebug: Resuming request '{tag}'"),
        };
        out.line(&line);
    });
}

impl Plan {
    fn new(
        objects: &[Object],
        name: Option<&str>,
        options: &Options,
        flags: OpenFlags,
    ) -> Result<Self, String> {
        let plan = Self {
            objects: objects.to_vec(),
            name: name.map(str::to_owned),
            options: options
                .iter()
                .map(|(key, value)| (key.to_owned(), Value::from(value)))
                .collect(),
            flags,
            user_writes: !flags.read_only,
        };
        plan.check_flags()?;
        Ok(plan)
    }

    fn check_flags(&self) -> Result<(), String> {
        let flags = self.flags;
        if flags.copy_on_read && flags.read_only {
            return Err("Can't use copy-on-read on read-only device".into());
        }
        if flags.native_aio && flags.cache.cache != Cache::Direct {
            return Err(
                "aio=native was specified, but it requires cache.direct=on, which was not \
                 specified."
                    .into(),
            );
        }
        Ok(())
    }

    /// What the outermost node has if its options do not say otherwise.
    fn settings(&self) -> Settings {
        let flags = self.flags;
        Settings {
            // Only the overlay is written.
            read_only: flags.read_only || flags.snapshot,
            force_share: flags.force_share,
            direct: flags.cache.cache == Cache::Direct,
            direct_given: true,
            no_flush: flags.cache.no_flush,
            discard: if flags.discard {
                Discard::Unmap
            } else {
                Discard::Ignore
            },
            ..Settings::default()
        }
    }
}
