//! Backups and transactions: from the arguments of QMP to what the engine does.

use ringback_block::copy::control::OnError;
use ringback_block::copy::governor::LatencyTarget;
use ringback_block::filter::copy_before_write::{self, SAVE_BUFFER_DEFAULT};
use ringback_block::graph::{GraphError, Transaction};
use ringback_block::job::backup::Options;
use ringback_block::job::{
    BackupRefusal, BackupSpec, BitmapMode, Flags, Group, JobRefusal, Jobs, SyncMode,
};
use ringback_qmp_shim::blockdev::{OnCbwError, Settings, check_save_buffer};
use ringback_qmp_shim::command::{
    ActionCompletionMode, BackupPerf, BitmapSyncMode, BlockdevBackup, BlockdevOnError,
    BlockdevSnapshot, BlockdevSnapshotSync, DriveBackup, MirrorSyncMode, NewImageMode,
    TransactionAction,
};
use ringback_qmp_shim::command_error::CommandError;
use ringback_qmp_shim::open as names;
use serde_json::{Map, Value, json};

use super::Reply;
use super::bitmaps::Change;
use super::control::Control;
use crate::open::{self, NewImage, cbw_timeout_ns, on_cbw_error, reason};

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

/// What a command or a transaction is going to do.
#[derive(Default)]
struct Plan {
    steps: Vec<(Step, Group)>,
    /// Nodes that were opened for it: they go if it comes to nothing.
    opened: Vec<String>,
}

impl Step {
    /// The nodes that have to stand still for it. Who reads a backup's target may
    /// read the disk through it.
    fn nodes(&self) -> impl Iterator<Item = &str> {
        let (one, other) = match self {
            Self::Bitmap(change) => (Some(change.node()), None),
            Self::Backup { spec, .. } => (Some(spec.source.as_str()), Some(spec.target.as_str())),
            Self::Snapshot { node, .. } => (Some(node.as_str()), None),
            Self::Refused(_) => (None, None),
        };
        one.into_iter().chain(other)
    }
}

/// What both commands that begin a backup have.
struct Asked<'a> {
    job_id: Option<&'a str>,
    device: &'a str,
    sync: MirrorSyncMode,
    speed: Option<i64>,
    bitmap: Option<&'a str>,
    bitmap_mode: Option<BitmapSyncMode>,
    compress: Option<bool>,
    on_source_error: Option<BlockdevOnError>,
    on_target_error: Option<BlockdevOnError>,
    on_cbw_error: Option<OnCbwError>,
    cbw_timeout: Option<u32>,
    save_buffer: Option<u64>,
    auto_finalize: Option<bool>,
    auto_dismiss: Option<bool>,
    filter_node_name: Option<&'a str>,
    discard_source: Option<bool>,
    perf: Option<&'a BackupPerf>,
}

macro_rules! asked {
    ($backup:expr) => {
        Asked {
            job_id: $backup.job_id.as_deref(),
            device: &$backup.device,
            sync: $backup.sync,
            speed: $backup.speed,
            bitmap: $backup.bitmap.as_deref(),
            bitmap_mode: $backup.bitmap_mode,
            compress: $backup.compress,
            on_source_error: $backup.on_source_error,
            on_target_error: $backup.on_target_error,
            on_cbw_error: $backup.on_cbw_error,
            cbw_timeout: $backup.cbw_timeout,
            save_buffer: $backup.save_buffer,
            auto_finalize: $backup.auto_finalize,
            auto_dismiss: $backup.auto_dismiss,
            filter_node_name: $backup.filter_node_name.as_deref(),
            discard_source: $backup.discard_source,
            perf: $backup.x_perf.as_ref(),
        }
    };
}

impl Control {
    pub(super) async fn blockdev_backup(&mut self, backup: &BlockdevBackup) -> Reply {
        let group = self.jobs.new_group();
        let mut plan = Plan::default();
        plan.steps.push((self.backup_step(backup), group));
        self.carry_out(plan).await
    }

    pub(super) async fn drive_backup(&mut self, backup: &DriveBackup) -> Reply {
        let group = self.jobs.new_group();
        let mut plan = Plan::default();
        let step = self.drive_backup_step(backup, &mut plan.opened).await;
        plan.steps.push((step, group));
        self.carry_out(plan).await
    }

    pub(super) async fn blockdev_snapshot(&mut self, snapshot: &BlockdevSnapshot) -> Reply {
        let group = self.jobs.new_group();
        let mut plan = Plan::default();
        plan.steps.push((self.snapshot_step(snapshot), group));
        self.carry_out(plan).await
    }

    pub(super) async fn blockdev_snapshot_sync(
        &mut self,
        snapshot: &BlockdevSnapshotSync,
    ) -> Reply {
        let group = self.jobs.new_group();
        let mut plan = Plan::default();
        let step = self.snapshot_sync_step(snapshot, &mut plan.opened).await;
        plan.steps.push((step, group));
        self.carry_out(plan).await
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
        let mut plan = Plan::default();
        for action in actions {
            let group = if is_grouped {
                common
            } else {
                self.jobs.new_group()
            };
            let step = self.step_of(action, &mut plan.opened).await;
            // Nothing is opened for what comes behind an action that fails.
            let is_refused = matches!(step, Step::Refused(_));
            plan.steps.push((step, group));
            if is_refused {
                break;
            }
        }
        self.carry_out(plan).await
    }

    /// What an action does. Nodes that it needs are opened now, before anybody's
    /// requests are held.
    async fn step_of(&mut self, action: &TransactionAction, opened: &mut Vec<String>) -> Step {
        if let Some(change) = Change::of_action(action, self) {
            return Step::Bitmap(change);
        }
        match action {
            TransactionAction::Abort => Step::Refused(CommandError::generic(
                "Transaction aborted using Abort action",
            )),
            TransactionAction::BlockdevBackup(backup) => self.backup_step(backup),
            TransactionAction::DriveBackup(backup) => self.drive_backup_step(backup, opened).await,
            TransactionAction::BlockdevSnapshot(snapshot) => self.snapshot_step(snapshot),
            TransactionAction::BlockdevSnapshotSync(snapshot) => {
                self.snapshot_sync_step(snapshot, opened).await
            }
            other => Step::Refused(CommandError::generic(format!(
                "ringback does not implement the transaction action '{}'",
                other.name()
            ))),
        }
    }

    fn backup_step(&self, backup: &BlockdevBackup) -> Step {
        let asked = asked!(backup);
        let spec = self
            .find_node(Some(asked.device), Some(asked.device))
            .and_then(|source| {
                let target = self.find_node(Some(&backup.target), Some(&backup.target))?;
                backup_spec(&asked, source, target)
            });
        self.job_step(&asked, spec)
    }

    fn job_step(&self, asked: &Asked<'_>, spec: Result<BackupSpec, CommandError>) -> Step {
        match spec {
            Ok(spec) => Step::Backup {
                id: self.job_id(asked.job_id, asked.device),
                spec: Box::new(spec),
                flags: Flags {
                    auto_finalize: asked.auto_finalize.unwrap_or(true),
                    auto_dismiss: asked.auto_dismiss.unwrap_or(true),
                },
            },
            Err(error) => Step::Refused(error),
        }
    }

    /// The target's image is made, or opened, first.
    async fn drive_backup_step(&mut self, backup: &DriveBackup, opened: &mut Vec<String>) -> Step {
        let asked = asked!(backup);
        let spec = match self.drive_backup_nodes(backup).await {
            Ok((source, target)) => {
                opened.push(target.clone());
                backup_spec(&asked, source, target)
            }
            Err(error) => Err(error),
        };
        self.job_step(&asked, spec)
    }

    async fn drive_backup_nodes(
        &mut self,
        backup: &DriveBackup,
    ) -> Result<(String, String), CommandError> {
        let source = self.find_node(Some(&backup.device), Some(&backup.device))?;
        let own = self
            .nodes
            .get(&source)
            .map_or("raw", |opened| opened.driver);
        let is_new = backup.mode != Some(NewImageMode::Existing);
        // An image that is there says itself what it is.
        let format = match &backup.format {
            Some(format) => Some(format.clone()),
            None => is_new.then(|| own.to_owned()),
        };
        if is_new && let Some(format) = &format {
            let shown = match backup.sync {
                MirrorSyncMode::Top => self.backing_of(&source).map(str::to_owned),
                MirrorSyncMode::None => Some(source.clone()),
                _ => None,
            };
            self.make_image(&backup.target, format, &source, shown.as_deref())
                .await?;
        }
        // With sync=none the source would show through; its snapshot is not there.
        let no_backing = backup.sync == MirrorSyncMode::None;
        let target = self
            .open_image(&backup.target, format.as_deref(), no_backing, None)
            .await?;
        Ok((source, target))
    }

    /// Makes an image as long as a node's disk. What shows through is named in
    /// its header.
    async fn make_image(
        &mut self,
        path: &str,
        format: &str,
        like: &str,
        backing: Option<&str>,
    ) -> Result<(), CommandError> {
        let size = self
            .graph
            .size(like)
            .map_err(|error| CommandError::generic(reason(error)))?;
        let backing = backing
            .and_then(|backing| self.nodes.get(backing))
            .map(|opened| (opened.name.to_string(), opened.driver));
        let image = NewImage {
            path,
            format,
            size,
            backing,
        };
        open::make_image(&self.shard, &mut self.graph, &image)
            .await
            .map_err(CommandError::generic)
    }

    /// Opens an image by its file name. Whoever needs the node keeps it.
    async fn open_image(
        &mut self,
        path: &str,
        format: Option<&str>,
        no_backing: bool,
        node_name: Option<&str>,
    ) -> Result<String, CommandError> {
        let mut options = Map::new();
        if let Some(format) = format {
            open::check_format(format).map_err(CommandError::generic)?;
            options.insert("driver".into(), format.into());
        }
        if no_backing && !matches!(format, Some("raw" | "file")) {
            options.insert("backing".into(), Value::Null);
        }
        if let Some(name) = node_name {
            options.insert("node-name".into(), name.into());
        }
        let node = names::open(Some(path), &options, &Settings::default())?;
        self.open(node).await
    }

    fn snapshot_step(&self, snapshot: &BlockdevSnapshot) -> Step {
        let node = self.find_node(Some(&snapshot.node), Some(&snapshot.node));
        let overlay = self.find_node(Some(&snapshot.overlay), Some(&snapshot.overlay));
        match (node, overlay) {
            (Ok(node), Ok(overlay)) => Step::Snapshot { node, overlay },
            (Err(error), _) | (_, Err(error)) => Step::Refused(error),
        }
    }

    async fn snapshot_sync_step(
        &mut self,
        snapshot: &BlockdevSnapshotSync,
        opened: &mut Vec<String>,
    ) -> Step {
        match self.snapshot_sync_nodes(snapshot).await {
            Ok((node, overlay)) => {
                opened.push(overlay.clone());
                Step::Snapshot { node, overlay }
            }
            Err(error) => Step::Refused(error),
        }
    }

    async fn snapshot_sync_nodes(
        &mut self,
        snapshot: &BlockdevSnapshotSync,
    ) -> Result<(String, String), CommandError> {
        let device = snapshot.device.as_deref();
        let node = self.find_node(device, snapshot.node_name.as_deref())?;
        let name = snapshot.snapshot_node_name.as_deref();
        if snapshot.node_name.is_some() && name.is_none() {
            return Err(CommandError::generic("New overlay node-name missing"));
        }
        if name.is_some_and(|name| self.graph.contains(name)) {
            return Err(CommandError::generic(
                "New overlay node-name already in use",
            ));
        }
        let format = snapshot.format.as_deref().unwrap_or("qcow2");
        let path = &snapshot.snapshot_file;
        if snapshot.mode != Some(NewImageMode::Existing) {
            self.make_image(path, format, &node, Some(&node)).await?;
        }
        let overlay = self.open_image(path, Some(format), true, name).await?;
        Ok((node, overlay))
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
    async fn carry_out(&mut self, plan: Plan) -> Reply {
        let result = self.take_steps(&plan).await;
        if result.is_ok() {
            for (step, _) in plan.steps {
                if let Step::Backup { spec, .. } = step
                    && plan.opened.contains(&spec.target)
                {
                    self.job_targets.push(spec.target);
                }
            }
        }
        // An overlay is kept by those who use it now; if there are none it goes.
        for node in &plan.opened {
            if !self.job_targets.contains(node) {
                self.close(node).await;
            }
        }
        result
    }

    async fn take_steps(&mut self, plan: &Plan) -> Reply {
        let nodes = plan.steps.iter().flat_map(|(step, _)| step.nodes());
        let nodes: Vec<&str> = nodes.collect();
        let mut transaction = self.graph.begin(&self.shard, &nodes).await;
        let mut jobs = Vec::new();
        let mut result = Ok(());
        for (step, group) in &plan.steps {
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
                if let Err(error) = transaction.commit().await {
                    self.jobs.drop_created(&jobs);
                    return Err(CommandError::generic(reason(error)));
                }
                let started = self.jobs.start(&self.shard, &jobs);
                started.map_err(|refusal| refused(&refusal))?;
                self.learn_filters();
                Ok(nothing())
            }
            Err(error) => {
                self.jobs.drop_created(&jobs);
                transaction.abort().await;
                Err(error)
            }
        }
    }

    /// Lets go of images that jobs were given and have done with.
    pub(super) async fn part_from_job_targets(&mut self) {
        for node in std::mem::take(&mut self.job_targets) {
            if self.jobs.using(&node).is_some() {
                self.job_targets.push(node);
            } else {
                self.close(&node).await;
            }
        }
    }
}

/// What is asked for, as the engine has it.
fn backup_spec(
    asked: &Asked<'_>,
    source: String,
    target: String,
) -> Result<BackupSpec, CommandError> {
    let speed = u64::try_from(asked.speed.unwrap_or(0))
        .map_err(|_| CommandError::generic(JobRefusal::Speed.to_string()))?;
    let perf = asked.perf;
    let (max_workers, max_chunk) = checked(perf)?;
    check_save_buffer(asked.save_buffer, asked.on_cbw_error)
        .map_err(|error| CommandError::generic(error.to_string()))?;
    let latency_target = latency_target(perf.and_then(|perf| perf.latency_target))?;
    Ok(BackupSpec {
        source,
        target,
        filter_node: asked.filter_node_name.map(str::to_owned),
        sync: match asked.sync {
            MirrorSyncMode::Top => SyncMode::Top,
            MirrorSyncMode::Full => SyncMode::Full,
            MirrorSyncMode::None => SyncMode::None,
            MirrorSyncMode::Incremental => SyncMode::Incremental,
            MirrorSyncMode::Bitmap => SyncMode::Bitmap,
        },
        bitmap: asked.bitmap.map(str::to_owned),
        bitmap_mode: asked.bitmap_mode.map(|mode| match mode {
            BitmapSyncMode::Never => BitmapMode::Never,
            BitmapSyncMode::OnSuccess => BitmapMode::OnSuccess,
            BitmapSyncMode::Always => BitmapMode::Always,
        }),
        filter: copy_before_write::Options {
            on_cbw_error: on_cbw_error(asked.on_cbw_error),
            cbw_timeout_ns: cbw_timeout_ns(asked.cbw_timeout),
            save_buffer: asked.save_buffer.unwrap_or(SAVE_BUFFER_DEFAULT),
            min_cluster_size: perf.and_then(|perf| perf.min_cluster_size).unwrap_or(0),
            compress: asked.compress.unwrap_or(false),
            ..copy_before_write::Options::default()
        },
        options: Options {
            max_workers,
            max_chunk,
            speed,
            latency_target,
            discard_source: asked.discard_source.unwrap_or(false),
            on_source_error: on_error(asked.on_source_error),
            on_target_error: on_error(asked.on_target_error),
            ..Options::default()
        },
    })
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

/// What a guest may feel, in nanoseconds: nothing is left to the job, 0 is anything.
pub(super) fn latency_target(asked_ns: Option<i64>) -> Result<LatencyTarget, CommandError> {
    let Some(asked_ns) = asked_ns else {
        return Ok(LatencyTarget::Auto);
    };
    match u64::try_from(asked_ns) {
        Ok(0) => Ok(LatencyTarget::Off),
        Ok(bound_ns) => Ok(LatencyTarget::Bound(bound_ns)),
        Err(_) => Err(CommandError::generic(
            "latency-target must be zero (which means any latency) or positive",
        )),
    }
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
