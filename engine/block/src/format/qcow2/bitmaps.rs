//! Persistent bitmaps: how they come out of an image and go back into it.
//!
//! # What the file holds at every instant
//!
//! | while | the bitmaps in the file |
//! | --- | --- |
//! | nobody writes to the image | good |
//! | it is open for writing | as they were when it was opened, marked in use |
//! | they are stored | the same, until the header points to the new directory |
//!
//! The marks are set before anything else is changed. Whoever finds a mark knows
//! that the bits are out of date. Storing writes bits, tables and directory to
//! new clusters, makes them durable and counted, and then changes the header;
//! only after that the old ones are freed.
//!
//! A bitmap that was found in use is kept as it is until it is removed. So is
//! one whose name is no text; nobody can name it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ringback_ring::{Errno, IoResult, Shard};

use super::bitmap_directory::{
    AUTO, BITS_BYTES_MAX, BitmapsError, COUNT_MAX, DIRECTORY_BYTES_MAX, DirectoryEntry,
    FLAGS_OFFSET, IN_USE, NotStorable, entry_size, parse, serialize,
};
use super::bitmap_table::{Piece, check_table, runs};
use super::frame::{Frame, read_words, word_bytes};
use super::header::{AUTOCLEAR_BITMAPS, BitmapsExtension, Header};
use super::image::Qcow2;
use super::reserved::Structure;
use crate::bitmap::DirtyBitmap;
use crate::notice::Notice;
use crate::span::Span;
use crate::units::{DISK_SIZE_MAX, in_memory};
use ringback_ring::error_text;

/// Bits are read and written in pieces of this size.
const PIECE: u64 = 1 << 20;
/// Nothing else marks a bitmap that is being loaded.
const COUNTER: usize = 0;
/// Words that are marked at a time.
const MARK_WORDS: u64 = 1 << 16;
/// Granules of a word.
const WORD_BITS: u64 = 64;

/// A persistent bitmap on its way between an image and its node.
#[derive(Clone, Debug)]
pub struct StoredBitmap {
    /// Unique in the image.
    pub name: String,
    /// Its bits; clean and without meaning if it is inconsistent.
    pub bits: Arc<DirtyBitmap>,
    /// Writes mark it.
    pub recording: bool,
    /// It was in use when a process died. Storing passes it by.
    pub inconsistent: bool,
}

/// A bitmap in the file.
#[derive(Clone, Debug)]
struct Held {
    entry: DirectoryEntry,
    /// Kept as it is: it was found in use, or cannot be named.
    kept: bool,
}

/// The bitmaps that an image's file holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Bitmaps {
    directory: Span,
    held: Vec<Held>,
}

/// What was read when an image was opened.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    pub(super) bitmaps: Bitmaps,
    pub(super) stored: Vec<StoredBitmap>,
}

/// Reads the bitmaps of an image that is being opened; changes nothing.
pub(super) async fn load(
    shard: &Shard,
    frame: &Frame,
    header: &Header,
) -> Result<Loaded, BitmapsError> {
    let Some(extension) = header.extensions.bitmaps else {
        return Ok(Loaded::default());
    };
    let (entries, directory) = read_directory(shard, frame, extension, header.size).await?;
    frame.reserved.add(directory, Structure::BitmapDirectory);
    let mut loaded = Loaded::default();
    loaded.bitmaps.directory = directory;
    let mut names = BTreeSet::new();
    for entry in entries {
        let bits = load_bits(shard, frame, &entry, header.size).await?;
        let name = nameable(&entry.name);
        if name.is_none() {
            let text = format!("bitmap '{}' has an unusable name", entry.label());
            frame.notify.send(Notice::Warning(text));
        }
        let kept = entry.is_in_use() || name.is_none();
        if let Some(name) = name {
            if !names.insert(name.clone()) {
                return Err(BitmapsError::Exists(name));
            }
            loaded.stored.push(StoredBitmap {
                name,
                bits: Arc::new(bits),
                recording: entry.flags & AUTO != 0,
                inconsistent: kept,
            });
        }
        loaded.bitmaps.held.push(Held { entry, kept });
    }
    Ok(loaded)
}

/// A name that a command can give.
fn nameable(name: &[u8]) -> Option<String> {
    let text = String::from_utf8(name.to_vec()).ok()?;
    (!text.is_empty() && !text.contains('\0')).then_some(text)
}

async fn read_directory(
    shard: &Shard,
    frame: &Frame,
    extension: BitmapsExtension,
    disk_size: u64,
) -> Result<(Vec<DirectoryEntry>, Span), BitmapsError> {
    if extension.directory_size == 0 {
        return Err(BitmapsError::EmptyDirectory);
    }
    let end = extension
        .directory_offset
        .checked_add(extension.directory_size)
        .filter(|&end| end <= DISK_SIZE_MAX)
        .ok_or(BitmapsError::ReadDirectory(Errno::EIO))?;
    let directory = Span::between(extension.directory_offset, end);
    // Behind the file's end are zeroes, and no entry is zero. So one entry of
    // them stands for any number.
    let inside = directory.clip(&Span::new(0, frame.file.size()));
    let mut bytes = frame
        .read_bytes(shard, inside)
        .await
        .map_err(BitmapsError::ReadDirectory)?;
    let missing = in_memory((directory.len - inside.len).min(entry_size(usize::from(u16::MAX))));
    bytes.resize(bytes.len() + missing, 0);
    let entries = parse(&bytes, extension.count, &frame.geometry, disk_size)?;
    Ok((entries, directory))
}

/// The bits of an entry, clean if it is in use.
async fn load_bits(
    shard: &Shard,
    frame: &Frame,
    entry: &DirectoryEntry,
    disk_size: u64,
) -> Result<DirtyBitmap, BitmapsError> {
    let bad_bits = |errno| BitmapsError::Bits {
        name: entry.label(),
        errno,
    };
    let granularity = 1 << entry.granularity_bits;
    let bits = DirtyBitmap::new(disk_size, granularity, shard.set().count())
        .map_err(|_| bad_bits(Errno::ENOMEM))?;
    if entry.is_in_use() {
        return Ok(bits);
    }
    let table = read_table(shard, frame, entry)
        .await
        .map_err(|errno| BitmapsError::Table {
            name: entry.label(),
            errno,
        })?;
    let cluster_size = frame.geometry.cluster_size;
    if table.len() as u64 != table_len(&bits, cluster_size) {
        return Err(bad_bits(Errno::EINVAL));
    }
    fill(shard, frame, &bits, &table).await.map_err(bad_bits)?;
    Ok(bits)
}

/// Entries of the table of a bitmap.
fn table_len(bits: &DirtyBitmap, cluster_size: u64) -> u64 {
    bits.word_count().div_ceil(cluster_size / 8)
}

/// The table of an entry, checked.
async fn read_table(shard: &Shard, frame: &Frame, entry: &DirectoryEntry) -> IoResult<Vec<u64>> {
    let len = u64::from(entry.table_len) * 8;
    let end = entry.table_offset.checked_add(len);
    if end.is_none_or(|end| end > DISK_SIZE_MAX) {
        return Err(Errno::EIO);
    }
    let table = read_words(shard, &frame.file, Span::new(entry.table_offset, len)).await?;
    check_table(&table, &frame.geometry)?;
    Ok(table)
}

/// Marks what a table's clusters say.
async fn fill(shard: &Shard, frame: &Frame, bits: &DirtyBitmap, table: &[u64]) -> IoResult<()> {
    let cluster_size = frame.geometry.cluster_size;
    let words_per_cluster = cluster_size / 8;
    for run in runs(table, cluster_size, PIECE) {
        let first = run.first * words_per_cluster;
        let count = run.count * words_per_cluster;
        match run.piece {
            Piece::Clean => {}
            Piece::Full => mark_words(shard, bits, first, count).await,
            Piece::Stored { host } => {
                let span = Span::new(host, run.count * cluster_size);
                let bytes = frame.read_bytes(shard, span).await?;
                let (words, _) = bytes.as_chunks::<8>();
                for (index, &word) in (first..).zip(words) {
                    bits.mark_word(COUNTER, index, u64::from_le_bytes(word));
                }
            }
        }
    }
    Ok(())
}

async fn mark_words(shard: &Shard, bits: &DirtyBitmap, first: u64, count: u64) {
    let end = (first + count).min(bits.word_count());
    let mut next = first;
    while next < end {
        let stop = end.min(next + MARK_WORDS);
        for index in next..stop {
            bits.mark_word(COUNTER, index, u64::MAX);
        }
        next = stop;
        shard.yield_now().await;
    }
}

/// What an image's directory says of a bitmap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedBitmap {
    /// Its name.
    pub name: String,
    /// Bytes a bit.
    pub granularity: u64,
    /// Whoever opened the image has not closed it.
    pub in_use: bool,
    /// It records.
    pub auto: bool,
}

impl Qcow2 {
    /// The bitmaps that the file holds, as it holds them now.
    pub async fn listed_bitmaps(&self) -> Vec<ListedBitmap> {
        let bitmaps = self.bitmaps.lock().await;
        let entries = bitmaps.held.iter().map(|held| &held.entry);
        let listed = entries.map(|entry| ListedBitmap {
            name: entry.label(),
            granularity: 1u64.checked_shl(entry.granularity_bits.into()).unwrap_or(0),
            in_use: entry.is_in_use(),
            auto: entry.is_auto(),
        });
        listed.collect()
    }

    /// What was loaded when the image was opened, once.
    pub(crate) fn take_loaded_bitmaps(&self) -> Vec<StoredBitmap> {
        std::mem::take(&mut *self.loaded_bitmaps())
    }

    /// Goes on with the bitmaps of the same image as it was open before: they are
    /// marked in use, but by nobody else.
    pub(crate) async fn take_bitmaps_over(&self, before: &Self) {
        let bitmaps = before.bitmaps.lock().await.clone();
        *self.bitmaps.lock().await = bitmaps;
    }

    /// Says in the file that the bitmaps are being changed. To be called before
    /// anything else is changed in the image, and again after
    /// [`Qcow2::store_bitmaps`] if the image is written on.
    pub(crate) async fn mark_bitmaps_in_use(&self, shard: &Shard) -> IoResult<()> {
        let mut bitmaps = self.bitmaps.lock().await;
        let mut offset = bitmaps.directory.offset;
        let mut marked = false;
        for held in &mut bitmaps.held {
            let entry = &mut held.entry;
            if !entry.is_in_use() {
                // Four bytes in one sector: each mark is set, or not.
                let flags = entry.flags | IN_USE;
                self.frame
                    .write_bytes(shard, offset + FLAGS_OFFSET, &flags.to_be_bytes())
                    .await?;
                entry.flags = flags;
                marked = true;
            }
            offset += entry.size();
        }
        if marked {
            self.frame.file.flush(shard).await?;
        }
        Ok(())
    }

    /// Whether the image can take one more bitmap beside `others`, the names of
    /// those that it will have to store anyway.
    ///
    /// # Errors
    ///
    /// [`BitmapsError::NotStorable`].
    pub(crate) fn check_storable<'a>(
        &self,
        name: &str,
        granularity: u64,
        others: impl Iterator<Item = &'a str>,
    ) -> Result<(), BitmapsError> {
        self.storable(name, granularity, others)
            .map_err(|reason| BitmapsError::NotStorable {
                bitmap: name.into(),
                node: self.frame.name.clone(),
                reason,
            })
    }

    fn storable<'a>(
        &self,
        name: &str,
        granularity: u64,
        others: impl Iterator<Item = &'a str>,
    ) -> Result<(), NotStorable> {
        if self.frame.version < 3 {
            return Err(NotStorable::OldVersion);
        }
        if name.len() > 1023 {
            return Err(NotStorable::NameLength);
        }
        if self.size() == 0 {
            return Err(NotStorable::EmptyDisk);
        }
        if self.size().div_ceil(granularity).div_ceil(8) > BITS_BYTES_MAX {
            return Err(NotStorable::TooMuchSpace);
        }
        let (mut count, mut bytes) = (1, entry_size(name.len()));
        for other in others {
            count += 1;
            bytes += entry_size(other.len());
        }
        if count > COUNT_MAX {
            return Err(NotStorable::Count);
        }
        if bytes > DIRECTORY_BYTES_MAX {
            return Err(NotStorable::DirectorySpace);
        }
        Ok(())
    }

    /// Makes these the bitmaps that the file holds, good and not in use, beside
    /// those that were found inconsistent.
    ///
    /// # Errors
    ///
    /// [`BitmapsError`]; the file holds what it held before, or, if only the last
    /// flush failed, the new ones.
    pub(crate) async fn store_bitmaps(
        &self,
        shard: &Shard,
        stored: &[StoredBitmap],
    ) -> Result<(), BitmapsError> {
        if !self.frame.is_usable() {
            // As it is closed: what is in the file stays as it is, in use.
            return Ok(());
        }
        let mut bitmaps = self.bitmaps.lock().await;
        let mut taken = Vec::new();
        let result = self
            .store_in_new_clusters(shard, &mut bitmaps, stored, &mut taken)
            .await;
        if result.is_err() {
            self.free_taken(shard, &taken).await;
        }
        result
    }

    async fn store_in_new_clusters(
        &self,
        shard: &Shard,
        bitmaps: &mut Bitmaps,
        stored: &[StoredBitmap],
        taken: &mut Vec<Span>,
    ) -> Result<(), BitmapsError> {
        let good = stored.iter().filter(|new| !new.inconsistent);
        let mut waiting: BTreeMap<&[u8], &StoredBitmap> =
            good.clone().map(|new| (new.name.as_bytes(), new)).collect();
        let (mut held, mut old) = (Vec::new(), Vec::new());
        // Those that the file knows keep their place in the directory.
        for was in &bitmaps.held {
            if was.kept {
                held.push(was.clone());
                continue;
            }
            old.push(was.entry.clone());
            if let Some(new) = waiting.remove(was.entry.name.as_slice()) {
                held.push(self.store_one(shard, new, taken).await?);
            }
        }
        for new in good {
            if waiting.contains_key(new.name.as_bytes()) {
                held.push(self.store_one(shard, new, taken).await?);
            }
        }
        if held.is_empty() && bitmaps.held.is_empty() {
            return Ok(());
        }
        self.commit(shard, bitmaps, held, &old, taken)
            .await
            .map_err(BitmapsError::Commit)
    }

    /// Takes one bitmap out of the file at once, whatever state it is in. A
    /// bitmap that the file does not hold is no error.
    ///
    /// # Errors
    ///
    /// [`BitmapsError::Commit`], as for [`Qcow2::store_bitmaps`].
    pub(crate) async fn remove_bitmap(
        &self,
        shard: &Shard,
        name: &str,
    ) -> Result<(), BitmapsError> {
        self.frame.check_usable().map_err(BitmapsError::Commit)?;
        let mut bitmaps = self.bitmaps.lock().await;
        let (gone, held): (Vec<_>, Vec<_>) = bitmaps
            .held
            .iter()
            .cloned()
            .partition(|held| held.entry.name == name.as_bytes());
        if gone.is_empty() {
            return Ok(());
        }
        let old: Vec<_> = gone.into_iter().map(|held| held.entry).collect();
        let mut taken = Vec::new();
        let result = self
            .commit(shard, &mut bitmaps, held, &old, &mut taken)
            .await;
        if result.is_err() {
            self.free_taken(shard, &taken).await;
        }
        result.map_err(BitmapsError::Commit)
    }

    /// Writes one bitmap to new clusters.
    async fn store_one(
        &self,
        shard: &Shard,
        new: &StoredBitmap,
        taken: &mut Vec<Span>,
    ) -> Result<Held, BitmapsError> {
        let written = self.write_bits(shard, &new.bits, taken).await;
        let (table_offset, table_len) = written.map_err(|errno| BitmapsError::Store {
            node: self.frame.name.clone(),
            bitmap: new.name.clone(),
            errno,
        })?;
        let entry = DirectoryEntry {
            name: new.name.as_bytes().to_vec(),
            table_offset,
            table_len,
            flags: if new.recording { AUTO } else { 0 },
            granularity_bits: u8::try_from(new.bits.granularity().trailing_zeros())
                .expect("at most 63"),
        };
        Ok(Held { entry, kept: false })
    }

    /// Writes bits and their table; answers where the table is, and its length.
    async fn write_bits(
        &self,
        shard: &Shard,
        bits: &DirtyBitmap,
        taken: &mut Vec<Span>,
    ) -> IoResult<(u64, u32)> {
        let cluster_size = self.cluster_size();
        let words_per_cluster = cluster_size / 8;
        let len = table_len(bits, cluster_size);
        if len == 0 || len * cluster_size > BITS_BYTES_MAX.next_multiple_of(cluster_size) {
            return Err(Errno::EFBIG);
        }
        // Guest bytes for which a cluster of bits stands.
        let coverage = words_per_cluster * WORD_BITS * bits.granularity();
        let longest = (PIECE / cluster_size).max(1);
        let mut table = vec![0_u64; in_memory(len)];
        let mut next = 0;
        while next < len {
            let Some(dirty) = bits.next_dirty(next * coverage, bits.size()) else {
                break;
            };
            let first = dirty / coverage;
            let end = (first + 1..len.min(first + longest))
                .find(|&cluster| !bits.any_dirty(cluster * coverage, coverage))
                .unwrap_or_else(|| len.min(first + longest));
            let host = self
                .take(shard, (end - first) * cluster_size, taken)
                .await?;
            let words = first * words_per_cluster..end * words_per_cluster;
            let bytes: Vec<u8> = words
                .flat_map(|index| bits.word(index).to_le_bytes())
                .collect();
            self.frame.write_bytes(shard, host, &bytes).await?;
            for cluster in first..end {
                table[in_memory(cluster)] = host + (cluster - first) * cluster_size;
            }
            next = end;
        }
        let bytes = word_bytes(&table);
        let offset = self.take(shard, bytes.len() as u64, taken).await?;
        self.frame.write_bytes(shard, offset, &bytes).await?;
        let len = u32::try_from(len).map_err(|_| Errno::EFBIG)?;
        Ok((offset, len))
    }

    /// New clusters for `len` bytes, which are noted in `taken`.
    async fn take(&self, shard: &Shard, len: u64, taken: &mut Vec<Span>) -> IoResult<u64> {
        let count = len.div_ceil(self.cluster_size());
        let mut allocator = self.allocator.lock().await;
        let fresh = allocator
            .allocate(shard, &self.frame, count, "bitmap")
            .await?;
        taken.push(Span::new(fresh.host, count * self.cluster_size()));
        Ok(fresh.host)
    }

    /// Nothing refers to what was taken: the header still is the old one.
    async fn free_taken(&self, shard: &Shard, taken: &[Span]) {
        let mut allocator = self.allocator.lock().await;
        for &span in taken {
            // If this fails as well the clusters are leaked, and no more.
            let _ = allocator.free_unused(shard, &self.frame, span).await;
        }
    }

    /// Makes `held` what the file holds, and then frees the old directory and
    /// the tables and bits of `old`.
    async fn commit(
        &self,
        shard: &Shard,
        bitmaps: &mut Bitmaps,
        held: Vec<Held>,
        old: &[DirectoryEntry],
        taken: &mut Vec<Span>,
    ) -> IoResult<()> {
        let bytes = serialize(held.iter().map(|held| &held.entry));
        let size = bytes.len() as u64;
        if held.len() > COUNT_MAX || size > DIRECTORY_BYTES_MAX {
            return Err(Errno::EFBIG);
        }
        let count = u32::try_from(held.len()).map_err(|_| Errno::EFBIG)?;
        let mut directory = Span::default();
        if count > 0 {
            directory = Span::new(self.take(shard, size, taken).await?, size);
            self.frame
                .write_bytes(shard, directory.offset, &bytes)
                .await?;
        }
        let new = (count > 0).then_some(BitmapsExtension {
            count,
            directory_size: size,
            directory_offset: directory.offset,
        });
        let rewritten = self
            .rewrite_header(shard, |header| {
                header.extensions.bitmaps = new;
                if new.is_some() {
                    header.autoclear |= AUTOCLEAR_BITMAPS;
                } else {
                    header.autoclear &= !AUTOCLEAR_BITMAPS;
                }
            })
            .await;
        if rewritten.is_err() {
            // Nobody knows which header the file holds: better leaks than a
            // directory in clusters that somebody else is given.
            taken.clear();
        }
        rewritten?;
        let old_directory = std::mem::replace(&mut bitmaps.directory, directory);
        bitmaps.held = held;
        self.frame.reserved.remove(old_directory);
        self.frame
            .reserved
            .add(directory, Structure::BitmapDirectory);
        self.free_old(shard, old_directory, old).await;
        Ok(())
    }

    /// Frees what the file no longer refers to. What cannot be freed is leaked:
    /// that harms nobody, and everything else is done.
    async fn free_old(&self, shard: &Shard, directory: Span, old: &[DirectoryEntry]) {
        let mut result = self.free(shard, directory).await;
        for entry in old {
            result = result.and(self.free_bitmap(shard, entry).await);
        }
        if let Err(errno) = result {
            let errno = error_text(errno);
            let text = format!("some clusters of old bitmaps could not be freed: {errno}");
            self.frame.notify.send(Notice::Warning(text));
        }
    }

    async fn free_bitmap(&self, shard: &Shard, entry: &DirectoryEntry) -> IoResult<()> {
        let table = read_table(shard, &self.frame, entry).await?;
        let cluster_size = self.cluster_size();
        for run in runs(&table, cluster_size, PIECE) {
            if let Piece::Stored { host } = run.piece {
                let span = Span::new(host, run.count * cluster_size);
                self.free(shard, span).await?;
            }
        }
        let table = Span::new(entry.table_offset, u64::from(entry.table_len) * 8);
        self.free(shard, table).await
    }

    /// Ends a reference to every cluster that `span` touches. The tables of a
    /// damaged image may refer to anything: what is counted as free already, or
    /// belongs to the image itself, is left alone.
    async fn free(&self, shard: &Shard, span: Span) -> IoResult<()> {
        let span = span.widen(self.cluster_size());
        let mut counted = Vec::new();
        {
            let mut allocator = self.allocator.lock().await;
            for cluster in span.pieces(self.cluster_size()) {
                if self.frame.reserved.find(cluster).is_some() {
                    continue;
                }
                let index = cluster.offset >> self.frame.geometry.cluster_bits;
                let count = allocator.refcount(shard, &self.frame, index).await?;
                if count > 0 {
                    counted.push((cluster, count));
                }
            }
        }
        for run in counted.chunk_by(|(one, count), (next, other)| {
            one.end() == next.offset && *count == 1 && *other == 1
        }) {
            if let [(first, 1), ..] = run {
                let len = run.len() as u64 * self.cluster_size();
                // The file forgets the bytes before somebody else can have the
                // clusters. It is a hint.
                let span = Span::new(first.offset, len);
                let _ = self.frame.file.discard(shard, span).await;
            }
        }
        let mut allocator = self.allocator.lock().await;
        for (cluster, _) in counted {
            allocator.free_unused(shard, &self.frame, cluster).await?;
        }
        Ok(())
    }
}
