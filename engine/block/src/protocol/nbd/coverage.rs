//! Which bytes of a read have come.

use std::ops::Range;

/// So many separate runs are remembered: no server that means well scatters its
/// chunks so much, and none shall make us remember more.
const RUNS_MAX: usize = 1024;

/// Ranges that have come: sorted, and apart from each other.
#[derive(Debug, Default)]
pub(super) struct Coverage {
    runs: Vec<Range<u64>>,
}

impl Coverage {
    /// Adds a range, which is not empty. False: some of it has come before, or too
    /// many pieces are apart from each other.
    #[must_use]
    pub(super) fn add(&mut self, range: Range<u64>) -> bool {
        let at = self.runs.partition_point(|run| run.end < range.start);
        // The run here ends at the range's start or behind it.
        let joins_before = match self.runs.get(at) {
            Some(run) if run.end == range.start => true,
            Some(run) if run.start < range.end => return false,
            _ => false,
        };
        let next = if joins_before { at + 1 } else { at };
        let joins_after = match self.runs.get(next) {
            Some(run) if run.start < range.end => return false,
            Some(run) => run.start == range.end,
            None => false,
        };
        match (joins_before, joins_after) {
            (true, true) => {
                self.runs[at].end = self.runs[next].end;
                self.runs.remove(next);
            }
            (true, false) => self.runs[at].end = range.end,
            (false, true) => self.runs[next].start = range.start,
            (false, false) if self.runs.len() == RUNS_MAX => return false,
            (false, false) => self.runs.insert(at, range),
        }
        true
    }

    /// Whether everything from 0 to `len` has come.
    pub(super) fn is_complete(&self, len: u64) -> bool {
        matches!(self.runs.as_slice(), [run] if run.start == 0 && run.end == len)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pieces_join_in_any_order() {
        let mut coverage = Coverage::default();
        for range in [8..12, 0..4, 4..8] {
            assert!(coverage.add(range.clone()), "{range:?}");
        }
        assert!(coverage.is_complete(12));
        assert!(!coverage.is_complete(13));
        assert!(!coverage.add(11..12));
    }

    #[test]
    fn only_so_many_pieces_are_remembered() {
        let mut coverage = Coverage::default();
        let pieces = (0..RUNS_MAX as u64).map(|n| 2 * n..2 * n + 1);
        assert!(pieces.into_iter().all(|piece| coverage.add(piece)));
        assert!(!coverage.add(1 << 20..(1 << 20) + 1));
        assert!(coverage.add(1..2), "what joins others is no further one");
    }

    proptest! {
        #[test]
        fn a_byte_comes_once(pieces in prop::collection::vec((0_usize..60, 1_usize..12), 0..30)) {
            let mut coverage = Coverage::default();
            let mut seen = [false; 80];
            for (start, len) in pieces {
                let bytes = start..start + len;
                let is_new = seen[bytes.clone()].iter().all(|seen| !seen);
                let range = start as u64..(start + len) as u64;
                prop_assert_eq!(coverage.add(range), is_new);
                if is_new {
                    seen[bytes].fill(true);
                }
                let len = seen.iter().take_while(|seen| **seen).count();
                let is_one = seen[len..].iter().all(|seen| !seen);
                prop_assert_eq!(coverage.is_complete(len as u64), len > 0 && is_one);
            }
        }
    }
}
