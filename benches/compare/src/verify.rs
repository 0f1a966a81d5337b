//! Whether an image holds what it should.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use crate::daemon::{Daemon, System};
use crate::drive::{Feed, Pace, Times, Work, drive};
use crate::history::PointInTime;
use crate::images::{self, Format};
use crate::nbd_client::Client;
use crate::place::Image;

/// Bytes that are read at a time.
const PIECE: usize = 1 << 20;

/// Pieces of a whole disk: offsets and lengths.
pub(crate) fn whole(size: u64) -> impl Iterator<Item = (u64, usize)> {
    let len = move |offset: u64| usize::try_from(size - offset).unwrap_or(PIECE).min(PIECE);
    (0..size)
        .step_by(PIECE)
        .map(move |offset| (offset, len(offset)))
}

/// Compares these pieces of an image with a point in time. A qcow2 image is read
/// through `judge`, and looked at by qemu-img.
///
/// # Errors
///
/// Something else is there, or it cannot be read.
pub(crate) fn image(
    image: &Image,
    point: &PointInTime,
    pieces: impl Iterator<Item = (u64, usize)>,
    judge: &System,
    directory: &Path,
) -> Result<(), String> {
    let result = match image.format {
        Format::Raw => raw(image, point, pieces),
        Format::Qcow2 => served(image, point, pieces, judge, directory),
    };
    result.map_err(|error| format!("{}: {error}", image.path.display()))
}

pub(crate) fn raw(
    image: &Image,
    point: &PointInTime,
    pieces: impl Iterator<Item = (u64, usize)>,
) -> Result<(), String> {
    let file = File::open(&image.path).map_err(|error| error.to_string())?;
    let mut bytes = vec![0; PIECE];
    for (offset, len) in pieces {
        let bytes = &mut bytes[..len];
        file.read_exact_at(bytes, offset)
            .map_err(|error| error.to_string())?;
        point.check(bytes, offset)?;
    }
    Ok(())
}

fn served(
    image: &Image,
    point: &PointInTime,
    pieces: impl Iterator<Item = (u64, usize)>,
    judge: &System,
    directory: &Path,
) -> Result<(), String> {
    images::check(&image.path)?;
    let mut daemon = Daemon::start(judge, directory)?;
    daemon.add_image("disk", image, true)?;
    daemon.export("disk", false)?;
    let mut client = Client::connect(daemon.socket(), "disk")?;
    let mut reads = Reads { pieces, point };
    drive(&mut client, Pace::Depth(4), &mut reads)?;
    drop(client);
    daemon.quit()
}

struct Reads<'a, P> {
    pieces: P,
    point: &'a PointInTime,
}

impl<P: Iterator<Item = (u64, usize)>> Feed for Reads<'_, P> {
    fn next(&mut self, _due: Instant) -> Option<Work> {
        let (offset, len) = self.pieces.next()?;
        Some(Work {
            generation: None,
            offset,
            len,
        })
    }

    fn done(&mut self, work: &Work, bytes: &[u8], _times: Times) -> Result<(), String> {
        self.point.check(bytes, work.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_make_up_the_disk() {
        let size = (2 << 20) + 4096;
        let pieces: Vec<_> = whole(size).collect();
        assert_eq!(pieces, [(0, PIECE), (1 << 20, PIECE), (2 << 20, 4096)]);
    }
}
