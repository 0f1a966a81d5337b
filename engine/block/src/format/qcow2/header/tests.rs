use proptest::prelude::*;

use super::*;

/// A header of an image of 64 MiB, without anything special.
pub(crate) fn sample() -> Header {
    Header {
        version: 3,
        cluster_bits: 16,
        size: 64 << 20,
        l1_size: 1,
        l1_offset: 3 << 16,
        refcount_table_offset: 1 << 16,
        refcount_table_clusters: 1,
        snapshot_count: 0,
        snapshot_offset: 0,
        incompatible: 0,
        compatible: 0,
        autoclear: 0,
        refcount_order: 4,
        compression: Compression::Zlib,
        unknown_fields: Vec::new(),
        extensions: Extensions::default(),
        backing_file: None,
        warnings: Vec::new(),
    }
}

fn cluster(header: &Header) -> Vec<u8> {
    let mut bytes = header.serialize().expect("room");
    bytes.resize(1 << header.cluster_bits, 0);
    bytes
}

fn parse(bytes: &[u8]) -> Result<Header, HeaderError> {
    Header::parse(bytes, OpenMode::ReadWrite)
}

#[test]
fn a_header_comes_back() {
    let mut header = sample();
    header.backing_file = Some(b"base.img".to_vec());
    header.extensions.backing_format = Some("raw".into());
    header.incompatible = INCOMPATIBLE_DATA_FILE;
    header.extensions.data_file = Some(b"data".to_vec());
    header.autoclear = AUTOCLEAR_BITMAPS;
    header.extensions.bitmaps = Some(BitmapsExtension {
        count: 1,
        directory_size: 32,
        directory_offset: 5 << 16,
    });
    header.extensions.unknown = vec![(0x1234_5678, b"what is this".to_vec())];
    assert_eq!(parse(&cluster(&header)), Ok(header));
}

#[test]
fn unknown_extensions_are_written_in_reverse() {
    let mut header = sample();
    header.extensions.unknown = vec![(7, vec![1]), (8, vec![2])];
    let again = parse(&cluster(&header)).expect("valid");
    assert_eq!(again.extensions.unknown, [(8, vec![2]), (7, vec![1])]);
}

/// The fixed part may have any length, and QEMU pads contents, not places. What
/// stood behind an extension of odd length was read from the wrong place.
#[test]
fn extensions_may_start_anywhere() {
    for len in 0..9 {
        let mut header = sample();
        header.unknown_fields = vec![0xff; len];
        header.extensions.unknown = vec![(7, vec![1; 3]), (8, vec![2; 9])];
        header.extensions.backing_format = Some("raw".into());
        header.backing_file = Some(b"base.img".to_vec());
        let again = parse(&cluster(&header)).expect("valid");
        header.extensions.unknown.reverse();
        assert_eq!(again, header);
    }
}

/// Changes one field of a good header.
fn damaged(offset: usize, value: &[u8]) -> Vec<u8> {
    let mut bytes = cluster(&sample());
    bytes[offset..offset + value.len()].copy_from_slice(value);
    bytes
}

#[test]
fn damage_is_told_in_the_words_of_qemu() {
    let cases: [(usize, &[u8], &str); 16] = [
        (0, b"QFI\xfc", "Image is not in qcow2 format"),
        (4, &[0, 0, 0, 4], "Unsupported qcow2 version 4"),
        (20, &[0, 0, 0, 8], "Unsupported cluster size: 2^8"),
        (100, &[0, 0, 0, 103], "qcow2 header too short"),
        (100, &[0, 1, 0, 1], "qcow2 header exceeds cluster size"),
        (8, &[0, 0, 0, 0, 0, 1, 0, 1], "Invalid backing file offset"),
        (104, &[2], "qcow2: unknown compression type: 2"),
        (
            104,
            &[1],
            "qcow2: Compression type incompatible feature bit must be set",
        ),
        (
            72,
            &[0x80, 0, 0, 0, 0, 0, 0, 0],
            "Unsupported qcow2 feature(s): Unknown incompatible feature: 8000000000000000",
        ),
        (
            79,
            &[2],
            "qcow2: Image is corrupt; cannot be opened read/write",
        ),
        (
            96,
            &[0, 0, 0, 7],
            "Reference count entry width too large; may not exceed 64 bits",
        ),
        (
            56,
            &[0; 4],
            "Image does not contain a reference count table",
        ),
        (56, &[0, 0, 0, 129], "Reference count table too large"),
        (60, &[0, 1, 0, 1], "Snapshot table too large"),
        (36, &[0, 64, 0, 1], "Active L1 table too large"),
        (36, &[0, 0, 0, 0], "L1 table is too small"),
    ];
    for (offset, value, text) in cases {
        let error = parse(&damaged(offset, value)).expect_err(text);
        assert_eq!(error.to_string(), text);
    }
}

#[test]
fn features_are_named_by_the_image() {
    let mut bytes = damaged(72, &[0x40, 0, 0, 0, 0, 0, 0, 0]);
    // The first entry of the table of names, which follows its 8 byte header.
    bytes[112 + 9] = 62;
    bytes[112 + 10..][..9].copy_from_slice(b"fancy\0\0\0\0");
    let error = parse(&bytes).expect_err("unknown");
    assert_eq!(error.to_string(), "Unsupported qcow2 feature(s): fancy");
}

#[test]
fn bitmaps_without_their_bit_are_dropped_with_a_warning() {
    let mut header = sample();
    header.extensions.bitmaps = Some(BitmapsExtension {
        count: 1,
        directory_size: 32,
        directory_offset: 5 << 16,
    });
    let found = parse(&cluster(&header)).expect("valid");
    assert!(found.extensions.stale_bitmaps && found.extensions.bitmaps.is_none());
    assert_eq!(found.warnings.len(), 1);
}

#[test]
fn names_that_do_not_fit_are_refused() {
    let mut header = sample();
    header.cluster_bits = 9;
    header.backing_file = Some(vec![b'x'; 400]);
    assert_eq!(header.serialize(), Err(HeaderError::NoSpace));
}

proptest! {
    #[test]
    fn damaged_headers_never_panic(
        places in proptest::collection::vec((0usize..600, any::<u8>()), 1..8),
    ) {
        let mut bytes = cluster(&sample());
        for (place, value) in places {
            bytes[place] = value;
        }
        if let Ok(size) = Header::peek_cluster_size(&bytes) {
            bytes.resize(usize::try_from(size).expect("small"), 0);
            for mode in [OpenMode::ReadOnly, OpenMode::ReadWrite, OpenMode::Check] {
                let _ = Header::parse(&bytes, mode);
            }
        }
    }
}
