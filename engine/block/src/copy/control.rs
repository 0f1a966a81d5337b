//! What a running job is told from outside, and what it tells: pause, cancel,
//! errors by policy, events.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ringback_ring::{Errno, Shard, error_text};

use crate::copy::chunk::{CopyError, Side};
use crate::sync::{AtomicBool, AtomicU64, Ordering, WaitQueue, fence};

/// What to do about an I/O error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// The job fails.
    #[default]
    Report,
    /// Try again, for ever.
    Ignore,
    /// Pause, so that somebody can mend it and resume.
    Stop,
    /// Pause when there is no space, fail otherwise.
    Enospc,
}

/// What was done about one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The job fails.
    Report,
    /// It will be tried again.
    Ignore,
    /// The job is paused.
    Stop,
}

impl OnError {
    fn action(self, errno: Errno) -> Action {
        match self {
            Self::Ignore => Action::Ignore,
            Self::Stop => Action::Stop,
            Self::Enospc if errno == Errno::ENOSPC => Action::Stop,
            Self::Report | Self::Enospc => Action::Report,
        }
    }
}

/// Something that a job's owner wants to hear of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An I/O error that the policy has handled.
    Error {
        /// Reading the source or writing the target.
        side: Side,
        /// Which error.
        errno: Errno,
        /// What was done.
        action: Action,
    },
}

/// Why a job ended without success.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JobError {
    /// Somebody asked for it.
    #[error("Operation canceled")]
    Cancelled,
    /// An error that the policy reports.
    #[error("{} failed: {}", match .0.side { Side::Source => "reading the source", Side::Target => "writing the target" }, error_text(.0.errno))]
    Copy(CopyError),
    /// The target could not be made durable.
    #[error("flushing the target failed: {}", error_text(*.0))]
    Flush(Errno),
    /// A guest's old data could not be saved, and the guest was let through.
    #[error("the snapshot was lost when old data could not be saved: {}", error_text(*.0))]
    SnapshotBroken(Errno),
}

impl JobError {
    /// The errno behind it; none if somebody asked for the end.
    pub fn errno(self) -> Option<Errno> {
        match self {
            Self::Cancelled => None,
            Self::Copy(error) => Some(error.errno),
            Self::Flush(errno) | Self::SnapshotBroken(errno) => Some(errno),
        }
    }
}

/// Shared by a job's workers, on all shards, and its owner.
#[derive(Debug, Default)]
pub struct Control {
    stopping: AtomicBool,
    paused: AtomicBool,
    /// Counts what may be of interest to who watches the job.
    news: AtomicU64,
    /// Woken when one of the above changes.
    changed: WaitQueue,
    on_source_error: OnError,
    on_target_error: OnError,
    slow: Mutex<Slow>,
}

/// What changes rarely.
#[derive(Debug, Default)]
struct Slow {
    failure: Option<JobError>,
    events: VecDeque<Event>,
}

impl Control {
    pub(crate) fn new(on_source_error: OnError, on_target_error: OnError) -> Self {
        Self {
            on_source_error,
            on_target_error,
            ..Self::default()
        }
    }

    fn slow(&self) -> MutexGuard<'_, Slow> {
        self.slow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.news.fetch_add(1, Ordering::Release);
        // The change first, then the look for who waits for it.
        fence(Ordering::SeqCst);
        self.changed.wake_all();
    }

    /// Ends the job; what is claimed is finished first.
    pub fn cancel(&self) {
        self.fail(JobError::Cancelled);
    }

    /// No new chunk is taken until [`Control::resume`].
    pub fn pause(&self) {
        self.paused.store(true, Ordering::Release);
        self.changed();
    }

    /// Goes on after a pause.
    pub fn resume(&self) {
        self.paused.store(false, Ordering::Release);
        self.changed();
    }

    /// Whether the job is paused, by hand or by policy.
    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Acquire)
    }

    /// Takes the oldest event that nobody has taken.
    pub fn next_event(&self) -> Option<Event> {
        self.slow().events.pop_front()
    }

    pub(crate) fn wake(&self) {
        self.changed();
    }

    /// A number that is another one after each change.
    pub(crate) fn news(&self) -> u64 {
        self.news.load(Ordering::Acquire)
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    pub(crate) fn failure(&self) -> Option<JobError> {
        self.slow().failure
    }

    /// The first failure counts.
    pub(crate) fn fail(&self, error: JobError) {
        self.slow().failure.get_or_insert(error);
        self.stopping.store(true, Ordering::Release);
        self.changed();
    }

    /// Waits while paused. False: stop.
    pub(crate) async fn may_go_on(&self, shard: &Shard) -> bool {
        if self.is_paused() && !self.is_stopping() {
            shard
                .wait(&[&self.changed], None, || {
                    !self.is_paused() || self.is_stopping()
                })
                .await;
        }
        !self.is_stopping()
    }

    /// Sleeps; a change of the job's state or speed ends the sleep early.
    /// False: stop.
    pub(crate) async fn sleep_until(&self, shard: &Shard, deadline_ns: u64) -> bool {
        let mut looked = false;
        let woken = || std::mem::replace(&mut looked, true) || self.is_stopping();
        shard.wait(&[&self.changed], Some(deadline_ns), woken).await;
        self.may_go_on(shard).await
    }

    /// Woken when the job is paused, resumed, stopped.
    pub(crate) fn changes(&self) -> &WaitQueue {
        &self.changed
    }

    pub(crate) fn handle_error(&self, error: CopyError) -> Action {
        if self.failure() == Some(JobError::Cancelled) {
            // What waited for a target that is gone was told to fail.
            return Action::Report;
        }
        let policy = match error.side {
            Side::Source => self.on_source_error,
            Side::Target => self.on_target_error,
        };
        let action = policy.action(error.errno);
        let event = Event::Error {
            side: error.side,
            errno: error.errno,
            action,
        };
        self.slow().events.push_back(event);
        match action {
            Action::Report => self.fail(JobError::Copy(error)),
            Action::Stop => self.pause(),
            Action::Ignore => self.changed(),
        }
        action
    }
}
