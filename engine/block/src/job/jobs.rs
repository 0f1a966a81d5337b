//! All jobs of a process: their verbs, their transactions, their events.

use ringback_ring::{Errno, Shard};

use super::backup::Backup;
use super::backup_job::BackupJob;
use super::{BackupRefusal, BackupSpec, Bell, End, Event, IoStatus, Job, Kind, Status, Verb, Work};
use crate::copy::Progress;
use crate::copy::control::{self, Action};
use crate::copy::governor::{LatencyTarget, Standing};
use crate::graph::{Graph, Transaction, is_identifier};

/// How a job goes on by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags {
    /// Its result becomes final without a word.
    pub auto_finalize: bool,
    /// Its entry goes away when it is over.
    pub auto_dismiss: bool,
}

impl Default for Flags {
    fn default() -> Self {
        Self {
            auto_finalize: true,
            auto_dismiss: true,
        }
    }
}

/// Jobs that end together: all well, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group(u64);

/// Why a verb was refused. The texts are QEMU's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JobRefusal {
    /// No such job.
    #[error("Job not found")]
    NotFound,
    /// Not in this state.
    #[error("Job '{id}' in state '{}' cannot accept command verb '{}'", .status.name(), .verb.name())]
    Verb {
        /// Which job.
        id: String,
        /// Where it stands.
        status: Status,
        /// What was asked.
        verb: Verb,
    },
    /// It stands still already.
    #[error("Job is already paused")]
    Paused,
    /// It did not stand still.
    #[error("Can't resume a job that was not paused")]
    NotPaused,
    /// Only by force.
    #[error("The block job for device '{0}' is currently paused")]
    CurrentlyPaused(String),
    /// A name that is none.
    #[error("Invalid job ID '{0}'")]
    InvalidId(String),
    /// A name that is taken.
    #[error("Job ID '{0}' already in use")]
    IdInUse(String),
    /// A kind of job that has no limit.
    #[error("Job type does not support limiting the speed")]
    NoSpeed,
    /// A limit below nothing.
    #[error("Parameter 'speed' expects a non-negative value")]
    Speed,
}

/// All jobs.
pub struct Jobs {
    /// Oldest first.
    jobs: Vec<Job>,
    events: Vec<Event>,
    next_group: u64,
    bell: Bell,
}

impl Jobs {
    /// None yet. The bell rings when [`Self::step`] has something to do.
    pub fn new(bell: Bell) -> Self {
        Self {
            jobs: Vec::new(),
            events: Vec::new(),
            next_group: 0,
            bell,
        }
    }

    /// Newest first.
    pub fn iter(&self) -> impl Iterator<Item = &Job> {
        self.jobs.iter().rev()
    }

    /// The job of this name.
    pub fn get(&self, id: &str) -> Option<&Job> {
        self.jobs.iter().find(|job| job.id == id)
    }

    /// The job that works on a node: what the node is to it, and what the job
    /// does.
    pub fn using(&self, node: &str) -> Option<(&'static str, Kind)> {
        self.iter().find_map(|job| {
            let mut nodes = job.nodes().into_iter();
            let (role, _) = nodes.find(|(_, name)| *name == node)?;
            Some((role, job.kind))
        })
    }

    /// What has happened since the last call, in order.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// A group of its own, for jobs that are to end together.
    pub fn new_group(&mut self) -> Group {
        self.next_group += 1;
        Group(self.next_group)
    }

    /// Whether a job may have this name.
    ///
    /// # Errors
    ///
    /// [`JobRefusal::InvalidId`] or [`JobRefusal::IdInUse`].
    pub fn check_id(&self, id: &str) -> Result<(), JobRefusal> {
        if !is_identifier(id) {
            return Err(JobRefusal::InvalidId(id.into()));
        }
        if self.get(id).is_some() {
            return Err(JobRefusal::IdInUse(id.into()));
        }
        Ok(())
    }

    fn create(&mut self, id: &str, kind: Kind, flags: Flags, group: Group) -> usize {
        self.jobs.push(Job {
            id: id.into(),
            kind,
            status: Status::Created,
            flags,
            group,
            paused: false,
            cancelled: false,
            io_status: IoStatus::Ok,
            speed: 0,
            progress: Progress::default(),
            end: None,
            work: Work::None,
        });
        self.events.push(Event::Status {
            id: id.into(),
            status: Status::Created,
        });
        self.jobs.len() - 1
    }

    /// Prepares a backup in a transaction: its filter is put in, and it exists,
    /// but does not run. The transaction's end must be followed by
    /// [`Self::start`] or [`Self::drop_created`].
    ///
    /// # Errors
    ///
    /// [`BackupRefusal`].
    pub fn prepare_backup(
        &mut self,
        transaction: &mut Transaction<'_>,
        id: &str,
        spec: BackupSpec,
        flags: Flags,
        group: Group,
    ) -> Result<(), BackupRefusal> {
        let speed = spec.options.speed;
        let bitmap = spec.check(transaction.graph(), self)?;
        let backup = BackupJob::prepare(transaction, spec, bitmap, || self.check_id(id))?;
        let index = self.create(id, Kind::Backup, flags, group);
        self.jobs[index].speed = speed;
        self.jobs[index].work = Work::Backup(backup);
        Ok(())
    }

    /// Starts what a transaction has prepared.
    ///
    /// # Errors
    ///
    /// None that prepared jobs have.
    pub fn start(&mut self, shard: &Shard, ids: &[String]) -> Result<(), BackupRefusal> {
        let indexes: Vec<usize> = ids.iter().rev().filter_map(|id| self.index(id)).collect();
        // The drain of the disk, as others see it.
        for &index in &indexes {
            self.set_status(index, Status::Running);
            self.set_status(index, Status::Paused);
        }
        for &index in &indexes {
            self.set_status(index, Status::Running);
        }
        let bell = self.bell.clone();
        for index in indexes {
            if let Work::Backup(backup) = &mut self.jobs[index].work {
                backup.start(shard, &bell)?;
            }
        }
        Ok(())
    }

    /// Forgets jobs whose transaction came to nothing.
    pub fn drop_created(&mut self, ids: &[String]) {
        for id in ids.iter().rev() {
            if let Some(index) = self.index(id) {
                self.jobs[index].work = Work::None;
                self.set_status(index, Status::Aborting);
                self.set_status(index, Status::Concluded);
                self.vanish(index);
            }
        }
    }

    /// A job whose work is done by the caller, who says so by
    /// [`Self::end_task`]. It stays until it is dismissed.
    ///
    /// # Errors
    ///
    /// As [`Self::check_id`].
    pub fn begin_task(&mut self, id: &str, kind: Kind) -> Result<(), JobRefusal> {
        self.check_id(id)?;
        let flags = Flags {
            auto_finalize: true,
            auto_dismiss: false,
        };
        let group = self.new_group();
        let index = self.create(id, kind, flags, group);
        self.jobs[index].progress.len = 1;
        self.set_status(index, Status::Running);
        Ok(())
    }

    /// The caller's work has ended, well or with a reason.
    pub async fn end_task(
        &mut self,
        shard: &Shard,
        graph: &mut Graph,
        id: &str,
        result: Result<(), String>,
    ) {
        if let Some(index) = self.index(id) {
            self.jobs[index].progress.offset = 1;
            self.work_ended(index, result.map_or_else(End::Failed, |()| End::Completed));
            self.advance(shard, graph, index).await;
        }
    }

    /// Takes note of what has become of the work of all jobs.
    pub async fn step(&mut self, shard: &Shard, graph: &mut Graph) {
        let mut ended = Vec::new();
        for index in 0..self.jobs.len() {
            if let Some(group) = self.look(index) {
                ended.push(group);
            }
        }
        for group in ended {
            if let Some(index) = self.jobs.iter().position(|job| job.group == group) {
                self.advance(shard, graph, index).await;
            }
        }
    }

    /// Takes note of one job's work. Answers its group if the work has ended.
    fn look(&mut self, index: usize) -> Option<Group> {
        let Work::Backup(backup) = &self.jobs[index].work else {
            return None;
        };
        let running = backup.running()?;
        let control = running.control();
        let mut errors = Vec::new();
        while let Some(control::Event::Error {
            side,
            errno,
            action,
        }) = control.next_event()
        {
            errors.push((side, errno, action));
        }
        let (is_paused, outcome) = (running.is_standing_still(), running.outcome());
        for (side, errno, action) in errors {
            let job = &mut self.jobs[index];
            if action == Action::Stop {
                job.paused = true;
                job.io_status = match errno {
                    Errno::ENOSPC => IoStatus::NoSpace,
                    _ => IoStatus::Failed,
                };
            }
            let id = job.id.clone();
            self.events.push(Event::Error { id, side, action });
        }
        let job = &self.jobs[index];
        if job.end.is_some() || !matches!(job.status, Status::Running | Status::Paused) {
            return None;
        }
        let Some(outcome) = outcome else {
            if is_paused && job.paused && job.status == Status::Running {
                self.set_status(index, Status::Paused);
            }
            return None;
        };
        if job.status == Status::Paused {
            self.set_status(index, Status::Running);
        }
        let end = match outcome.result {
            _ if self.jobs[index].cancelled => End::Cancelled,
            Ok(()) => End::Completed,
            Err(error) => error.end(),
        };
        self.work_ended(index, end);
        Some(self.jobs[index].group)
    }

    fn work_ended(&mut self, index: usize, end: End) {
        let job = &mut self.jobs[index];
        job.progress = job.progress();
        let next = match end {
            End::Completed => Status::Waiting,
            End::Failed(_) | End::Cancelled => Status::Aborting,
        };
        job.end = Some(end);
        self.set_status(index, next);
    }

    /// Members of a job's group, newest first.
    fn members(&self, index: usize) -> Vec<usize> {
        let group = self.jobs[index].group;
        (0..self.jobs.len())
            .rev()
            .filter(|&other| self.jobs[other].group == group)
            .collect()
    }

    /// Does what follows from the state of a job's group.
    async fn advance(&mut self, shard: &Shard, graph: &mut Graph, index: usize) {
        let members = self.members(index);
        let is_failed = members.iter().any(|&member| {
            let end = self.jobs[member].end.as_ref();
            matches!(end, Some(End::Failed(_) | End::Cancelled))
        });
        if is_failed {
            self.abort_group(shard, graph, &members).await;
            return;
        }
        let all_wait = members
            .iter()
            .all(|&member| self.jobs[member].status == Status::Waiting);
        if !all_wait {
            return;
        }
        for &member in &members {
            self.set_status(member, Status::Pending);
            let job = &self.jobs[member];
            if !job.flags.auto_finalize {
                let (id, kind) = (job.id.clone(), job.kind);
                self.events.push(Event::Pending { id, kind });
            }
        }
        let all_by_themselves = members
            .iter()
            .all(|&member| self.jobs[member].flags.auto_finalize);
        if all_by_themselves {
            self.conclude_all(shard, graph, &members).await;
        }
    }

    /// One has failed: all others are cancelled, and when the last has ended,
    /// they conclude; the one that failed comes last.
    async fn abort_group(&mut self, shard: &Shard, graph: &mut Graph, members: &[usize]) {
        for &member in members {
            let job = &mut self.jobs[member];
            match job.status {
                Status::Waiting | Status::Pending => {
                    job.end = Some(End::Cancelled);
                    self.set_status(member, Status::Aborting);
                }
                Status::Running | Status::Paused => self.stop_work(graph, member),
                _ => {}
            }
        }
        let all_ended = members
            .iter()
            .all(|&member| self.jobs[member].status == Status::Aborting);
        if all_ended {
            let is_culprit =
                |member: &usize| matches!(self.jobs[*member].end, Some(End::Failed(_)));
            let (culprits, others): (Vec<_>, Vec<_>) =
                members.iter().copied().partition(is_culprit);
            let order: Vec<_> = others.into_iter().chain(culprits).collect();
            self.conclude_all(shard, graph, &order).await;
        }
    }

    /// Tells a job's work to end; that it has, is told by [`Self::step`]. A target
    /// that is gone does not hold it up.
    fn stop_work(&mut self, graph: &Graph, index: usize) {
        let job = &mut self.jobs[index];
        job.cancelled = true;
        job.paused = false;
        if let Work::Backup(backup) = &job.work
            && let Some(running) = backup.running()
        {
            running.control().cancel();
            graph.stop_waiting(backup.target());
        }
    }

    /// Indexes change when jobs vanish, so they are looked up by name.
    async fn conclude_all(&mut self, shard: &Shard, graph: &mut Graph, order: &[usize]) {
        let ids: Vec<String> = order
            .iter()
            .map(|&index| self.jobs[index].id.clone())
            .collect();
        for id in ids {
            if let Some(index) = self.index(&id) {
                self.conclude(shard, graph, index).await;
            }
        }
    }

    async fn conclude(&mut self, shard: &Shard, graph: &mut Graph, index: usize) {
        let job = &mut self.jobs[index];
        job.io_status = IoStatus::Ok;
        let end = job.end.clone().unwrap_or(End::Completed);
        if let Work::Backup(backup) = std::mem::replace(&mut job.work, Work::None)
            && let Err(error) = backup.end(shard, graph, end == End::Completed).await
        {
            tracing::error!("job '{}' could not be cleaned up: {error}", job.id);
        }
        let job = &self.jobs[index];
        if job.kind.is_block_job() {
            self.events.push(Event::Ended {
                id: job.id.clone(),
                kind: job.kind,
                end,
                progress: job.progress,
                speed: job.speed,
            });
        }
        let vanishes = job.flags.auto_dismiss;
        self.set_status(index, Status::Concluded);
        if vanishes {
            self.vanish(index);
        }
    }

    fn vanish(&mut self, index: usize) {
        self.set_status(index, Status::Null);
        self.jobs.remove(index);
    }

    fn set_status(&mut self, index: usize, status: Status) {
        let job = &mut self.jobs[index];
        debug_assert!(job.status.allows(status), "{:?} to {status:?}", job.status);
        job.status = status;
        let id = job.id.clone();
        self.events.push(Event::Status { id, status });
    }

    fn index(&self, id: &str) -> Option<usize> {
        self.jobs.iter().position(|job| job.id == id)
    }

    fn job_for(&self, id: &str, verb: Verb) -> Result<usize, JobRefusal> {
        let index = self.index(id).ok_or(JobRefusal::NotFound)?;
        let status = self.jobs[index].status;
        if !status.accepts(verb) {
            return Err(JobRefusal::Verb {
                id: id.into(),
                status,
                verb,
            });
        }
        Ok(index)
    }

    /// Lets a job stand still; its requests in flight end first.
    ///
    /// # Errors
    ///
    /// [`JobRefusal`].
    pub fn pause(&mut self, id: &str) -> Result<(), JobRefusal> {
        let index = self.job_for(id, Verb::Pause)?;
        let job = &mut self.jobs[index];
        if job.paused {
            return Err(JobRefusal::Paused);
        }
        job.paused = true;
        if let Work::Backup(backup) = &job.work
            && let Some(running) = backup.running()
        {
            running.control().pause();
        }
        Ok(())
    }

    /// Lets a job go on.
    ///
    /// # Errors
    ///
    /// [`JobRefusal`].
    pub fn resume(&mut self, id: &str) -> Result<(), JobRefusal> {
        let index = self.index(id).ok_or(JobRefusal::NotFound)?;
        // Before its state is looked at, as QEMU does.
        if !self.jobs[index].paused {
            return Err(JobRefusal::NotPaused);
        }
        let index = self.job_for(id, Verb::Resume)?;
        let job = &mut self.jobs[index];
        job.paused = false;
        job.io_status = IoStatus::Ok;
        if job.status == Status::Paused {
            self.set_status(index, Status::Running);
        }
        if let Work::Backup(backup) = &self.jobs[index].work
            && let Some(running) = backup.running()
        {
            running.control().resume();
        }
        Ok(())
    }

    /// Ends a job before its time. What is left to do by then is told by
    /// [`Self::step`].
    ///
    /// # Errors
    ///
    /// [`JobRefusal`]; [`JobRefusal::CurrentlyPaused`] only if `by_force` is not
    /// given.
    pub async fn cancel(
        &mut self,
        shard: &Shard,
        graph: &mut Graph,
        id: &str,
        by_force: bool,
    ) -> Result<(), JobRefusal> {
        let index = self.job_for(id, Verb::Cancel)?;
        let job = &mut self.jobs[index];
        if job.paused && !by_force {
            return Err(JobRefusal::CurrentlyPaused(id.into()));
        }
        match job.status {
            Status::Waiting | Status::Pending => {
                job.end = Some(End::Cancelled);
                self.set_status(index, Status::Aborting);
                self.advance(shard, graph, index).await;
            }
            _ => {
                if job.status == Status::Paused {
                    self.set_status(index, Status::Running);
                }
                self.stop_work(graph, index);
            }
        }
        Ok(())
    }

    /// Makes the results of a job, and of its group, final.
    ///
    /// # Errors
    ///
    /// [`JobRefusal`].
    pub async fn finalize(
        &mut self,
        shard: &Shard,
        graph: &mut Graph,
        id: &str,
    ) -> Result<(), JobRefusal> {
        let index = self.job_for(id, Verb::Finalize)?;
        let members = self.members(index);
        self.conclude_all(shard, graph, &members).await;
        Ok(())
    }

    /// Lets the entry of a job that is over go away.
    ///
    /// # Errors
    ///
    /// [`JobRefusal`].
    pub fn dismiss(&mut self, id: &str) -> Result<(), JobRefusal> {
        let index = self.job_for(id, Verb::Dismiss)?;
        self.vanish(index);
        Ok(())
    }

    /// Refuses what no kind of job here has: completing, changing.
    ///
    /// # Errors
    ///
    /// [`JobRefusal`].
    pub fn check_verb(&self, id: &str, verb: Verb) -> Result<(), JobRefusal> {
        self.job_for(id, verb).map(drop)
    }

    /// Limits a job, in bytes a second; 0: no limit.
    ///
    /// # Errors
    ///
    /// [`JobRefusal`].
    pub fn set_speed(&mut self, id: &str, speed: i64) -> Result<(), JobRefusal> {
        let index = self.job_for(id, Verb::SetSpeed)?;
        let speed = u64::try_from(speed).map_err(|_| JobRefusal::Speed)?;
        let job = &mut self.jobs[index];
        let Work::Backup(backup) = &job.work else {
            return Err(JobRefusal::NoSpeed);
        };
        job.speed = speed;
        if let Some(running) = backup.running() {
            running.set_speed(speed);
        }
        Ok(())
    }

    /// Changes what a guest may feel of a job.
    ///
    /// # Errors
    ///
    /// [`JobRefusal`].
    pub fn set_latency_target(
        &mut self,
        id: &str,
        target: LatencyTarget,
    ) -> Result<(), JobRefusal> {
        let index = self.job_for(id, Verb::SetSpeed)?;
        let Work::Backup(backup) = &mut self.jobs[index].work else {
            return Err(JobRefusal::NoSpeed);
        };
        backup.set_latency_target(target);
        Ok(())
    }

    /// What a guest may feel of a job that copies, and how the copying stands.
    pub fn latency(&self, id: &str) -> Option<(LatencyTarget, Standing)> {
        match &self.get(id)?.work {
            Work::Backup(backup) => Some(backup.latency()),
            Work::None => None,
        }
    }

    /// Waits until the work of a job has something to tell, but not for long.
    pub async fn wait_for_news(&self, shard: &Shard, id: &str, timeout_ns: u64) {
        let running = self.get(id).and_then(|job| match &job.work {
            Work::Backup(backup) => backup.running(),
            Work::None => None,
        });
        if let Some(running) = running {
            let deadline = shard.now_ns().saturating_add(timeout_ns);
            running.changed(shard, deadline, || self.has_news(id)).await;
        }
    }

    /// Whether the work of a job has something to tell.
    fn has_news(&self, id: &str) -> bool {
        let Some(job) = self.get(id) else {
            return false;
        };
        let Work::Backup(backup) = &job.work else {
            return false;
        };
        backup.running().is_some_and(|running| {
            let is_over = running.outcome().is_some() && job.end.is_none();
            let stands_still = running.is_standing_still() && job.status == Status::Running;
            is_over || (stands_still && job.paused)
        })
    }

    /// Ends all jobs and waits for them; nothing may keep the caller.
    pub async fn end_all(&mut self, shard: &Shard, graph: &mut Graph) {
        loop {
            let works = |job: &&Job| matches!(job.work, Work::Backup(_));
            // Members of a group conclude together, when the last of them has ended.
            let next = self.iter().filter(works).find(|job| job.end.is_none());
            let Some(job) = next.or_else(|| self.iter().find(works)) else {
                return;
            };
            let (id, can_be_cancelled) = (job.id.clone(), job.status.accepts(Verb::Cancel));
            if can_be_cancelled && let Err(error) = self.cancel(shard, graph, &id, true).await {
                tracing::warn!("{error}");
            }
            let ended = self.get(&id).and_then(|job| match &job.work {
                Work::Backup(backup) => backup.running().map(Backup::end),
                Work::None => None,
            });
            if let Some(end) = ended {
                end.reached(shard).await;
            }
            self.step(shard, graph).await;
            shard.yield_now().await;
        }
    }
}
