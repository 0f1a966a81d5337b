//! Checking an image, and repairing it.
//!
//! | module | noun |
//! | --- | --- |
//! | `report` | findings and their sums |
//! | `census` | references as counted |
//! | `ledger` | refcounts as the file has them |
//! | `snapshot_table` | the snapshots of a table that may be damaged |
//! | `walk` | the way along every reference |
//! | `compare` | census against ledger |
//! | `rebuild` | refcounts made anew |
//! | `copied` | which entries allow writing in place |
//!
//! # How much it takes
//!
//! Memory is a byte a cluster that is referred to, one table at a time, and a
//! note about every L2 table. Findings go out one by one. An L2 table that
//! several L1 entries share is read twice, however many they are: what is wrong
//! in it is said once, and counted for each. All tables together must not be
//! much longer than the file; where they are they overlap beyond repair.
//!
//! # What makes a repair safe
//!
//! Refcounts rise before anything relies on them. New structures are written
//! where neither census nor ledger knows of anything, are made durable, and
//! only then pointed at. Flags that allow writing in place follow counts that
//! are durable. The header calls the image sound last of all.
//!
//! # What is kept
//!
//! If a table could not be followed, clusters that seem to be lost may be the
//! ones that it refers to: they are reported, and stay as they are. (QEMU frees
//! them.)

mod census;
mod compare;
mod copied;
mod ledger;
mod rebuild;
mod report;
mod snapshot_table;
mod walk;

use ringback_ring::{Errno, IoResult, Shard};

pub use report::{CheckError, CheckReport, Finding, Repair};

use self::ledger::Ledger;
use self::snapshot_table::Snapshot;
use super::frame::{read_bytes, write_bytes};
use super::geometry::Geometry;
use super::header::{
    Header, INCOMPATIBLE_CORRUPT, INCOMPATIBLE_DIRTY, INCOMPATIBLE_OFFSET, OpenMode,
};
use super::open::read_header;
use crate::child::Child;
use crate::span::Span;

/// No file of more clusters is checked; QEMU's limit.
const CLUSTERS_MAX: u64 = i32::MAX as u64;
/// All tables together may be so many times as long as the file.
const TABLES_PER_FILE: u64 = 16;
const TABLES_MIN: u64 = 1 << 20;

/// Checks the image in `file`, which nobody else may be writing to, and repairs
/// what `repair` says. Every finding goes to `say`, in QEMU's order; the sums
/// are the answer. With a repair, what the sums say was fixed is durable.
///
/// The image may be marked dirty or corrupt. If it was to be repaired and
/// nothing is left, it is marked neither afterwards.
///
/// # Errors
///
/// [`CheckError`] if the image cannot be opened, or the check cannot go on: an
/// I/O error, or structures of which no sense can be made. What was repaired by
/// then stays repaired.
pub async fn check(
    shard: &Shard,
    file: &Child,
    repair: Repair,
    say: &mut dyn FnMut(&Finding),
) -> Result<CheckReport, CheckError> {
    let header = read_header(shard, file, OpenMode::Check).await?;
    let mut checker = Checker::new(shard, file, header, repair, say).await?;
    checker.run().await?;
    Ok(checker.report)
}

/// A check on its way.
struct Checker<'a> {
    shard: &'a Shard,
    file: &'a Child,
    header: Header,
    geometry: Geometry,
    repair: Repair,
    say: &'a mut dyn FnMut(&Finding),
    report: CheckReport,
    ledger: Ledger,
    l1: Vec<u64>,
    snapshots: Vec<Snapshot>,
    /// Bytes of the snapshot table.
    snapshot_bytes: u64,
    /// Every table could be followed: what nothing refers to is lost.
    complete: bool,
    /// What may still be read of tables.
    tables_left: u64,
}

impl<'a> Checker<'a> {
    async fn new(
        shard: &'a Shard,
        file: &'a Child,
        header: Header,
        repair: Repair,
        say: &'a mut dyn FnMut(&Finding),
    ) -> Result<Self, CheckError> {
        let cluster_size = 1 << header.cluster_bits;
        let geometry = Geometry::new(
            header.cluster_bits,
            header.has_extended_l2(),
            header.refcount_order,
            cluster_size,
        );
        let table_span = Span::new(
            header.refcount_table_offset,
            u64::from(header.refcount_table_clusters) * cluster_size,
        );
        let l1_span = Span::new(header.l1_offset, u64::from(header.l1_size) * 8);
        let table = words(&read_inside(shard, file, table_span).await?);
        let l1 = words(&read_inside(shard, file, l1_span).await?);
        let report = CheckReport {
            total_clusters: header.size.div_ceil(cluster_size),
            ..CheckReport::default()
        };
        Ok(Self {
            shard,
            file,
            geometry,
            repair,
            say,
            report,
            ledger: Ledger::new(geometry, table, table_span),
            l1,
            snapshots: Vec::new(),
            snapshot_bytes: 0,
            complete: true,
            tables_left: 0,
            header,
        })
    }

    async fn run(&mut self) -> IoResult<()> {
        let bad_snapshots = self.read_snapshots().await?;
        if self.cluster_count() > CLUSTERS_MAX {
            self.report.check_errors += 1;
            return Err(Errno::EFBIG);
        }
        let walked = self.check_refcounts().await?;
        // Before the flags: clusters of the old table lose a reference.
        if bad_snapshots > 0 && self.repairs_all() {
            self.rewrite_snapshots(bad_snapshots, &walked.census)
                .await?;
        }
        self.check_copied(&walked).await?;
        if !self.repairs_all() {
            self.report.corruptions += bad_snapshots;
        }
        let is_sound = self.report.check_errors == 0 && self.report.corruptions == 0;
        if self.repair > Repair::Nothing && is_sound {
            self.mark_sound().await?;
        }
        Ok(())
    }

    fn say(&mut self, finding: &Finding) {
        (self.say)(finding);
    }

    /// Says it, and counts it as damage.
    fn corruption(&mut self, finding: &Finding) {
        self.report.corruptions += 1;
        self.say(finding);
    }

    fn repairs_all(&self) -> bool {
        self.repair == Repair::All
    }

    /// Clusters of the file.
    fn cluster_count(&self) -> u64 {
        self.file.size().div_ceil(self.geometry.cluster_size)
    }

    /// Reads a part of a table; zeroes behind the end of the file are left out.
    async fn read_table(&mut self, span: Span) -> IoResult<Vec<u8>> {
        let inside = inside(self.file, span);
        let left = self.tables_left.checked_sub(inside.len);
        // Tables that overlap so often are no tables.
        self.tables_left = left.ok_or(Errno::EFBIG)?;
        read_inside(self.shard, self.file, span).await
    }

    async fn write(&self, offset: u64, bytes: &[u8]) -> IoResult<()> {
        write_bytes(self.shard, self.file, offset, bytes).await
    }

    /// The marks of damage go, when all else is durable.
    async fn mark_sound(&mut self) -> IoResult<()> {
        let marks = INCOMPATIBLE_DIRTY | INCOMPATIBLE_CORRUPT;
        if self.header.incompatible & marks == 0 {
            return Ok(());
        }
        self.file.flush(self.shard).await?;
        let bits = self.header.incompatible & !marks;
        self.write(INCOMPATIBLE_OFFSET, &bits.to_be_bytes()).await?;
        self.file.flush(self.shard).await?;
        self.header.incompatible = bits;
        Ok(())
    }
}

/// The part of a range that lies inside of the file.
fn inside(file: &Child, span: Span) -> Span {
    if span.offset >= file.size() {
        return Span::new(span.offset, 0);
    }
    span.clip(&Span::new(0, file.size()))
}

async fn read_inside(shard: &Shard, file: &Child, span: Span) -> IoResult<Vec<u8>> {
    read_bytes(shard, file, inside(file, span)).await
}

/// Big-endian words. What is left of a word that the file's end cut through is
/// filled up with zeroes.
fn words(bytes: &[u8]) -> Vec<u64> {
    bytes
        .chunks(8)
        .map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_be_bytes(word)
        })
        .collect()
}
