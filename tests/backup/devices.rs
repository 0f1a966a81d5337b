//! Block devices, as source and as target.

use ringback_tests::device::{LoopDevice, Mount};
use ringback_tests::image::{MIB, blank};
use ringback_tests::needs::{Need, needs};
use ringback_tests::scratch::Scratch;

use crate::harness::{Place, can_judge, exists};

#[test]
fn from_a_device_to_a_larger_one_and_back() {
    if !can_judge() || !needs(&[Need::LoopDevices]) {
        return;
    }
    let place = Place::new();
    let small = place.raw("small.raw", 4 * MIB);
    let large = place.full_raw("large.raw", 6 * MIB);
    let (small, large) = (LoopDevice::new(&small, 512), LoopDevice::new(&large, 512));
    let (from, to) = (small.path().display(), large.path().display());
    place.refused(1, &format!("{from} {to}"), "--overwrite allows that");
    place.refused(
        1,
        &format!("{to} {from} --overwrite"),
        "it has 4194304 bytes",
    );
    let words = format!("{from} {to} --overwrite --verify --state state");
    place.backup(&words).succeeded();
    assert!(!exists(&place.path("state")));
    place
        .backup(&format!("{from} b.qcow2 --verify"))
        .succeeded();
    place.backup(&format!("{to} c.raw")).succeeded();
    let (copy, whole) = (
        std::fs::read(place.path("c.raw")).expect("the copy"),
        std::fs::read(place.path("small.raw")).expect("the source"),
    );
    assert!(copy[..4 << 20] == whole, "the beginning is the backup");
    assert!(
        copy[4 << 20..].iter().all(|&byte| byte != 0),
        "the rest was left alone"
    );
}

#[test]
fn a_qcow2_image_on_a_device() {
    if !can_judge() || !needs(&[Need::LoopDevices]) {
        return;
    }
    let place = Place::new();
    place.raw("a.raw", 4 * MIB);
    let store = place.full_raw("store.raw", 8 * MIB);
    let device = LoopDevice::new(&store, 512);
    let name = device.path().display();
    place
        .backup(&format!("a.raw {name} -F qcow2 --overwrite --verify"))
        .succeeded();
    place.assert_same("a.raw", &name.to_string());
    // What a guest writes to a device must not make an image of it.
    place.refused(1, &format!("{name} b.raw"), "say with -f raw or -f qcow2");
    place.backup(&format!("{name} b.raw -f qcow2")).succeeded();
    place.assert_same("a.raw", "b.raw");
}

#[test]
fn a_mounted_device() {
    let needed = [Need::LoopDevices, Need::Program("mkfs.ext4")];
    if !can_judge() || !needs(&needed) {
        return;
    }
    let place = Place::new();
    place.raw("a.raw", 4 * MIB);
    let scratch = Scratch::new(env!("CARGO_TARGET_TMPDIR"));
    let disk = scratch.join("disk.raw");
    blank(&disk, 16 * MIB);
    let device = LoopDevice::new(&disk, 512);
    let _mount = Mount::ext4(&scratch, &device);
    let name = device.path().display();
    let json = format!(r#"json:{{"driver":"host_device","filename":"{name}"}}"#);
    for target in [name.to_string(), json] {
        place.refused(1, &format!("a.raw {target} --overwrite"), "mounted");
    }
}
