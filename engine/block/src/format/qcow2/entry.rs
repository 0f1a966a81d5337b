//! L1 and L2 entries: what the bits of a mapping say.

use super::geometry::Geometry;
use super::tables::RawEntry;

/// The cluster referred to has no other reference: it may be written in place.
pub(crate) const COPIED: u64 = 1 << 63;
/// An L2 entry of a compressed cluster.
pub(crate) const COMPRESSED: u64 = 1 << 62;
/// A standard L2 entry that reads as zeroes.
pub(crate) const ZERO: u64 = 1;
/// Host offset of a table or a cluster.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// Whether the table or cluster of an entry may be written in place.
pub(crate) fn is_copied(entry: u64) -> bool {
    entry & COPIED != 0
}

/// The host offset in an L1 entry or a standard L2 entry.
pub(crate) fn offset_of(entry: u64) -> u64 {
    entry & OFFSET
}

/// An L1 entry of a table that nobody else refers to.
pub(crate) fn l1_entry(offset: u64) -> u64 {
    offset | COPIED
}

/// What one subcluster (without subclusters: the cluster) holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing: the backing file shows through.
    Unallocated,
    /// Zeroes.
    Zero,
    /// Bytes at the same place of the host cluster.
    Data,
    /// A compressed cluster holds it.
    Compressed,
}

/// Where a compressed cluster's stream lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stream {
    pub(crate) host: u64,
    /// The most bytes that it may take.
    pub(crate) len: u64,
}

/// A decoded L2 entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The host cluster, also where nothing or zeroes are read from it.
    pub(crate) host: Option<u64>,
    /// The host cluster may be written in place.
    pub(crate) copied: bool,
    pub(crate) stream: Option<Stream>,
    /// Subclusters that hold data, and those that are zeroes. Without
    /// subclusters: all bits or none.
    pub(crate) data: u32,
    pub(crate) zero: u32,
}

/// An entry that contradicts the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Invalid {
    Unaligned { host: u64 },
    ZeroInOldVersion,
    CompressedWithDataFile,
    OtherOffset { host: u64 },
    Subclusters,
}

/// What decides how entries are read, beside the sizes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) version: u32,
    /// Data lies in a file of its own, every byte at its guest offset.
    pub(crate) external: bool,
}

impl Entry {
    /// Nothing at all.
    pub(crate) const EMPTY: Self = Self {
        host: None,
        copied: false,
        stream: None,
        data: 0,
        zero: 0,
    };

    /// Reads the entry of the cluster at guest offset `guest`.
    pub(crate) fn decode(
        geometry: &Geometry,
        rules: Rules,
        raw: RawEntry,
        guest: u64,
    ) -> Result<Self, Invalid> {
        let word = raw.word;
        if word & COMPRESSED != 0 {
            if rules.external {
                return Err(Invalid::CompressedWithDataFile);
            }
            return Ok(Self {
                stream: Some(decode_stream(geometry, word)),
                ..Self::EMPTY
            });
        }
        let (offset, copied) = (word & OFFSET, is_copied(word));
        // With a data file, guest cluster 0 lies at host offset 0.
        let host = (offset != 0 || (rules.external && copied)).then_some(offset);
        if let Some(host) = host {
            if geometry.in_cluster(host) != 0 {
                return Err(Invalid::Unaligned { host });
            }
            if rules.external && host != guest {
                return Err(Invalid::OtherOffset { host });
            }
        }
        let (data, zero) = if geometry.extended {
            let (data, zero) = split(raw.bitmap);
            if data & zero != 0 || (data != 0 && host.is_none()) {
                return Err(Invalid::Subclusters);
            }
            (data, zero)
        } else if word & ZERO != 0 {
            if rules.version < 3 {
                return Err(Invalid::ZeroInOldVersion);
            }
            (0, u32::MAX)
        } else if host.is_some() {
            (u32::MAX, 0)
        } else {
            (0, 0)
        };
        Ok(Self {
            host,
            copied: copied && host.is_some(),
            stream: None,
            data,
            zero,
        })
    }

    /// The entry as it stands in a table.
    pub(crate) fn encode(&self, geometry: &Geometry) -> RawEntry {
        if let Some(stream) = self.stream {
            return RawEntry {
                word: encode_stream(geometry, stream),
                bitmap: 0,
            };
        }
        let mut word = self.host.unwrap_or(0);
        if self.copied {
            word |= COPIED;
        }
        if geometry.extended {
            let bitmap = u64::from(self.zero) << 32 | u64::from(self.data);
            return RawEntry { word, bitmap };
        }
        if self.zero != 0 {
            word |= ZERO;
        }
        RawEntry { word, bitmap: 0 }
    }

    /// A host cluster full of data of which this is the only reference.
    pub(crate) fn data_at(host: u64) -> Self {
        Self {
            host: Some(host),
            copied: true,
            data: u32::MAX,
            ..Self::EMPTY
        }
    }

    /// Zeroes without a host cluster.
    pub(crate) const ZEROES: Self = Self {
        zero: u32::MAX,
        ..Self::EMPTY
    };

    pub(crate) fn kind(&self, subcluster: u32) -> Kind {
        let bit = 1 << subcluster;
        if self.stream.is_some() {
            Kind::Compressed
        } else if self.data & bit != 0 {
            Kind::Data
        } else if self.zero & bit != 0 {
            Kind::Zero
        } else {
            Kind::Unallocated
        }
    }

    /// The host cluster, if it may be written in place.
    pub(crate) fn own_host(&self) -> Option<u64> {
        self.host.filter(|_| self.copied)
    }

    /// Whether anything is referred to.
    pub(crate) fn holds_anything(&self) -> bool {
        self.host.is_some() || self.stream.is_some()
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the two halves are meant")]
fn split(bitmap: u64) -> (u32, u32) {
    (bitmap as u32, (bitmap >> 32) as u32)
}

/// Where the sector count begins in the entry of a compressed cluster.
fn stream_shift(geometry: &Geometry) -> u32 {
    62 - (geometry.cluster_bits - 8)
}

pub(crate) fn decode_stream(geometry: &Geometry, word: u64) -> Stream {
    let shift = stream_shift(geometry);
    let host = word & ((1 << shift) - 1);
    let sectors = ((word & !(COPIED | COMPRESSED)) >> shift) + 1;
    Stream {
        host,
        len: sectors * 512 - host % 512,
    }
}

fn encode_stream(geometry: &Geometry, stream: Stream) -> u64 {
    let last = (stream.host + stream.len - 1) / 512;
    let sectors = last - stream.host / 512;
    COMPRESSED | sectors << stream_shift(geometry) | stream.host
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RULES: Rules = Rules {
        version: 3,
        external: false,
    };

    fn decode(word: u64) -> Result<Entry, Invalid> {
        let geometry = Geometry::new(16, false, 4, 4096);
        Entry::decode(&geometry, RULES, RawEntry { word, bitmap: 0 }, 0)
    }

    #[test]
    fn standard_entries() {
        assert_eq!(decode(0), Ok(Entry::EMPTY));
        assert_eq!(decode(1), Ok(Entry::ZEROES));
        assert_eq!(decode(COPIED | 0x50000), Ok(Entry::data_at(0x50000)));
        let preallocated = decode(COPIED | 0x50001).expect("valid");
        assert_eq!(preallocated.kind(0), Kind::Zero);
        assert_eq!(preallocated.own_host(), Some(0x50000));
        assert_eq!(decode(0x50200), Err(Invalid::Unaligned { host: 0x50200 }));
        // A COPIED flag without an offset says nothing.
        assert_eq!(decode(COPIED), Ok(Entry::EMPTY));
    }

    #[test]
    fn the_data_file_has_its_own_rules() {
        let geometry = Geometry::new(16, false, 4, 4096);
        let rules = Rules {
            external: true,
            ..RULES
        };
        let decode =
            |word, guest| Entry::decode(&geometry, rules, RawEntry { word, bitmap: 0 }, guest);
        assert_eq!(decode(COPIED, 0), Ok(Entry::data_at(0)));
        assert_eq!(
            decode(COPIED | 0x50000, 0),
            Err(Invalid::OtherOffset { host: 0x50000 })
        );
        assert_eq!(decode(COMPRESSED, 0), Err(Invalid::CompressedWithDataFile));
    }

    #[test]
    fn subclusters_must_not_be_two_things() {
        let geometry = Geometry::new(16, true, 4, 4096);
        let decode = |word, bitmap| Entry::decode(&geometry, RULES, RawEntry { word, bitmap }, 0);
        assert_eq!(
            decode(COPIED | 0x50000, 1 << 32 | 1),
            Err(Invalid::Subclusters)
        );
        assert_eq!(decode(0, 1), Err(Invalid::Subclusters));
        let entry = decode(COPIED | 0x50000, 1 << 33 | 1).expect("valid");
        assert_eq!(
            [0, 1, 2].map(|subcluster| entry.kind(subcluster)),
            [Kind::Data, Kind::Zero, Kind::Unallocated]
        );
    }

    proptest! {
        #[test]
        fn streams_come_back(cluster_bits in 9u32..22, host in 0u64..1 << 40, len in 1u64..1 << 20) {
            let geometry = Geometry::new(cluster_bits, false, 4, 512);
            let len = len.min(geometry.cluster_size);
            let entry = Entry { stream: Some(Stream { host, len }), ..Entry::EMPTY };
            let again = Entry::decode(&geometry, RULES, entry.encode(&geometry), 0).expect("valid");
            let stream = again.stream.expect("compressed");
            prop_assert_eq!(stream.host, host);
            // The length is known up to the end of its last sector.
            prop_assert_eq!(stream.host + stream.len, (host + len).next_multiple_of(512));
        }

        #[test]
        fn whatever_decodes_encodes_to_the_same(word: u64, bitmap: u64, extended: bool) {
            let geometry = Geometry::new(16, extended, 4, 4096);
            let raw = RawEntry { word, bitmap: if extended { bitmap } else { 0 } };
            if let Ok(entry) = Entry::decode(&geometry, RULES, raw, 0) {
                let again = Entry::decode(&geometry, RULES, entry.encode(&geometry), 0);
                prop_assert_eq!(again, Ok(entry));
            }
        }
    }
}
