//! Freezing a named bitmap for a job, and the two ways to end it.
//!
//! # Invariant
//!
//! **B3**: a frozen bitmap is busy and takes no marks; its successor, a nameless entry of the
//! same node, takes them if the bitmap did before. So a job works on bits that stand still,
//! and nothing written meanwhile is forgotten whichever way the job ends: the successor takes
//! over (*abdicate*, the work is done) or is merged back (*reclaim*, it is not).
//!
//! It drains nothing: each of the three calls needs a node that the caller has drained.

use std::sync::Arc;

use super::named::SHARD;
use super::{BitmapError, BitmapFlags, DirtyBitmap, NodeBitmaps};

impl NodeBitmaps {
    /// Freezes a bitmap for a job: it becomes busy and takes no more marks, and a nameless
    /// successor, which records if the bitmap did, takes them. Gives the frozen bits.
    ///
    /// The node must be drained (B3): a write in flight would still mark the frozen bitmap,
    /// behind the back of a job that has read it already.
    ///
    /// # Errors
    ///
    /// No such bitmap, a busy one, or memory that is refused.
    pub fn freeze(&mut self, name: &str) -> Result<Arc<DirtyBitmap>, BitmapError> {
        let entry = self.entry(name)?;
        if entry.flags.busy {
            return Err(BitmapError::Busy(name.to_owned()));
        }
        let frozen = Arc::clone(&entry.bits);
        let successor = Arc::new(frozen.fresh()?);
        let recording = std::mem::replace(&mut entry.flags.recording, false);
        entry.flags.busy = true;
        let flags = BitmapFlags {
            recording,
            ..BitmapFlags::default()
        };
        let id = self.push(None, successor, flags);
        self.entry(name)?.successor = Some(id);
        Ok(frozen)
    }

    /// Ends a freeze: the successor takes over the name, and the bitmap and its bits are gone.
    /// Gives the bits which now have the name.
    ///
    /// The node must be drained (B3).
    ///
    /// # Errors
    ///
    /// No such bitmap, or one that is not frozen.
    pub fn abdicate(&mut self, name: &str) -> Result<Arc<DirtyBitmap>, BitmapError> {
        let frozen = self.index(name)?;
        let successor = self.successor_index(name)?;
        let old = self.entries.remove(frozen);
        // The successor is the younger of the two, so it has moved down by one.
        let heir = &mut self.entries[successor - 1];
        heir.name = old.name;
        heir.flags.persistent = old.flags.persistent;
        Ok(Arc::clone(&heir.bits))
    }

    /// Ends a freeze: what the successor has recorded is merged into the bitmap, which takes
    /// marks again if the successor did. Gives the bits of the bitmap.
    ///
    /// The node must be drained (B3).
    ///
    /// # Errors
    ///
    /// No such bitmap, or one that is not frozen.
    pub fn reclaim(&mut self, name: &str) -> Result<Arc<DirtyBitmap>, BitmapError> {
        let index = self.index(name)?;
        let successor = self.successor_index(name)?;
        self.entries[index]
            .bits
            .merge_from(SHARD, &self.entries[successor].bits)?;
        let successor = self.entries.remove(successor);
        let entry = &mut self.entries[index];
        entry.successor = None;
        entry.flags.busy = false;
        entry.flags.recording = successor.flags.recording;
        Ok(Arc::clone(&entry.bits))
    }

    /// Ends every freeze as [`NodeBitmaps::reclaim`] does.
    ///
    /// # Errors
    ///
    /// None that a sound list of bitmaps has.
    pub fn reclaim_all(&mut self) -> Result<(), BitmapError> {
        let frozen = self
            .entries
            .iter()
            .filter(|entry| entry.successor.is_some());
        let names: Vec<_> = frozen.filter_map(|entry| entry.name.clone()).collect();
        for name in names {
            self.reclaim(&name)?;
        }
        Ok(())
    }

    fn successor_index(&self, name: &str) -> Result<usize, BitmapError> {
        let successor = self.entries[self.index(name)?].successor;
        successor
            .and_then(|id| self.position(id))
            .ok_or_else(|| BitmapError::NotFrozen(name.to_owned()))
    }
}
