//! Compressed clusters: one cluster to one stream and back.
//!
//! Zlib means raw deflate with a window of 4 KiB: readers have no larger one.
//! Bytes behind a stream belong to somebody else and are ignored.

use std::io;

use flate2::{Compress, Decompress, FlushCompress, FlushDecompress, Status};
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use super::image::Compression;

const DEFLATE_WINDOW_BITS: u8 = 12;
/// A reader takes what other writers made, with any window.
const INFLATE_WINDOW_BITS: u8 = 15;
/// No frame may ask for a larger window: it could not be of use in a cluster.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// A stream that is no cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a compressed cluster cannot be unpacked")]
pub(crate) struct BadStream;

/// None: it would not become smaller.
pub(crate) fn pack(compression: Compression, cluster: &[u8]) -> Option<Vec<u8>> {
    let room = cluster.len() - 1;
    match compression {
        Compression::Zlib => {
            let mut stream = vec![0; room];
            let mut deflate = Compress::new_with_window_bits(
                flate2::Compression::default(),
                false,
                DEFLATE_WINDOW_BITS,
            );
            let status = deflate.compress(cluster, &mut stream, FlushCompress::Finish);
            if !matches!(status, Ok(Status::StreamEnd)) {
                return None;
            }
            stream.truncate(usize::try_from(deflate.total_out()).ok()?);
            Some(stream)
        }
        Compression::Zstd => zstd::bulk::compress(cluster, zstd::DEFAULT_COMPRESSION_LEVEL)
            .ok()
            .filter(|stream| stream.len() <= room),
    }
}

/// The `len` bytes of the cluster.
pub(crate) fn unpack(
    compression: Compression,
    stream: &[u8],
    len: usize,
) -> Result<Vec<u8>, BadStream> {
    let mut cluster = vec![0; len];
    match compression {
        Compression::Zlib => {
            let mut inflate = Decompress::new_with_window_bits(false, INFLATE_WINDOW_BITS);
            inflate
                .decompress(stream, &mut cluster, FlushDecompress::Finish)
                .map_err(|_| BadStream)?;
            if inflate.total_out() != len as u64 {
                return Err(BadStream);
            }
        }
        Compression::Zstd => unpack_frames(stream, &mut cluster).map_err(|_| BadStream)?,
    }
    Ok(cluster)
}

/// Fills the cluster from one frame or several. The last one must end where the
/// cluster does: of a longer one nobody knows what it is.
fn unpack_frames(stream: &[u8], cluster: &mut [u8]) -> io::Result<()> {
    let mut decoder = Decoder::new()?;
    decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX))?;
    let mut input = InBuffer::around(stream);
    let mut output = OutBuffer::around(cluster);
    loop {
        let before = (input.pos(), output.pos());
        let wanted = decoder.run(&mut input, &mut output)?;
        if output.pos() == output.capacity() {
            return match wanted {
                0 => Ok(()),
                _ => Err(io::ErrorKind::InvalidData.into()),
            };
        }
        if before == (input.pos(), output.pos()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOTH: [Compression; 2] = [Compression::Zlib, Compression::Zstd];

    #[test]
    fn what_does_not_shrink_stays_as_it_is() {
        let noise: Vec<u8> = (0..4096_u32)
            .flat_map(|n| {
                n.wrapping_mul(2_654_435_761)
                    .rotate_left(n % 31)
                    .to_le_bytes()
            })
            .collect();
        for compression in BOTH {
            assert_eq!(pack(compression, &noise), None, "{compression:?}");
        }
    }

    #[test]
    fn a_cut_stream_is_an_error() {
        let cluster: Vec<u8> = (0..65_536_u32).map(|n| (n / 7).to_le_bytes()[0]).collect();
        for compression in BOTH {
            let stream = pack(compression, &cluster).expect("it shrinks");
            let half = &stream[..stream.len() / 2];
            assert_eq!(unpack(compression, half, 65_536), Err(BadStream));
            // Another cluster's bytes follow.
            let mut followed = stream.clone();
            followed.extend_from_slice(&[0xaa; 700]);
            assert_eq!(unpack(compression, &followed, 65_536), Ok(cluster.clone()));
        }
    }

    #[test]
    fn several_frames_make_a_cluster_if_the_last_one_ends_with_it() {
        let cluster: Vec<u8> = (0..65_536_u32).map(|n| (n / 7).to_le_bytes()[0]).collect();
        let frame = |bytes: &[u8]| zstd::bulk::compress(bytes, 3).expect("memory");
        let (first, second) = cluster.split_at(10_000);
        let both = [frame(first), frame(second), vec![0xaa; 100]].concat();
        let unpack = |stream: &[u8], len| unpack(Compression::Zstd, stream, len);
        assert_eq!(unpack(&both, 65_536), Ok(cluster.clone()));
        assert_eq!(unpack(&frame(first), 65_536), Err(BadStream));
        assert_eq!(unpack(&frame(&cluster), 65_535), Err(BadStream));
        // A checksum is part of its frame.
        let mut writer = zstd::stream::Encoder::new(Vec::new(), 3).expect("memory");
        writer.include_checksum(true).expect("possible");
        io::Write::write_all(&mut writer, &cluster).expect("memory");
        let with_checksum = writer.finish().expect("memory");
        assert_eq!(unpack(&with_checksum, 65_536), Ok(cluster.clone()));
        let cut = &with_checksum[..with_checksum.len() - 1];
        assert_eq!(unpack(cut, 65_536), Err(BadStream));
    }

    proptest! {
        #[test]
        fn clusters_come_back(
            bytes in proptest::collection::vec(0u8..4, 512..5000),
            zstd: bool,
        ) {
            let compression = if zstd { Compression::Zstd } else { Compression::Zlib };
            if let Some(stream) = pack(compression, &bytes) {
                prop_assert!(stream.len() < bytes.len());
                prop_assert_eq!(unpack(compression, &stream, bytes.len()), Ok(bytes));
            }
        }

        #[test]
        fn noise_never_panics(stream in proptest::collection::vec(any::<u8>(), 0..2000), zstd: bool) {
            let compression = if zstd { Compression::Zstd } else { Compression::Zlib };
            let _ = unpack(compression, &stream, 4096);
        }
    }
}
