//! An image's bytes as somebody else would read them: references against counts,
//! and the guest's disk. Nothing of the engine has a part in it.

use std::collections::{BTreeMap, BTreeSet};

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// Who refers to a host cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Header,
    RefcountTable,
    RefcountBlock,
    L1,
    L2,
    Data,
    Packed,
}

#[derive(Clone, Copy, Debug)]
struct Reference {
    owner: Owner,
    count: u64,
}

/// A sound image.
pub(super) struct Parsed<'a> {
    file: &'a [u8],
    cluster_bits: u32,
    version: u32,
    refcount_order: u32,
    extended: bool,
    zstd: bool,
    size: u64,
    table: Vec<u64>,
    l1: Vec<u64>,
    references: BTreeMap<u64, Reference>,
    /// Clusters that are counted more often than referred to.
    pub(super) leaks: BTreeSet<u64>,
}

fn word(bytes: &[u8], offset: u64) -> u64 {
    // Behind the end of a file there are zeroes.
    (0..8).fold(0, |word, index| {
        let byte = bytes.get((offset + index) as usize).copied();
        word << 8 | u64::from(byte.unwrap_or(0))
    })
}

fn half(bytes: &[u8], offset: u64) -> u32 {
    (word(bytes, offset) >> 32) as u32
}

impl<'a> Parsed<'a> {
    /// The first contradiction, or the image.
    pub(super) fn new(file: &'a [u8]) -> Result<Self, String> {
        let version = half(file, 4);
        let (incompatible, refcount_order) = if version >= 3 {
            (word(file, 72), half(file, 96))
        } else {
            (0, 4)
        };
        if file.get(..4) != Some(b"QFI\xfb") || incompatible & !0b1_1000 != 0 {
            return Err(format!(
                "header: version {version}, features {incompatible:#x}"
            ));
        }
        let words = |offset: u64, count: u64| (0..count).map(move |at| word(file, offset + at * 8));
        let cluster_bits = half(file, 20);
        let table_clusters = u64::from(half(file, 56));
        let (table_offset, l1_offset) = (word(file, 48), word(file, 40));
        let l1_size = u64::from(half(file, 36));
        let mut this = Self {
            file,
            cluster_bits,
            version,
            refcount_order,
            extended: incompatible & 1 << 4 != 0,
            zstd: incompatible & 1 << 3 != 0,
            size: word(file, 24),
            table: words(table_offset, (table_clusters << cluster_bits) / 8).collect(),
            l1: words(l1_offset, l1_size).collect(),
            references: BTreeMap::new(),
            leaks: BTreeSet::new(),
        };
        this.refer(0, 1, Owner::Header)?;
        let table_bytes = table_clusters << cluster_bits;
        this.refer(table_offset, table_bytes, Owner::RefcountTable)?;
        this.refer(l1_offset, l1_size * 8, Owner::L1)?;
        for block in this.table.clone().into_iter().filter(|&block| block != 0) {
            this.refer_aligned(block, Owner::RefcountBlock)?;
        }
        for entry in this.l1.clone().into_iter().filter(|&entry| entry != 0) {
            if entry & COPIED == 0 || entry & !(COPIED | OFFSET) != 0 {
                return Err(format!("L1 entry {entry:#x}"));
            }
            this.refer_aligned(entry & OFFSET, Owner::L2)?;
            for index in 0..this.entries() {
                this.refer_entry(entry & OFFSET, index)
                    .map_err(|what| format!("L2 table {:#x}[{index}]: {what}", entry & OFFSET))?;
            }
        }
        this.check_counts()?;
        Ok(this)
    }

    fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    fn entry_bytes(&self) -> u64 {
        if self.extended { 16 } else { 8 }
    }

    fn entries(&self) -> u64 {
        self.cluster() / self.entry_bytes()
    }

    fn refer_aligned(&mut self, offset: u64, owner: Owner) -> Result<(), String> {
        if !offset.is_multiple_of(self.cluster()) {
            return Err(format!("{owner:?} at {offset:#x} is not aligned"));
        }
        self.refer(offset, self.cluster(), owner)
    }

    fn refer(&mut self, offset: u64, len: u64, owner: Owner) -> Result<(), String> {
        // QEMU lets the last cluster be there in part.
        if offset + len >= self.file.len() as u64 + self.cluster() {
            return Err(format!(
                "{owner:?} at {offset:#x} lies behind the end of the file ({:#x})",
                self.file.len()
            ));
        }
        for cluster in offset >> self.cluster_bits..=(offset + len - 1) >> self.cluster_bits {
            let new = Reference { owner, count: 0 };
            let reference = self.references.entry(cluster).or_insert(new);
            let first = reference.count == 0;
            if !first && (owner != Owner::Packed || reference.owner != Owner::Packed) {
                return Err(format!(
                    "host cluster {cluster:#x} is {owner:?} and {:?}",
                    reference.owner
                ));
            }
            reference.count += 1;
        }
        Ok(())
    }

    fn refer_entry(&mut self, table: u64, index: u64) -> Result<(), String> {
        let at = table + index * self.entry_bytes();
        let entry = word(self.file, at);
        if entry & COMPRESSED != 0 {
            let (host, len) = self.stream(entry);
            return self.refer(host, len, Owner::Packed);
        }
        let host = entry & OFFSET;
        let is_odd = entry & ZERO != 0 && (self.extended || self.version < 3);
        if is_odd || entry & !(COPIED | OFFSET | ZERO) != 0 {
            return Err(format!("entry {entry:#x}"));
        }
        if self.extended {
            let (data, zero) = self.bitmap(at);
            if data & zero != 0 || (data != 0 && host == 0) {
                return Err(format!("subclusters {data:#x} {zero:#x} at {host:#x}"));
            }
        }
        match (host != 0, entry & COPIED != 0) {
            (true, true) => self.refer_aligned(host, Owner::Data),
            (false, false) => Ok(()),
            _ => Err(format!("entry {entry:#x}: COPIED is wrong")),
        }
    }

    fn bitmap(&self, entry_at: u64) -> (u64, u64) {
        let bitmap = word(self.file, entry_at + 8);
        (bitmap & 0xffff_ffff, bitmap >> 32)
    }

    fn stream(&self, entry: u64) -> (u64, u64) {
        let shift = 62 - (self.cluster_bits - 8);
        let host = entry & ((1 << shift) - 1);
        let sectors = ((entry & (COMPRESSED - 1)) >> shift) + 1;
        (host, sectors * 512 - host % 512)
    }

    fn count(&self, cluster: u64) -> u64 {
        let per_block = (self.cluster() * 8) >> self.refcount_order;
        let block = self.table.get((cluster / per_block) as usize).copied();
        let Some(block) = block.filter(|&block| block != 0) else {
            return 0;
        };
        let bit = (cluster % per_block) << self.refcount_order;
        let width = 1_u64 << self.refcount_order;
        if width < 8 {
            let byte = self.file.get((block + bit / 8) as usize).copied();
            u64::from(byte.unwrap_or(0)) >> (bit % 8) & ((1 << width) - 1)
        } else {
            word(self.file, block + bit / 8) >> (64 - width)
        }
    }

    fn check_counts(&mut self) -> Result<(), String> {
        let per_block = (self.cluster() * 8) >> self.refcount_order;
        for (index, &block) in self.table.iter().enumerate() {
            if block == 0 {
                continue;
            }
            for place in 0..per_block {
                let cluster = index as u64 * per_block + place;
                let referred = self.references.get(&cluster).map_or(0, |found| found.count);
                if self.count(cluster) > referred {
                    self.leaks.insert(cluster);
                }
            }
        }
        for (&cluster, reference) in &self.references {
            let count = self.count(cluster);
            let alone = reference.owner != Owner::Packed;
            if count < reference.count || (alone && count != 1) {
                return Err(format!(
                    "host cluster {cluster:#x} ({:?}) has {} references and is counted {count} \
                     times",
                    reference.owner, reference.count
                ));
            }
        }
        Ok(())
    }

    /// Reads guest bytes; what the image does not hold comes from `backing`.
    pub(super) fn read(&self, offset: u64, len: u64, backing: &[u8]) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::with_capacity(len as usize);
        let mut at = offset;
        while at < offset + len {
            let end = ((at >> self.cluster_bits) + 1) << self.cluster_bits;
            let part = end.min(offset + len) - at;
            self.read_in_cluster(at, part, backing, &mut bytes)?;
            at += part;
        }
        Ok(bytes)
    }

    fn entry_at(&self, guest: u64) -> Option<u64> {
        let number = guest >> self.cluster_bits;
        let table = self.l1[(number / self.entries()) as usize] & OFFSET;
        (table != 0).then(|| table + number % self.entries() * self.entry_bytes())
    }

    fn read_in_cluster(
        &self,
        guest: u64,
        len: u64,
        backing: &[u8],
        into: &mut Vec<u8>,
    ) -> Result<(), String> {
        let below = |at: u64| backing.get(at as usize).copied().unwrap_or(0);
        let range = guest..guest + len;
        let Some(at) = self.entry_at(guest) else {
            into.extend(range.map(below));
            return Ok(());
        };
        let (entry, in_cluster) = (word(self.file, at), guest % self.cluster());
        if entry & COMPRESSED != 0 {
            let (host, packed) = self.stream(entry);
            let cluster = self.unpack(host, packed)?;
            into.extend_from_slice(&cluster[in_cluster as usize..(in_cluster + len) as usize]);
            return Ok(());
        }
        let host = entry & OFFSET;
        for guest in range {
            let in_cluster = guest % self.cluster();
            let (data, zero) = if self.extended {
                let subcluster = in_cluster * 32 / self.cluster();
                let (data, zero) = self.bitmap(at);
                (data >> subcluster & 1 != 0, zero >> subcluster & 1 != 0)
            } else {
                (entry & ZERO == 0 && host != 0, entry & ZERO != 0)
            };
            into.push(match (data, zero) {
                (true, _) => {
                    let byte = self.file.get((host + in_cluster) as usize).copied();
                    byte.unwrap_or(0)
                }
                (false, true) => 0,
                (false, false) => below(guest),
            });
        }
        Ok(())
    }

    fn unpack(&self, host: u64, len: u64) -> Result<Vec<u8>, String> {
        let end = (host + len).min(self.file.len() as u64);
        let packed = &self.file[host as usize..end as usize];
        let mut cluster = vec![0; self.cluster() as usize];
        let unpacked = if self.zstd {
            use std::io::Read;
            zstd::stream::read::Decoder::with_buffer(packed)
                .and_then(|mut decoder| decoder.read_exact(&mut cluster))
                .is_ok()
        } else {
            let mut inflate = flate2::Decompress::new(false);
            let status = inflate.decompress(packed, &mut cluster, flate2::FlushDecompress::Finish);
            status.is_ok() && inflate.total_out() == self.cluster()
        };
        if unpacked {
            Ok(cluster)
        } else {
            Err(format!("the stream at {host:#x} cannot be unpacked"))
        }
    }

    /// Guest clusters for which the image has an entry.
    pub(super) fn mapped(&self) -> Vec<u64> {
        let guests = (0..self.size).step_by(self.cluster() as usize);
        guests
            .filter(|&guest| {
                let found = self.entry_at(guest).map(|at| {
                    let bitmap = if self.extended {
                        word(self.file, at + 8)
                    } else {
                        0
                    };
                    word(self.file, at) | bitmap
                });
                found.is_some_and(|entry| entry != 0)
            })
            .collect()
    }
}
