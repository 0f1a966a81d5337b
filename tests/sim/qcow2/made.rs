//! A fresh image, byte by byte, as the format's description has it: made here so
//! that no program and none of the engine's code has a part in it.

use ringback_ring::sim::Random;

/// An image as it is to be made.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) version: u32,
    pub(super) cluster_bits: u32,
    pub(super) refcount_order: u32,
    pub(super) extended: bool,
    pub(super) zstd: bool,
    /// Size of the disk.
    pub(super) size: u64,
    /// This many clusters are taken from the start on, most of them by nobody:
    /// so the refcount table is almost full.
    pub(super) crowded: u64,
}

const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;

impl Shape {
    pub(super) fn new(random: &mut Random) -> Self {
        let old = random.below(8) == 0;
        let cluster_bits = [9, 9, 9, 10, 12, 12, 14, 16][random.index(8)];
        let extended = !old && cluster_bits >= 14 && random.below(3) > 0;
        let refcount_order = if old {
            4
        } else {
            [0, 1, 2, 3, 4, 4, 5, 6, 6][random.index(9)]
        };
        let mut shape = Self {
            version: if old { 2 } else { 3 },
            cluster_bits,
            refcount_order,
            extended,
            zstd: !old && random.below(3) == 0,
            size: 0,
            crowded: 0,
        };
        // Two or three L2 tables where clusters are small; tables of several
        // slices where they are large.
        let tables = match cluster_bits {
            9 | 10 => 2 + random.below(6),
            12 => 1 + random.below(3),
            _ => 1,
        };
        let coverage = shape.coverage().min(24 << 20);
        let cut = random.below(coverage / 1024) * 512;
        shape.size = coverage * tables - cut;
        if cluster_bits == 9 && refcount_order == 6 && random.below(2) == 0 {
            shape.crowded = shape.table_capacity() - 1 - random.below(150);
        }
        shape
    }

    pub(super) fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    fn entry_bytes(&self) -> u64 {
        if self.extended { 16 } else { 8 }
    }

    /// Bytes of the disk that one L2 table maps.
    pub(super) fn coverage(&self) -> u64 {
        self.cluster() / self.entry_bytes() * self.cluster()
    }

    pub(super) fn counts_per_block(&self) -> u64 {
        (self.cluster() * 8) >> self.refcount_order
    }

    /// Clusters that a refcount table of one cluster can count.
    fn table_capacity(&self) -> u64 {
        self.cluster() / 8 * self.counts_per_block()
    }

    /// Header, refcount table, refcount blocks, L1 table.
    pub(super) fn image(&self) -> Vec<u8> {
        let cluster = self.cluster();
        let l1_entries = self.size.div_ceil(self.coverage());
        let l1_clusters = (l1_entries * 8).div_ceil(cluster);
        let mut blocks = 1;
        let used = loop {
            let used = (2 + blocks + l1_clusters).max(self.crowded);
            let needed = used.div_ceil(self.counts_per_block());
            if needed <= blocks {
                break used;
            }
            blocks = needed;
        };
        let l1_offset = (2 + blocks) * cluster;
        let mut image = Bytes(vec![0; (used * cluster) as usize]);
        image.put(0, b"QFI\xfb");
        image.put(4, &self.version.to_be_bytes());
        image.put(20, &self.cluster_bits.to_be_bytes());
        image.put(24, &self.size.to_be_bytes());
        image.put(36, &(l1_entries as u32).to_be_bytes());
        image.put(40, &l1_offset.to_be_bytes());
        image.put(48, &cluster.to_be_bytes());
        image.put(56, &1_u32.to_be_bytes());
        if self.version >= 3 {
            let mut incompatible = 0;
            if self.zstd {
                incompatible |= INCOMPATIBLE_COMPRESSION;
            }
            if self.extended {
                incompatible |= INCOMPATIBLE_EXTENDED_L2;
            }
            image.put(72, &incompatible.to_be_bytes());
            image.put(96, &self.refcount_order.to_be_bytes());
            image.put(100, &112_u32.to_be_bytes());
            image.put(104, &[u8::from(self.zstd)]);
        }
        for block in 0..blocks {
            image.put(cluster + block * 8, &((2 + block) * cluster).to_be_bytes());
        }
        for counted in 0..used {
            self.count_one(&mut image, counted);
        }
        image.0
    }

    fn count_one(&self, image: &mut Bytes, counted: u64) {
        let block = (2 + counted / self.counts_per_block()) * self.cluster();
        let bit = (counted % self.counts_per_block()) << self.refcount_order;
        // Counts of several bytes are big endian.
        let width = 1_u64 << self.refcount_order;
        let last_byte = bit / 8 + width.div_ceil(8) - 1;
        image.0[(block + last_byte) as usize] |= 1 << (bit % 8);
    }
}

struct Bytes(Vec<u8>);

impl Bytes {
    fn put(&mut self, offset: u64, bytes: &[u8]) {
        let start = offset as usize;
        self.0[start..start + bytes.len()].copy_from_slice(bytes);
    }
}
