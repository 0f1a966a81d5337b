//! An image that the shell has opened itself: the graph it lives in, how it is
//! opened another way, how it is closed.
//!
//! What is done with its data, `disk` knows.

use ringback_block::graph::{Access, Graph, GraphError, NodeSpec, UserId};
use ringback_block::notice::{Notice, Notify};
use ringback_block::request::Preallocation;
use ringback_qmp_shim::blockdev::{Discard, Settings};
use ringback_qmp_shim::open::open as resolve;
use ringback_ring::file::Cache;
use ringback_ring::{Shard, error_text};
use serde_json::{Map, Value};

use std::collections::BTreeMap;
use std::rc::Rc;

use super::disk::{Disk, Node};
use super::options::{CacheMode, Options};
use super::output::complain;
use crate::open::{self, Chain, Objects, QemuName};

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

/// What is to change in [`Image::reopen`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Changes {
    /// Also gives up, or takes back, the right to write.
    pub(crate) read_only: Option<bool>,
    pub(crate) cache: Option<CacheMode>,
    pub(crate) options: Options,
}

/// What was asked for.
#[derive(Clone, Debug)]
struct Plan {
    objects: Objects,
    name: Option<String>,
    options: Map<String, Value>,
    flags: OpenFlags,
    /// The user has asked to write: then the file cannot become read-only
    /// without the user's consent.
    user_writes: bool,
}

/// An open image.
pub(crate) struct Image {
    graph: Graph,
    chain: Chain,
    user: UserId,
    plan: Plan,
    disk: Rc<Disk>,
}

impl Image {
    /// Opens an image: a name, options, or both.
    ///
    /// # Errors
    ///
    /// The reason, without what could not be opened.
    pub(crate) async fn open(
        shard: &Shard,
        objects: &Objects,
        name: Option<&str>,
        options: &Options,
        flags: OpenFlags,
    ) -> Result<Self, String> {
        let plan = Plan::new(objects, name, options, flags)?;
        Self::new(shard, plan, true).await
    }

    /// What it holds.
    pub(crate) fn disk(&self) -> Rc<Disk> {
        Rc::clone(&self.disk)
    }

    /// The user has asked to write.
    pub(crate) fn claim_writing(&mut self) {
        self.plan.user_writes = true;
    }

    /// Flushes and lets go. Nothing may be in flight; an error is not told.
    pub(crate) async fn close(self, shard: &Shard) {
        if self.disk.is_writable() {
            let _ = self.disk.flush().await;
        }
        self.end(shard).await;
    }

    /// Opens the same image in another way. Nothing may be in flight. If that
    /// cannot be, it is as it was; none is left if it cannot be opened again.
    ///
    /// # Errors
    ///
    /// The reason.
    pub(crate) async fn reopen(
        self,
        shard: &Shard,
        changes: &Changes,
    ) -> (Option<Self>, Result<(), String>) {
        let plan = match self.changed(changes) {
            Ok(plan) => plan,
            Err(reason) => return (Some(self), Err(reason)),
        };
        if self.disk.is_writable()
            && let Err(errno) = self.disk.flush().await
        {
            return (Some(self), Err(error_text(errno)));
        }
        let old_plan = self.plan.clone();
        self.end(shard).await;
        let reason = match Self::new(shard, plan, false).await {
            Ok(image) => return (Some(image), Ok(())),
            Err(reason) => reason,
        };
        match Self::new(shard, old_plan, false).await {
            Ok(image) => (Some(image), Err(reason)),
            Err(reason) => (None, Err(reason)),
        }
    }

    /// Gives it another size.
    ///
    /// # Errors
    ///
    /// What the graph answers.
    pub(crate) async fn resize(
        &mut self,
        shard: &Shard,
        size: u64,
        mode: Preallocation,
    ) -> Result<(), GraphError> {
        let top = &self.chain.top.node;
        self.graph.resize(shard, top, size, mode).await
    }

    /// The first time, a format that was only guessed is told.
    async fn new(shard: &Shard, plan: Plan, is_first: bool) -> Result<Self, String> {
        let settings = plan.settings();
        let named = QemuName::of(plan.name.as_deref(), &plan.options, &plan.objects)?;
        let node = resolve(named.name.as_deref(), &named.options, &settings)
            .map_err(|error| error.to_string())?;
        let mut graph = Graph::new();
        plan.objects.add_groups(shard, &mut graph)?;
        let mut chain = open::open(
            shard,
            &mut graph,
            notify(),
            node,
            is_first,
            open::Servers {
                find_credentials: &|id| named.credentials(id, &plan.objects),
                bitmap: None,
            },
            &mut BTreeMap::new(),
        )
        .await?;
        for warning in &chain.warnings {
            complain(&format!("qemu-io: warning: {warning}"));
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
            ..Access::default()
        };
        let attached = graph.attach(shard, &entry, "qemu-io", access).await;
        match attached {
            Ok((user, attachment)) => {
                let node = Node::new(&graph, &chain.top);
                let writethrough = plan.flags.cache.writethrough;
                let disk = Rc::new(Disk::new(shard, attachment, node, writethrough));
                Ok(Self {
                    graph,
                    chain,
                    user,
                    plan,
                    disk,
                })
            }
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
        // It holds the files, and with them their locks.
        drop(self.disk);
        self.graph.detach(self.user).await;
        match open::close(shard, &mut self.graph, &self.chain.nodes).await {
            // The image itself has told.
            Ok(()) | Err(GraphError::Close { .. }) => {}
            Err(error) => complain(&format!("qemu-io: {error}")),
        }
    }
}

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
        // Nobody sets a threshold here.
        Notice::WriteThreshold { .. } => {}
        Notice::Error(text) => complain(&format!("qemu-io: {text}")),
        Notice::Warning(text) => complain(&format!("qemu-io: warning: {text}")),
        Notice::Message(text) => complain(&text),
    })
}

impl Plan {
    fn new(
        objects: &Objects,
        name: Option<&str>,
        options: &Options,
        flags: OpenFlags,
    ) -> Result<Self, String> {
        let plan = Self {
            objects: objects.clone(),
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
