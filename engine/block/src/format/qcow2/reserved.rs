//! Which host clusters hold the image's own structures.
//!
//! A write of guest data must never land on one of them. In a sound image it
//! cannot; in a damaged one a table may point anywhere.
//!
//! Almost every question is about a cluster that is not reserved, and is
//! answered by a filter of bits: one load for a cluster. Only where its bit is
//! set the exact list is asked, under a lock.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::geometry::Geometry;
use crate::span::Span;
use crate::sync::{AtomicU64, Ordering};

/// Bits of the filter. An image of 256 GiB at the usual sizes has about 650
/// tables and blocks.
const FILTER_BITS: u64 = 1 << 18;

/// A structure of an image. The names are QEMU's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Structure {
    Header,
    ActiveL1,
    ActiveL2,
    RefcountTable,
    RefcountBlock,
    SnapshotTable,
    InactiveL1,
    InactiveL2,
    BitmapDirectory,
}

impl Structure {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Header => "qcow2_header",
            Self::ActiveL1 => "active L1 table",
            Self::ActiveL2 => "active L2 table",
            Self::RefcountTable => "refcount table",
            Self::RefcountBlock => "refcount block",
            Self::SnapshotTable => "snapshot table",
            Self::InactiveL1 => "inactive L1 table",
            Self::InactiveL2 => "inactive L2 table",
            Self::BitmapDirectory => "bitmap directory",
        }
    }

    pub(crate) fn bit(self) -> u16 {
        match self {
            Self::Header => 1 << 0,
            Self::ActiveL1 => 1 << 1,
            Self::ActiveL2 => 1 << 2,
            Self::RefcountTable => 1 << 3,
            Self::RefcountBlock => 1 << 4,
            Self::SnapshotTable => 1 << 5,
            Self::InactiveL1 => 1 << 6,
            Self::InactiveL2 => 1 << 7,
            Self::BitmapDirectory => 1 << 8,
        }
    }
}

/// Which structures are watched over; the words are QEMU's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverlapCheck(u16);

impl OverlapCheck {
    /// None at all.
    pub const NONE: Self = Self(0);
    /// Those at places that never change while the image is open, or seldom.
    pub const CONSTANT: Self = Self(0b1_0010_1011);
    /// Those too that are in memory anyway.
    pub const CACHED: Self = Self(0b1_0111_1111);
    /// Those too that have to be read for it: the tables of snapshots.
    pub const ALL: Self = Self(0b1_1111_1111);

    /// With or without one structure, by QEMU's name in options (`main-header`,
    /// `active-l1` and so on). None: no such structure.
    #[must_use]
    pub fn with(self, name: &str, watched: bool) -> Option<Self> {
        let structure = match name {
            "main-header" => Structure::Header,
            "active-l1" => Structure::ActiveL1,
            "active-l2" => Structure::ActiveL2,
            "refcount-table" => Structure::RefcountTable,
            "refcount-block" => Structure::RefcountBlock,
            "snapshot-table" => Structure::SnapshotTable,
            "inactive-l1" => Structure::InactiveL1,
            "inactive-l2" => Structure::InactiveL2,
            "bitmap-directory" => Structure::BitmapDirectory,
            _ => return None,
        };
        Some(if watched {
            Self(self.0 | structure.bit())
        } else {
            Self(self.0 & !structure.bit())
        })
    }

    pub(crate) fn watches(self, structure: Structure) -> bool {
        self.0 & structure.bit() != 0
    }
}

/// The reserved clusters of one image.
#[derive(Debug)]
pub(crate) struct Reserved {
    cluster_bits: u32,
    watched: OverlapCheck,
    filter: Box<[AtomicU64]>,
    exact: Mutex<HashMap<u64, Structure>>,
}

impl Reserved {
    pub(crate) fn new(geometry: &Geometry, watched: OverlapCheck) -> Self {
        let words = usize::try_from(FILTER_BITS / 64).expect("a small number");
        Self {
            cluster_bits: geometry.cluster_bits,
            watched,
            filter: (0..words).map(|_| AtomicU64::new(0)).collect(),
            exact: Mutex::default(),
        }
    }

    fn exact(&self) -> MutexGuard<'_, HashMap<u64, Structure>> {
        self.exact.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn clusters(&self, span: Span) -> std::ops::Range<u64> {
        let last = span.end().saturating_sub(1).max(span.offset);
        span.offset >> self.cluster_bits..(last >> self.cluster_bits) + 1
    }

    /// Whether anybody asks about this structure.
    pub(crate) fn is_watched(&self, structure: Structure) -> bool {
        self.watched.watches(structure)
    }

    /// From here on these bytes belong to a structure.
    pub(crate) fn add(&self, span: Span, structure: Structure) {
        if span.is_empty() || !self.watched.watches(structure) {
            return;
        }
        let mut exact = self.exact();
        for cluster in self.clusters(span) {
            exact.insert(cluster, structure);
            let (word, bit) = place(cluster);
            self.filter[word].fetch_or(bit, Ordering::Release);
        }
    }

    /// They do no longer. The filter keeps its bits: it may only be too strict.
    pub(crate) fn remove(&self, span: Span) {
        if span.is_empty() {
            return;
        }
        let mut exact = self.exact();
        for cluster in self.clusters(span) {
            exact.remove(&cluster);
        }
    }

    /// The structure that a write of these bytes would hit.
    pub(crate) fn find(&self, span: Span) -> Option<Structure> {
        if span.is_empty() {
            return None;
        }
        self.clusters(span).find_map(|cluster| {
            let (word, bit) = place(cluster);
            if self.filter[word].load(Ordering::Acquire) & bit == 0 {
                return None;
            }
            self.exact().get(&cluster).copied()
        })
    }
}

fn place(cluster: u64) -> (usize, u64) {
    // Neighbours stay neighbours: runs are asked about, and tables come in runs.
    let bit = cluster % FILTER_BITS;
    let word = usize::try_from(bit / 64).expect("a small number");
    (word, 1 << (bit % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_reserved_and_watched_is_found() {
        let geometry = Geometry::new(16, false, 4, 4096);
        let reserved = Reserved::new(&geometry, OverlapCheck::CACHED);
        reserved.add(Span::new(0, 112), Structure::Header);
        reserved.add(Span::new(4 << 16, 2 << 16), Structure::ActiveL2);
        reserved.add(Span::new(9 << 16, 1 << 16), Structure::InactiveL2);
        assert_eq!(reserved.find(Span::new(65_535, 1)), Some(Structure::Header));
        assert_eq!(reserved.find(Span::new(65_536, 3 << 16)), None);
        assert_eq!(
            reserved.find(Span::new(65_536, (3 << 16) + 1)),
            Some(Structure::ActiveL2)
        );
        assert_eq!(
            reserved.find(Span::new(9 << 16, 512)),
            None,
            "not watched by default"
        );
        // The same place of the filter, another cluster.
        assert_eq!(reserved.find(Span::new(FILTER_BITS << 16, 512)), None);
        reserved.remove(Span::new(4 << 16, 1 << 16));
        assert_eq!(reserved.find(Span::new(4 << 16, 512)), None);
        assert_eq!(
            reserved.find(Span::new(5 << 16, 512)),
            Some(Structure::ActiveL2)
        );
    }

    #[test]
    fn templates_can_be_changed() {
        let check = OverlapCheck::NONE.with("active-l2", true).expect("a name");
        assert!(check.watches(Structure::ActiveL2) && !check.watches(Structure::Header));
        assert_eq!(
            OverlapCheck::ALL.with("inactive-l2", false),
            Some(OverlapCheck::CACHED)
        );
        assert_eq!(OverlapCheck::ALL.with("nothing", false), None);
    }
}
