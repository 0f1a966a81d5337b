//! Opening source and target through the names that every other command takes.

use std::collections::BTreeMap;
use std::path::PathBuf;

use ringback_block::graph::{Access, Graph, UserId};
use ringback_block::notice::{Notice, Notify};
use ringback_block::port::Attachment;
use ringback_qmp_shim::blockdev::{Discard, Settings};
use ringback_qmp_shim::open::open as resolve;
use ringback_ring::Shard;
use serde_json::{Map, Value};

use super::advised;
use super::args::CacheArg;
use crate::open::{self, Chain, Objects, QemuName};

/// How long a lock is tried again: a process with a ring gives its files back a
/// moment after its end, when the kernel has taken the ring apart.
const PATIENCE_NS: u64 = 1_000_000_000;
const RETRY_NS: u64 = 50_000_000;
/// What every refusal has in it that another process is behind.
pub(crate) const LOCKED: &str = "Is another process using the image";

/// A disk to be opened.
pub(crate) struct Wanted<'a> {
    pub(crate) name: &'a str,
    /// Beside the name, flat.
    pub(crate) options: Map<String, Value>,
    /// What names and options can refer to.
    pub(crate) objects: &'a Objects,
    /// Of an NBD server, to be read.
    pub(crate) bitmap: Option<&'a str>,
    pub(crate) write: bool,
    pub(crate) force_share: bool,
    pub(crate) cache: CacheArg,
    /// Who uses it, for messages.
    pub(crate) user: &'a str,
    pub(crate) access: Access,
}

/// A disk that is open and in use.
pub(crate) struct Disk {
    pub(crate) chain: Chain,
    pub(crate) user: UserId,
    pub(crate) attachment: Attachment,
    /// The page cache is passed by.
    pub(crate) is_direct: bool,
}

impl Disk {
    /// Uses it again after somebody else had it for himself, in this process:
    /// only to read, and to flush.
    ///
    /// # Errors
    ///
    /// The reason.
    pub(crate) async fn attach_again(
        &mut self,
        shard: &Shard,
        graph: &mut Graph,
    ) -> Result<(), String> {
        let access = Access {
            read: true,
            write: false,
            alone_writing: true,
            ..Access::default()
        };
        let attached = graph
            .attach(shard, &self.chain.top.node, "the verification", access)
            .await;
        (self.user, self.attachment) = attached.map_err(|error| error.to_string())?;
        Ok(())
    }

    /// The topmost node.
    pub(crate) fn node(&self) -> &str {
        &self.chain.top.node
    }

    /// All files and devices that it consists of.
    pub(crate) fn paths(&self, graph: &Graph) -> Vec<PathBuf> {
        let mut paths: Vec<PathBuf> = self
            .chain
            .nodes
            .iter()
            .filter_map(|node| graph.file(node))
            .map(|file| file.path().to_owned())
            .collect();
        paths.sort();
        paths.dedup();
        paths
    }
}

impl Wanted<'_> {
    /// Opens it, and takes its locks.
    ///
    /// # Errors
    ///
    /// The reason; nothing is open then.
    pub(crate) async fn open(&self, shard: &Shard, graph: &mut Graph) -> Result<Disk, String> {
        let deadline_ns = shard.now_ns().saturating_add(PATIENCE_NS);
        loop {
            match self.try_caches(shard, graph).await {
                Err(error) if error.contains(LOCKED) && shard.now_ns() < deadline_ns => {
                    shard.sleep_ns(RETRY_NS).await;
                }
                result => return result,
            }
        }
    }

    /// Not every file system, and not every length, can do without the page
    /// cache.
    async fn try_caches(&self, shard: &Shard, graph: &mut Graph) -> Result<Disk, String> {
        let mut result = Err(String::new());
        // A server is asked once: our page cache has nothing to do with it.
        let is_server = self.name.starts_with("nbd") && self.name.contains("://");
        let attempts_max = if is_server { 1 } else { 2 };
        for &is_direct in self.cache.attempts().iter().take(attempts_max) {
            result = self.try_open(shard, graph, is_direct).await;
            let is_final = match &result {
                Ok(_) => true,
                Err(error) => error.contains(LOCKED),
            };
            if is_final {
                break;
            }
        }
        result.map_err(|error| format!("'{}': {}", self.name, advised(&error)))
    }

    async fn try_open(
        &self,
        shard: &Shard,
        graph: &mut Graph,
        is_direct: bool,
    ) -> Result<Disk, String> {
        let settings = Settings {
            read_only: !self.write,
            force_share: self.force_share,
            direct: is_direct,
            direct_given: true,
            discard: Discard::Unmap,
            ..Settings::default()
        };
        let named = QemuName::of(Some(self.name), &self.options, self.objects)?;
        let node = resolve(named.name.as_deref(), &named.options, &settings)
            .map_err(|error| error.to_string())?;
        let mut known = BTreeMap::new();
        let chain = open::open(
            shard,
            graph,
            notify(),
            node,
            false,
            open::Servers {
                find_credentials: &|id| named.credentials(id, self.objects),
                bitmap: self.bitmap,
            },
            &mut known,
        )
        .await?;
        let attached = graph
            .attach(shard, &chain.top.node, self.user, self.access)
            .await;
        match attached {
            Ok((user, attachment)) => {
                for warning in &chain.warnings {
                    eprintln!("ringback: warning: {warning}");
                }
                Ok(Disk {
                    chain,
                    user,
                    attachment,
                    is_direct,
                })
            }
            Err(error) => {
                // The first error counts.
                let _ = open::close(shard, graph, &chain.nodes).await;
                Err(open::reason(error))
            }
        }
    }
}

/// What the engine has to say goes to standard error.
pub(crate) fn notify() -> Notify {
    Notify::new(|notice| match notice {
        Notice::ImageCorrupt { message, .. } => {
            eprintln!("ringback: an image is corrupt: {message}");
        }
        // Nobody sets a threshold here.
        Notice::WriteThreshold { .. } => {}
        Notice::Error(text) => eprintln!("ringback: {text}"),
        Notice::Warning(text) => eprintln!("ringback: warning: {text}"),
        Notice::Message(text) => eprintln!("{text}"),
    })
}
