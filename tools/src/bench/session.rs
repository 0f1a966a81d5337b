//! One run of the bench, from the first write to the verdict.
//!
//! Fill, guest alone, point in time, backup and fleecing against the guest,
//! verification. The control task of the run; it lives on the first shard.

use std::sync::Arc;

use hdrhistogram::Histogram;
use ringback_block::bitmap::default_granularity;
use ringback_block::filter::copy_before_write::CopyBeforeWrite;
use ringback_block::graph::{
    Access, BitmapEnd, Graph, GraphError, Insertion, NodeSpec, Scope, UserId,
};
use ringback_block::job::backup::{self, Backup};
use ringback_block::metrics;
use ringback_block::port::Attachment;
use ringback_block::span::Span;
use ringback_ring::file::Kind;
use ringback_ring::{Shard, probe};

use super::args::{Args, SyncArg};
use super::fill::Filler;
use super::fleece::{Fleecing, Summary};
use super::guest::{Failure, Guest, Phase};
use super::history::Snapshot;
use super::layout::DiskLayout;
use super::prepare::Disks;
use super::progress::Progress;
use super::summary;
use super::verify::{self, Reference};
use crate::report::{self, BenchReport, GuestPhase, LatencyFrom, Verification};

pub(super) const SECOND_NS: u64 = 1_000_000_000;

/// Everything that a run has found.
pub(crate) struct Outcome {
    pub(crate) report: BenchReport,
    /// One for each class, by the name of its file.
    pub(crate) histograms: Vec<(&'static str, Histogram<u64>)>,
    /// What went wrong beside the verification.
    pub(crate) failure: Option<String>,
}

/// A run that has not begun.
pub(crate) struct Session {
    args: Args,
    disks: Disks,
    progress: Arc<Progress>,
}

/// The guest's disk while the run lasts.
struct Source {
    attachment: Attachment,
    user: UserId,
    name: String,
    size: u64,
}

/// Where the backup goes, reserved until it begins.
struct Target {
    name: String,
    reserved: UserId,
}

/// What the middle of the run has measured.
pub(super) struct Middle {
    pub(super) filter: Arc<CopyBeforeWrite>,
    areas: Vec<Span>,
    reference: Arc<Reference>,
    pub(super) outcome: backup::Outcome,
    pub(super) bytes_total: u64,
    pub(super) fleecing: Option<Summary>,
    pub(super) pause_ns: u64,
    pub(super) seconds: f64,
    /// What the engine had measured when the backup began.
    measured_before: metrics::Snapshot,
    /// A write that the bitmap missed.
    unrecorded: Option<String>,
}

impl Middle {
    /// What the guest had written before the instant and the bitmap does not
    /// have, if there is such a thing.
    fn find_unrecorded(&self, before: &Snapshot) -> Option<String> {
        let Reference::Written(at_instant) = &*self.reference else {
            return None;
        };
        let missing = at_instant.changed_since(before).find(|changed| {
            !self
                .areas
                .iter()
                .any(|area| area.offset <= changed.offset && changed.end() <= area.end())
        })?;
        Some(format!(
            "the bitmap: {} bytes at {} were written and are not dirty",
            missing.len, missing.offset
        ))
    }
}

impl Session {
    pub(crate) fn new(args: Args, disks: Disks, progress: Arc<Progress>) -> Self {
        Self {
            args,
            disks,
            progress,
        }
    }

    /// Runs it. An error: it could not be run to its end.
    pub(crate) async fn run(mut self, shard: &Shard) -> Result<Outcome, String> {
        let mut graph = Graph::new();
        let source = self.open_source(shard, &mut graph).await?;
        let target = self.open_target(shard, &mut graph, source.size).await?;
        self.disks.begin();
        let guest = Guest::new(self.layout(source.size), &self.args);
        let mut report = self.empty_report(&graph, &source);
        if self.args.fills() {
            report.fill = Some(self.fill(shard, &source, &guest).await?);
        }
        let recorded_from = if self.args.sync == SyncArg::Bitmap {
            add_bitmap(&mut graph, &source.name).await?;
            Some(guest.snapshot())
        } else {
            None
        };
        let load = if self.args.no_guest {
            Vec::new()
        } else {
            guest.start(shard, &source.attachment, &self.args)
        };
        if !self.args.no_guest && self.args.baseline > 0 {
            report.baseline = Some(self.watch_guest(shard, &guest).await);
        }
        let mut middle = self
            .back_up(shard, &mut graph, &source, &target, &guest)
            .await?;
        middle.unrecorded = recorded_from.and_then(|before| middle.find_unrecorded(&before));
        guest.enter(Phase::After);
        guest.stop();
        for task in load {
            task.await.map_err(|gone| gone.to_string())?;
        }
        let measured = metrics::look(shard.set()).await;
        let measured = measured.since(&middle.measured_before);
        let verification = self
            .verify(shard, &mut graph, &source, &target.name, &guest, &middle)
            .await?;
        graph.detach(source.user).await;
        summary::fill_in(&mut report, &self.args, &middle, &guest, &measured);
        report.verification = Some(verification);
        Ok(Outcome {
            histograms: summary::histograms(&guest, &measured),
            failure: summary::failure(&middle, &guest),
            report,
        })
    }

    fn layout(&self, size: u64) -> DiskLayout {
        let block = usize::try_from(self.args.block).expect("at most a few MiB");
        DiskLayout::new(self.args.seed, size, block, self.args.queue_count())
    }

    async fn open_source(&self, shard: &Shard, graph: &mut Graph) -> Result<Source, String> {
        let name = add_nodes(shard, graph, &self.disks.source.nodes, &self.args).await?;
        let access = Access {
            read: true,
            write: self.args.fills(),
            alone_writing: true,
            ..Access::default()
        };
        let (user, attachment) = attach_patiently(shard, graph, &name, "the guest", access)
            .await
            .map_err(|error| format!("source: {error}"))?;
        let size = graph.size(&name).map_err(|error| error.to_string())?;
        warn_if_buffered(graph, &name, &self.args);
        Ok(Source {
            attachment,
            user,
            name,
            size,
        })
    }

    async fn open_target(
        &self,
        shard: &Shard,
        graph: &mut Graph,
        source_size: u64,
    ) -> Result<Target, String> {
        let name = add_nodes(shard, graph, &self.disks.target.nodes, &self.args).await?;
        let size = graph.size(&name).map_err(|error| error.to_string())?;
        if size != source_size {
            let how = if size < source_size {
                "smaller"
            } else {
                "larger"
            };
            return Err(format!(
                "the target has {size} bytes and is {how} than the source with {source_size}: a \
                 raw backup needs a target of the same size"
            ));
        }
        // Until the filter takes it over, nobody else may have it either.
        let access = Access {
            read: false,
            write: true,
            alone_writing: true,
            ..Access::default()
        };
        let (reserved, _) = attach_patiently(shard, graph, &name, "the backup", access)
            .await
            .map_err(|error| format!("target: {error}"))?;
        Ok(Target { name, reserved })
    }

    fn empty_report(&self, graph: &Graph, source: &Source) -> BenchReport {
        let geometry = graph.file(&source.name).map(|file| *file.geometry());
        let kind = match geometry.map(|geometry| geometry.kind) {
            Some(Kind::BlockDevice) => "block device",
            Some(Kind::Regular) | None => "raw file",
        };
        BenchReport {
            format: report::FORMAT,
            version: env!("CARGO_PKG_VERSION").into(),
            kernel: probe::kernel_release(),
            disk: report::Disk {
                path: self.disks.source.path.display().to_string(),
                size_bytes: source.size,
                kind: kind.into(),
                direct: geometry.is_some_and(|geometry| geometry.direct),
            },
            settings: self.args.settings(),
            latency_from: match self.args.rate() {
                Some(_) => LatencyFrom::IntendedStart,
                None => LatencyFrom::Submission,
            },
            fill: None,
            baseline: None,
            during: None,
            backup: None,
            point_in_time: None,
            copy_before_write: None,
            fleecing: None,
            verification: None,
        }
    }

    /// Gives the disk a content that can be checked.
    async fn fill(
        &self,
        shard: &Shard,
        source: &Source,
        guest: &Guest,
    ) -> Result<report::Fill, String> {
        self.progress.begin("filling the disk", source.size);
        let start_ns = shard.now_ns();
        let filler = Filler::new(
            source.size,
            self.disks.source_is_blank,
            guest.clone(),
            source.attachment.clone(),
            &self.args,
            Arc::clone(&self.progress),
        );
        let bytes = filler.run(shard).await?;
        let seconds = seconds_since(shard, start_ns);
        Ok(report::Fill { bytes, seconds })
    }

    async fn watch_guest(&self, shard: &Shard, guest: &Guest) -> GuestPhase {
        let total_ns = self.args.baseline * SECOND_NS;
        self.progress.begin("guest alone", total_ns);
        let start_ns = shard.now_ns();
        while shard.now_ns() - start_ns < total_ns && guest.failure().is_none() {
            shard.sleep_ns(SECOND_NS / 20).await;
            self.progress.set(shard.now_ns() - start_ns, total_ns);
        }
        summary::guest_phase(guest, Phase::Baseline, seconds_since(shard, start_ns))
    }

    /// The point in time, the backup and the fleecing readers.
    async fn back_up(
        &self,
        shard: &Shard,
        graph: &mut Graph,
        source: &Source,
        target: &Target,
        guest: &Guest,
    ) -> Result<Middle, String> {
        // From here on the engine's figures are those of the backup.
        let measured_before = metrics::look(shard.set()).await;
        let insertion = Insertion {
            node_name: Some("cbw"),
            file: &source.name,
            target: &target.name,
            bitmap: (self.args.sync == SyncArg::Bitmap).then_some(BITMAP),
            scope: Scope::Bitmap,
            options: self.args.filter_options(),
        };
        graph.detach(target.reserved).await;
        let start_ns = shard.now_ns();
        let mut snapshot = None;
        let at_instant = || {
            snapshot = Some(guest.snapshot());
            guest.enter(Phase::During);
        };
        let inserted = graph
            .insert_copy_before_write(shard, &[insertion], at_instant)
            .await
            .map_err(|error| error.to_string())?;
        let filter = Arc::clone(&inserted.filters[0]);
        let reference = self.reference(source, snapshot);
        let areas: Vec<Span> = filter.snapshot_areas().collect();
        let bytes_total = areas.iter().map(|area| area.len).sum();
        let readers = self.start_readers(shard, graph, &reference, &areas).await?;
        let outcome = self.run_job(shard, &filter, guest).await?;
        let seconds = seconds_since(shard, start_ns);
        let fleecing = match readers {
            Some((id, readers)) => {
                let summary = readers.stop().await;
                graph.detach(id).await;
                graph
                    .remove(shard, "snapshot")
                    .await
                    .map_err(|error| error.to_string())?;
                Some(summary)
            }
            None => None,
        };
        Ok(Middle {
            filter,
            areas,
            reference,
            outcome,
            bytes_total,
            fleecing,
            pause_ns: inserted.pause_ns,
            seconds,
            measured_before,
            unrecorded: None,
        })
    }

    /// Without a guest the source itself tells what it held.
    fn reference(&self, source: &Source, snapshot: Option<Snapshot>) -> Arc<Reference> {
        Arc::new(match snapshot {
            Some(snapshot) if !self.args.no_guest => Reference::Written(snapshot),
            _ => Reference::Disk(source.attachment.clone()),
        })
    }

    async fn start_readers(
        &self,
        shard: &Shard,
        graph: &mut Graph,
        reference: &Arc<Reference>,
        areas: &[Span],
    ) -> Result<Option<(UserId, Fleecing)>, String> {
        if self.args.fleece_depth == 0 {
            return Ok(None);
        }
        let spec = NodeSpec::SnapshotAccess { file: "cbw".into() };
        graph
            .add(shard, "snapshot", spec)
            .await
            .map_err(|error| error.to_string())?;
        let access = Access {
            read: true,
            write: false,
            alone_writing: false,
            ..Access::default()
        };
        let (id, view) = graph
            .attach(shard, "snapshot", "the fleecing readers", access)
            .await
            .map_err(|error| error.to_string())?;
        let readers = Fleecing::start(
            shard,
            &view,
            Arc::clone(reference),
            areas.to_vec(),
            &self.args,
        );
        Ok(Some((id, readers)))
    }

    async fn run_job(
        &self,
        shard: &Shard,
        filter: &Arc<CopyBeforeWrite>,
        guest: &Guest,
    ) -> Result<backup::Outcome, String> {
        let job = Backup::start(shard, filter, self.args.job_options())
            .map_err(|error| error.to_string())?;
        self.progress.begin("backup", filter.progress().len);
        let start_ns = shard.now_ns();
        let end_ns = self.args.duration.saturating_mul(SECOND_NS);
        while job.outcome().is_none() {
            shard.sleep_ns(SECOND_NS / 10).await;
            let elapsed_ns = shard.now_ns() - start_ns;
            if self.args.sync == SyncArg::None {
                self.progress.set(elapsed_ns, end_ns);
            } else {
                let progress = job.progress();
                self.progress.set(progress.offset, progress.len);
            }
            let time_is_over = self.args.sync == SyncArg::None && elapsed_ns >= end_ns;
            if time_is_over || guest.failure().is_some() {
                job.control().cancel();
            }
        }
        Ok(job.ended(shard).await)
    }

    /// Compares the backup with the instant, and the disk with the guest.
    async fn verify(
        &self,
        shard: &Shard,
        graph: &mut Graph,
        source: &Source,
        target: &str,
        guest: &Guest,
        middle: &Middle,
    ) -> Result<Verification, String> {
        let mut wrong = middle.unrecorded.clone();
        let mut note = |what: Option<String>| {
            if wrong.is_none() {
                wrong = what;
            }
        };
        if let Some(Failure::Mismatch(what)) = guest.failure() {
            note(Some(what));
        }
        note(
            middle
                .fleecing
                .as_ref()
                .and_then(|summary| summary.failure.clone()),
        );
        graph
            .remove_copy_before_write(shard, "cbw")
            .await
            .map_err(|error| error.to_string())?;
        let is_complete = middle.outcome.result.is_ok();
        if self.args.sync == SyncArg::Bitmap {
            let end = if is_complete {
                BitmapEnd::Abdicate
            } else {
                BitmapEnd::Reclaim
            };
            graph
                .end_bitmap(&source.name, BITMAP, end)
                .await
                .map_err(|error| error.to_string())?;
        }
        let mut backup_bytes_checked = 0;
        if is_complete && self.args.sync != SyncArg::None {
            let what;
            (backup_bytes_checked, what) = self.verify_backup(shard, graph, target, middle).await?;
            note(what.map(|what| format!("the backup: {what}")));
        }
        let mut source_bytes_checked = 0;
        if !self.args.no_guest && guest.failure().is_none() {
            let what;
            (source_bytes_checked, what) = self.verify_source(shard, source, guest).await;
            note(what.map(|what| format!("the disk: {what}")));
        }
        Ok(Verification {
            held: wrong.is_none(),
            backup_bytes_checked,
            fleece_bytes_checked: match *middle.reference {
                Reference::Written(_) => {
                    middle.fleecing.as_ref().map_or(0, |summary| summary.bytes)
                }
                Reference::Disk(_) => 0,
            },
            guest_reads_checked: guest.reads_checked(),
            source_bytes_checked,
            first_mismatch: wrong,
        })
    }

    async fn verify_backup(
        &self,
        shard: &Shard,
        graph: &mut Graph,
        target: &str,
        middle: &Middle,
    ) -> Result<(u64, Option<String>), String> {
        let access = Access {
            read: true,
            write: false,
            alone_writing: true,
            ..Access::default()
        };
        let (id, attachment) = graph
            .attach(shard, target, "the verification", access)
            .await
            .map_err(|error| error.to_string())?;
        let total = middle.areas.iter().map(|area| area.len).sum();
        self.progress.begin("verifying the backup", total);
        let result = verify::compare(
            shard,
            &attachment,
            &middle.areas,
            &middle.reference,
            &self.progress,
        )
        .await;
        graph.detach(id).await;
        Ok(result)
    }

    async fn verify_source(
        &self,
        shard: &Shard,
        source: &Source,
        guest: &Guest,
    ) -> (u64, Option<String>) {
        self.progress.begin("verifying the disk", source.size);
        let written = Arc::new(Reference::Written(guest.snapshot()));
        let whole = [Span::new(0, source.size)];
        verify::compare(shard, &source.attachment, &whole, &written, &self.progress).await
    }
}

/// The name of the bitmap of `--sync bitmap`.
const BITMAP: &str = "bench";

async fn add_bitmap(graph: &mut Graph, node: &str) -> Result<(), String> {
    let granularity = default_granularity(None);
    graph
        .change_bitmaps(node, |bitmaps| {
            bitmaps.add(BITMAP, granularity, false, false).map(drop)
        })
        .await
        .map_err(|error| error.to_string())
}

/// Attaches; a lock is tried again for a second. A process that was killed gives
/// its files back a moment after its end, when the kernel has taken its ring
/// apart.
async fn attach_patiently(
    shard: &Shard,
    graph: &mut Graph,
    node: &str,
    user: &str,
    access: Access,
) -> Result<(UserId, Attachment), GraphError> {
    let deadline_ns = shard.now_ns() + SECOND_NS;
    loop {
        match graph.attach(shard, node, user, access).await {
            Err(GraphError::Lock { .. }) if shard.now_ns() < deadline_ns => {
                shard.sleep_ns(SECOND_NS / 20).await;
            }
            result => return result,
        }
    }
}

async fn add_nodes(
    shard: &Shard,
    graph: &mut Graph,
    nodes: &[(String, NodeSpec)],
    args: &Args,
) -> Result<String, String> {
    let mut top = String::new();
    for (name, spec) in nodes {
        graph
            .add(shard, name, spec.clone())
            .await
            .map_err(|error| {
                let text = error.to_string();
                // The engine speaks of nodes; here there is an option for it.
                if args.image_opts {
                    text
                } else {
                    text.replace("cache.direct=off", "--cache buffered")
                }
            })?;
        top.clone_from(name);
    }
    Ok(top)
}

fn warn_if_buffered(graph: &Graph, name: &str, args: &Args) {
    let Some(file) = graph.file(name) else { return };
    if !file.geometry().direct && args.cache() == ringback_ring::file::Cache::Auto {
        eprintln!(
            "ringback: warning: the file system of '{}' has no O_DIRECT; the page cache is used, \
             and latencies are those of memory",
            file.path().display()
        );
    }
}

#[expect(clippy::cast_precision_loss, reason = "a duration for people")]
fn seconds_since(shard: &Shard, start_ns: u64) -> f64 {
    (shard.now_ns() - start_ns) as f64 / SECOND_NS as f64
}
