//! `null-co`: a disk that forgets.

use serde::Serialize;

use super::MAX_DISK;
use crate::error::{OptionError, Result};
use crate::visit::Reader;

/// Options of `null-co`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct NullOptions {
    /// Length of the disk in bytes, at most [`MAX_DISK`]. 1 GiB when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// How long a request takes, below 2^63. 0 when not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ns: Option<u64>,
    /// Whether a read fills its buffer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_zeroes: Option<bool>,
}

impl NullOptions {
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self> {
        Ok(Self {
            size: reader.not_negative("size")?,
            latency_ns: reader.unsigned("latency-ns")?,
            read_zeroes: reader.boolean("read-zeroes")?,
        })
    }

    pub(super) fn check(self) -> Result<()> {
        if self
            .latency_ns
            .is_some_and(|latency| i64::try_from(latency).is_err())
        {
            return Err(OptionError::InvalidLatency);
        }
        if self.size.is_some_and(|size| size > MAX_DISK) {
            return Err(OptionError::DiskTooLarge);
        }
        Ok(())
    }
}
