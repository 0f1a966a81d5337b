//! The header.

use super::image::Compression;

/// Why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// No magic.
    #[error("Image is not in qcow2 format")]
    Magic,
}

/// The header.
#[derive(Clone, Debug)]
pub struct Header {
    pub version: u32,
    pub cluster_bits: u32,
    pub size: u64,
    pub l1_size: u32,
    pub l1_offset: u64,
    pub refcount_table_offset: u64,
    pub refcount_table_clusters: u32,
    pub incompatible: u64,
    pub compatible: u64,
    pub autoclear: u64,
    pub refcount_order: u32,
    pub compression: Compression,
    pub backing_file: Option<String>,
}

impl Header {
    pub fn cluster_size(b: &[u8]) -> Result<u64, HeaderError> {
        if b[..4] != *b"QFI\xfb" {
            return Err(HeaderError::Magic);
        }
        Ok(1 << u32::from_be_bytes(b[20..24].try_into().expect("4")))
    }
    pub fn parse(b: &[u8]) -> Result<Self, HeaderError> {
        let u32_at = |o: usize| u32::from_be_bytes(b[o..o + 4].try_into().expect("4"));
        let u64_at = |o: usize| u64::from_be_bytes(b[o..o + 8].try_into().expect("8"));
        let v3 = u32_at(4) >= 3;
        let bo = u64_at(8) as usize;
        let bl = u32_at(16) as usize;
        Ok(Self {
            version: u32_at(4),
            cluster_bits: u32_at(20),
            size: u64_at(24),
            l1_size: u32_at(36),
            l1_offset: u64_at(40),
            refcount_table_offset: u64_at(48),
            refcount_table_clusters: u32_at(56),
            incompatible: if v3 { u64_at(72) } else { 0 },
            compatible: if v3 { u64_at(80) } else { 0 },
            autoclear: if v3 { u64_at(88) } else { 0 },
            refcount_order: if v3 { u32_at(96) } else { 4 },
            compression: if v3 && u32_at(100) > 104 && b[104] == 1 {
                Compression::Zstd
            } else {
                Compression::Zlib
            },
            backing_file: (bo != 0).then(|| String::from_utf8_lossy(&b[bo..bo + bl]).into_owned()),
        })
    }
    pub fn check_open(&self, _write: bool) -> Result<(), HeaderError> {
        Ok(())
    }
    pub fn has_data_file(&self) -> bool {
        self.incompatible & 4 != 0
    }
    pub fn is_raw_data_file(&self) -> bool {
        self.autoclear & 2 != 0
    }
    pub fn has_extended_l2(&self) -> bool {
        self.incompatible & 16 != 0
    }
    pub fn has_lazy_refcounts(&self) -> bool {
        self.compatible & 1 != 0
    }
}
