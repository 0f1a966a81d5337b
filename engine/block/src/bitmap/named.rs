//! The named dirty bitmaps of one node, and their life cycle.
//!
//! Plain data with one owner, the control task: no locks, no atomics. Shards hold the
//! [`DirtyBitmap`]s that [`NodeBitmaps::recorders`] gave out and never come here.
//!
//! # Invariants
//!
//! - Names are unique on the node. An entry without a name is the successor of a frozen one.
//! - A command that is refused has changed nothing.
//!
//! # Drain
//!
//! What changes the answer of `recorders` (add, insert, remove, enable, disable, freeze,
//! abdicate, reclaim, replace, resize) reaches the shards only with a new data path. The
//! caller drains the node first, calls, builds the path anew, and resumes. Without the drain a
//! write in flight could mark a bitmap that no longer counts, and be missing from the backup.
//!
//! # What it does not do
//!
//! Freezing and thawing are in `frozen`. It stores nothing: `persistent` is a flag that the image format acts on, and whether an
//! image can store bitmaps is asked before [`NodeBitmaps::add`]. Messages about nodes are made
//! by who looks nodes up.

use std::sync::Arc;

use super::dirty::check_granularity;
use super::entry::Use;
use super::{BitmapError, BitmapFlags, BitmapInfo, DirtyBitmap, NamedBitmap};

/// Longest name, in bytes.
const NAME_LEN_MAX: usize = 1023;
/// Control path work is counted on the first shard's counter: it is rare.
pub(super) const SHARD: usize = 0;

/// The bitmaps of one node.
#[derive(Debug)]
pub struct NodeBitmaps {
    /// Size of the node, in bytes.
    size: u64,
    /// Counters of each bitmap; fixed.
    shards: usize,
    /// Identity of the next entry; never given out twice.
    id_next: u64,
    /// Oldest first.
    pub(super) entries: Vec<NamedBitmap>,
}

impl NodeBitmaps {
    /// No bitmaps, for a node of `size` bytes that `shards` shards serve.
    #[must_use]
    pub const fn new(size: u64, shards: usize) -> Self {
        Self {
            size,
            shards,
            id_next: 0,
            entries: Vec::new(),
        }
    }

    /// Adds a clean bitmap. It records unless `disabled`.
    ///
    /// # Errors
    ///
    /// A wrong name or granularity, a name that is taken, memory that is refused.
    pub fn add(
        &mut self,
        name: &str,
        granularity: u64,
        disabled: bool,
        persistent: bool,
    ) -> Result<Arc<DirtyBitmap>, BitmapError> {
        self.check_new(name, granularity)?;
        let bits = Arc::new(DirtyBitmap::new(self.size, granularity, self.shards)?);
        let flags = BitmapFlags {
            recording: !disabled,
            persistent,
            ..BitmapFlags::default()
        };
        self.push(Some(name.to_owned()), Arc::clone(&bits), flags);
        Ok(bits)
    }

    /// Whether [`NodeBitmaps::add`] would be let do its work.
    ///
    /// # Errors
    ///
    /// A wrong name or granularity, a name that is taken.
    pub fn check_new(&self, name: &str, granularity: u64) -> Result<(), BitmapError> {
        if name.is_empty() {
            return Err(BitmapError::NameEmpty);
        }
        check_granularity(granularity)?;
        self.check_name(name)
    }

    /// Adds a bitmap that exists: one that was loaded from an image, or one that was removed
    /// by a command that is being undone.
    ///
    /// # Errors
    ///
    /// A wrong name, a name that is taken, or bits of another size than the node.
    pub fn insert(
        &mut self,
        name: &str,
        bits: Arc<DirtyBitmap>,
        flags: BitmapFlags,
    ) -> Result<(), BitmapError> {
        if name.is_empty() {
            return Err(BitmapError::NameEmpty);
        }
        self.check_name(name)?;
        self.check_size(&bits)?;
        self.push(Some(name.to_owned()), bits, flags);
        Ok(())
    }

    /// Takes a bitmap away; a persistent one has still to be removed from the image.
    ///
    /// # Errors
    ///
    /// No such bitmap, or one that is busy or read-only.
    pub fn remove(&mut self, name: &str) -> Result<NamedBitmap, BitmapError> {
        self.usable(name, Use::Remove)?;
        let index = self.index(name)?;
        Ok(self.entries.remove(index))
    }

    /// Whether [`NodeBitmaps::remove`] would be let do its work.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn check_removable(&self, name: &str) -> Result<(), BitmapError> {
        self.entries[self.index(name)?].check(Use::Remove)
    }

    /// Lets writes mark the bitmap.
    ///
    /// # Errors
    ///
    /// No such bitmap, or one that is busy or inconsistent.
    pub fn enable(&mut self, name: &str) -> Result<(), BitmapError> {
        self.usable(name, Use::Read)?.flags.recording = true;
        Ok(())
    }

    /// Lets writes pass the bitmap by.
    ///
    /// # Errors
    ///
    /// No such bitmap, or one that is busy or inconsistent.
    pub fn disable(&mut self, name: &str) -> Result<(), BitmapError> {
        self.usable(name, Use::Read)?.flags.recording = false;
        Ok(())
    }

    /// Clears all bits, in place. To be able to undo it, use [`Self::replace`].
    ///
    /// # Errors
    ///
    /// No such bitmap, or one that is busy, read-only or inconsistent.
    pub fn clear(&mut self, name: &str) -> Result<(), BitmapError> {
        self.usable(name, Use::Change)?.bits.clear_all(SHARD);
        Ok(())
    }

    /// The bits of a bitmap that may be changed.
    ///
    /// # Errors
    ///
    /// No such bitmap, or one that is busy, read-only or inconsistent.
    pub fn bits_of(&mut self, name: &str) -> Result<Arc<DirtyBitmap>, BitmapError> {
        Ok(Arc::clone(&self.usable(name, Use::Change)?.bits))
    }

    /// Gives the bitmap other bits and hands back those that it had, so that a transaction can
    /// put them back.
    ///
    /// # Errors
    ///
    /// No such bitmap, one that is busy, read-only or inconsistent, or bits of another size.
    pub fn replace(
        &mut self,
        name: &str,
        bits: Arc<DirtyBitmap>,
    ) -> Result<Arc<DirtyBitmap>, BitmapError> {
        self.check_size(&bits)?;
        Ok(std::mem::replace(
            &mut self.usable(name, Use::Change)?.bits,
            bits,
        ))
    }

    /// What bitmap `target` and the sources have dirty together, as new bits for
    /// [`Self::replace`].
    ///
    /// # Errors
    ///
    /// No such target; a source that is missing, busy, inconsistent or of another size; a
    /// target that is busy, read-only or inconsistent; memory that is refused. In this order.
    pub fn merged(
        &self,
        target: &str,
        sources: &[NamedBitmap],
    ) -> Result<DirtyBitmap, BitmapError> {
        let index = self.index(target)?;
        let sources = sources
            .iter()
            .map(|source| self.source_bits(source))
            .collect::<Result<Vec<_>, _>>()?;
        let target = &self.entries[index];
        target.check(Use::Change)?;
        let merged = target.bits.resized(target.bits.size())?;
        for source in sources {
            merged.merge_from(SHARD, &source)?;
        }
        Ok(merged)
    }

    /// The bitmap of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&NamedBitmap> {
        self.entries
            .iter()
            .find(|entry| entry.name.as_deref() == Some(name))
    }

    /// Says whether an export or a transaction holds the bitmap. Jobs freeze instead, and a
    /// frozen bitmap stays busy until it is thawed.
    ///
    /// # Errors
    ///
    /// No such bitmap.
    pub fn set_busy(&mut self, name: &str, busy: bool) -> Result<(), BitmapError> {
        let entry = self.entry(name)?;
        entry.flags.busy = busy || entry.successor.is_some();
        Ok(())
    }

    /// Says whether the image that holds the bitmap is read-only.
    ///
    /// # Errors
    ///
    /// No such bitmap.
    pub fn set_read_only(&mut self, name: &str, read_only: bool) -> Result<(), BitmapError> {
        self.entry(name)?.flags.read_only = read_only;
        Ok(())
    }

    /// Whether [`NodeBitmaps::resize`] would be let do its work.
    ///
    /// # Errors
    ///
    /// The first bitmap that is busy, read-only or inconsistent.
    pub fn check_resizable(&self) -> Result<(), BitmapError> {
        self.entries
            .iter()
            .try_for_each(|entry| entry.check(Use::Change))
    }

    /// Fits all bitmaps to a new size of the node; what is added is clean.
    ///
    /// # Errors
    ///
    /// As [`NodeBitmaps::check_resizable`]; memory that is refused.
    pub fn resize(&mut self, size: u64) -> Result<(), BitmapError> {
        self.check_resizable()?;
        let resized: Vec<_> = self
            .entries
            .iter()
            .map(|entry| entry.bits.resized(size))
            .collect::<Result<_, _>>()?;
        for (entry, bits) in self.entries.iter_mut().zip(resized) {
            entry.bits = Arc::new(bits);
        }
        self.size = size;
        Ok(())
    }

    /// The bitmaps that are stored in the image, oldest first.
    pub fn persistent(&self) -> impl Iterator<Item = &NamedBitmap> {
        self.entries.iter().filter(|entry| entry.flags.persistent)
    }

    /// The bitmaps which a write must mark now.
    #[must_use]
    pub fn recorders(&self) -> Vec<Arc<DirtyBitmap>> {
        let recording = self.entries.iter().filter(|entry| entry.flags.recording);
        recording.map(|entry| Arc::clone(&entry.bits)).collect()
    }

    /// What a query shows: newest first, so a successor comes before its frozen bitmap.
    #[must_use]
    pub fn list(&self) -> Vec<BitmapInfo> {
        self.entries
            .iter()
            .rev()
            .map(|entry| self.info(entry))
            .collect()
    }

    fn info(&self, entry: &NamedBitmap) -> BitmapInfo {
        let successor = entry.successor.and_then(|id| self.position(id));
        let successor_records = successor.is_some_and(|index| self.entries[index].flags.recording);
        let recording = entry.flags.recording || successor_records;
        BitmapInfo {
            name: entry.name.clone(),
            granularity: entry.bits.granularity(),
            count: entry.bits.count(),
            flags: BitmapFlags {
                recording,
                ..entry.flags
            },
        }
    }

    pub(super) fn push(
        &mut self,
        name: Option<String>,
        bits: Arc<DirtyBitmap>,
        flags: BitmapFlags,
    ) -> u64 {
        let id = self.id_next;
        self.id_next += 1;
        // The bits of an inconsistent bitmap mean nothing, whoever asks for marks.
        let recording = flags.recording && !flags.inconsistent;
        let flags = BitmapFlags { recording, ..flags };
        self.entries.push(NamedBitmap {
            id,
            name,
            bits,
            flags,
            successor: None,
        });
        id
    }

    pub(super) fn index(&self, name: &str) -> Result<usize, BitmapError> {
        let mut entries = self.entries.iter();
        entries
            .position(|entry| entry.name.as_deref() == Some(name))
            .ok_or_else(|| BitmapError::NotFound(name.to_owned()))
    }

    pub(super) fn entry(&mut self, name: &str) -> Result<&mut NamedBitmap, BitmapError> {
        let index = self.index(name)?;
        Ok(&mut self.entries[index])
    }

    /// The entry, if it may be used this way.
    fn usable(&mut self, name: &str, purpose: Use) -> Result<&mut NamedBitmap, BitmapError> {
        let entry = self.entry(name)?;
        entry.check(purpose)?;
        Ok(entry)
    }

    pub(super) fn position(&self, id: u64) -> Option<usize> {
        self.entries.iter().position(|entry| entry.id == id)
    }

    /// The bits of a source that can be merged into a bitmap of this node.
    fn source_bits(&self, source: &NamedBitmap) -> Result<Arc<DirtyBitmap>, BitmapError> {
        source.check(Use::Read)?;
        self.check_size(&source.bits)?;
        Ok(Arc::clone(&source.bits))
    }

    fn check_name(&self, name: &str) -> Result<(), BitmapError> {
        if self.get(name).is_some() {
            return Err(BitmapError::Exists(name.to_owned()));
        }
        if name.len() > NAME_LEN_MAX {
            return Err(BitmapError::NameTooLong(name.to_owned()));
        }
        Ok(())
    }

    const fn check_size(&self, bits: &DirtyBitmap) -> Result<(), BitmapError> {
        if bits.size() == self.size {
            return Ok(());
        }
        Err(BitmapError::SizesDiffer {
            destination: self.size,
            source_size: bits.size(),
        })
    }
}
