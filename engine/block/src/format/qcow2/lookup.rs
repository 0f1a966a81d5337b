//! Where guest bytes live: from an offset to a run with one answer.

use ringback_ring::{Errno, IoResult, Shard};

use super::entry::{Entry, Invalid, Kind, Stream, offset_of};
use super::frame::hex;
use super::image::Qcow2;
use super::tables::{Missing, Slice};
use crate::event::Event;
use crate::span::Span;

/// Where the bytes of a run are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Not in this image: in its backing file, or nowhere.
    Unallocated,
    /// Zeroes.
    Zero,
    /// At this offset of the data file.
    Data {
        /// Of the run's first byte.
        host: u64,
    },
    /// In a compressed cluster.
    Compressed(Stream),
}

/// A run of guest bytes with one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) place: Place,
    pub(super) len: u64,
}

/// What a write has to do before its bytes can go down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// Nothing: they go to this offset.
    There {
        /// Of the run's first byte.
        host: u64,
    },
    /// The host cluster is there and this image's own; the entry must change.
    Own {
        /// Of the run's first cluster.
        host: u64,
    },
    /// New host clusters are needed.
    Needed,
}

/// A run of guest bytes that a write can treat alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WriteRun {
    pub(super) room: Room,
    pub(super) len: u64,
}

/// What a lookup is for; messages about damage differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Read,
    Write,
    /// Damage is told, and does not end the use of the image.
    Discard,
}

/// An invalid entry, and where.
struct Damage {
    invalid: Invalid,
    guest: u64,
}

impl Qcow2 {
    /// The run at the start of `span` (not empty), at most that long.
    pub(super) async fn run(&self, shard: &Shard, span: Span) -> IoResult<Run> {
        let found = self
            .look(shard, span, |slice, span| self.run_in(slice, span))
            .await?;
        match found {
            Some(Ok(run)) => Ok(run),
            Some(Err(damage)) => Err(self.damaged(shard, &damage, Purpose::Read).await),
            None => Ok(Run {
                place: Place::Unallocated,
                len: self.without_table(span).len,
            }),
        }
    }

    /// What a write at the start of `span` (not empty) has to do, and for how
    /// many bytes.
    pub(super) async fn write_run(&self, shard: &Shard, span: Span) -> IoResult<WriteRun> {
        let found = self
            .look(shard, span, |slice, span| self.write_run_in(slice, span))
            .await?;
        match found {
            Some(Ok(run)) => Ok(run),
            Some(Err(damage)) => Err(self.damaged(shard, &damage, Purpose::Write).await),
            None => Ok(WriteRun {
                room: Room::Needed,
                len: self.within_slice(span).len,
            }),
        }
    }

    /// The entries of the clusters that `span`, which lies in one slice,
    /// touches.
    pub(super) async fn entries(
        &self,
        shard: &Shard,
        span: Span,
        purpose: Purpose,
    ) -> IoResult<Vec<Entry>> {
        let geometry = &self.frame.geometry;
        let clusters = span.widen(geometry.cluster_size);
        let found = self
            .look(shard, clusters, |slice, _| {
                clusters
                    .pieces(geometry.cluster_size)
                    .map(|cluster| self.entry(slice, cluster.offset))
                    .collect::<Result<Vec<_>, _>>()
            })
            .await?;
        match found {
            Some(Ok(entries)) => Ok(entries),
            Some(Err(damage)) => Err(self.damaged(shard, &damage, purpose).await),
            None => {
                let count = clusters.pieces(geometry.cluster_size).count();
                Ok(vec![Entry::EMPTY; count])
            }
        }
    }

    /// Runs `look` on the slice of `span`'s start and the part of `span` that
    /// lies in it, after loading it if need be. None: there is no L2 table.
    async fn look<T>(
        &self,
        shard: &Shard,
        span: Span,
        look: impl Fn(&Slice, Span) -> T,
    ) -> IoResult<Option<T>> {
        let slice = self.frame.geometry.slice_index(span.offset);
        let part = self.within_slice(span);
        loop {
            if let Some(found) = self.tables.look(slice, |slice| look(slice, part)) {
                return Ok(Some(found));
            }
            match self.tables.missing(slice).await {
                Missing::Nothing => {}
                Missing::Table => return Ok(None),
                Missing::Load { l1_entry } => Box::pin(self.load(shard, slice, l1_entry)).await?,
            }
        }
    }

    /// Brings the slice that maps an offset into the cache; its table must
    /// exist.
    pub(super) async fn load_slice(&self, shard: &Shard, offset: u64) -> IoResult<()> {
        let slice = self.frame.geometry.slice_index(offset);
        match self.tables.missing(slice).await {
            Missing::Nothing => Ok(()),
            Missing::Table => Err(Errno::EIO),
            Missing::Load { l1_entry } => self.load(shard, slice, l1_entry).await,
        }
    }

    async fn load(&self, shard: &Shard, slice: u64, l1_entry: u64) -> IoResult<()> {
        let geometry = &self.frame.geometry;
        let table = offset_of(l1_entry);
        let result = if geometry.in_cluster(table) == 0 {
            self.frame.file.event(shard, Event::L2Load).await;
            let offset = table + geometry.slice_offset(slice);
            let span = Span::new(offset, geometry.slice_bytes());
            self.frame.read_bytes(shard, span).await
        } else {
            let l1_index = geometry.l1_index_of_slice(slice);
            let (table, l1_index) = (hex(table), hex(l1_index));
            let message = format!("L2 table offset {table} unaligned (L1 index: {l1_index})");
            Err(self.frame.corruption(shard, true, message, None).await)
        };
        match result {
            Ok(bytes) => {
                self.tables.insert(slice, &bytes);
                Ok(())
            }
            Err(errno) => {
                self.tables.give_up(slice);
                Err(errno)
            }
        }
    }

    /// The part that one slice maps.
    pub(super) fn within_slice(&self, span: Span) -> Span {
        let geometry = &self.frame.geometry;
        span.clip(&geometry.slice_span(geometry.slice_index(span.offset)))
    }

    /// The part that one L2 table would map.
    fn without_table(&self, span: Span) -> Span {
        let coverage = self.frame.geometry.table_coverage();
        let start = span.offset & !(coverage - 1);
        span.clip(&Span::new(start, coverage))
    }

    fn entry(&self, slice: &Slice, guest: u64) -> Result<Entry, Damage> {
        let geometry = &self.frame.geometry;
        let raw = slice.entry(geometry, geometry.entry_in_slice(guest));
        let guest = geometry.cluster_start(guest);
        Entry::decode(geometry, self.rules(), raw, guest)
            .map_err(|invalid| Damage { invalid, guest })
    }

    fn run_in(&self, slice: &Slice, span: Span) -> Result<Run, Damage> {
        let first = self.run_in_cluster(self.entry(slice, span.offset)?, span);
        let mut len = first.len;
        while len < span.len && self.frame.geometry.in_cluster(span.offset + len) == 0 {
            let rest = Span::between(span.offset + len, span.end());
            // Damage further on is told when somebody gets there.
            let Ok(entry) = self.entry(slice, rest.offset) else {
                break;
            };
            let next = self.run_in_cluster(entry, rest);
            let goes_on = match (first.place, next.place) {
                (Place::Unallocated, Place::Unallocated) | (Place::Zero, Place::Zero) => true,
                (Place::Data { host }, Place::Data { host: next }) => next == host + len,
                _ => false,
            };
            if !goes_on {
                break;
            }
            len += next.len;
        }
        Ok(Run { len, ..first })
    }

    fn run_in_cluster(&self, entry: Entry, span: Span) -> Run {
        let geometry = &self.frame.geometry;
        let in_cluster = geometry.in_cluster(span.offset);
        let first = geometry.subcluster(span.offset);
        let kind = entry.kind(first);
        let end = if geometry.extended {
            let last = (first..32)
                .take_while(|&subcluster| entry.kind(subcluster) == kind)
                .last();
            u64::from(last.unwrap_or(first) + 1) * geometry.subcluster_size
        } else {
            geometry.cluster_size
        };
        let place = match (kind, entry.host, entry.stream) {
            (Kind::Data, Some(host), _) => Place::Data {
                host: host + in_cluster,
            },
            (Kind::Compressed, _, Some(stream)) => Place::Compressed(stream),
            (Kind::Zero, _, _) => Place::Zero,
            _ => Place::Unallocated,
        };
        Run {
            place,
            len: (end - in_cluster).min(span.len),
        }
    }

    fn write_run_in(&self, slice: &Slice, span: Span) -> Result<WriteRun, Damage> {
        let mut run = self.write_run_in_cluster(self.entry(slice, span.offset)?, span);
        let head = self.frame.geometry.in_cluster(span.offset);
        while run.len < span.len {
            let rest = Span::between(span.offset + run.len, span.end());
            let Ok(entry) = self.entry(slice, rest.offset) else {
                break;
            };
            let next = self.write_run_in_cluster(entry, rest);
            // Later clusters are whole at their start: both kinds of place are
            // that of the cluster.
            let room = match (run.room, next.room) {
                (Room::Needed, Room::Needed) => Room::Needed,
                (Room::There { host }, Room::There { host: next }) if next == host + run.len => {
                    run.room
                }
                // What is there already goes down with what needs its entry
                // changed, as one.
                (Room::There { host }, Room::Own { host: next }) if next == host + run.len => {
                    Room::Own { host: host - head }
                }
                (Room::Own { host }, Room::Own { host: next } | Room::There { host: next })
                    if next == host + head + run.len =>
                {
                    run.room
                }
                _ => break,
            };
            run.room = room;
            run.len += next.len;
        }
        Ok(run)
    }

    fn write_run_in_cluster(&self, entry: Entry, span: Span) -> WriteRun {
        let geometry = &self.frame.geometry;
        let in_cluster = geometry.in_cluster(span.offset);
        let len = (geometry.cluster_size - in_cluster).min(span.len);
        let touched = self.subclusters(Span::new(span.offset, len));
        let room = match entry.own_host() {
            Some(host) if entry.data & touched == touched => Room::There {
                host: host + in_cluster,
            },
            Some(host) => Room::Own { host },
            None => Room::Needed,
        };
        WriteRun { room, len }
    }

    /// The subclusters that a span inside one cluster touches; without
    /// subclusters all bits.
    pub(super) fn subclusters(&self, span: Span) -> u32 {
        let geometry = &self.frame.geometry;
        if !geometry.extended {
            return u32::MAX;
        }
        let (first, last) = (
            geometry.subcluster(span.offset),
            geometry.subcluster(span.end() - 1),
        );
        (u32::MAX >> (31 - (last - first))) << first
    }

    /// Tells about an invalid entry.
    async fn damaged(&self, shard: &Shard, damage: &Damage, purpose: Purpose) -> Errno {
        let geometry = &self.frame.geometry;
        let l1_index = geometry.l1_index(damage.guest);
        let table = hex(offset_of(self.tables.l1_entry(l1_index)));
        let index = hex(geometry.l2_index(damage.guest));
        let guest = hex(damage.guest);
        let place = format!("(L2 offset: {table}, L2 index: {index})");
        let host = match damage.invalid {
            Invalid::Unaligned { host } | Invalid::OtherOffset { host } => hex(host),
            _ => String::new(),
        };
        let message = match (damage.invalid, purpose) {
            (Invalid::Unaligned { .. }, Purpose::Write) => {
                format!("Data cluster offset {host} unaligned (guest offset: {guest})")
            }
            (Invalid::Unaligned { .. }, Purpose::Discard) => {
                format!("Cannot free unaligned cluster {host}")
            }
            (Invalid::Unaligned { .. }, Purpose::Read) => {
                format!("Cluster allocation offset {host} unaligned {place}")
            }
            (Invalid::ZeroInOldVersion, _) => {
                format!("Zero cluster entry found in pre-v3 image {place}")
            }
            (Invalid::CompressedWithDataFile, _) => {
                format!("Compressed cluster entry found in image with external data file {place}")
            }
            (Invalid::OtherOffset { .. }, _) => format!(
                "External data file host cluster offset {host} does not match guest cluster \
                 offset: {guest}, L2 index: {index})"
            ),
            (Invalid::Subclusters, Purpose::Read) => {
                format!("Invalid cluster entry found  {place}")
            }
            (Invalid::Subclusters, _) => format!("Invalid cluster entry found {place}"),
        };
        let fatal = purpose != Purpose::Discard;
        self.frame.corruption(shard, fatal, message, None).await
    }
}
