//! Whole disks, from any format to any.

use ringback_tests::image::{KIB, MIB, allocated, blank, noise, write_at};

use crate::harness::{Place, can_judge, exists, state_of};

#[test]
fn raw_to_raw_is_the_same_and_stays_sparse() {
    if !can_judge() {
        return;
    }
    let place = Place::new();
    place.raw("a.raw", 32 * MIB);
    let report = place.report("a.raw b.raw --verify");
    place.assert_same("a.raw", "b.raw");
    assert_eq!(report["bytes"], 32 * MIB);
    assert_eq!(report["data_bytes"], 8 * MIB);
    assert_eq!(report["verified"], true);
    assert_eq!(report["resumed"], false);
    assert_eq!(report["format"], "raw");
    let taken = allocated(&place.path("b.raw"));
    assert!(taken <= 9 * MIB, "{taken} bytes for 8 MiB");
    assert!(!exists(&place.path(&state_of("b.raw"))));
}

#[test]
fn raw_to_qcow2_and_back() {
    if !can_judge() {
        return;
    }
    let place = Place::new();
    place.raw("a.raw", 32 * MIB);
    place.backup("a.raw b.qcow2").succeeded();
    assert_eq!(place.info("b.qcow2")["format"], "qcow2");
    place.assert_sound("b.qcow2");
    place.assert_same("a.raw", "b.qcow2");
    let taken = allocated(&place.path("b.qcow2"));
    assert!(taken <= 10 * MIB, "{taken} bytes for 8 MiB");
    place.backup("b.qcow2 c.raw").succeeded();
    place.assert_same("a.raw", "c.raw");
    assert_eq!(place.info("c.raw")["format"], "raw");
}

#[test]
fn zeroes_that_were_written_take_no_space() {
    if !can_judge() {
        return;
    }
    let place = Place::new();
    let path = place.path("a.raw");
    blank(&path, 8 * MIB);
    write_at(&path, 0, &vec![0; 8 << 20]);
    assert!(allocated(&path) >= 8 * MIB);
    let report = place.report("a.raw b.raw");
    assert_eq!(report["data_bytes"], 0);
    assert!(allocated(&place.path("b.raw")) <= MIB);
}

#[test]
fn compressed_targets_are_smaller() {
    if !can_judge() {
        return;
    }
    let place = Place::new();
    let path = place.path("a.raw");
    blank(&path, 8 * MIB);
    write_at(&path, MIB, &vec![7; 4 << 20]);
    write_at(&path, 6 * MIB, &noise(1, MIB));
    place
        .backup("a.raw b.qcow2 --compress --verify")
        .succeeded();
    place.assert_sound("b.qcow2");
    place.assert_same("a.raw", "b.qcow2");
    let taken = allocated(&place.path("b.qcow2"));
    assert!(taken < 2 * MIB, "{taken} bytes");
}

#[test]
fn sizes_need_not_be_round() {
    if !can_judge() {
        return;
    }
    for bytes in [1_000_001, 512, 64 * KIB - 512, 3 * MIB + 4096] {
        let place = Place::new();
        place.full_raw("a.raw", bytes);
        for target in ["b.raw", "b.qcow2"] {
            place
                .backup(&format!("a.raw {target} --verify=all"))
                .succeeded();
            place.assert_same("a.raw", target);
        }
    }
}

#[test]
fn a_chain_becomes_one_image() {
    if !can_judge() {
        return;
    }
    let place = Place::new();
    place.qcow2("base.qcow2", 8 * MIB);
    let make = "create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2";
    place
        .tool("qemu-img", make)
        .status()
        .expect("qemu-img runs");
    place.write("top.qcow2", 9, "1M", "2M");
    place.backup("top.qcow2 b.qcow2 --verify").succeeded();
    place.assert_same("top.qcow2", "b.qcow2");
    assert!(place.info("b.qcow2")["backing-filename"].is_null());
}

#[test]
fn an_existing_target_is_replaced_if_that_is_said() {
    if !can_judge() {
        return;
    }
    let place = Place::new();
    place.raw("a.raw", 4 * MIB);
    place.full_raw("b.raw", 8 * MIB + 1);
    place.refused(1, "a.raw b.raw", "--overwrite replaces it");
    place.backup("a.raw b.raw --overwrite").succeeded();
    place.assert_same("a.raw", "b.raw");
    place.backup("a.raw b.raw --overwrite -F qcow2").succeeded();
    place.assert_sound("b.raw");
}

#[test]
fn small_pools_and_chunks_do_it_too() {
    if !can_judge() {
        return;
    }
    let place = Place::new();
    place.raw("a.raw", 8 * MIB);
    let options = "--workers 1 --max-chunk 64k --cache buffered --speed 1G";
    place
        .backup(&format!("a.raw b.qcow2 {options}"))
        .succeeded();
    place.assert_same("a.raw", "b.qcow2");
}

#[test]
fn what_is_said_fits_where_it_is_said() {
    if !can_judge() {
        return;
    }
    let place = Place::new();
    place.raw("a.raw", 4 * MIB);
    let finished = place.backup("a.raw b.raw --quiet").succeeded();
    assert_eq!(
        (finished.stdout.as_str(), finished.stderr.as_str()),
        ("", "")
    );
    let finished = place.backup("a.raw c.raw").succeeded();
    assert!(
        finished
            .stdout
            .contains("full backup in 'c.raw' (raw): 4.00 MiB"),
        "{finished:#?}"
    );
    let words = "a.raw d.raw --json --speed 2M --max-chunk 64k --workers 1";
    let finished = place.backup(words).succeeded();
    assert_eq!(finished.stdout.lines().count(), 1);
    let progress = finished.stderr.lines().map(crate::harness::parse);
    assert!(
        progress.into_iter().any(|line| line["stage"] == "backup"),
        "{finished:#?}"
    );
}
