//! A disk under a name.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ringback_block::bitmap::DirtyBitmap;
use ringback_block::metrics::clients::Measured;
use ringback_block::port::Attachment;
use ringback_block::protocol::nbd::wire::export_flags;
use ringback_ring::{Shard, WaitQueue};

use super::reply::Headers;

/// A bitmap that clients may read.
#[derive(Clone, Debug)]
pub struct ExportedBitmap {
    /// Its name; the context's is `qemu:dirty-bitmap:` and this.
    pub name: String,
    /// Its bits, which may change all the time.
    pub bits: Arc<DirtyBitmap>,
}

/// A disk under a name. What it says of itself is fixed when it is made.
#[derive(Debug)]
pub struct Export {
    /// What clients call it.
    pub name: String,
    /// A line for people.
    pub description: Option<String>,
    /// Whether clients may write.
    pub is_writable: bool,
    /// Whether a write is answered when it is on the disk.
    pub is_writethrough: bool,
    /// The bitmaps that clients may read, in the order in which they are offered.
    pub bitmaps: Vec<ExportedBitmap>,
    /// Whether clients may ask which image of a chain holds a range.
    pub has_depth: bool,
    /// The way to the disk.
    pub attachment: Attachment,
    /// Bytes of the disk.
    pub size: u64,
    /// Smallest block that the disk takes as it is, in bytes: a power of two.
    pub minimum_block: u32,
    /// Whether there may be several clients.
    pub is_multi_conn: bool,
    /// As what the time is recorded that clients wait.
    pub measured: Measured,
    /// Who uses it.
    pub clients: Clients,
}

/// The clients of an export.
#[derive(Debug, Default)]
pub struct Clients {
    count: AtomicU64,
    left: WaitQueue,
}

impl Clients {
    /// How many there are.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// Waits until there is none, with no request in flight.
    pub async fn gone(&self, shard: &Shard) {
        shard.wait(&[&self.left], None, || self.count() == 0).await;
    }

    /// The same, but not longer than until this time of the shard's.
    pub async fn gone_until(&self, shard: &Shard, deadline_ns: u64) {
        let gone = || self.count() == 0;
        shard.wait(&[&self.left], Some(deadline_ns), gone).await;
    }
}

/// A client that has chosen an export, until dropped.
pub(super) struct Visit(Arc<Export>);

impl Visit {
    pub(super) fn begin(export: &Arc<Export>) -> Self {
        export.clients.count.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(export))
    }

    pub(super) fn export(&self) -> &Arc<Export> {
        &self.0
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.0.clients.count.fetch_sub(1, Ordering::AcqRel);
        self.0.clients.left.wake_all();
    }
}

impl Export {
    /// What a client is told that it can do. `has_payload` says whether a list of
    /// contexts may come with a question about ranges.
    pub(super) fn flags(&self, headers: Headers, has_payload: bool) -> u16 {
        use export_flags as flag;
        let mut flags = flag::HAS_FLAGS | flag::SEND_FLUSH | flag::SEND_FUA | flag::SEND_CACHE;
        flags |= if self.is_writable {
            flag::SEND_TRIM | flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO
        } else {
            flag::READ_ONLY
        };
        if headers != Headers::Simple {
            flags |= flag::SEND_DF;
        }
        if self.is_multi_conn {
            flags |= flag::CAN_MULTI_CONN;
        }
        if headers == Headers::Extended && has_payload {
            flags |= flag::BLOCK_STATUS_PAYLOAD;
        }
        flags
    }
}
