//! The commands of dirty bitmaps, alone and in a transaction.

use ringback_block::graph::{BitmapSpec, GraphError, MergeFrom, Transaction};
use ringback_qmp_shim::command::{
    BlockDirtyBitmap, BlockDirtyBitmapAdd, BlockDirtyBitmapMerge, BlockDirtyBitmapOrStr,
    TransactionAction,
};
use ringback_qmp_shim::command_error::CommandError;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::Reply;
use super::control::Control;
use crate::open::reason;

/// A change of a bitmap.
pub(super) enum Change {
    Add(BlockDirtyBitmapAdd),
    Remove(BlockDirtyBitmap),
    Clear(BlockDirtyBitmap),
    Enable(BlockDirtyBitmap),
    Disable(BlockDirtyBitmap),
    Merge(BlockDirtyBitmapMerge),
}

impl Change {
    /// The same with the names of drives replaced by those of their nodes.
    fn resolved(mut self, control: &Control) -> Self {
        let resolve = |name: &mut String| {
            if let Ok(node) = control.find_node(Some(name), Some(name)) {
                *name = node;
            }
        };
        match &mut self {
            Self::Add(add) => resolve(&mut add.node),
            Self::Remove(bitmap)
            | Self::Clear(bitmap)
            | Self::Enable(bitmap)
            | Self::Disable(bitmap) => resolve(&mut bitmap.node),
            Self::Merge(merge) => {
                resolve(&mut merge.node);
                for source in &mut merge.bitmaps {
                    if let BlockDirtyBitmapOrStr::External(bitmap) = source {
                        resolve(&mut bitmap.node);
                    }
                }
            }
        }
        self
    }

    /// The node that has to stand still for it.
    pub(super) fn node(&self) -> &str {
        match self {
            Self::Add(add) => &add.node,
            Self::Merge(merge) => &merge.node,
            Self::Remove(bitmap)
            | Self::Clear(bitmap)
            | Self::Enable(bitmap)
            | Self::Disable(bitmap) => &bitmap.node,
        }
    }

    /// The action of a transaction, if it is a change of a bitmap.
    pub(super) fn of_action(action: &TransactionAction, control: &Control) -> Option<Self> {
        let change = match action {
            TransactionAction::BlockDirtyBitmapAdd(add) => Self::Add(add.clone()),
            TransactionAction::BlockDirtyBitmapRemove(bitmap) => Self::Remove(bitmap.clone()),
            TransactionAction::BlockDirtyBitmapClear(bitmap) => Self::Clear(bitmap.clone()),
            TransactionAction::BlockDirtyBitmapEnable(bitmap) => Self::Enable(bitmap.clone()),
            TransactionAction::BlockDirtyBitmapDisable(bitmap) => Self::Disable(bitmap.clone()),
            TransactionAction::BlockDirtyBitmapMerge(merge) => Self::Merge(merge.clone()),
            _ => return None,
        };
        Some(change.resolved(control))
    }

    pub(super) async fn apply(&self, transaction: &mut Transaction<'_>) -> Result<(), GraphError> {
        match self {
            Self::Add(add) => transaction.add_bitmap(
                &add.node,
                &BitmapSpec {
                    name: add.name.clone(),
                    granularity: add.granularity.map(u64::from),
                    disabled: add.disabled.unwrap_or(false),
                    persistent: add.persistent.unwrap_or(false),
                },
            ),
            Self::Remove(bitmap) => transaction.remove_bitmap(&bitmap.node, &bitmap.name).await,
            Self::Clear(bitmap) => transaction.clear_bitmap(&bitmap.node, &bitmap.name),
            Self::Enable(bitmap) => transaction.set_recording(&bitmap.node, &bitmap.name, true),
            Self::Disable(bitmap) => transaction.set_recording(&bitmap.node, &bitmap.name, false),
            Self::Merge(merge) => {
                let sources: Vec<_> = merge.bitmaps.iter().map(merge_source).collect();
                transaction.merge_bitmaps(&merge.node, &merge.target, &sources)
            }
        }
    }
}

fn merge_source(source: &BlockDirtyBitmapOrStr) -> MergeFrom<'_> {
    match source {
        BlockDirtyBitmapOrStr::Local(name) => MergeFrom { node: None, name },
        BlockDirtyBitmapOrStr::External(bitmap) => MergeFrom {
            node: Some(&bitmap.node),
            name: &bitmap.name,
        },
    }
}

impl Control {
    pub(super) async fn change_bitmap(&mut self, change: Change) -> Reply {
        let change = change.resolved(self);
        let changed = self
            .graph
            .transact(&self.shard, &[change.node()], async |transaction| {
                change.apply(transaction).await
            })
            .await;
        changed.map_err(|error| CommandError::generic(reason(error)))?;
        Ok(json!({}))
    }

    /// The bits as QEMU keeps them in memory: whole words of 64, the lowest bit
    /// first.
    pub(super) fn bitmap_sha256(&self, bitmap: &BlockDirtyBitmap) -> Reply {
        let node = self
            .find_node(Some(&bitmap.node), Some(&bitmap.node))
            .map_err(|_| CommandError::generic(format!("Node '{}' not found", bitmap.node)))?;
        let bitmaps = self
            .graph
            .bitmaps(&node)
            .map_err(|_| CommandError::generic(format!("Node '{}' not found", bitmap.node)))?;
        let found = bitmaps.get(&bitmap.name).ok_or_else(|| {
            CommandError::generic(format!("Dirty bitmap '{}' not found", bitmap.name))
        })?;
        let bits = found.bits();
        let mut hasher = Sha256::new();
        for index in 0..bits.word_count() {
            hasher.update(bits.word(index).to_le_bytes());
        }
        let digest: String = hasher
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Ok(json!({ "sha256": digest }))
    }

    /// What queries show of a node's bitmaps: those of its own, and those which a
    /// copy-before-write filter works with.
    pub(super) fn bitmap_entries(&self, node: &str) -> Vec<Value> {
        let Ok(shown) = self.graph.shown_bitmaps(node) else {
            return Vec::new();
        };
        let entries = shown.into_iter().map(|info| {
            let mut entry = json!({
                "recording": info.flags.recording,
                "busy": info.flags.busy,
                "persistent": info.flags.persistent,
                "granularity": info.granularity,
                "count": info.count,
            });
            if let Some(name) = info.name {
                entry["name"] = name.into();
            }
            if info.flags.inconsistent {
                entry["inconsistent"] = true.into();
            }
            entry
        });
        entries.collect()
    }
}
