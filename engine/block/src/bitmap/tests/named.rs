//! The life cycle of named bitmaps, with QEMU's texts and order.

use std::sync::Arc;

use crate::bitmap::{BitmapError, BitmapFlags, NamedBitmap, NodeBitmaps, default_granularity};

const KIB: u64 = 1 << 10;
const SIZE: u64 = 64 << 20;
const GRANULE: u64 = 64 * KIB;

/// Merges as a command does: sources by name, of the node itself.
fn merge(node: &mut NodeBitmaps, target: &str, sources: &[&str]) -> Result<(), BitmapError> {
    let sources: Vec<_> = sources.iter().map(|name| bitmap(node, name)).collect();
    let merged = node.merged(target, &sources)?;
    node.replace(target, Arc::new(merged)).map(drop)
}

fn bitmap(node: &NodeBitmaps, name: &str) -> NamedBitmap {
    node.get(name).expect("a bitmap of this name").clone()
}

fn node() -> NodeBitmaps {
    NodeBitmaps::new(SIZE, 2)
}

fn node_with(names: &[&str]) -> NodeBitmaps {
    let mut node = node();
    for name in names {
        node.add(name, GRANULE, false, false).unwrap();
    }
    node
}

/// A write to one granule, as the data path does it.
fn write(node: &NodeBitmaps, granule: u64) {
    for bitmap in node.recorders() {
        bitmap.mark(1, granule * GRANULE, 1);
    }
}

fn count(node: &NodeBitmaps, name: &str) -> u64 {
    node.get(name).unwrap().bits().count() / GRANULE
}

fn text<T>(result: Result<T, BitmapError>) -> String {
    result
        .err()
        .map_or_else(|| "no error".to_owned(), |error| error.to_string())
}

/// Name, granules, recording, busy.
fn shown(node: &NodeBitmaps) -> Vec<(Option<String>, u64, bool, bool)> {
    let row = |info: crate::bitmap::BitmapInfo| {
        (
            info.name,
            info.count / info.granularity,
            info.flags.recording,
            info.flags.busy,
        )
    };
    node.list().into_iter().map(row).collect()
}

#[test]
fn add_refuses_in_qemus_order() {
    let mut node = node_with(&["b"]);
    let long = "x".repeat(1024);
    assert_eq!(
        text(node.add("", 100, false, false)),
        "Bitmap name cannot be empty"
    );
    assert_eq!(
        text(node.add("b", 100, false, false)),
        "Granularity must be power of 2 and at least 512"
    );
    assert_eq!(
        text(node.add("b", 512, false, false)),
        "Bitmap already exists: b"
    );
    assert_eq!(
        text(node.add(&long, 512, false, false)),
        format!("Bitmap name too long: {long}")
    );
    assert!(node.add(&long[1..], 2 << 30, false, false).is_ok());
}

#[test]
fn unknown_names_are_not_found() {
    let mut node = node();
    let expected = "Dirty bitmap 'nope' not found";
    assert_eq!(text(node.remove("nope")), expected);
    assert_eq!(text(node.enable("nope")), expected);
    assert_eq!(text(node.disable("nope")), expected);
    assert_eq!(text(node.clear("nope")), expected);
    assert_eq!(text(merge(&mut node, "nope", &[])), expected);
    assert_eq!(text(node.freeze("nope")), expected);
    assert!(node.get("nope").is_none());
}

#[test]
fn only_enabled_bitmaps_record() {
    let mut node = node_with(&["on"]);
    node.add("off", GRANULE, true, false).unwrap();
    write(&node, 1);
    assert_eq!((count(&node, "on"), count(&node, "off")), (1, 0));
    node.disable("on").unwrap();
    node.enable("off").unwrap();
    write(&node, 2);
    assert_eq!((count(&node, "on"), count(&node, "off")), (1, 1));
    node.clear("on").unwrap();
    assert_eq!(count(&node, "on"), 0);
}

#[test]
fn a_query_lists_the_newest_first() {
    let node = node_with(&["a", "b", "c"]);
    let names: Vec<_> = node
        .list()
        .into_iter()
        .filter_map(|info| info.name)
        .collect();
    assert_eq!(names, ["c", "b", "a"]);
}

#[test]
fn a_frozen_bitmap_stands_still_and_its_successor_records() {
    let mut node = node_with(&["b"]);
    (0..7).for_each(|granule| write(&node, granule));
    let frozen = node.freeze("b").unwrap();
    write(&node, 9);
    assert_eq!(frozen.count(), 7 * GRANULE);
    assert_eq!(
        shown(&node),
        [
            (None, 1, true, false),
            (Some("b".to_owned()), 7, true, true)
        ]
    );
    assert!(!node.get("b").unwrap().flags().recording);
}

#[test]
fn the_successor_of_a_disabled_bitmap_does_not_record() {
    let mut node = node();
    node.add("b", GRANULE, true, false).unwrap();
    node.freeze("b").unwrap();
    assert_eq!(
        shown(&node),
        [
            (None, 0, false, false),
            (Some("b".to_owned()), 0, false, true)
        ]
    );
    node.reclaim("b").unwrap();
    assert!(node.recorders().is_empty());
}

#[test]
fn abdicate_leaves_only_what_was_written_since() {
    let mut node = node();
    node.add("b", GRANULE, false, true).unwrap();
    (0..3).for_each(|granule| write(&node, granule));
    let frozen = node.freeze("b").unwrap();
    node.add("later", GRANULE, false, false).unwrap();
    write(&node, 4);
    let heir = node.abdicate("b").unwrap();
    assert!(!Arc::ptr_eq(&heir, &frozen));
    write(&node, 5);
    assert_eq!(count(&node, "b"), 2);
    assert!(node.get("b").unwrap().flags().persistent);
    let row = |name: &str, granules| (Some(name.to_owned()), granules, true, false);
    assert_eq!(shown(&node), [row("later", 2), row("b", 2)]);
}

#[test]
fn reclaim_adds_what_was_written_since() {
    let mut node = node_with(&["b", "c"]);
    (0..3).for_each(|granule| write(&node, granule));
    let frozen = node.freeze("b").unwrap();
    write(&node, 4);
    assert!(Arc::ptr_eq(&node.reclaim("b").unwrap(), &frozen));
    write(&node, 5);
    assert_eq!((count(&node, "b"), count(&node, "c")), (5, 5));
    let row = |name: &str| (Some(name.to_owned()), 5, true, false);
    assert_eq!(shown(&node), [row("c"), row("b")]);
}

#[test]
fn several_bitmaps_can_be_frozen_at_once() {
    let mut node = node_with(&["a", "b"]);
    write(&node, 0);
    node.freeze("b").unwrap();
    node.freeze("a").unwrap();
    write(&node, 1);
    node.abdicate("a").unwrap();
    node.reclaim("b").unwrap();
    write(&node, 2);
    assert_eq!((count(&node, "a"), count(&node, "b")), (2, 3));
    assert_eq!(node.list().len(), 2);
    // And again.
    node.freeze("a").unwrap();
    node.reclaim("a").unwrap();
    assert_eq!(count(&node, "a"), 2);
}

#[test]
fn a_thaw_without_freeze_is_refused() {
    let mut node = node_with(&["b"]);
    assert_eq!(
        node.abdicate("b").unwrap_err(),
        BitmapError::NotFrozen("b".to_owned())
    );
    assert_eq!(
        node.reclaim("b").unwrap_err(),
        BitmapError::NotFrozen("b".to_owned())
    );
}

#[test]
fn a_busy_bitmap_refuses_every_command() {
    let mut node = node_with(&["b", "c"]);
    node.freeze("b").unwrap();
    let busy = "Bitmap 'b' is currently in use by another operation and cannot be used";
    assert_eq!(text(node.remove("b")), busy);
    assert_eq!(text(node.enable("b")), busy);
    assert_eq!(text(node.disable("b")), busy);
    assert_eq!(text(node.clear("b")), busy);
    assert_eq!(text(node.freeze("b")), busy);
    assert_eq!(text(merge(&mut node, "b", &["c"])), busy);
    assert_eq!(text(merge(&mut node, "c", &["b"])), busy);
    assert_eq!(text(node.resize(SIZE * 2)), busy);
    assert_eq!(
        text(node.add("b", GRANULE, false, false)),
        "Bitmap already exists: b"
    );
    node.set_busy("b", false).unwrap();
    assert_eq!(text(node.remove("b")), busy, "a job still holds it");
}

#[test]
fn a_read_only_bitmap_can_be_read_and_disabled() {
    let mut node = node_with(&["r", "c"]);
    node.set_read_only("r", true).unwrap();
    let read_only = "Bitmap 'r' is readonly and cannot be modified";
    assert_eq!(text(node.clear("r")), read_only);
    assert_eq!(text(node.remove("r")), read_only);
    assert_eq!(text(merge(&mut node, "r", &["c"])), read_only);
    merge(&mut node, "c", &["r"]).unwrap();
    node.disable("r").unwrap();
    let entry = node.get("r").unwrap();
    assert!(entry.check_usable(true).is_ok());
    assert_eq!(text(entry.check_usable(false)), read_only);
}

#[test]
fn an_inconsistent_bitmap_can_only_be_removed() {
    let mut node = node_with(&["c"]);
    let flags = BitmapFlags {
        recording: true,
        persistent: true,
        inconsistent: true,
        ..BitmapFlags::default()
    };
    let bits = Arc::new(node.get("c").unwrap().bits().fresh().unwrap());
    node.insert("i", bits, flags).unwrap();
    assert_eq!(node.recorders().len(), 1, "it never records");
    let inconsistent = "Bitmap 'i' is inconsistent and cannot be used";
    assert_eq!(text(node.enable("i")), inconsistent);
    assert_eq!(text(node.clear("i")), inconsistent);
    assert_eq!(text(merge(&mut node, "c", &["i"])), inconsistent);
    assert_eq!(
        node.clear("i").unwrap_err().hint(),
        Some("Try block-dirty-bitmap-remove to delete this bitmap from disk")
    );
    assert!(node.remove("i").is_ok());
}

#[test]
fn a_merge_takes_all_sources_or_none() {
    let mut node = node_with(&["a", "b"]);
    node.add("target", 4 * KIB, true, false).unwrap();
    node.disable("b").unwrap();
    write(&node, 3);
    let mut other = node_with(&["x"]);
    write(&other, 8);
    let external = bitmap(&other, "x");
    let sources = [bitmap(&node, "a"), external.clone(), external];
    let merged = node.merged("target", &sources).unwrap();
    assert_eq!(count(&node, "target"), 0);
    node.replace("target", Arc::new(merged)).unwrap();
    assert_eq!(count(&node, "target"), 2);
    merge(&mut node, "target", &[]).unwrap();
    other.resize(SIZE / 2).unwrap();
    let external = bitmap(&other, "x");
    assert_eq!(
        text(node.merged("target", &[external]).map(drop)),
        "Bitmaps are of different sizes (destination size is 67108864, source size is 33554432) \
         and can't be merged"
    );
}

#[test]
fn replaced_bits_can_be_put_back() {
    let mut node = node_with(&["b"]);
    write(&node, 3);
    let fresh = Arc::new(node.get("b").unwrap().bits().fresh().unwrap());
    let old = node.replace("b", fresh).unwrap();
    assert_eq!(count(&node, "b"), 0);
    node.replace("b", old).unwrap();
    assert_eq!(count(&node, "b"), 1);
}

#[test]
fn a_resize_fits_all_bitmaps() {
    let mut node = node_with(&["b"]);
    write(&node, 3);
    write(&node, 1023);
    node.resize(SIZE / 2).unwrap();
    assert_eq!(count(&node, "b"), 1);
    node.resize(SIZE).unwrap();
    write(&node, 1023);
    assert_eq!(count(&node, "b"), 2);
}

#[test]
fn the_default_granularity_follows_the_cluster_size() {
    let table = [
        (None, 64),
        (Some(512), 4),
        (Some(4), 4),
        (Some(16), 16),
        (Some(2048), 64),
    ];
    for (cluster_kib, granularity_kib) in table {
        let cluster_size = cluster_kib.map(|kib| if kib == 512 { 512 } else { kib * KIB });
        assert_eq!(default_granularity(cluster_size), granularity_kib * KIB);
    }
}
