//! What a backup changes in the graph: its filter and its bitmap, at the start
//! and at the end.

use std::sync::Arc;

use ringback_ring::{Shard, error_text};

use super::backup::{Backup, OptionError, Options, Sync};
use super::{Bell, End, JobRefusal, Jobs, Kind};
use crate::bitmap::BitmapError;
use crate::copy::Progress;
use crate::copy::control::JobError;
use crate::copy::governor::{LatencyTarget, Standing};
use crate::filter::copy_before_write::{self, CopyBeforeWrite};
use crate::graph::{BitmapEnd, Graph, GraphError, Insertion, Scope, Transaction};

/// What becomes of a bitmap at the end of a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitmapMode {
    /// It stays as it was, and what was written meanwhile is added.
    Never,
    /// If the backup succeeds, only what was written meanwhile is left.
    OnSuccess,
    /// What was not copied, and what was written meanwhile, is left.
    Always,
}

impl BitmapMode {
    /// Its name in QMP.
    pub fn name(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::OnSuccess => "on-success",
            Self::Always => "always",
        }
    }
}

/// What a backup copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncMode {
    /// The whole disk.
    Full,
    /// What the topmost image holds.
    Top,
    /// Nothing but what guests are about to overwrite.
    None,
    /// What is dirty in a bitmap.
    Bitmap,
    /// The same, and the bitmap is cleared if that succeeds.
    Incremental,
}

impl SyncMode {
    /// Its name in QMP.
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Top => "top",
            Self::None => "none",
            Self::Bitmap => "bitmap",
            Self::Incremental => "incremental",
        }
    }
}

/// A backup that somebody asks for.
#[derive(Clone, Debug)]
pub struct BackupSpec {
    /// The disk.
    pub source: String,
    /// Where to.
    pub target: String,
    /// Name of the filter; none: one is made.
    pub filter_node: Option<String>,
    /// What is copied.
    pub sync: SyncMode,
    /// A bitmap of the source.
    pub bitmap: Option<String>,
    /// What becomes of it.
    pub bitmap_mode: Option<BitmapMode>,
    /// Of the filter.
    pub filter: copy_before_write::Options,
    /// Of the work; what it copies is filled in.
    pub options: Options,
}

/// What a backup does with its bitmap, when the rules have been looked at.
type BitmapUse = Option<(String, BitmapMode)>;

/// Why there will be no backup. The texts are QEMU's.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BackupRefusal {
    /// The job's name, or its limit.
    #[error(transparent)]
    Job(#[from] JobRefusal),
    /// There is nothing to copy by.
    #[error("must provide a valid bitmap name for '{}' sync mode", .0.name())]
    BitmapMissing(SyncMode),
    /// The word for one mode beside another mode.
    #[error("Bitmap sync mode must be 'on-success' when using sync mode 'incremental'")]
    IncrementalMode,
    /// What is to become of the bitmap?
    #[error("Bitmap sync mode must be given when providing a bitmap")]
    ModeMissing,
    /// Of which bitmap?
    #[error("Cannot specify bitmap sync mode without a bitmap")]
    ModeWithoutBitmap,
    /// Nobody could say what was copied.
    #[error("sync mode 'none' does not produce meaningful bitmap outputs")]
    NoneWithBitmap,
    /// The bitmap would change nothing.
    #[error("Bitmap sync mode 'never' has no meaningful effect when combined with sync mode '{}'", .0.name())]
    NeverWith(SyncMode),
    /// The source has no such bitmap.
    #[error("Bitmap '{0}' could not be found")]
    NoBitmap(String),
    /// The bitmap may not be used.
    #[error(transparent)]
    Bitmap(#[from] BitmapError),
    /// A disk cannot be copied onto itself.
    #[error("Source and target cannot be the same")]
    SameNode,
    /// The target's format does not compress.
    #[error("Compression is not supported for this drive ")]
    NoCompression,
    /// Another job has it.
    #[error("Node '{node}' is busy: block device is in use by block job: {}", .kind.name())]
    Busy {
        /// Which node.
        node: String,
        /// What that job does.
        kind: Kind,
    },
    /// Both must be equally long.
    #[error("Source and target image have different sizes")]
    Sizes,
    /// The filter could not be put in.
    #[error("Could not create node: {0}")]
    Filter(GraphError),
    /// The graph refused something else.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The options cannot be met.
    #[error(transparent)]
    Options(#[from] OptionError),
}

impl BackupSpec {
    /// What is done with the bitmap, if the rules allow it.
    fn bitmap_use(&self, graph: &Graph) -> Result<BitmapUse, BackupRefusal> {
        let mut mode = self.bitmap_mode;
        if matches!(self.sync, SyncMode::Bitmap | SyncMode::Incremental) {
            if self.bitmap.is_none() {
                return Err(BackupRefusal::BitmapMissing(self.sync));
            }
            if self.sync == SyncMode::Incremental {
                if mode.is_some_and(|mode| mode != BitmapMode::OnSuccess) {
                    return Err(BackupRefusal::IncrementalMode);
                }
                mode = Some(BitmapMode::OnSuccess);
            }
        }
        let Some(name) = &self.bitmap else {
            return match mode {
                None => Ok(None),
                Some(_) => Err(BackupRefusal::ModeWithoutBitmap),
            };
        };
        let bitmap = graph.bitmaps(&self.source)?.get(name);
        let bitmap = bitmap.ok_or_else(|| BackupRefusal::NoBitmap(name.clone()))?;
        let mode = mode.ok_or(BackupRefusal::ModeMissing)?;
        bitmap.check_usable(mode == BitmapMode::Never)?;
        match (self.sync, mode) {
            (SyncMode::None, _) => Err(BackupRefusal::NoneWithBitmap),
            (SyncMode::Full | SyncMode::Top, BitmapMode::Never) => {
                Err(BackupRefusal::NeverWith(self.sync))
            }
            _ => Ok(Some((name.clone(), mode))),
        }
    }

    /// Everything that can be said before the graph is changed, in QEMU's order.
    pub(super) fn check(&self, graph: &Graph, jobs: &Jobs) -> Result<BitmapUse, BackupRefusal> {
        let bitmap = self.bitmap_use(graph)?;
        if self.source == self.target {
            return Err(BackupRefusal::SameNode);
        }
        if self.filter.compress && !graph.can_compress(&self.target)? {
            return Err(BackupRefusal::NoCompression);
        }
        if let Some((_, kind)) = jobs.using(&self.target) {
            return Err(BackupRefusal::Busy {
                node: self.target.clone(),
                kind,
            });
        }
        if let Some(("target", kind)) = jobs.using(&self.source) {
            return Err(BackupRefusal::Busy {
                node: self.source.clone(),
                kind,
            });
        }
        self.options.check_workers()?;
        if graph.size(&self.source)? != graph.size(&self.target)? {
            return Err(BackupRefusal::Sizes);
        }
        if self.options.discard_source && !graph.can_discard(&self.source)? {
            return Err(BackupRefusal::Filter(GraphError::ReadOnly));
        }
        Ok(bitmap)
    }
}

/// A backup from its filter's insertion to its removal.
pub(super) struct BackupJob {
    source: String,
    target: String,
    filter_node: String,
    filter: Arc<CopyBeforeWrite>,
    bitmap: BitmapUse,
    options: Options,
    running: Option<Backup>,
}

impl BackupJob {
    /// Puts the filter in; `last_check` comes when everything else is in order.
    pub(super) fn prepare(
        transaction: &mut Transaction<'_>,
        spec: BackupSpec,
        bitmap: BitmapUse,
        last_check: impl FnOnce() -> Result<(), JobRefusal>,
    ) -> Result<Self, BackupRefusal> {
        let by_bitmap = matches!(spec.sync, SyncMode::Bitmap | SyncMode::Incremental);
        let options = Options {
            sync: match spec.sync {
                SyncMode::Full | SyncMode::Bitmap | SyncMode::Incremental => Sync::Full,
                SyncMode::Top => Sync::Top,
                SyncMode::None => Sync::None,
            },
            ..spec.options
        };
        let insertion = Insertion {
            node_name: spec.filter_node.as_deref(),
            file: &spec.source,
            target: &spec.target,
            bitmap: bitmap.as_ref().map(|(name, _)| name.as_str()),
            scope: if by_bitmap {
                Scope::BitmapAlone
            } else {
                Scope::Everything
            },
            options: spec.filter,
        };
        let (filter_node, filter) = transaction
            .insert(&insertion)
            .map_err(BackupRefusal::Filter)?;
        options.check(filter.cluster_size())?;
        last_check()?;
        Ok(Self {
            source: spec.source,
            target: spec.target,
            filter_node,
            filter,
            bitmap,
            options,
            running: None,
        })
    }

    pub(super) fn start(&mut self, shard: &Shard, bell: &Bell) -> Result<(), OptionError> {
        let backup = Backup::start(shard, &self.filter, self.options)?;
        backup.watch(shard, bell.clone());
        self.running = Some(backup);
        Ok(())
    }

    pub(super) fn running(&self) -> Option<&Backup> {
        self.running.as_ref()
    }

    pub(super) fn target(&self) -> &str {
        &self.target
    }

    pub(super) fn set_latency_target(&mut self, target: LatencyTarget) {
        self.options.latency_target = target;
        if let Some(running) = &self.running {
            running.set_latency_target(target);
        }
    }

    /// The target, and how the copying stands; nothing stands before it begins.
    pub(super) fn latency(&self) -> (LatencyTarget, Standing) {
        let standing = self.running.as_ref().map(Backup::standing);
        (self.options.latency_target, standing.unwrap_or_default())
    }

    pub(super) fn progress(&self) -> Progress {
        self.filter.progress()
    }

    pub(super) fn nodes(&self) -> Vec<(&'static str, &str)> {
        vec![
            ("main node", &self.filter_node),
            ("source", &self.source),
            ("target", &self.target),
        ]
    }

    /// Gives the bitmap back and takes the filter out.
    pub(super) async fn end(
        self,
        shard: &Shard,
        graph: &mut Graph,
        has_succeeded: bool,
    ) -> Result<(), GraphError> {
        let given_back = self.give_bitmap_back(shard, graph, has_succeeded).await;
        // The filter must go, whatever has become of the bitmap.
        let removed = graph
            .remove_copy_before_write(shard, &self.filter_node)
            .await;
        given_back.and(removed)
    }

    async fn give_bitmap_back(
        &self,
        shard: &Shard,
        graph: &mut Graph,
        has_succeeded: bool,
    ) -> Result<(), GraphError> {
        if let Some((name, mode)) = &self.bitmap {
            let end = match mode {
                BitmapMode::Never => BitmapEnd::Reclaim,
                BitmapMode::OnSuccess if has_succeeded => BitmapEnd::Abdicate,
                BitmapMode::OnSuccess => BitmapEnd::Reclaim,
                BitmapMode::Always => BitmapEnd::Abdicate,
            };
            graph.end_bitmap(&self.source, name, end).await?;
            if !has_succeeded && *mode == BitmapMode::Always {
                let bitmaps = graph.bitmaps(&self.source)?;
                if let Some(bitmap) = bitmaps.get(name) {
                    for span in self.filter.untouched() {
                        bitmap.bits().mark(shard.index(), span.offset, span.len);
                    }
                }
            }
        }
        Ok(())
    }
}

impl JobError {
    /// As others are told.
    pub(super) fn end(self) -> End {
        match self.errno() {
            None => End::Cancelled,
            Some(errno) => End::Failed(error_text(errno)),
        }
    }
}
