//! The open image: the only part of the shell that touches the engine.
//!
//! Data operations answer an errno, as a guest would see it; what changes the
//! image answers a text.

use std::cell::RefCell;
use std::ops::Range;
use std::path::PathBuf;

use ringback_block::graph::{Access, Graph, GraphError, NodeSpec, UserId};
use ringback_block::port::{Attachment, Port};
use ringback_block::span::Span;
use ringback_ring::file::{Cache, OpenError};
use ringback_ring::{Buf, Errno, IoResult, Shard};

use super::number;
use super::options::{CacheMode, Options};
use super::output::complain;
use super::probe;
use super::report::error_text;

/// A user-defined object (`--object`).
#[derive(Clone, Debug)]
pub(crate) enum Object {}

impl Object {
    /// From the text of the option.
    ///
    /// # Errors
    ///
    /// The line to print.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let kind = text.split(',').next().unwrap_or(text);
        let kind = kind.strip_prefix("qom-type=").unwrap_or(kind);
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
    "throttle-group",
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
    pub(crate) cluster_size: u64,
    pub(crate) vmstate_offset: u64,
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
    /// None while it is exchanged, and when closed.
    state: RefCell<Option<State>>,
}

/// What reopening exchanges.
struct State {
    graph: Graph,
    user: UserId,
    attachment: Attachment,
    plan: Plan,
}

/// What to make of a name and options.
#[derive(Clone, Debug)]
struct Plan {
    layout: Layout,
    path: String,
    /// The file can only be read.
    read_only: bool,
    /// The user has asked to write: then the file cannot become read-only
    /// without the user's consent.
    user_writes: bool,
    cache: CacheMode,
    discard: bool,
}

#[derive(Clone, Copy, Debug)]
enum Layout {
    /// The protocol alone.
    File,
    Raw {
        offset: u64,
        size: Option<u64>,
        /// Nobody said that it is raw.
        probed: bool,
    },
}

impl Disk {
    /// Opens an image: a name, options, or both.
    ///
    /// # Errors
    ///
    /// The reason, without what could not be opened.
    pub(crate) async fn open(
        shard: &Shard,
        _objects: &[Object],
        name: Option<&str>,
        options: Options,
        flags: OpenFlags,
    ) -> Result<Self, String> {
        let (plan, left) = Plan::new(name, options, flags)?;
        let state = State::new(shard, plan).await?;
        let disk = Self {
            shard: shard.clone(),
            state: RefCell::new(Some(state)),
        };
        // In this order: the format learns of its options once it is known.
        let checked = disk.check_probe().await;
        if let Err(error) = checked.and(left.map_or(Ok(()), Err)) {
            disk.close().await;
            return Err(error);
        }
        Ok(disk)
    }

    /// An image without a format must look like none.
    async fn check_probe(&self) -> Result<(), String> {
        if !self.is_probed() {
            return Ok(());
        }
        let head = self.head().await.map_err(|errno| {
            let text = error_text(errno);
            format!("Could not read image for determining its format: {text}")
        })?;
        if let Some(format) = probe::format(&head) {
            return Err(format!("format '{format}' is not supported yet"));
        }
        if self.is_writable() {
            let name = self.state(|state| state.plan.path.clone());
            complain(&format!(
                "WARNING: Image format was not specified for '{name}' and probing guessed \
                 raw.\n         Automatically detecting the format is dangerous for raw images, \
                 write operations on block 0 will be restricted.\n         Specify the 'raw' \
                 format explicitly to remove the restrictions."
            ));
        }
        Ok(())
    }

    /// The first bytes.
    async fn head(&self) -> IoResult<Vec<u8>> {
        let len = usize::try_from(self.size()?)
            .unwrap_or(usize::MAX)
            .min(probe::HEAD_BYTES);
        let buf = self.shard.buffer(probe::HEAD_BYTES).await;
        let (result, buf) = self.port().read(&self.shard, 0, buf, 0..len).await;
        result.map(|()| buf[..len].to_vec())
    }

    /// Flushes and lets go. Nothing may be in flight; an error is not told.
    pub(crate) async fn close(&self) {
        if self.is_writable() {
            let _ = self.flush().await;
        }
        if let Some(state) = self.take() {
            state.end().await;
        }
    }

    /// Opens the same image in another way. Nothing may be in flight.
    ///
    /// # Errors
    ///
    /// The reason; the image is as it was then.
    pub(crate) async fn reopen(&self, changes: Changes) -> Result<(), String> {
        let plan = self.state(|state| state.plan.changed(changes))?;
        if self.is_writable() {
            self.flush().await.map_err(error_text)?;
        }
        let new = State::new(&self.shard, plan).await?;
        let old = self.state.replace(Some(new));
        if let Some(old) = old {
            old.end().await;
        }
        Ok(())
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
        self.state(|state| matches!(state.plan.layout, Layout::Raw { probed: true, .. }))
    }

    fn cache(&self) -> CacheMode {
        self.state(|state| state.plan.cache)
    }

    fn is_writable(&self) -> bool {
        self.state(|state| !state.plan.read_only)
    }

    /// The user wants to write from now on.
    ///
    /// # Errors
    ///
    /// The reason why not.
    pub(crate) fn claim_writing(&self) -> Result<(), String> {
        match self.state.borrow_mut().as_mut() {
            Some(state) if !state.plan.read_only => {
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
        let (mut result, buf) = self.port().write(&self.shard, offset, buf, window).await;
        if result.is_ok() {
            result = self.make_durable(fua).await;
        }
        (result, buf)
    }

    /// Nobody said that the image is raw: a guest must not make it look like
    /// another format, whose header could name any file as its backing file.
    async fn check_sector_0(&self, offset: u64, data: &[u8]) -> IoResult<()> {
        if offset >= probe::HEAD_BYTES as u64 || data.is_empty() || !self.is_probed() {
            return Ok(());
        }
        let mut head = self.head().await?;
        let at = usize::try_from(offset).map_err(|_| Errno::EIO)?;
        for (old, new) in head.iter_mut().skip(at).zip(data) {
            *old = *new;
        }
        match probe::format(&head) {
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
        if flags.no_fallback {
            // The engine does not tell a quick zero write from a slow one.
            return Err(Errno::EOPNOTSUPP);
        }
        let may_unmap = flags.may_unmap && self.state(|state| state.plan.discard);
        let span = Span::new(offset, len);
        self.port()
            .write_zeroes(&self.shard, span, may_unmap)
            .await?;
        self.make_durable(flags.fua).await
    }

    /// Writes clusters compressed. No format here can.
    #[expect(clippy::unused_async, reason = "formats will")]
    pub(crate) async fn write_compressed(
        &self,
        offset: u64,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        let checked = self.check(offset, window.len() as u64);
        (checked.and(Err(Errno::EOPNOTSUPP)), buf)
    }

    /// Gives a range up.
    pub(crate) async fn discard(&self, offset: u64, len: u64) -> IoResult<()> {
        self.check(offset, len)?;
        let span = Span::new(offset, len);
        self.port().discard(&self.shard, span).await
    }

    /// Makes every write that was answered durable.
    pub(crate) async fn flush(&self) -> IoResult<()> {
        if self.cache().no_flush {
            return Ok(());
        }
        self.port().flush(&self.shard).await
    }

    /// Gives the image another size.
    ///
    /// # Errors
    ///
    /// The reason.
    #[expect(clippy::unused_async, reason = "formats will")]
    pub(crate) async fn truncate(&self, size: u64, mode: Preallocation) -> Result<(), String> {
        let _ = (size, mode);
        Err("truncate is not supported yet".into())
    }

    /// Whether this image itself, not one below it, says what is at the start of
    /// a range inside it, and how far that holds.
    #[expect(clippy::unused_async, reason = "formats will")]
    pub(crate) async fn allocated(&self, offset: u64, len: u64) -> IoResult<(bool, u64)> {
        self.check(offset, len)?;
        // There is nothing below raw.
        Ok((true, len))
    }

    /// What the image tells about itself; none if its driver has nothing to say.
    pub(crate) fn info(&self) -> Option<Info> {
        let is_protocol = self.state(|state| matches!(state.plan.layout, Layout::File));
        Some(Info {
            format: if is_protocol { "file" } else { "raw" }.into(),
            is_protocol,
            cluster_size: 0,
            vmstate_offset: 0,
            specific: Vec::new(),
        })
    }

    /// Reads the state of a machine. No format here has room for one.
    #[expect(clippy::unused_async, reason = "formats will")]
    pub(crate) async fn load_vmstate(
        &self,
        _offset: u64,
        buf: Buf,
        _window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        (Err(Errno::EOPNOTSUPP), buf)
    }

    /// Writes the state of a machine. No format here has room for one.
    #[expect(clippy::unused_async, reason = "formats will")]
    pub(crate) async fn save_vmstate(
        &self,
        _offset: u64,
        buf: Buf,
        _window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        (Err(Errno::EOPNOTSUPP), buf)
    }

    /// Suspends the next request that meets an event, under a tag.
    #[expect(clippy::unused_self, reason = "a filter will")]
    pub(crate) fn set_breakpoint(&self, _event: &str, _tag: &str) -> IoResult<()> {
        Err(Errno::EOPNOTSUPP)
    }

    /// Removes all breakpoints of a tag and resumes what they hold.
    #[expect(clippy::unused_self, reason = "a filter will")]
    pub(crate) fn remove_breakpoints(&self, _tag: &str) -> IoResult<()> {
        Err(Errno::EOPNOTSUPP)
    }

    /// Resumes one request of a tag.
    #[expect(clippy::unused_self, reason = "a filter will")]
    pub(crate) fn resume(&self, _tag: &str) -> IoResult<()> {
        Err(Errno::EOPNOTSUPP)
    }

    /// Waits until a request is suspended under a tag.
    #[expect(clippy::unused_async, reason = "a filter will")]
    pub(crate) async fn wait_suspended(&self, _tag: &str) -> IoResult<()> {
        Err(Errno::EOPNOTSUPP)
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
    async fn new(shard: &Shard, plan: Plan) -> Result<Self, String> {
        let mut graph = Graph::new();
        let file = NodeSpec::File {
            path: PathBuf::from(&plan.path),
            write: !plan.read_only,
            cache: plan.cache.cache,
            discard: plan.discard,
        };
        graph.add(shard, "file", file).await.map_err(reason)?;
        let top = match plan.layout {
            Layout::File => "file",
            Layout::Raw { offset, size, .. } => {
                let file = "file".into();
                let raw = NodeSpec::Raw { file, offset, size };
                graph.add(shard, "raw", raw).await.map_err(reason)?;
                "raw"
            }
        };
        let access = Access {
            read: true,
            write: !plan.read_only || plan.user_writes,
            alone_writing: false,
        };
        let (user, attachment) = graph
            .attach(shard, top, "qemu-io", access)
            .await
            .map_err(reason)?;
        Ok(Self {
            graph,
            user,
            attachment,
            plan,
        })
    }

    async fn end(mut self) {
        self.graph.detach(self.user).await;
    }
}

/// The graph's texts follow QEMU, but for these.
fn reason(error: GraphError) -> String {
    match error {
        GraphError::Open(OpenError::WrongKind {
            path,
            what: "a directory",
        }) => format!("Could not open '{}': Is a directory", path.display()),
        GraphError::Unaligned(_) => "Cannot get 'write' permission without 'resize': Image size \
                                     is not a multiple of request alignment"
            .into(),
        error => error.to_string(),
    }
}

/// The node has no name of its own.
const NODE_NAME: &str = "#block001";

/// Drivers that QEMU has and this module has not.
const OTHER_DRIVERS: &[&str] = &[
    "blkdebug",
    "blklogwrites",
    "blkreplay",
    "blkverify",
    "bochs",
    "cloop",
    "compress",
    "copy-before-write",
    "copy-on-read",
    "dmg",
    "ftp",
    "ftps",
    "gluster",
    "host_cdrom",
    "host_device",
    "http",
    "https",
    "io_uring",
    "iscsi",
    "luks",
    "nbd",
    "nfs",
    "null-aio",
    "null-co",
    "nvme",
    "parallels",
    "preallocate",
    "qcow",
    "qcow2",
    "qed",
    "quorum",
    "rbd",
    "replication",
    "snapshot-access",
    "ssh",
    "throttle",
    "vdi",
    "vhdx",
    "vmdk",
    "vpc",
    "vvfat",
];

fn no_such_driver(name: &str) -> String {
    if OTHER_DRIVERS.contains(&name) {
        format!("driver '{name}' is not supported yet")
    } else {
        format!("Unknown driver '{name}'")
    }
}

impl Plan {
    /// Also answers what is wrong with options that no driver took.
    fn new(
        name: Option<&str>,
        mut options: Options,
        flags: OpenFlags,
    ) -> Result<(Self, Option<String>), String> {
        let driver = options.take("driver");
        let has_file = name.is_some() || options.iter().any(|(key, _)| key.starts_with("file."));
        if driver.is_none() && !has_file {
            return Err("Must specify either driver or file".into());
        }
        let is_raw = match driver.as_deref() {
            None | Some("raw") => true,
            Some("file") => false,
            Some(other) => return Err(no_such_driver(other)),
        };
        let mut plan = Self {
            layout: Layout::File,
            path: String::new(),
            read_only: flags.read_only,
            user_writes: !flags.read_only,
            cache: flags.cache,
            discard: flags.discard,
        };
        plan.take_common("", &mut options)?;
        plan.check_flags(&mut options, flags)?;
        if is_raw {
            plan.layout = Layout::Raw {
                offset: take_number(&mut options, "offset")?.unwrap_or(0),
                size: take_number(&mut options, "size")?,
                probed: driver.is_none(),
            };
        }
        plan.take_file(if is_raw { "file." } else { "" }, name, &mut options)?;
        let left = options.iter().next().map(|(key, _)| {
            if is_raw && !key.starts_with("file.") {
                format!("Block format 'raw' does not support the option '{key}'")
            } else {
                let key = key.strip_prefix("file.").unwrap_or(key);
                format!("Block protocol 'file' doesn't support the option '{key}'")
            }
        });
        Ok((plan, left))
    }

    /// Options which every node has.
    fn take_common(&mut self, prefix: &str, options: &mut Options) -> Result<(), String> {
        if let Some(on) = take_switch(options, &format!("{prefix}read-only"))? {
            self.read_only = on;
        }
        if let Some(on) = take_switch(options, &format!("{prefix}cache.direct"))? {
            self.cache.cache = if on { Cache::Direct } else { Cache::Buffered };
        }
        if let Some(on) = take_switch(options, &format!("{prefix}cache.no-flush"))? {
            self.cache.no_flush = on;
        }
        if let Some(mode) = options.take(&format!("{prefix}discard")) {
            self.discard = super::options::discard_mode(&mode)
                .map_err(|_| format!("Invalid discard option: {mode}"))?;
        }
        Ok(())
    }

    fn check_flags(&self, options: &mut Options, flags: OpenFlags) -> Result<(), String> {
        let force_share = take_switch(options, "force-share")?.unwrap_or(flags.force_share);
        if force_share && !self.read_only {
            return Err("force-share=on can only be used with read-only images".into());
        }
        if force_share {
            return Err("force-share=on is not supported yet".into());
        }
        if flags.copy_on_read && self.read_only {
            return Err("Can't use copy-on-read on read-only device".into());
        }
        // Otherwise copy-on-read has nothing to do: there is nothing below raw.
        if flags.snapshot {
            return Err("temporary overlays (-s) are not supported yet".into());
        }
        if flags.native_aio && self.cache.cache != Cache::Direct {
            return Err(
                "aio=native was specified, but it requires cache.direct=on, which was not \
                 specified."
                    .into(),
            );
        }
        Ok(())
    }

    /// The file at the bottom.
    fn take_file(
        &mut self,
        prefix: &str,
        name: Option<&str>,
        options: &mut Options,
    ) -> Result<(), String> {
        if !prefix.is_empty() {
            if let Some(driver) = options.take(&format!("{prefix}driver"))
                && driver != "file"
            {
                return Err(no_such_driver(&driver));
            }
            self.take_common(prefix, options)?;
        }
        let filename = options.take(&format!("{prefix}filename"));
        let path = match name {
            Some(name) => without_protocol(name)?.to_owned(),
            None => match filename {
                Some(filename) => filename,
                None if prefix.is_empty() => {
                    return Err("The 'file' block driver requires a file name".into());
                }
                None => return Err("A block device must be specified for \"file\"".into()),
            },
        };
        if path.is_empty() {
            return Err("The 'file' block driver requires a file name".into());
        }
        self.path = path;
        Ok(())
    }

    /// The same image opened in another way.
    fn changed(&self, changes: Changes) -> Result<Self, String> {
        let mut plan = self.clone();
        let mut options = changes.options;
        if let Some(cache) = changes.cache {
            plan.cache = cache;
        }
        plan.take_common("", &mut options)?;
        if plan.read_only && self.user_writes && !self.read_only {
            return Err(format!(
                "Read-only block node '{NODE_NAME}' cannot support read-write users"
            ));
        }
        if let Some(read_only) = changes.read_only {
            plan.read_only = read_only;
            plan.user_writes &= !read_only;
        }
        let driver = match plan.layout {
            Layout::File => "file",
            Layout::Raw { .. } => "raw",
        };
        if options.get("driver") == Some(driver) {
            options.take("driver");
        }
        match options.iter().next() {
            None => Ok(plan),
            Some((key, _)) => Err(format!("Cannot change the option '{key}'")),
        }
    }
}

/// `file:` may stand before a name; other protocols are not here.
fn without_protocol(name: &str) -> Result<&str, String> {
    let Some((protocol, rest)) = name.split_once(':') else {
        return Ok(name);
    };
    match protocol {
        _ if protocol.contains('/') => Ok(name),
        "file" => Ok(rest),
        "json" => Err("json: names are not supported yet".into()),
        "blkdebug" | "blkverify" | "nbd" | "nbd+unix" | "null-co" | "null-aio" | "ssh" | "http"
        | "https" => Err(format!("protocol '{protocol}' is not supported yet")),
        _ => Err(format!("Unknown protocol '{protocol}'")),
    }
}

fn take_switch(options: &mut Options, key: &str) -> Result<Option<bool>, String> {
    let Some(value) = options.take(key) else {
        return Ok(None);
    };
    match value.as_str() {
        "on" | "yes" | "true" | "y" => Ok(Some(true)),
        "off" | "no" | "false" | "n" => Ok(Some(false)),
        _ => Err(format!("Parameter '{key}' expects 'on' or 'off'")),
    }
}

fn take_number(options: &mut Options, key: &str) -> Result<Option<u64>, String> {
    let Some(value) = options.take(key) else {
        return Ok(None);
    };
    match number::size(&value) {
        Ok(number) => Ok(Some(number)),
        Err(_) => Err(format!(
            "Parameter '{key}' expects a non-negative number below 2^64\nOptional suffix k, M, \
             G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively."
        )),
    }
}
