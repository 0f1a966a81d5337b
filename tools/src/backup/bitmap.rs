//! What becomes of the source's bitmap at the end.
//!
//! The source was open for reading only. Now it becomes writable, without being
//! closed in between: so nobody else can have written to it since the copy began,
//! and a bitmap that is cleared or begun now stands for the backup's instant.

use ringback_block::format::qcow2::OpenOptions;
use ringback_block::graph::reopen::{Change, Reopening};
use ringback_block::graph::{BitmapSpec, Graph, GraphError};
use ringback_block::span::Span;
use ringback_ring::Shard;
use ringback_ring::file::Cache;

use super::open::{Disk, notify};

/// A change of a persistent bitmap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Only this is still dirty.
    Leave(Vec<Span>),
    /// A clean one begins; one of that name is removed first.
    Begin {
        /// There is one of that name.
        is_there: bool,
    },
}

impl Ending {
    /// Changes the bitmap in memory. It is stored when the source is closed.
    ///
    /// # Errors
    ///
    /// The reason.
    pub(crate) async fn carry_out(
        &self,
        shard: &Shard,
        graph: &mut Graph,
        source: &Disk,
        name: &str,
    ) -> Result<(), String> {
        let changed = self.change(shard, graph, source, name).await;
        changed.map_err(|error| error.to_string())
    }

    async fn change(
        &self,
        shard: &Shard,
        graph: &mut Graph,
        source: &Disk,
        name: &str,
    ) -> Result<(), GraphError> {
        make_writable(shard, graph, source).await?;
        let node = source.node();
        match self {
            Self::Leave(dirty) => {
                graph
                    .change_bitmaps(node, |bitmaps| bitmaps.clear(name))
                    .await?;
                if let Some(bitmap) = graph.bitmaps(node)?.get(name) {
                    for span in dirty {
                        bitmap.bits().mark(shard.index(), span.offset, span.len);
                    }
                }
                Ok(())
            }
            Self::Begin { is_there } => {
                if *is_there {
                    graph
                        .transact(shard, &[node], async |transaction| {
                            transaction.remove_bitmap(node, name).await
                        })
                        .await?;
                }
                let spec = BitmapSpec {
                    name: name.into(),
                    granularity: None,
                    disabled: false,
                    persistent: true,
                };
                graph
                    .transact(shard, &[node], async |transaction| {
                        transaction.add_bitmap(node, &spec)
                    })
                    .await
            }
        }
    }
}

/// Lets a qcow2 image be written that was open for reading.
async fn make_writable(shard: &Shard, graph: &mut Graph, source: &Disk) -> Result<(), GraphError> {
    let top = source.node();
    let child = |graph: &Graph, node: &str, wanted: &str| {
        let children = graph.children(node).into_iter();
        let mut found = children.filter(|(edge, _)| *edge == wanted);
        found.next().map(|(_, child)| child.to_owned())
    };
    let cache = if source.is_direct {
        Cache::Direct
    } else {
        Cache::Buffered
    };
    let mut list = Vec::new();
    for edge in ["file", "data-file"] {
        let Some(mut bottom) = child(graph, top, edge) else {
            continue;
        };
        // The image may lie in a window of a file.
        while let Some(below) = child(graph, &bottom, "file") {
            bottom = below;
        }
        list.push(Reopening {
            policy: graph.policy(&bottom)?,
            node: bottom,
            change: Change::File { write: true, cache },
        });
    }
    let mut options = OpenOptions::new(true);
    options.notify = notify();
    list.push(Reopening {
        node: top.into(),
        policy: graph.policy(top)?,
        change: Change::Qcow2 {
            file: child(graph, top, "file").unwrap_or_default(),
            backing: child(graph, top, "backing"),
            options: Some(Box::new(options)),
        },
    });
    graph.reopen(shard, &list).await
}
