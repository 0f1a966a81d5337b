//! Commands: the name and the arguments of a request, read into a value.
//!
//! A variant has the command's name, its payload the same name again, and a payload's field
//! the name of the member. What is optional is an option, and nothing is filled in: what a
//! member means when it is not given is for whoever runs the command. Objects, exports and
//! servers, which the command line has too, are values of [`crate::command_line`].
//!
//! Reading knows names and types, as QEMU's schema does ([`crate::schema`] is ours). All
//! members are read in the order of the schema; the first one that is missing or has a wrong
//! type is reported. Members that nobody knows are reported when everything else is right,
//! those of inner objects first. What needs a node, a job or a device is checked when the
//! command runs.

use serde_json::{Map, Value};

use crate::blockdev::BlockdevOptions;
use crate::command_error::CommandError;
use crate::visit::{Leaves, Reader};

mod argument;
mod backup;
mod bitmap;
mod create;
mod device;
mod export;
mod job;
mod machine;
mod node;
mod object;
mod snapshot;
mod transaction;

use argument::Arguments;

pub use backup::*;
pub use bitmap::*;
pub use create::*;
pub use device::*;
pub use export::*;
pub use job::*;
pub use machine::*;
pub use node::*;
pub use object::*;
pub use snapshot::*;
pub use transaction::*;

/// Arguments of `blockdev-add`.
pub type BlockdevAdd = BlockdevOptions;

/// Declares the commands: `"name" => Variant` or `"name" => Variant(Payload)`.
macro_rules! commands {
    ($($name:literal => $variant:ident $(($payload:ty))?,)*) => {
        /// A request, ready to be run.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Command {
            $(#[doc = concat!("`", $name, "`.")] $variant $(($payload))?,)*
            /// A command of QEMU's that ringback does not build: see [`not_built`].
            NotBuilt(&'static str),
        }

        /// The commands whose arguments are read here.
        const NAMES: &[&str] = &[$($name,)*];

        impl Command {
            /// Reads a request.
            ///
            /// # Errors
            ///
            /// When there is no such command, or its arguments are not as its schema says.
            pub fn read(name: &str, arguments: &Map<String, Value>) -> Result<Self, CommandError> {
                let reader = Reader::new(arguments, Leaves::Typed);
                Ok(match name {
                    $($name => {
                        let read = Arguments::read_object(reader)?;
                        commands!(@make $variant $(($payload))? read)
                    })*
                    other => Self::NotBuilt(find_not_built(other)?),
                })
            }

            /// The command's name.
            #[must_use]
            pub fn name(&self) -> &'static str {
                match self {
                    $(commands!(@any $variant $(($payload))?) => $name,)*
                    Self::NotBuilt(name) => name,
                }
            }
        }
    };
    (@make $variant:ident $read:ident) => {{
        let () = $read;
        Self::$variant
    }};
    (@make $variant:ident ($payload:ty) $read:ident) => { Self::$variant($read) };
    (@any $variant:ident) => { Self::$variant };
    (@any $variant:ident ($payload:ty)) => { Self::$variant(_) };
}

commands! {
    // The monitor and the machine.
    "qmp_capabilities" => QmpCapabilities(QmpCapabilities),
    "query-version" => QueryVersion,
    "query-commands" => QueryCommands,
    "query-qmp-schema" => QueryQmpSchema,
    "query-status" => QueryStatus,
    "query-name" => QueryName,
    "query-uuid" => QueryUuid,
    "query-tpm" => QueryTpm,
    "query-chardev" => QueryChardev,
    "query-iothreads" => QueryIothreads,
    "query-kvm" => QueryKvm,
    "quit" => Quit,
    "stop" => Stop,
    "cont" => Cont,
    "getfd" => Getfd(Getfd),
    "closefd" => Closefd(Closefd),
    "human-monitor-command" => HumanMonitorCommand(HumanMonitorCommand),

    // Nodes.
    "blockdev-add" => BlockdevAdd(Box<BlockdevAdd>),
    "blockdev-del" => BlockdevDel(BlockdevDel),
    "blockdev-create" => BlockdevCreate(Box<BlockdevCreate>),
    "blockdev-reopen" => BlockdevReopen(BlockdevReopen),
    "blockdev-set-active" => BlockdevSetActive(BlockdevSetActive),
    "blockdev-snapshot" => BlockdevSnapshot(BlockdevSnapshot),
    "blockdev-snapshot-sync" => BlockdevSnapshotSync(BlockdevSnapshotSync),
    "block_resize" => BlockResize(BlockResize),
    "block-set-write-threshold" => BlockSetWriteThreshold(BlockSetWriteThreshold),
    "x-blockdev-set-iothread" => XBlockdevSetIothread(XBlockdevSetIothread),
    "query-block" => QueryBlock,
    "query-blockstats" => QueryBlockstats(QueryBlockstats),
    "query-named-block-nodes" => QueryNamedBlockNodes(QueryNamedBlockNodes),
    "x-debug-query-block-graph" => XDebugQueryBlockGraph,
    "x-query-latency-histograms" => XQueryLatencyHistograms(XQueryLatencyHistograms),

    // Objects.
    "object-add" => ObjectAdd(Box<ObjectAdd>),
    "object-del" => ObjectDel(ObjectDel),
    "qom-list-types" => QomListTypes(QomListTypes),
    "qom-list" => QomList(QomList),
    "qom-get" => QomGet(QomGet),
    "qom-set" => QomSet(QomSet),

    // Jobs.
    "blockdev-backup" => BlockdevBackup(Box<BlockdevBackup>),
    "drive-backup" => DriveBackup(Box<DriveBackup>),
    "transaction" => Transaction(Transaction),
    "query-jobs" => QueryJobs,
    "query-block-jobs" => QueryBlockJobs,
    "job-pause" => JobPause(JobPause),
    "job-resume" => JobResume(JobResume),
    "job-cancel" => JobCancel(JobCancel),
    "job-complete" => JobComplete(JobComplete),
    "job-finalize" => JobFinalize(JobFinalize),
    "job-dismiss" => JobDismiss(JobDismiss),
    "block-job-pause" => BlockJobPause(BlockJobPause),
    "block-job-resume" => BlockJobResume(BlockJobResume),
    "block-job-cancel" => BlockJobCancel(BlockJobCancel),
    "block-job-complete" => BlockJobComplete(BlockJobComplete),
    "block-job-finalize" => BlockJobFinalize(BlockJobFinalize),
    "block-job-dismiss" => BlockJobDismiss(BlockJobDismiss),
    "block-job-set-speed" => BlockJobSetSpeed(BlockJobSetSpeed),
    "block-job-change" => BlockJobChange(BlockJobChange),
    "x-block-job-set-latency-target" => XBlockJobSetLatencyTarget(XBlockJobSetLatencyTarget),
    "x-query-block-job-latency" => XQueryBlockJobLatency(XQueryBlockJobLatency),

    // Bitmaps.
    "block-dirty-bitmap-add" => BlockDirtyBitmapAdd(BlockDirtyBitmapAdd),
    "block-dirty-bitmap-remove" => BlockDirtyBitmapRemove(BlockDirtyBitmapRemove),
    "block-dirty-bitmap-clear" => BlockDirtyBitmapClear(BlockDirtyBitmapClear),
    "block-dirty-bitmap-enable" => BlockDirtyBitmapEnable(BlockDirtyBitmapEnable),
    "block-dirty-bitmap-disable" => BlockDirtyBitmapDisable(BlockDirtyBitmapDisable),
    "block-dirty-bitmap-merge" => BlockDirtyBitmapMerge(BlockDirtyBitmapMerge),
    "x-debug-block-dirty-bitmap-sha256" =>
        XDebugBlockDirtyBitmapSha256(XDebugBlockDirtyBitmapSha256),

    // Exports.
    "nbd-server-start" => NbdServerStart(NbdServerStart),
    "nbd-server-add" => NbdServerAdd(NbdServerAdd),
    "nbd-server-remove" => NbdServerRemove(NbdServerRemove),
    "nbd-server-stop" => NbdServerStop,
    "block-export-add" => BlockExportAdd(Box<BlockExportAdd>),
    "block-export-del" => BlockExportDel(BlockExportDel),
    "query-block-exports" => QueryBlockExports,

    // Devices.
    "device_add" => DeviceAdd(DeviceAdd),
    "device_del" => DeviceDel(DeviceDel),
    "eject" => Eject(Eject),
    "blockdev-open-tray" => BlockdevOpenTray(BlockdevOpenTray),
    "blockdev-close-tray" => BlockdevCloseTray(BlockdevCloseTray),
    "blockdev-remove-medium" => BlockdevRemoveMedium(BlockdevRemoveMedium),
    "blockdev-insert-medium" => BlockdevInsertMedium(BlockdevInsertMedium),
    "blockdev-change-medium" => BlockdevChangeMedium(BlockdevChangeMedium),
    "block_set_io_throttle" => BlockSetIoThrottle(Box<BlockSetIoThrottle>),
    "block-latency-histogram-set" => BlockLatencyHistogramSet(Box<BlockLatencyHistogramSet>),
}

/// Commands of QEMU's about storage that are not here. They are not in [`names`], so a client
/// that asks first finds another way.
const NOT_BUILT: &[&str] = &[
    "block-commit",
    "block-stream",
    "blockdev-mirror",
    "blockdev-snapshot-delete-internal-sync",
    "blockdev-snapshot-internal-sync",
    "change-backing-file",
    "chardev-add",
    "chardev-change",
    "chardev-remove",
    "chardev-send-break",
    "device-list-properties",
    "drive-mirror",
    "qom-list-properties",
    "query-chardev-backends",
    "query-yank",
    "ringbuf-read",
    "ringbuf-write",
    "x-blockdev-amend",
    "x-blockdev-change",
    "yank",
];

fn find_not_built(name: &str) -> Result<&'static str, CommandError> {
    let found = NOT_BUILT.iter().find(|known| **known == name);
    found.copied().ok_or_else(|| CommandError::not_found(name))
}

/// The names of all commands whose arguments are read, in no particular order.
#[must_use]
pub fn names() -> &'static [&'static str] {
    NAMES
}

/// The answer to [`Command::NotBuilt`].
#[must_use]
pub fn not_built(name: &str) -> CommandError {
    CommandError::generic(format!("ringback does not implement '{name}'"))
}
