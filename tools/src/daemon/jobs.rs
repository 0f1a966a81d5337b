//! The commands and events of jobs.

use ringback_block::copy::chunk::Side;
use ringback_block::copy::control::Action;
use ringback_block::copy::governor::LatencyTarget;
use ringback_block::job::{self, End, Job, JobRefusal, Verb};
use ringback_qmp_shim::command::JobChange;
use ringback_qmp_shim::command_error::CommandError;
use ringback_qmp_shim::event::{BlockErrorAction, Event, IoOperationType};
use ringback_qmp_shim::visit::Word;
use serde_json::{Value, json};

use super::Reply;
use super::backup::latency_target;
use super::control::Control;

/// A command that lets a job end or stand still is answered when that has
/// happened, if it happens as soon as this, in nanoseconds. A slow target must
/// not keep the monitor.
pub(super) const SOON_NS: u64 = 50_000_000;

impl Control {
    pub(super) fn query_jobs(&self) -> Value {
        self.jobs.iter().map(entry).collect()
    }

    pub(super) fn query_block_jobs(&self) -> Value {
        let jobs = self.jobs.iter().filter(|job| job.kind().is_block_job());
        jobs.map(block_entry).collect()
    }

    pub(super) async fn pause_job(&mut self, id: &str) -> Reply {
        self.jobs.pause(id).map_err(|error| refusal(&error))?;
        self.soon(id).await
    }

    pub(super) fn resume_job(&mut self, id: &str) -> Reply {
        self.jobs.resume(id).map_err(|error| refusal(&error))?;
        done()
    }

    pub(super) async fn cancel_job(&mut self, id: &str, by_force: bool) -> Reply {
        let cancelled = self
            .jobs
            .cancel(&self.shard, &mut self.graph, id, by_force)
            .await;
        cancelled.map_err(|error| refusal(&error))?;
        self.soon(id).await
    }

    pub(super) async fn finalize_job(&mut self, id: &str) -> Reply {
        let finalized = self.jobs.finalize(&self.shard, &mut self.graph, id).await;
        finalized.map_err(|error| refusal(&error))?;
        done()
    }

    pub(super) fn dismiss_job(&mut self, id: &str) -> Reply {
        self.jobs.dismiss(id).map_err(|error| refusal(&error))?;
        done()
    }

    pub(super) fn complete_job(&self, id: &str) -> Reply {
        self.jobs
            .check_verb(id, Verb::Complete)
            .map_err(|error| refusal(&error))?;
        done()
    }

    pub(super) fn set_job_speed(&mut self, id: &str, speed: i64) -> Reply {
        self.jobs
            .set_speed(id, speed)
            .map_err(|error| refusal(&error))?;
        done()
    }

    pub(super) fn set_job_latency_target(&mut self, id: &str, asked_ns: Option<i64>) -> Reply {
        let target = latency_target(asked_ns)?;
        self.jobs
            .set_latency_target(id, target)
            .map_err(|error| refusal(&error))?;
        done()
    }

    /// How much a backup takes at present, and what its guest feels.
    pub(super) fn query_job_latency(&self, id: &str) -> Reply {
        let (target, standing) = self
            .jobs
            .latency(id)
            .ok_or_else(|| CommandError::block_job_not_found(id))?;
        let mut answer = json!({
            "device": id,
            "automatic": target == LatencyTarget::Auto,
            "latency-target": standing.target_ns.unwrap_or(0),
            "depth": standing.depth,
            "chunk": standing.chunk,
        });
        if let Some(p99_ns) = standing.guest_p99_ns {
            answer["guest-p99"] = json!(p99_ns);
        }
        Ok(answer)
    }

    pub(super) fn change_job(&self, id: &str, _change: JobChange) -> Reply {
        self.jobs
            .check_verb(id, Verb::Change)
            .map_err(|error| refusal(&error))?;
        Err(CommandError::generic("Job type does not support change"))
    }

    /// Waits a while for what a job has to tell.
    pub(super) async fn wait_for_job(&mut self, id: &str) {
        self.jobs.wait_for_news(&self.shard, id, SOON_NS).await;
        self.step().await;
    }

    async fn soon(&mut self, id: &str) -> Reply {
        self.jobs.wait_for_news(&self.shard, id, SOON_NS).await;
        self.step().await;
        done()
    }

    /// The job of an older command, which names them in other words.
    pub(super) fn block_job(&self, id: &str) -> Result<(), CommandError> {
        let job = self.jobs.get(id).filter(|job| job.kind().is_block_job());
        job.map(drop)
            .ok_or_else(|| CommandError::block_job_not_found(id))
    }
}

fn done() -> Reply {
    Ok(json!({}))
}

fn refusal(refusal: &JobRefusal) -> CommandError {
    CommandError::generic(refusal.to_string())
}

fn entry(job: &Job) -> Value {
    let progress = job.progress();
    let mut entry = json!({
        "id": job.id(),
        "type": job.kind().name(),
        "status": job.status().name(),
        "current-progress": progress.offset,
        "total-progress": progress.len,
    });
    if let Some(error) = job.error() {
        entry["error"] = error.into();
    }
    entry
}

fn block_entry(job: &Job) -> Value {
    let progress = job.progress();
    let mut entry = json!({
        "device": job.id(),
        "type": job.kind().name(),
        "len": progress.len,
        "offset": progress.offset,
        "speed": job.speed(),
        "busy": job.is_busy(),
        "paused": job.is_paused(),
        "ready": false,
        "status": job.status().name(),
        "io-status": job.io_status().name(),
        "auto-finalize": job.flags().auto_finalize,
        "auto-dismiss": job.flags().auto_dismiss,
    });
    if let Some(error) = job.error() {
        entry["error"] = error.into();
    }
    entry
}

/// As monitors are told.
pub(super) fn event(event: job::Event) -> Event {
    match event {
        job::Event::Status { id, status } => Event::JobStatusChange {
            id,
            status: word(status.name()),
        },
        job::Event::Pending { id, kind } => Event::BlockJobPending {
            kind: word(kind.name()),
            id,
        },
        job::Event::Ended {
            id,
            kind,
            end,
            progress,
            speed,
        } => {
            let kind = word(kind.name());
            let (len, offset) = (signed(progress.len), signed(progress.offset));
            let speed = signed(speed);
            match end {
                End::Cancelled => Event::BlockJobCancelled {
                    kind,
                    device: id,
                    len,
                    offset,
                    speed,
                },
                End::Completed | End::Failed(_) => Event::BlockJobCompleted {
                    kind,
                    device: id,
                    len,
                    offset,
                    speed,
                    error: match end {
                        End::Failed(reason) => Some(reason),
                        _ => None,
                    },
                },
            }
        }
        job::Event::Error { id, side, action } => Event::BlockJobError {
            device: id,
            operation: match side {
                Side::Source => IoOperationType::Read,
                Side::Target => IoOperationType::Write,
            },
            action: match action {
                Action::Report => BlockErrorAction::Report,
                Action::Ignore => BlockErrorAction::Ignore,
                Action::Stop => BlockErrorAction::Stop,
            },
        },
    }
}

/// Both sides have QEMU's names.
fn word<W: Word>(name: &str) -> W {
    W::from_word(name).expect("both sides know the same names")
}

/// No disk is so long.
fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use ringback_block::job::{Kind, Status};
    use ringback_qmp_shim::command::JobType;
    use ringback_qmp_shim::event::JobStatus;

    use super::*;

    #[test]
    fn both_sides_know_the_same_names() {
        for kind in [Kind::Backup, Kind::Create] {
            assert!(JobType::from_word(kind.name()).is_some(), "{kind:?}");
        }
        for status in [
            Status::Created,
            Status::Running,
            Status::Paused,
            Status::Waiting,
            Status::Pending,
            Status::Aborting,
            Status::Concluded,
            Status::Null,
        ] {
            assert!(JobStatus::from_word(status.name()).is_some(), "{status:?}");
        }
    }
}
