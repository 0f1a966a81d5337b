//! The table of a stored bitmap: where each cluster of its bits lies.
//!
//! Bits are stored as bytes, first granule in the lowest bit of the first byte.

use ringback_ring::{Errno, IoResult};

use super::geometry::Geometry;

/// All bits of the cluster are set; it is not stored.
const ALL_ONES: u64 = 1;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// Where the bits of a run of clusters are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// None is set.
    Clean,
    /// All are set.
    Full,
    /// In adjacent clusters of the file.
    Stored {
        /// Where the first one lies.
        host: u64,
    },
}

/// Entries of a table that go on in the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// Index of the first entry.
    pub(super) first: u64,
    pub(super) count: u64,
    pub(super) piece: Piece,
}

fn piece(entry: u64) -> Piece {
    match entry {
        0 => Piece::Clean,
        ALL_ONES => Piece::Full,
        entry => Piece::Stored {
            host: entry & OFFSET,
        },
    }
}

/// EINVAL if an entry has reserved bits or an unaligned offset.
pub(super) fn check_table(table: &[u64], geometry: &Geometry) -> IoResult<()> {
    let is_good = |&entry: &u64| {
        entry == ALL_ONES || (entry & !OFFSET == 0 && geometry.in_cluster(entry) == 0)
    };
    if table.iter().all(is_good) {
        Ok(())
    } else {
        Err(Errno::EINVAL)
    }
}

/// The runs of a checked table, in order; stored ones of at most `longest`
/// bytes, or one cluster.
pub(super) fn runs(
    table: &[u64],
    cluster_size: u64,
    longest: u64,
) -> impl Iterator<Item = Run> + '_ {
    let mut next = 0;
    std::iter::from_fn(move || {
        let rest = table.get(next..)?;
        let first = piece(*rest.first()?);
        let goes_on = |index: usize, entry: u64| match (first, piece(entry)) {
            (Piece::Stored { host }, Piece::Stored { host: other }) => {
                let reached = index as u64 * cluster_size;
                other == host + reached && reached < longest
            }
            (first, other) => first == other,
        };
        let count = (1..rest.len())
            .find(|&index| !goes_on(index, rest[index]))
            .unwrap_or(rest.len());
        let run = Run {
            first: next as u64,
            count: count as u64,
            piece: first,
        };
        next += count;
        Some(run)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn neighbours_are_one_run() {
        let cluster = 1 << 16;
        let table = [0, 0, 1, 5 << 16, 6 << 16, 8 << 16, 9 << 16, 10 << 16, 0];
        let found: Vec<_> = runs(&table, cluster, 2 << 16)
            .map(|run| (run.first, run.count, run.piece))
            .collect();
        assert_eq!(
            found,
            [
                (0, 2, Piece::Clean),
                (2, 1, Piece::Full),
                (3, 2, Piece::Stored { host: 5 << 16 }),
                (5, 2, Piece::Stored { host: 8 << 16 }),
                (7, 1, Piece::Stored { host: 10 << 16 }),
                (8, 1, Piece::Clean),
            ]
        );
        assert_eq!(runs(&[], cluster, cluster).count(), 0);
    }

    #[test]
    fn entries_are_offsets_or_all_ones() {
        let geometry = Geometry::new(16, false, 4, 4096);
        for (entry, is_good) in [
            (0, true),
            (1, true),
            (1 << 16, true),
            (1 << 16 | 1, false),
            (1 << 16 | 2, false),
            (2, false),
            (1 << 9, false),
            (1 << 56, false),
            (0x00ff_ffff_ffff_0000, true),
        ] {
            let checked = check_table(&[0, entry], &geometry);
            assert_eq!(checked.is_ok(), is_good, "{entry:#x}");
        }
    }

    proptest! {
        #[test]
        fn runs_cover_every_entry_once(
            table in prop::collection::vec(0_u64..6, 0..60),
            longest in 1_u64..9,
        ) {
            let table: Vec<u64> = table
                .iter()
                .map(|&entry| if entry > 1 { entry << 9 } else { entry })
                .collect();
            let mut next = 0;
            for run in runs(&table, 512, longest << 9) {
                prop_assert_eq!(run.first, next);
                prop_assert!(run.count > 0);
                for index in 0..run.count {
                    let expected = match run.piece {
                        Piece::Clean => 0,
                        Piece::Full => 1,
                        Piece::Stored { host } => {
                            prop_assert!(run.count <= longest);
                            host + index * 512
                        }
                    };
                    let place = usize::try_from(next + index).expect("small");
                    prop_assert_eq!(table[place], expected);
                }
                next += run.count;
            }
            prop_assert_eq!(next, table.len() as u64);
        }
    }
}
