//! How many references every host cluster has, as counted.
//!
//! A byte a cluster, in pieces that are made when first needed: a file with
//! holes costs no more than what refers into it. The few larger counts are
//! kept aside.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::units::in_memory;

/// Clusters of one piece.
const PIECE: u64 = 4096;
/// The count is kept aside.
const LARGE: u8 = u8::MAX;

/// Counts by host cluster.
#[derive(Clone, Debug, Default)]
pub(super) struct Census {
    pieces: BTreeMap<u64, Box<[u8]>>,
    large: BTreeMap<u64, u64>,
    len: u64,
}

impl Census {
    /// Of a file with `len` clusters.
    pub(super) fn new(len: u64) -> Self {
        Self {
            len,
            ..Self::default()
        }
    }

    /// Clusters up to the end of the file, or the last one counted.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn get(&self, cluster: u64) -> u64 {
        let piece = self.pieces.get(&(cluster / PIECE));
        match piece.map_or(0, |piece| piece[in_memory(cluster % PIECE)]) {
            LARGE => self.large.get(&cluster).copied().unwrap_or(0),
            small => small.into(),
        }
    }

    pub(super) fn set(&mut self, cluster: u64, count: u64) {
        self.len = self.len.max(cluster + 1);
        let piece = self
            .pieces
            .entry(cluster / PIECE)
            .or_insert_with(|| vec![0; in_memory(PIECE)].into());
        let small = u8::try_from(count).unwrap_or(LARGE);
        piece[in_memory(cluster % PIECE)] = small;
        if small == LARGE {
            self.large.insert(cluster, count);
        } else {
            self.large.remove(&cluster);
        }
    }

    /// Counts `times` references more, but not past `max`. Answers how many were
    /// too many.
    pub(super) fn add(&mut self, cluster: u64, times: u64, max: u64) -> u64 {
        let count = self.get(cluster);
        let added = times.min(max.saturating_sub(count));
        if added > 0 {
            self.set(cluster, count + added);
        }
        times - added
    }

    /// Whether anything in a range may be counted; sometimes wrongly yes.
    pub(super) fn may_hold(&self, clusters: &Range<u64>) -> bool {
        let last = clusters.end.saturating_sub(1);
        clusters.start <= last
            && self
                .pieces
                .range(clusters.start / PIECE..=last / PIECE)
                .next()
                .is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_every_size() {
        let mut census = Census::new(10);
        assert_eq!(census.add(3, 254, 65_535), 0);
        assert_eq!(census.add(3, 1, 65_535), 0);
        assert_eq!((census.get(3), census.get(4)), (255, 0));
        assert_eq!(census.add(3, 70_000, 65_535), 70_000 - (65_535 - 255));
        assert_eq!(census.get(3), 65_535);
        census.set(3, 2);
        assert_eq!(census.get(3), 2);
        assert_eq!(census.add(0, 2, 1), 1);
    }

    #[test]
    fn far_away_clusters_cost_one_piece() {
        let mut census = Census::new(1 << 40);
        census.add((1 << 40) + 1, 1, 1);
        assert_eq!((census.len(), census.pieces.len()), ((1 << 40) + 2, 1));
        assert!(!census.may_hold(&(0..1 << 39)));
        assert!(census.may_hold(&(1 << 40..(1 << 40) + 64)));
    }
}
