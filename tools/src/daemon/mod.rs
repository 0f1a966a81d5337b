//! `ringback daemon`: stands where `qemu-storage-daemon` stands.
//!
//! | module | what it holds |
//! | --- | --- |
//! | `start` | from the command line to a process that serves |
//! | `chardev` | where monitors talk, with threads of their own |
//! | `inbox` | the way from other threads to the control task |
//! | `control` | that task: requests, events, the end |
//! | `backends` | disks as management tools address them |
//! | `exports`, `export_bitmaps`, `listen` | nodes that clients outside use, what they see of bitmaps, and how they come in |
//! | `scrape`, `exposition` | latencies over HTTP, as Prometheus reads them |
//! | `objects` | what is neither node nor disk: groups of limits, threads, secrets |
//! | `nodes`, `bitmaps`, `backup`, `jobs`, `query`, `latencies`, `reopen`, `machine` | the commands, by what they work on |
//!
//! What a command means is known to `ringback_qmp_shim`, what a node, a job or a
//! bitmap is, to `ringback_block`. Here the two meet.

mod backends;
mod backup;
mod bitmaps;
mod chardev;
mod control;
mod export_bitmaps;
mod exports;
mod exposition;
mod human;
mod inbox;
mod jobs;
mod latencies;
mod listen;
mod machine;
mod nodes;
mod objects;
mod pid_file;
mod query;
mod reopen;
mod scrape;
mod start;

use ringback_qmp_shim::command::{ActionCompletionMode, Command};
use ringback_qmp_shim::command_error::CommandError;
use ringback_qmp_shim::command_line::Device;
use serde_json::Value;

use bitmaps::Change;
use control::Control;
pub(crate) use start::{run, run_if_called};

/// What a command answers.
type Reply = Result<Value, CommandError>;

impl Control {
    /// Runs one command.
    async fn execute(&mut self, command: Command) -> Reply {
        match command {
            // The session has dealt with it, and the caller with quit.
            Command::QmpCapabilities(_) | Command::Quit => Ok(backup::nothing()),

            Command::QueryVersion => Ok(machine::version()),
            Command::QueryCommands => Ok(machine::commands()),
            Command::QueryQmpSchema => Ok(machine::schema()),
            Command::QueryStatus => Ok(self.machine_status()),
            Command::QueryName => Ok(machine::name()),
            Command::QueryUuid => Ok(machine::uuid()),
            Command::QueryKvm => Ok(machine::kvm()),
            Command::QueryTpm => Ok(Value::Array(Vec::new())),
            Command::QueryIothreads => Ok(self.query_iothreads()),
            Command::QueryChardev => Ok(self.query_chardev()),
            Command::Stop => Ok(self.stop_machine()),
            Command::Cont => Ok(self.continue_machine()),
            Command::HumanMonitorCommand(command) => {
                if command.cpu_index.is_some() {
                    return Err(CommandError::generic(
                        "There are no CPUs: leave cpu-index out",
                    ));
                }
                self.human(&command.command_line).await
            }

            Command::BlockdevAdd(options) => self.blockdev_add(&options).await,
            Command::BlockdevDel(del) => self.blockdev_del(&del.node_name).await,
            Command::BlockdevReopen(reopen) => self.blockdev_reopen(&reopen.options).await,
            Command::BlockdevSetActive(set) => self.blockdev_set_active(&set),
            Command::BlockdevCreate(create) => self.blockdev_create(*create),
            Command::BlockResize(resize) => self.block_resize(&resize).await,
            Command::QueryNamedBlockNodes(query) => {
                self.named_block_nodes(query.flat.unwrap_or(false)).await
            }
            Command::QueryBlockstats(query) => {
                let nodes = query.query_nodes.unwrap_or(false);
                Ok(self.query_blockstats(nodes).await)
            }
            Command::XDebugQueryBlockGraph => Ok(self.query_block_graph()),
            Command::XQueryLatencyHistograms(query) => {
                let reset = query.reset.unwrap_or(false);
                Ok(self.query_latency_histograms(reset).await)
            }
            Command::BlockSetWriteThreshold(asked) => self.set_write_threshold(&asked),
            Command::BlockLatencyHistogramSet(asked) => self.set_latency_histograms(&asked).await,

            Command::QueryBlock => Ok(self.query_block().await),
            Command::DeviceAdd(add) => {
                let device = Device::from_arguments(&add.properties)?;
                self.device_add(&device).await
            }
            Command::DeviceDel(del) => self.device_del(&del.id).await,
            Command::Eject(eject) => {
                self.eject(eject.device.as_deref(), eject.id.as_deref())
                    .await
            }
            Command::BlockdevOpenTray(tray) => {
                self.open_tray(tray.device.as_deref(), tray.id.as_deref())
            }
            Command::BlockdevCloseTray(tray) => {
                self.close_tray(tray.device.as_deref(), tray.id.as_deref())
            }
            Command::BlockdevRemoveMedium(remove) => self.remove_medium(&remove.id).await,
            Command::BlockdevInsertMedium(insert) => {
                self.insert_medium(&insert.id, &insert.node_name).await
            }
            Command::BlockdevChangeMedium(change) => self.change_medium(&change).await,
            Command::QomGet(get) => self.qom_get(&get.path, &get.property),
            Command::QomSet(set) => self.qom_set(&set.path, &set.property, &set.value).await,
            Command::QomList(list) => self.qom_list(&list.path),
            Command::QomListTypes(types) => Ok(objects::list_types(
                types.implements.as_deref(),
                types.is_abstract.unwrap_or(false),
            )),
            Command::ObjectAdd(add) => self.object_add(add.object).await,
            Command::ObjectDel(del) => self.object_del(&del.id),
            Command::XBlockdevSetIothread(asked) => self.set_iothread(&asked),

            Command::BlockdevBackup(backup) => self.blockdev_backup(&backup).await,
            Command::DriveBackup(backup) => self.drive_backup(&backup).await,
            Command::BlockdevSnapshot(snapshot) => self.blockdev_snapshot(&snapshot).await,
            Command::BlockdevSnapshotSync(snapshot) => self.blockdev_snapshot_sync(&snapshot).await,
            Command::Transaction(transaction) => {
                let properties = transaction.properties;
                let mode = properties.and_then(|properties| properties.completion_mode);
                let mode = mode.unwrap_or(ActionCompletionMode::Individual);
                self.transaction(&transaction.actions, mode).await
            }

            Command::QueryJobs => Ok(self.query_jobs()),
            Command::QueryBlockJobs => Ok(self.query_block_jobs()),
            Command::JobPause(job) => self.pause_job(&job.id).await,
            Command::JobResume(job) => self.resume_job(&job.id),
            Command::JobCancel(job) => self.cancel_job(&job.id, true).await,
            Command::JobComplete(job) => self.complete_job(&job.id),
            Command::JobFinalize(job) => self.finalize_job(&job.id).await,
            Command::JobDismiss(job) => self.dismiss_job(&job.id),
            Command::BlockJobPause(job) => {
                self.block_job(&job.device)?;
                self.pause_job(&job.device).await
            }
            Command::BlockJobResume(job) => {
                self.block_job(&job.device)?;
                self.resume_job(&job.device)
            }
            Command::BlockJobCancel(job) => {
                self.block_job(&job.device)?;
                self.cancel_job(&job.device, job.force.unwrap_or(false))
                    .await
            }
            Command::BlockJobComplete(job) => {
                self.block_job(&job.device)?;
                self.complete_job(&job.device)
            }
            Command::BlockJobFinalize(job) => {
                self.block_job(&job.id)?;
                self.finalize_job(&job.id).await
            }
            Command::BlockJobDismiss(job) => {
                self.block_job(&job.id)?;
                self.dismiss_job(&job.id)
            }
            Command::BlockJobSetSpeed(job) => {
                self.block_job(&job.device)?;
                self.set_job_speed(&job.device, job.speed)
            }
            Command::XBlockJobSetLatencyTarget(job) => {
                self.block_job(&job.device)?;
                self.set_job_latency_target(&job.device, job.latency_target)
            }
            Command::XQueryBlockJobLatency(job) => {
                self.block_job(&job.device)?;
                self.query_job_latency(&job.device)
            }
            Command::BlockJobChange(job) => {
                self.block_job(&job.id)?;
                self.change_job(&job.id, job.change)
            }

            Command::BlockDirtyBitmapAdd(add) => {
                self.find_node(Some(&add.node), Some(&add.node))?;
                self.change_bitmap(Change::Add(add)).await
            }
            Command::BlockDirtyBitmapRemove(bitmap) => {
                self.change_bitmap(Change::Remove(bitmap)).await
            }
            Command::BlockDirtyBitmapClear(bitmap) => {
                self.change_bitmap(Change::Clear(bitmap)).await
            }
            Command::BlockDirtyBitmapEnable(bitmap) => {
                self.change_bitmap(Change::Enable(bitmap)).await
            }
            Command::BlockDirtyBitmapDisable(bitmap) => {
                self.change_bitmap(Change::Disable(bitmap)).await
            }
            Command::BlockDirtyBitmapMerge(merge) => self.change_bitmap(Change::Merge(merge)).await,
            Command::XDebugBlockDirtyBitmapSha256(bitmap) => self.bitmap_sha256(&bitmap),

            Command::NbdServerStart(start) => self.nbd_server_start(&start.server?).await,
            Command::NbdServerStop => self.nbd_server_stop().await,
            Command::NbdServerAdd(add) => self.nbd_server_add(add).await,
            Command::NbdServerRemove(remove) => {
                self.nbd_server_remove(&remove.name, remove.mode).await
            }
            Command::BlockExportAdd(add) => self.block_export_add(&add.export?).await,
            Command::BlockExportDel(del) => self.block_export_del(&del.id, del.mode).await,
            Command::QueryBlockExports => Ok(self.query_block_exports()),

            other => Err(machine::not_built(other.name())),
        }
    }
}
