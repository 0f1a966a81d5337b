//! What the engine measures: one set of histograms a shard, merged on request.
//!
//! Recording takes no lock and allocates nothing. Values are nanoseconds, with
//! two significant digits between 1 ns and 60 s; longer ones count as 60 s.
//!
//! Counts never fall: who wants to start afresh remembers a look and subtracts it from
//! later ones. Only what the clients of an export have waited for goes with the export.
//!
//! Classes are what the engine does; what the clients of each export wait for is
//! recorded beside them (`clients`).

pub mod clients;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use hdrhistogram::Histogram;
use ringback_ring::{Shard, Shards};

use self::clients::{Recorder, Waits};

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

/// The sum of all durations, in nanoseconds, each as the middle of what the
/// histogram cannot tell it from. It never falls when something is recorded.
pub fn total_ns(histogram: &Histogram<u64>) -> u64 {
    histogram.iter_recorded().fold(0, |total: u64, step| {
        let duration_ns = histogram.median_equivalent(step.value_iterated_to());
        total.saturating_add(duration_ns.saturating_mul(step.count_at_value()))
    })
}

/// One shard's measurements.
pub struct Metrics {
    histograms: RefCell<Vec<Histogram<u64>>>,
    saved_bytes: Cell<u64>,
    /// By the numbers of the exports.
    clients: RefCell<BTreeMap<u64, Rc<Recorder>>>,
}

impl Default for Metrics {
    fn default() -> Self {
        let histograms = Class::ALL.iter().map(|_| histogram()).collect();
        Self {
            histograms: RefCell::new(histograms),
            saved_bytes: Cell::new(0),
            clients: RefCell::default(),
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
    clients: BTreeMap<u64, Waits>,
}

impl Snapshot {
    /// The histogram of one class.
    pub fn class(&self, class: Class) -> &Histogram<u64> {
        &self.histograms[class as usize]
    }

    /// What the clients of every export have waited for, oldest export first.
    pub fn exports(&self) -> impl Iterator<Item = &Waits> {
        self.clients.values()
    }

    /// What came after an earlier look of the same process.
    ///
    /// # Panics
    ///
    /// If the other one is the later one.
    #[must_use]
    pub fn since(mut self, before: &Self) -> Self {
        for (count, earlier) in self.histograms.iter_mut().zip(&before.histograms) {
            count
                .subtract(earlier)
                .expect("what was recorded earlier is recorded still");
        }
        self.saved_bytes -= before.saved_bytes;
        for (number, waits) in &mut self.clients {
            if let Some(earlier) = before.clients.get(number) {
                waits.subtract(earlier);
            }
        }
        self
    }
}

/// Gathers what was measured since the shards were started. Measuring goes on.
pub async fn look(shards: &Shards) -> Snapshot {
    add_up(
        shards
            .on_each(|shard| async move { look_local(&shard) })
            .await,
    )
}

fn add_up(parts: Vec<Snapshot>) -> Snapshot {
    let mut total = Snapshot {
        histograms: Class::ALL.map(|_| histogram()).into(),
        saved_bytes: 0,
        clients: BTreeMap::new(),
    };
    for part in parts {
        total.saved_bytes += part.saved_bytes;
        for (sum, histogram) in total.histograms.iter_mut().zip(&part.histograms) {
            sum.add(histogram)
                .expect("all histograms have the same bounds");
        }
        for (number, waits) in &part.clients {
            let sum = total.clients.entry(*number);
            sum.or_insert_with(|| Waits::none(&waits.id)).add(waits);
        }
    }
    total
}

fn look_local(shard: &Shard) -> Snapshot {
    let metrics = shard.local::<Metrics>();
    let histograms = metrics.histograms.borrow().clone();
    let clients = metrics.clients.borrow();
    let clients = clients.iter();
    Snapshot {
        histograms,
        saved_bytes: metrics.saved_bytes.get(),
        clients: clients
            .map(|(&number, recorder)| (number, recorder.0.borrow().clone()))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(saves_ns: &[u64]) -> Snapshot {
        let metrics = Metrics::default();
        for &duration_ns in saves_ns {
            metrics.record(Class::Save, duration_ns);
            metrics.add_saved(512);
        }
        Snapshot {
            histograms: metrics.histograms.into_inner(),
            saved_bytes: metrics.saved_bytes.get(),
            clients: BTreeMap::new(),
        }
    }

    #[test]
    fn what_came_before_is_not_counted_twice() {
        let before = measured(&[3, 1_000_000]);
        let rest = measured(&[3, 1_000_000, 50, 70]).since(&before);
        let saves = rest.class(Class::Save);
        assert_eq!((saves.len(), saves.min(), saves.max()), (2, 50, 70));
        assert_eq!(rest.saved_bytes, 1024);
        assert!(rest.class(Class::CopyRead).is_empty());
        let nothing = measured(&[3, 1_000_000]).since(&before);
        assert!(nothing.class(Class::Save).is_empty());
    }

    #[test]
    fn the_shards_are_added_up() {
        let total = add_up(vec![measured(&[10, 20]), measured(&[]), measured(&[30])]);
        assert_eq!(total.class(Class::Save).len(), 3);
        assert_eq!(total.saved_bytes, 3 * 512);
        assert_eq!(total_ns(total.class(Class::Save)), 60);
    }

    #[test]
    fn the_longest_counts_as_the_longest_that_is_told_apart() {
        let total = measured(&[LONGEST_NS * 3]);
        let sum = total_ns(total.class(Class::Save));
        assert!(sum.abs_diff(LONGEST_NS) < LONGEST_NS / 100, "{sum}");
    }

    #[test]
    fn names_are_told_apart() {
        let mut names = Class::ALL.map(Class::name);
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
        for (index, class) in Class::ALL.into_iter().enumerate() {
            assert_eq!(class as usize, index);
        }
    }
}
