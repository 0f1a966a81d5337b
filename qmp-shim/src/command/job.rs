//! Commands for jobs: the newer `job-...`, which name a job's id, and the older
//! `block-job-...`, most of which call the same id `device`.

use super::argument::{Member, Members, arguments, objects};
use crate::error::Result;
use crate::visit::{Reader, words};

arguments! {
    /// A job by its id.
    pub struct JobId {
        /// Its id.
        id: String = "id",
    }

    /// A job by its id, which the older commands call a device.
    pub struct BlockJobDevice {
        /// Its id.
        device: String = "device",
    }

    /// Arguments of `block-job-set-speed`.
    pub struct BlockJobSetSpeed {
        /// The job's id.
        device: String = "device",
        /// Bytes a second; 0 is no limit. A negative one is refused when the command runs.
        speed: i64 = "speed",
    }

    /// Arguments of `x-block-job-set-latency-target`, which QEMU 10.0 does not have.
    pub struct XBlockJobSetLatencyTarget {
        /// The job's id.
        device: String = "device",
        /// Nanoseconds; 0 is any time, nothing is what the job finds right. A negative one is
        /// refused when the command runs.
        latency_target: Option<i64> = "latency-target",
    }

    /// Arguments of `block-job-cancel`.
    pub struct BlockJobCancel {
        /// The job's id.
        device: String = "device",
        /// Also if it is paused, and a mirror as a failure.
        force: Option<bool> = "force",
    }
}

/// Arguments of `job-pause`.
pub type JobPause = JobId;
/// Arguments of `job-resume`.
pub type JobResume = JobId;
/// Arguments of `job-cancel`.
pub type JobCancel = JobId;
/// Arguments of `job-complete`.
pub type JobComplete = JobId;
/// Arguments of `job-finalize`.
pub type JobFinalize = JobId;
/// Arguments of `job-dismiss`.
pub type JobDismiss = JobId;
/// Arguments of `x-query-block-job-latency`, which QEMU 10.0 does not have.
pub type XQueryBlockJobLatency = BlockJobDevice;
/// Arguments of `block-job-pause`.
pub type BlockJobPause = BlockJobDevice;
/// Arguments of `block-job-resume`.
pub type BlockJobResume = BlockJobDevice;
/// Arguments of `block-job-complete`.
pub type BlockJobComplete = BlockJobDevice;
/// Arguments of `block-job-finalize`.
pub type BlockJobFinalize = JobId;
/// Arguments of `block-job-dismiss`.
pub type BlockJobDismiss = JobId;

words! {
    /// What a job does.
    pub enum JobType {
        /// It merges an image into its backing file.
        Commit = "commit",
        /// It fills an image from its backing files.
        Stream = "stream",
        /// It keeps a copy up to date.
        Mirror = "mirror",
        /// It copies a disk as it was at one moment.
        Backup = "backup",
        /// It makes an image.
        Create = "create",
        /// It changes an image's options.
        Amend = "amend",
        /// It goes back to a snapshot of a whole machine.
        SnapshotLoad = "snapshot-load",
        /// It makes a snapshot of a whole machine.
        SnapshotSave = "snapshot-save",
        /// It deletes a snapshot of a whole machine.
        SnapshotDelete = "snapshot-delete",
    }
}

words! {
    /// When a mirror copies what the guest writes.
    pub enum MirrorCopyMode {
        /// Later.
        Background = "background",
        /// Along with the write.
        WriteBlocking = "write-blocking",
    }
}

/// Arguments of `block-job-change`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockJobChange {
    /// The job's id.
    pub id: String,
    /// What the job does.
    pub change: JobChange,
}

objects! { BlockJobChange, }

/// What to change of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobChange {
    /// A mirror's way of copying.
    Mirror {
        /// When it copies what the guest writes.
        copy_mode: MirrorCopyMode,
    },
    /// Jobs of another type have nothing to change.
    Other(JobType),
}

impl Members for BlockJobChange {
    fn read_members(reader: &mut Reader<'_>) -> Result<Self> {
        let id = Member::read_member(reader, "id")?;
        let change = match Member::read_member(reader, "type")? {
            JobType::Mirror => JobChange::Mirror {
                copy_mode: Member::read_member(reader, "copy-mode")?,
            },
            other => JobChange::Other(other),
        };
        Ok(Self { id, change })
    }
}
