use proptest::prelude::*;

use super::*;
use crate::format::qcow2::header::OpenMode;

const GIB: u64 = 1 << 30;

fn layout(change: impl FnOnce(&mut CreateOptions)) -> Result<Layout, CreateError> {
    let mut options = CreateOptions::new(64 << 20);
    change(&mut options);
    Layout::new(&options)
}

#[test]
fn the_usual_image() {
    let image = layout(|_| ()).expect("valid");
    assert_eq!(image.file_size(), 3 * 65_536 + 8);
    let offsets: Vec<u64> = image.pieces.iter().map(|piece| piece.offset).collect();
    assert_eq!(offsets, [0, 65_536, 2 * 65_536, 3 * 65_536]);
    let counts = &image.pieces[2].bytes;
    assert_eq!(counts[..10], [0, 1, 0, 1, 0, 1, 0, 1, 0, 0]);
}

#[test]
fn an_empty_disk_has_no_l1_table() {
    let image = layout(|options| options.size = 0).expect("valid");
    assert_eq!((image.header.l1_size, image.header.l1_offset), (0, 0));
    assert_eq!(image.file_size(), 3 * 65_536);
}

#[test]
fn sizes_have_a_limit_that_clusters_set() {
    for (cluster_size, max) in [(512, 128 * GIB), (65_536, GIB << 21), (2 << 20, GIB << 31)] {
        let with_size = |size| {
            layout(|options| {
                options.cluster_size = cluster_size;
                options.size = size;
            })
        };
        let largest = with_size(max).expect("just fits");
        assert_eq!(u64::from(largest.header.l1_size), L1_ENTRIES_MAX);
        assert_eq!(with_size(max + 512), Err(CreateError::TooLarge));
    }
}

#[test]
fn names_must_fit_into_the_first_cluster() {
    let backing = |cluster_size, len| {
        let image = layout(|options| {
            options.cluster_size = cluster_size;
            options.backing_file = Some(vec![b'x'; len]);
            options.backing_format = Some("raw".into());
        });
        image.map(|_| ()).map_err(|error| error.to_string())
    };
    let refused = |len, why| {
        let name = "x".repeat(len);
        Err(format!(
            "Could not assign backing file '{name}' with format 'raw': {why}"
        ))
    };
    assert_eq!(backing(512, 376), Ok(()));
    assert_eq!(backing(512, 377), refused(377, "No space left on device"));
    assert_eq!(backing(65_536, 1023), Ok(()));
    assert_eq!(backing(65_536, 1024), refused(1024, "Invalid argument"));
    let data_file = layout(|options| {
        options.cluster_size = 512;
        options.data_file = Some(vec![b'x'; 400]);
    });
    assert_eq!(data_file, Err(CreateError::DataFileName));
}

proptest! {
    #[test]
    fn what_is_made_can_be_opened(
        cluster_bits in 9u32..22,
        sectors in 0u64..1 << 28,
        order in 0u32..7,
        is_old: bool,
        flags in 0u8..8,
    ) {
        let options = CreateOptions {
            cluster_size: 1 << cluster_bits,
            refcount_bits: 1 << order,
            version: if is_old { Version::Two } else { Version::Three },
            lazy_refcounts: flags & 1 != 0,
            extended_l2: flags & 2 != 0,
            backing_file: (flags & 4 != 0).then(|| b"base.raw".to_vec()),
            ..CreateOptions::new(sectors * 512)
        };
        let Ok(image) = Layout::new(&options) else {
            return Ok(());
        };
        let found = Header::parse(&image.pieces[0].bytes, OpenMode::ReadWrite);
        prop_assert_eq!(found, Ok(image.header.clone()));
        let mut end = 0;
        for piece in &image.pieces {
            prop_assert!(piece.offset.is_multiple_of(options.cluster_size));
            prop_assert!(piece.offset >= end);
            end = piece.offset + piece.bytes.len() as u64;
        }
    }
}
