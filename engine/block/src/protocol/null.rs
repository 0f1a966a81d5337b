//! `null-co`: a disk without a disk, for measuring what is above it.

use std::ops::Range;

use ringback_ring::{Buf, IoResult, Shard};

use crate::extent::{Content, Extent};
use crate::units::SECTOR;

/// A disk that forgets what is written.
#[derive(Clone, Debug)]
pub struct NullProtocol {
    size: u64,
    latency_ns: u64,
    read_zeroes: bool,
}

impl NullProtocol {
    /// `size` is rounded up to whole sectors. Without `read_zeroes` a read
    /// leaves the buffer as it was.
    pub fn new(size: u64, latency_ns: u64, read_zeroes: bool) -> Self {
        Self {
            size: size.next_multiple_of(SECTOR),
            latency_ns,
            read_zeroes,
        }
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(crate) async fn pause(&self, shard: &Shard) -> IoResult<()> {
        match self.latency_ns {
            // Who never waits would never let anybody else run.
            0 => shard.yield_now().await,
            latency_ns => shard.sleep_ns(latency_ns).await,
        }
        Ok(())
    }

    pub(crate) async fn read(
        &self,
        shard: &Shard,
        mut buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        let result = self.pause(shard).await;
        if self.read_zeroes {
            buf[window].fill(0);
        }
        (result, buf)
    }

    pub(crate) fn extent(&self, len: u64) -> Extent {
        let content = if self.read_zeroes {
            Content::Zero
        } else {
            Content::Data
        };
        Extent::here(content, len)
    }
}
