//! Backups and transactions: from the arguments of QMP to what the engine does.

use ringback_block::copy::control::OnError;
use ringback_block::filter::copy_before_write;
use ringback_block::graph::{GraphError, Transaction};
use ringback_block::job::backup::Options;
use ringback_block::job::{
    BackupRefusal, BackupSpec, BitmapMode, Flags, Group, JobRefusal, Jobs, SyncMode,
};
use ringback_qmp_shim::command::{
    ActionCompletionMode, BackupPerf, BitmapSyncMode, BlockdevBackup, BlockdevOnError,
    BlockdevSnapshot, MirrorSyncMode, TransactionAction,
};
use ringback_qmp_shim::command_error::CommandError;
use serde_json::{Value, json};

use super::Reply;
use super::bitmaps::Change;
use super::control::Control;
use crate::open::{cbw_timeout_ns, on_cbw_error, reason};

/// A step of a transaction.
enum Step {
    Bitmap(Change),
    Backup {
        id: String,
        spec: Box<BackupSpec>,
        flags: Flags,
    },
    Snapshot {
        node: String,
        overlay: String,
    },
    /// An action that can only fail.
    Refused(CommandError),
}

impl Step {
    /// The node that has to stand still for it.
    fn node(&self) -> Option<&str> {
        match self {
            Self::Bitmap(change) => Some(change.node()),
            Self::Backup { spec, .. } => Some(&spec.source),
            Self::Snapshot { node, .. } => Some(node),
            Self::Refused(_) => None,
        }
    }
}

impl Control {
    pub(super) async fn blockdev_backup(&mut self, backup: &BlockdevBackup) -> Reply {
        let group = self.jobs.new_group();
        let step = self.backup_step(backup);
        self.carry_out(vec![(step, group)]).await
    }

    pub(super) async fn transaction(
        &mut self,
        actions: &[TransactionAction],
        mode: ActionCompletionMode,
    ) -> Reply {
        let is_grouped = mode == ActionCompletionMode::Grouped;
        if is_grouped {
            let misfit = actions.iter().find(|action| {
                !matches!(
                    action,
                    TransactionAction::BlockdevBackup(_) | TransactionAction::DriveBackup(_)
                )
            });
            if let Some(action) = misfit {
                return Err(CommandError::generic(format!(
                    "Action '{}' does not support transaction property completion-mode = grouped",
                    action.name()
                )));
            }
        }
        let common = self.jobs.new_group();
        let mut steps = Vec::new();
        for action in actions {
            let group = if is_grouped {
                common
            } else {
                self.jobs.new_group()
            };
            steps.push((self.step_of(action), group));
        }
        self.carry_out(steps).await
    }

    fn step_of(&self, action: &TransactionAction) -> Step {
        if let Some(change) = Change::of_action(action) {
            return Step::Bitmap(change);
        }
        match action {
            TransactionAction::Abort => Step::Refused(CommandError::generic(
                "Transaction aborted using Abort action",
            )),
            TransactionAction::BlockdevBackup(backup) => self.backup_step(backup),
            TransactionAction::BlockdevSnapshot(snapshot) => self.snapshot_step(snapshot),
            other => Step::Refused(CommandError::generic(format!(
                "ringback does not implement the transaction action '{}'",
                other.name()
            ))),
        }
    }

    fn backup_step(&self, backup: &BlockdevBackup) -> Step {
        match self.backup_spec(backup) {
            Ok(spec) => Step::Backup {
                id: self.job_id(backup.job_id.as_deref(), &backup.device),
                spec: Box::new(spec),
                flags: Flags {
                    auto_finalize: backup.auto_finalize.unwrap_or(true),
                    auto_dismiss: backup.auto_dismiss.unwrap_or(true),
                },
            },
            Err(error) => Step::Refused(error),
        }
    }

    pub(super) async fn blockdev_snapshot(&mut self, snapshot: BlockdevSnapshot) -> Reply {
        let group = self.jobs.new_group();
        let step = self.snapshot_step(&snapshot);
        self.carry_out(vec![(step, group)]).await
    }

    fn snapshot_step(&self, snapshot: &BlockdevSnapshot) -> Step {
        let node = self.find_node(Some(&snapshot.node), Some(&snapshot.node));
        let overlay = self.find_node(Some(&snapshot.overlay), Some(&snapshot.overlay));
        match (node, overlay) {
            (Ok(node), Ok(overlay)) => Step::Snapshot { node, overlay },
            (Err(error), _) | (_, Err(error)) => Step::Refused(error),
        }
    }

    /// A job that nobody has named has the name of the device; a node is none.
    fn job_id(&self, given: Option<&str>, device: &str) -> String {
        match given {
            Some(id) => id.to_owned(),
            None if self.node_of_device(device).is_some() => device.to_owned(),
            None => String::new(),
        }
    }

    /// All steps at one instant, or none.
    async fn carry_out(&mut self, steps: Vec<(Step, Group)>) -> Reply {
        let nodes: Vec<&str> = steps.iter().filter_map(|(step, _)| step.node()).collect();
        let mut transaction = self.graph.begin(&self.shard, &nodes).await;
        let mut jobs = Vec::new();
        let mut result = Ok(());
        for (step, group) in steps.iter() {
            result = take_step(&mut self.jobs, &mut transaction, step, *group).await;
            if result.is_err() {
                break;
            }
            if let Step::Backup { id, .. } = step {
                jobs.push(id.clone());
            }
        }
        match result {
            Ok(()) => {
                let committed = transaction.commit().await;
                committed.map_err(|error| CommandError::generic(reason(error)))?;
                let started = self.jobs.start(&self.shard, &jobs);
                started.map_err(|refusal| refused(&refusal))?;
                self.learn_filters();
                Ok(json!({}))
            }
            Err(error) => {
                self.jobs.drop_created(&jobs);
                transaction.abort().await;
                Err(error)
            }
        }
    }

    fn backup_spec(&self, backup: &BlockdevBackup) -> Result<BackupSpec, CommandError> {
        let source = self.find_node(Some(&backup.device), Some(&backup.device))?;
        let target = self.find_node(Some(&backup.target), Some(&backup.target))?;
        let perf = backup.x_perf.as_ref();
        if backup.discard_source == Some(true) {
            return Err(CommandError::generic(
                "ringback does not implement 'discard-source'",
            ));
        }
        let speed = u64::try_from(backup.speed.unwrap_or(0))
            .map_err(|_| CommandError::generic(JobRefusal::Speed.to_string()))?;
        let (max_workers, max_chunk) = checked(perf)?;
        Ok(BackupSpec {
            source,
            target,
            filter_node: backup.filter_node_name.clone(),
            sync: match backup.sync {
                MirrorSyncMode::Top => SyncMode::Top,
                MirrorSyncMode::Full => SyncMode::Full,
                MirrorSyncMode::None => SyncMode::None,
                MirrorSyncMode::Incremental => SyncMode::Incremental,
                MirrorSyncMode::Bitmap => SyncMode::Bitmap,
            },
            bitmap: backup.bitmap.clone(),
            bitmap_mode: backup.bitmap_mode.map(|mode| match mode {
                BitmapSyncMode::Never => BitmapMode::Never,
                BitmapSyncMode::OnSuccess => BitmapMode::OnSuccess,
                BitmapSyncMode::Always => BitmapMode::Always,
            }),
            filter: copy_before_write::Options {
                on_cbw_error: on_cbw_error(backup.on_cbw_error),
                cbw_timeout_ns: cbw_timeout_ns(backup.cbw_timeout),
                min_cluster_size: perf.and_then(|perf| perf.min_cluster_size).unwrap_or(0),
                compress: backup.compress.unwrap_or(false),
                ..copy_before_write::Options::default()
            },
            options: Options {
                max_workers,
                max_chunk,
                speed,
                on_source_error: on_error(backup.on_source_error),
                on_target_error: on_error(backup.on_target_error),
                ..Options::default()
            },
        })
    }
}

async fn take_step(
    jobs: &mut Jobs,
    transaction: &mut Transaction<'_>,
    step: &Step,
    group: Group,
) -> Result<(), CommandError> {
    let graph = |error: GraphError| CommandError::generic(reason(error));
    match step {
        Step::Refused(error) => Err(error.clone()),
        Step::Bitmap(change) => {
            change.check_node(transaction.graph())?;
            change.apply(transaction).await.map_err(graph)
        }
        Step::Snapshot { node, overlay } => transaction.overlay(node, overlay).map_err(graph),
        Step::Backup { id, spec, flags } => {
            let prepared =
                jobs.prepare_backup(transaction, id, spec.as_ref().clone(), *flags, group);
            prepared.map_err(|refusal| refused(&refusal))
        }
    }
}

fn refused(refusal: &BackupRefusal) -> CommandError {
    CommandError::generic(match refusal {
        BackupRefusal::Graph(error) => reason(error.clone()),
        BackupRefusal::Filter(error) => {
            format!("Could not create node: {}", reason(error.clone()))
        }
        other => other.to_string(),
    })
}

/// Workers and bytes of a chunk.
fn checked(perf: Option<&BackupPerf>) -> Result<(u32, u64), CommandError> {
    let workers = perf.and_then(|perf| perf.max_workers).unwrap_or(64);
    let max_workers = u32::try_from(workers)
        .ok()
        .filter(|&workers| workers >= 1 && i32::try_from(workers).is_ok());
    let Some(max_workers) = max_workers else {
        let most = i32::MAX;
        return Err(CommandError::generic(format!(
            "max-workers must be between 1 and {most}"
        )));
    };
    let max_chunk =
        u64::try_from(perf.and_then(|perf| perf.max_chunk).unwrap_or(0)).map_err(|_| {
            CommandError::generic("max-chunk must be zero (which means no limit) or positive")
        })?;
    Ok((max_workers, max_chunk))
}

fn on_error(policy: Option<BlockdevOnError>) -> OnError {
    match policy {
        None | Some(BlockdevOnError::Report) => OnError::Report,
        Some(BlockdevOnError::Ignore) => OnError::Ignore,
        Some(BlockdevOnError::Stop) => OnError::Stop,
        Some(BlockdevOnError::Enospc | BlockdevOnError::Auto) => OnError::Enospc,
    }
}

impl Control {
    /// The filters that jobs have put in, as queries show them.
    fn learn_filters(&mut self) {
        let unknown: Vec<String> = self
            .graph
            .names()
            .filter(|name| !self.nodes.contains_key(*name))
            .map(str::to_owned)
            .collect();
        for name in unknown {
            let children = self.graph.children(&name);
            let source = children.iter().find(|(edge, _)| *edge == "file");
            let below = source.and_then(|(_, file)| self.nodes.get(*file)).cloned();
            if let Some(below) = below {
                let filter = crate::open::Opened {
                    node: name.clone(),
                    driver: "copy-before-write",
                    was_probed: false,
                    header: None,
                    ..below
                };
                self.nodes.insert(name, filter);
            }
        }
    }
}

/// An empty object: most commands have no more to say.
pub(super) fn nothing() -> Value {
    json!({})
}
