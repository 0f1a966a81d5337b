//! Long operations with QEMU's life cycle.
//!
//! | module | noun |
//! | --- | --- |
//! | `status` | the states, and which verb each takes |
//! | [`Jobs`] | all jobs of a process: verbs, transactions, events |
//! | [`Job`] | one of them |
//! | [`backup`] | the work of a backup, on all shards |
//! | `backup_job` | what a backup changes in the graph, at its start and its end |
//!
//! Jobs belong to the task that owns the graph. The work itself runs elsewhere;
//! [`Jobs::step`] takes note of what has become of it and does what follows.

pub mod backup;
mod backup_job;
mod jobs;
mod status;

use std::sync::Arc;

pub use backup_job::{BackupRefusal, BackupSpec, BitmapMode, SyncMode};
pub use jobs::{Flags, Group, JobRefusal, Jobs};
pub use status::{Status, Verb};

use crate::copy::Progress;
use crate::copy::chunk::Side;
use crate::copy::control::Action;
use backup_job::BackupJob;

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Copies a disk as it was when the job began.
    Backup,
    /// Makes an image.
    Create,
}

impl Kind {
    /// Its name in QMP.
    pub fn name(self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::Create => "create",
        }
    }

    /// Whether it works on the nodes of the graph, so that the older commands
    /// and events (`block-job-*`) concern it.
    pub fn is_block_job(self) -> bool {
        self == Self::Backup
    }
}

/// How a device that a job reads or writes is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoStatus {
    /// As far as is known.
    #[default]
    Ok,
    /// A request failed, and the job stands still.
    Failed,
    /// There was no space, and the job stands still.
    NoSpace,
}

impl IoStatus {
    /// Its name in QMP.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::NoSpace => "nospace",
        }
    }
}

/// Something that the outside is told about a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It has another status.
    Status {
        /// Which job.
        id: String,
        /// The new one.
        status: Status,
    },
    /// It waits to be finalized.
    Pending {
        /// Which job.
        id: String,
        /// What it does.
        kind: Kind,
    },
    /// A block job is over.
    Ended {
        /// Which job.
        id: String,
        /// What it did.
        kind: Kind,
        /// How.
        end: End,
        /// How far it got.
        progress: Progress,
        /// Its limit, in bytes a second; 0: none.
        speed: u64,
    },
    /// A request of it failed.
    Error {
        /// Which job.
        id: String,
        /// Reading or writing.
        side: Side,
        /// What was done about it.
        action: Action,
    },
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Well.
    Completed,
    /// Not well, and why.
    Failed(String),
    /// Somebody, or the failure of another job, ended it.
    Cancelled,
}

impl End {
    /// What queries show as the job's error.
    fn error(&self) -> Option<&str> {
        match self {
            Self::Completed => None,
            Self::Failed(reason) => Some(reason),
            Self::Cancelled => Some("Operation canceled"),
        }
    }
}

/// The work behind a job.
enum Work {
    /// Not begun, or over.
    None,
    Backup(BackupJob),
}

/// A job as queries show it.
pub struct Job {
    id: String,
    kind: Kind,
    status: Status,
    flags: Flags,
    group: Group,
    /// Somebody, or an error, wants it to stand still.
    paused: bool,
    cancelled: bool,
    io_status: IoStatus,
    speed: u64,
    /// As it was when the work ended.
    progress: Progress,
    /// Set when the work has ended.
    end: Option<End>,
    work: Work,
}

impl Job {
    /// Its name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What it does.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where it stands.
    pub fn status(&self) -> Status {
        self.status
    }

    /// How it goes on by itself.
    pub fn flags(&self) -> Flags {
        self.flags
    }

    /// Whether it is to stand still, or does.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Whether requests of it failed.
    pub fn io_status(&self) -> IoStatus {
        self.io_status
    }

    /// Its limit, in bytes a second; 0: none.
    pub fn speed(&self) -> u64 {
        self.speed
    }

    /// Why it failed, if it has.
    pub fn error(&self) -> Option<&str> {
        let is_over = matches!(self.status, Status::Aborting | Status::Concluded);
        self.end.as_ref().filter(|_| is_over)?.error()
    }

    /// Whether its work is under way and not standing still.
    pub fn is_busy(&self) -> bool {
        self.status == Status::Running && self.end.is_none()
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        match &self.work {
            Work::Backup(backup) => backup.progress(),
            Work::None => self.progress,
        }
    }

    /// The nodes that it works on, with what they are to it.
    pub fn nodes(&self) -> Vec<(&'static str, &str)> {
        match &self.work {
            Work::Backup(backup) => backup.nodes(),
            Work::None => Vec::new(),
        }
    }
}

/// Rings when a job's work has something to tell. Cheap to clone.
#[derive(Clone)]
pub struct Bell(Arc<dyn Fn() + Send + Sync>);

impl Bell {
    /// Calls a function, on any shard. It must not wait.
    pub fn new(ring: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(ring))
    }

    fn ring(&self) {
        (self.0)();
    }
}
