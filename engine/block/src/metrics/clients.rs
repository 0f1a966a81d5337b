//! How long an export's clients wait for their requests.

use std::cell::RefCell;
use std::rc::Rc;

use hdrhistogram::Histogram;
use ringback_ring::{Shard, Shards};

use super::{Metrics, histogram};

/// Requests that are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Reads.
    Read,
    /// Writes, also of zeroes.
    Write,
    /// Flushes.
    Flush,
    /// Discards.
    Discard,
}

impl Request {
    /// Every kind, in the order of reports.
    pub const ALL: [Self; 4] = [Self::Read, Self::Write, Self::Flush, Self::Discard];

    /// The name in reports and file names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
        }
    }
}

/// Who is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measured {
    /// Tells an export from another one that has had its id before.
    pub number: u64,
    /// The export's id.
    pub id: String,
}

/// What the clients of one export have waited for: one shard's part, or all of it.
#[derive(Clone, Debug)]
pub struct Waits {
    /// The export's id.
    pub id: String,
    histograms: [Histogram<u64>; 4],
}

impl Waits {
    pub(super) fn none(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            histograms: Request::ALL.map(|_| histogram()),
        }
    }

    /// The histogram of one kind.
    pub fn of(&self, request: Request) -> &Histogram<u64> {
        &self.histograms[request as usize]
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (sum, part) in self.histograms.iter_mut().zip(&other.histograms) {
            sum.add(part).expect("all histograms have the same bounds");
        }
    }

    pub(super) fn subtract(&mut self, before: &Self) {
        for (count, earlier) in self.histograms.iter_mut().zip(&before.histograms) {
            count
                .subtract(earlier)
                .expect("what was recorded earlier is recorded still");
        }
    }
}

/// Where one shard records what its clients of one export wait for.
#[derive(Debug)]
pub struct Recorder(pub(super) RefCell<Waits>);

impl Recorder {
    /// Of the caller's shard.
    pub fn of(shard: &Shard, measured: &Measured) -> Rc<Self> {
        let metrics = shard.local::<Metrics>();
        let mut clients = metrics.clients.borrow_mut();
        let recorder = clients.entry(measured.number).or_insert_with(|| {
            let none = Waits::none(&measured.id);
            Rc::new(Self(RefCell::new(none)))
        });
        Rc::clone(recorder)
    }

    /// A request has been answered after so many nanoseconds.
    pub fn record(&self, request: Request, duration_ns: u64) {
        self.0.borrow_mut().histograms[request as usize].saturating_record(duration_ns);
    }
}

/// Nobody asks for what an export's clients have waited for any more.
pub async fn forget(shards: &Shards, number: u64) {
    shards
        .on_each(move |shard| async move {
            let metrics = shard.local::<Metrics>();
            metrics.clients.borrow_mut().remove(&number);
        })
        .await;
}
