//! Changing the header of an open image.
//!
//! The image keeps the header that it was opened with. Some of its values live
//! elsewhere while the image is open, and may be newer there: the incompatible
//! feature bits, the refcount table's place, the L1 table's, the size. So each
//! rewrite takes them from there first.

use ringback_ring::{Errno, IoResult, Shard};

use super::frame::Frame;
use super::header::Header;
use super::image::Qcow2;
use crate::span::Span;
use crate::units::{SECTOR, in_memory};

impl Qcow2 {
    /// Lets `change` change the header, in the file too, and makes it durable.
    ///
    /// What the new header points to must have been written; it is durable, and
    /// counted, before the header is written. Incompatible feature bits are set
    /// by [`Frame::set_feature`] only. On an error the kept header is as it was.
    pub(super) async fn rewrite_header(
        &self,
        shard: &Shard,
        change: impl FnOnce(&mut Header),
    ) -> IoResult<()> {
        let mut kept = self.header.lock().await;
        // Held until the end: its table must not move meanwhile.
        let mut allocator = self.allocator.lock().await;
        let mut header = Header::clone(&kept);
        let (table, _) = allocator.table();
        let clusters = table.len / self.cluster_size();
        header.refcount_table_offset = table.offset;
        header.refcount_table_clusters = u32::try_from(clusters).map_err(|_| Errno::EFBIG)?;
        header.l1_offset = self.tables.l1_offset();
        header.l1_size = u32::try_from(self.tables.l1_len()).map_err(|_| Errno::EFBIG)?;
        header.size = self.size();
        change(&mut header);
        allocator.write_dirty(shard, &self.frame).await?;
        self.frame.file.flush(shard).await?;
        self.frame.write_header(shard, &mut header).await?;
        *kept = header;
        Ok(())
    }
}

impl Frame {
    /// Writes a header, with the feature bits as they are now, and makes it
    /// durable.
    async fn write_header(&self, shard: &Shard, header: &mut Header) -> IoResult<()> {
        let _alone = self.header_writes.lock().await;
        header.incompatible = self.incompatible();
        let mut bytes = header.serialize().map_err(|_| Errno::ENOSPC)?;
        bytes.resize(bytes.len().next_multiple_of(in_memory(SECTOR)), 0);
        let old = self
            .read_bytes(shard, Span::new(0, bytes.len() as u64))
            .await?;
        for (offset, part) in steps(&old, &bytes, header) {
            self.write_bytes(shard, offset, part).await?;
            self.file.flush(shard).await?;
        }
        Ok(())
    }
}

/// What has to be written one after the other.
///
/// A sector is written whole or not at all. If an extension appears or goes
/// away at the border of the first sector, the order sees to it that the first
/// sector never points to content that is not there. A backing file's name must
/// move together with the pointer to it: that is written as one.
fn steps<'a>(old: &[u8], new: &'a [u8], header: &Header) -> Vec<(u64, &'a [u8])> {
    let border = in_memory(SECTOR);
    let (head, tail) = new.split_at(border);
    let (head, tail) = ((0, head), (SECTOR, tail));
    let differs = (old[..border] != *head.1, old[border..] != *tail.1);
    match differs {
        (false, false) => Vec::new(),
        (true, false) => vec![head],
        (false, true) => vec![tail],
        (true, true) if header.backing_file.is_some() => vec![(0, new)],
        (true, true) if header.extensions.bitmaps.is_some() => vec![tail, head],
        (true, true) => vec![head, tail],
    }
}

#[cfg(test)]
mod tests {
    use super::super::header::tests::sample;
    use super::super::header::{AUTOCLEAR_BITMAPS, BitmapsExtension, OpenMode};
    use super::*;

    fn with_bitmaps(count: u32) -> Header {
        let mut header = sample();
        header.autoclear = if count > 0 { AUTOCLEAR_BITMAPS } else { 0 };
        header.extensions.bitmaps = (count > 0).then_some(BitmapsExtension {
            count,
            directory_size: 32,
            directory_offset: 9 << 16,
        });
        header
    }

    fn bytes(header: &Header) -> Vec<u8> {
        let mut bytes = header.serialize().expect("it fits");
        bytes.resize(1024, 0);
        bytes
    }

    fn places(old: &Header, new: &Header) -> Vec<u64> {
        let (old, bytes) = (bytes(old), bytes(new));
        let steps = steps(&old, &bytes, new);
        steps.iter().map(|(offset, _)| *offset).collect()
    }

    #[test]
    fn the_first_sector_never_points_to_what_is_not_there() {
        let (none, one, two) = (with_bitmaps(0), with_bitmaps(1), with_bitmaps(2));
        assert_eq!(places(&none, &one), [512, 0]);
        assert_eq!(places(&one, &two), [512], "one sector, so at once");
        assert_eq!(places(&two, &none), [0, 512]);
        assert!(places(&two, &two).is_empty());
        let mut named = with_bitmaps(1);
        named.backing_file = Some(b"base".to_vec());
        assert_eq!(places(&none, &named), [0], "as one");
    }

    #[test]
    fn every_step_leaves_a_header_that_can_be_parsed() {
        let states = [with_bitmaps(0), with_bitmaps(1), with_bitmaps(2)];
        for (from, to) in (0..3).flat_map(|from| (0..3).map(move |to| (from, to))) {
            let mut cluster = bytes(&states[from]);
            cluster.resize(1 << 16, 0);
            let new = bytes(&states[to]);
            for (offset, part) in steps(&bytes(&states[from]), &new, &states[to]) {
                let start = in_memory(offset);
                cluster[start..start + part.len()].copy_from_slice(part);
                Header::parse(&cluster, OpenMode::ReadOnly).expect("at every instant");
            }
            assert_eq!(cluster[..1024], new);
        }
    }
}
