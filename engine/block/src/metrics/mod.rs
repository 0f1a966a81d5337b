//! What the engine measures: one set of histograms a shard, merged on request.
//!
//! Recording takes no lock and allocates nothing. Values are nanoseconds, with
//! two significant digits between 1 ns and 60 s; longer ones count as 60 s.

use std::cell::{Cell, RefCell};

use hdrhistogram::Histogram;
use ringback_ring::{Shard, Shards};

/// Longest duration that is told apart, in nanoseconds.
pub const LONGEST_NS: u64 = 60_000_000_000;

/// Kinds of operation that are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Old data saved before a guest's write: from the claim until it is safe.
    Save,
    /// A guest's change that waited for saves.
    SaveWait,
    /// A guest's change that waited for room in the save buffer.
    RoomWait,
    /// Old data in the save buffer: from its coming to its being on the target.
    Drain,
    /// A guest's change that waited for fleecing reads in flight.
    ReaderWait,
    /// A read through snapshot-access.
    SnapshotRead,
    /// A block-copy read from the source.
    CopyRead,
    /// A block-copy write to the target.
    CopyWrite,
    /// A request that met a closed gate.
    DrainPause,
}

impl Class {
    /// Every class, in the order of reports.
    pub const ALL: [Self; 9] = [
        Self::Save,
        Self::SaveWait,
        Self::RoomWait,
        Self::Drain,
        Self::ReaderWait,
        Self::SnapshotRead,
        Self::CopyRead,
        Self::CopyWrite,
        Self::DrainPause,
    ];

    /// The name in reports and file names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Save => "cbw-save",
            Self::SaveWait => "cbw-save-wait",
            Self::RoomWait => "cbw-room-wait",
            Self::Drain => "cbw-drain",
            Self::ReaderWait => "cbw-reader-wait",
            Self::SnapshotRead => "snapshot-read",
            Self::CopyRead => "copy-read",
            Self::CopyWrite => "copy-write",
            Self::DrainPause => "drain-pause",
        }
    }
}

/// An empty histogram of the engine's resolution.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_NS, 2).expect("the bounds are constant and valid")
}

/// One shard's measurements.
pub struct Metrics {
    histograms: RefCell<Vec<Histogram<u64>>>,
    saved_bytes: Cell<u64>,
}

impl Default for Metrics {
    fn default() -> Self {
        let histograms = Class::ALL.iter().map(|_| histogram()).collect();
        Self {
            histograms: RefCell::new(histograms),
            saved_bytes: Cell::new(0),
        }
    }
}

impl Metrics {
    pub(crate) fn record(&self, class: Class, duration_ns: u64) {
        self.histograms.borrow_mut()[class as usize].saturating_record(duration_ns);
    }

    pub(crate) fn add_saved(&self, bytes: u64) {
        self.saved_bytes.set(self.saved_bytes.get() + bytes);
    }
}

/// What all shards have measured.
#[derive(Clone, Debug)]
pub struct Snapshot {
    histograms: Vec<Histogram<u64>>,
    /// Bytes of old data that guest writes had saved.
    pub saved_bytes: u64,
}

impl Snapshot {
    /// The histogram of one class.
    pub fn class(&self, class: Class) -> &Histogram<u64> {
        &self.histograms[class as usize]
    }
}

/// Gathers what was measured since the last call, and starts afresh.
pub async fn take(shards: &Shards) -> Snapshot {
    let parts = shards
        .on_each(|shard| async move { take_local(&shard) })
        .await;
    let mut total = Snapshot {
        histograms: Class::ALL.map(|_| histogram()).into(),
        saved_bytes: 0,
    };
    for part in parts {
        total.saved_bytes += part.saved_bytes;
        for (sum, histogram) in total.histograms.iter_mut().zip(&part.histograms) {
            sum.add(histogram)
                .expect("all histograms have the same bounds");
        }
    }
    total
}

fn take_local(shard: &Shard) -> Snapshot {
    let metrics = shard.local::<Metrics>();
    let fresh = Metrics::default();
    metrics.histograms.swap(&fresh.histograms);
    let saved_bytes = metrics.saved_bytes.replace(0);
    Snapshot {
        histograms: fresh.histograms.into_inner(),
        saved_bytes,
    }
}
