//! One run, from open disks to a compared copy. How it begins is in `start`, how
//! it ends in `finish`.
//!
//! # Order
//!
//! 1. The source is opened and locked, for reading only.
//! 2. The target is made, or found as the state has it; the state is written.
//! 3. What an earlier run left is compared with the source.
//! 4. The engine's backup job copies the rest. Every few seconds the target is
//!    flushed, and the state written: in this order.
//! 5. Everything is on the target and durable: the state says so.
//! 6. Source and target are compared, if that was asked for. The target is closed.
//! 7. Only now the source's bitmap is changed, and the state removed.

use std::path::PathBuf;
use std::sync::Arc;

use ringback_block::copy::control::OnError;
use ringback_block::copy::governor::LatencyTarget;
use ringback_block::filter::copy_before_write::{
    self, CLUSTER_SIZE_DEFAULT, CopyBeforeWrite, OnCbwError, SAVE_BUFFER_DEFAULT,
};
use ringback_block::graph::{BitmapEnd, Graph, Insertion, Scope};
use ringback_block::job::backup::{self, Backup};
use ringback_block::span::Span;
use ringback_ring::Shard;

use super::args::{Args, VerifyArg};
use super::compare::{self, Pair};
use super::interrupt::Interrupt;
use super::open::Disk;
use super::outcome::{Ending, Outcome};
use super::progress::Progress;
use super::source::Source;
use super::spans;
use super::start;
use super::state::{Stage, State};
use crate::open::Objects;

const SECOND_NS: u64 = 1_000_000_000;
const POLL_NS: u64 = SECOND_NS / 50;
/// The filter's name in the graph.
const FILTER: &str = "ringback-backup";

/// What a run needs beside its disks.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) args: Args,
    pub(crate) objects: Objects,
    pub(crate) progress: Arc<Progress>,
    pub(crate) interrupt: Interrupt,
}

/// A run whose disks are open.
pub(crate) struct Session {
    pub(super) context: Context,
    pub(super) graph: Graph,
    pub(super) source: Source,
    pub(super) target: Disk,
    pub(super) state: State,
    /// None: nothing is kept.
    pub(super) state_path: Option<PathBuf>,
    pub(super) is_resumed: bool,
}

/// Why a run does not come to its end.
pub(super) enum Stop {
    Interrupted(u8),
    Failed(String),
}

impl From<String> for Stop {
    fn from(error: String) -> Self {
        Self::Failed(error)
    }
}

/// What has become of the copy.
#[derive(Default)]
struct Copied {
    data: u64,
    zero: u64,
    kept: u64,
}

/// Runs a backup.
///
/// # Errors
///
/// It could not begin. What goes wrong later is part of the outcome.
pub(crate) async fn run(shard: Shard, context: Context) -> Result<Outcome, String> {
    let session = start::open(&shard, context).await?;
    Ok(session.run(&shard).await)
}

impl Session {
    async fn run(mut self, shard: &Shard) -> Outcome {
        let mut outcome = Outcome {
            ending: Ending::Done,
            messages: Vec::new(),
            is_incremental: self.source.increment().is_some(),
            is_resumed: self.is_resumed,
            data_bytes: 0,
            zero_bytes: 0,
            kept_bytes: 0,
            seconds: 0.0,
            verified: None,
            differing_bytes: 0,
        };
        let start_ns = shard.now_ns();
        let worked = self.work(shard, &mut outcome).await;
        outcome.seconds = seconds(shard.now_ns() - start_ns);
        match worked {
            Ok(()) => self.end_well(shard, &mut outcome).await,
            Err(stop) => self.end_badly(shard, &mut outcome, stop).await,
        }
        outcome
    }

    pub(super) fn args(&self) -> &Args {
        &self.context.args
    }

    /// Units in which is copied and compared.
    fn unit(&self) -> u64 {
        let cluster_size = self.graph.cluster_size(self.target.node()).unwrap_or(0);
        cluster_size.max(CLUSTER_SIZE_DEFAULT)
    }

    fn check_interrupt(&self) -> Result<(), Stop> {
        match self.context.interrupt.asked() {
            Some(signal) => Err(Stop::Interrupted(signal)),
            None => Ok(()),
        }
    }

    async fn work(&mut self, shard: &Shard, outcome: &mut Outcome) -> Result<(), Stop> {
        let areas = spans::widened(&self.source.areas(), self.unit(), self.source.size);
        let kept = if self.is_resumed {
            self.check_kept(shard, &areas).await?
        } else {
            Vec::new()
        };
        self.state.set_done(&kept);
        self.state.stage = Stage::Copying;
        self.save_state(shard).await?;
        let copied = self.copy(shard, &kept).await;
        let (figures, copied) = copied?;
        outcome.data_bytes = figures.data;
        outcome.zero_bytes = figures.zero;
        outcome.kept_bytes = figures.kept;
        copied?;
        let whole = Span::new(0, self.source.size);
        self.state.set_done(&[whole]);
        self.state.stage = Stage::Copied;
        self.save_state(shard).await?;
        let Some(verify) = self.args().verify else {
            return Ok(());
        };
        let areas = match verify {
            VerifyArg::Copied => areas,
            VerifyArg::All => vec![whole],
        };
        let differing = self.compare(shard, "verifying", areas).await?;
        outcome.verified = Some(differing.is_empty());
        outcome.differing_bytes = spans::total(&differing);
        if let Some(first) = differing.first() {
            outcome.ending = Ending::Differs;
            outcome.messages.push(format!(
                "source and target differ, first in the {} bytes at {}: {} bytes in all",
                first.len, first.offset, outcome.differing_bytes
            ));
            self.state.set_done(&spans::without(&[whole], &differing));
            self.state.stage = Stage::Copying;
            self.save_state(shard).await?;
        }
        Ok(())
    }

    /// What an earlier run left on the target, as far as it is right.
    async fn check_kept(&mut self, shard: &Shard, areas: &[Span]) -> Result<Vec<Span>, Stop> {
        // Until it is checked nothing counts, whatever ends the check. The file still
        // has it.
        let mut claimed = self.state.done();
        self.state.set_done(&[]);
        if self.args().compress {
            // A compressed cluster cannot be written twice: whatever is there
            // counts, noted or not.
            claimed.extend(self.held_by_target(shard).await?);
            claimed.sort_unstable_by_key(|span| span.offset);
            claimed = spans::widened(&claimed, 1, self.source.size);
        }
        let claimed = spans::common(areas, &claimed);
        let differing = self
            .compare(shard, "checking what is there", claimed.clone())
            .await?;
        if self.args().compress {
            let port = self.target.attachment.port(shard);
            for span in &differing {
                // If that does not help, the copy says what is wrong.
                let _ = port.discard(shard, *span).await;
            }
        }
        Ok(spans::without(&claimed, &differing))
    }

    /// What the target holds itself, and no image below it.
    async fn held_by_target(&self, shard: &Shard) -> Result<Vec<Span>, Stop> {
        let port = self.target.attachment.port(shard);
        let (mut held, mut at) = (Vec::new(), 0);
        while at < self.source.size {
            self.check_interrupt()?;
            let rest = Span::between(at, self.source.size);
            let extent = port.extent(shard, rest).await.map_err(|errno| {
                format!("cannot find out what the target holds: {}", errno.desc())
            })?;
            let span = Span::new(at, extent.len.clamp(1, rest.len));
            if extent.depth == 1 {
                held.push(span);
            }
            at = span.end();
        }
        Ok(held)
    }

    async fn compare(
        &mut self,
        shard: &Shard,
        stage: &'static str,
        areas: Vec<Span>,
    ) -> Result<Vec<Span>, Stop> {
        self.context.progress.begin(stage, spans::total(&areas));
        let pair = Pair {
            source: self.source.disk.attachment.clone(),
            target: self.target.attachment.clone(),
            interrupt: self.context.interrupt.clone(),
            progress: Arc::clone(&self.context.progress),
        };
        let compared = compare::differing(shard, &pair, areas, self.unit()).await;
        self.check_interrupt()?;
        Ok(compared?)
    }

    /// Copies everything but what is kept. The figures are there whatever has
    /// become of the copy.
    async fn copy(
        &mut self,
        shard: &Shard,
        kept: &[Span],
    ) -> Result<(Copied, Result<(), Stop>), Stop> {
        let filter = self.insert_filter(shard).await?;
        let total = filter.progress().len;
        for span in kept {
            filter.leave_out(*span);
        }
        let kept_bytes = total.saturating_sub(filter.progress().len);
        self.context.progress.begin("backup", total);
        let started = Backup::start(shard, &filter, self.job_options());
        let job = started.map_err(|error| error.to_string())?;
        self.watch(shard, &job, kept_bytes, total).await;
        let outcome = job.ended(shard).await;
        let ended = match outcome.result {
            Ok(()) => Ok(()),
            Err(error) => {
                // What the flush has not made durable is not noted.
                if let Ok(done) = job.checkpoint(shard).await {
                    self.note(shard, &done).await;
                }
                self.check_interrupt()
                    .and_then(|()| Err(error.to_string().into()))
            }
        };
        drop(job);
        self.remove_filter(shard).await?;
        let figures = Copied {
            data: outcome.copied.data,
            zero: outcome.copied.zero,
            kept: kept_bytes,
        };
        Ok((figures, ended))
    }

    async fn insert_filter(&mut self, shard: &Shard) -> Result<Arc<CopyBeforeWrite>, Stop> {
        // While the filter stands, the target is its own.
        self.graph.detach(self.target.user).await;
        let by_bitmap = self.source.increment();
        let insertion = Insertion {
            node_name: Some(FILTER),
            file: self.source.disk.node(),
            target: self.target.node(),
            bitmap: by_bitmap,
            scope: if by_bitmap.is_some() {
                Scope::BitmapAlone
            } else {
                Scope::Everything
            },
            options: copy_before_write::Options {
                on_cbw_error: OnCbwError::BreakSnapshot,
                save_buffer: SAVE_BUFFER_DEFAULT,
                compress: self.context.args.compress,
                shares_writes: self.context.args.force_share,
                ..copy_before_write::Options::default()
            },
        };
        let inserted = self
            .graph
            .insert_copy_before_write(shard, &[insertion], || {})
            .await;
        let inserted = inserted.map_err(|error| error.to_string())?;
        Ok(Arc::clone(&inserted.filters[0]))
    }

    async fn remove_filter(&mut self, shard: &Shard) -> Result<(), Stop> {
        let removed = self.graph.remove_copy_before_write(shard, FILTER).await;
        removed.map_err(|error| error.to_string())?;
        if let Some(name) = self.source.increment() {
            let node = self.source.disk.node();
            let ended = self.graph.end_bitmap(node, name, BitmapEnd::Reclaim).await;
            ended.map_err(|error| error.to_string())?;
        }
        self.target.attach_again(shard, &mut self.graph).await?;
        Ok(())
    }

    fn job_options(&self) -> backup::Options {
        let args = self.args();
        backup::Options {
            sync: backup::Sync::Full,
            max_workers: args.workers,
            max_chunk: if args.max_chunk == 0 {
                0
            } else {
                args.max_chunk.max(self.unit())
            },
            speed: args.speed,
            // Nobody else writes to the source, but others may use its device.
            latency_target: LatencyTarget::Auto,
            discard_source: false,
            on_source_error: OnError::Report,
            on_target_error: OnError::Report,
        }
    }

    /// Until the job has ended: shows how far it is, notes what is durable, and
    /// ends it if that is asked for.
    async fn watch(&mut self, shard: &Shard, job: &Backup, kept: u64, total: u64) {
        let interval_ns = self.args().checkpoint * SECOND_NS;
        let mut noted_ns = shard.now_ns();
        while job.outcome().is_none() {
            if self.context.interrupt.asked().is_some() {
                job.control().cancel();
            }
            let start_ns = shard.now_ns();
            self.context
                .progress
                .set(kept + job.progress().offset, total);
            if self.state_path.is_some() && start_ns - noted_ns >= interval_ns {
                // If it cannot be flushed, the job itself will meet that.
                if let Ok(done) = job.checkpoint(shard).await {
                    self.note(shard, &done).await;
                }
                noted_ns = shard.now_ns();
            }
            // A look at the states of a large disk takes its time.
            let took_ns = shard.now_ns() - start_ns;
            shard.sleep_ns(POLL_NS.max(took_ns * 10)).await;
        }
    }

    /// Notes what is durable. The backup goes on if that cannot be written.
    async fn note(&mut self, shard: &Shard, done: &[Span]) {
        self.state.set_done(done);
        if let Err(error) = self.save_state(shard).await {
            eprintln!("ringback: warning: {error}");
        }
    }

    async fn save_state(&self, shard: &Shard) -> Result<(), String> {
        let Some(path) = self.state_path.clone() else {
            return Ok(());
        };
        let state = self.state.clone();
        shard.blocking(move || state.write(&path)).await
    }
}

#[expect(clippy::cast_precision_loss, reason = "a duration for people")]
fn seconds(ns: u64) -> f64 {
    ns as f64 / SECOND_NS as f64
}
