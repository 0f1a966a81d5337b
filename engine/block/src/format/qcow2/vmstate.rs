//! A machine's state: bytes behind the end of the disk, mapped as if the disk
//! went on there.

use std::ops::Range;

use ringback_ring::{Buf, Errno, IoResult, Shard};

use super::header::L1_ENTRIES_MAX;
use super::image::Qcow2;
use crate::event::Event;
use crate::span::Span;
use crate::units::DISK_SIZE_MAX;

impl Qcow2 {
    /// Where bytes of the state stand.
    fn vmstate_span(&self, position: u64, len: usize) -> IoResult<Span> {
        let start = self.vmstate_offset().checked_add(position);
        let end = start.and_then(|start| start.checked_add(len as u64));
        match (start, end) {
            (Some(start), Some(end)) if end <= DISK_SIZE_MAX => Ok(Span::between(start, end)),
            _ => Err(Errno::EFBIG),
        }
    }

    /// Reads from the state; what was never written is zero.
    pub(crate) async fn load_vmstate(
        &self,
        shard: &Shard,
        position: u64,
        mut buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        self.frame.file.event(shard, Event::VmstateLoad).await;
        let span = match self.vmstate_span(position, window.len()) {
            Ok(span) => span,
            Err(errno) => return (Err(errno), buf),
        };
        // Behind the table, nothing can have been written.
        let geometry = &self.frame.geometry;
        let mapped = self
            .tables
            .l1_len()
            .saturating_mul(geometry.table_coverage());
        let inside = span.clip(&Span::new(0, mapped));
        let end = window.start + crate::units::in_memory(inside.len);
        buf[end..window.end].fill(0);
        if inside.is_empty() {
            return (Ok(()), buf);
        }
        // No backing file: it is not part of this state.
        self.read(shard, None, inside, buf, window.start..end).await
    }

    /// Writes into the state. The L1 table grows by halves.
    pub(crate) async fn save_vmstate(
        &self,
        shard: &Shard,
        position: u64,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        self.frame.file.event(shard, Event::VmstateSave).await;
        if let Err(errno) = self.check_writable() {
            return (Err(errno), buf);
        }
        let span = match self.vmstate_span(position, window.len()) {
            Ok(span) => span,
            Err(errno) => return (Err(errno), buf),
        };
        if let Err(errno) = self.make_room_for_vmstate(shard, span.end()).await {
            return (Err(errno), buf);
        }
        self.write(shard, None, span, buf, window).await
    }

    async fn make_room_for_vmstate(&self, shard: &Shard, end: u64) -> IoResult<()> {
        let needed = self.frame.geometry.l1_entries(end);
        if needed > L1_ENTRIES_MAX.into() {
            return Err(Errno::EFBIG);
        }
        let mut entries = self.tables.l1_len();
        if needed <= entries {
            return Ok(());
        }
        while entries < needed {
            entries = (entries * 3).div_ceil(2).max(1);
        }
        self.grow_l1(shard, entries.min(L1_ENTRIES_MAX.into()))
            .await
    }
}
