//! Increments from a bitmap that an NBD server shows.

use nix::sys::signal::Signal;
use ringback_tests::image::{MIB, blank, noise, write_at};
use ringback_tests::needs::{Need, needs};
use ringback_tests::process::{LIMIT, Running, run, wait_for};
use ringback_tests::qmp::{Daemon, Program};
use serde_json::{Value, json};

use crate::harness::{Place, can_judge, exists, state_of};

const DISK: u64 = 16 * MIB;
const URI: &str = "nbd+unix:///disk?socket=nbd.sock";

fn programs() -> Vec<Program> {
    let mut programs = vec![Program::Ringback];
    if needs(&[Need::Program("qemu-storage-daemon")]) {
        programs.push(Program::Qemu);
    }
    programs
}

/// A raw disk of noise, its full backup `1.raw`, and a server of the disk with a
/// bitmap `daily` in which everything is dirty that has been written since: the
/// disk is a qcow2 image whose file is `disk.qcow2`.
fn served(program: Program, place: &Place) -> Daemon {
    place.full_raw("1.raw", DISK);
    let convert = "convert -f raw -O qcow2 1.raw disk.qcow2";
    run(&mut place.tool("qemu-img", convert)).succeeded();
    run(&mut place.tool("qemu-img", "bitmap --add disk.qcow2 daily")).succeeded();
    run(&mut place.tool("qemu-img", "bitmap --add --disable disk.qcow2 other")).succeeded();
    place.write("disk.qcow2", 1, "1M", "64k");
    place.write("disk.qcow2", 0, "4M", "128k");
    place.write("disk.qcow2", 2, "10M", "3M");
    run(&mut place.tool("qemu-img", "bitmap --disable disk.qcow2 daily")).succeeded();
    let export = "nbd,id=e,node-name=disk,name=disk,bitmaps.0=daily,bitmaps.1=other";
    let words = [
        "--blockdev",
        "qcow2,node-name=disk,read-only=on,file.driver=file,file.filename=disk.qcow2",
        "--nbd-server",
        "addr.type=unix,addr.path=nbd.sock,max-connections=0",
        "--export",
        export,
    ];
    Daemon::start(program, &place.path(""), &words)
}

const DIRTY: u64 = 3 * MIB + 192 * 1024;

#[test]
fn only_what_is_dirty_is_copied() {
    if !can_judge() {
        return;
    }
    for program in programs() {
        let place = Place::new();
        let daemon = served(program, &place);
        let words = format!("{URI} 2.qcow2 --bitmap daily --backing 1.raw --verify=all");
        let report = place.report(&words);
        assert_eq!(report["incremental"], true);
        assert_eq!(report["bytes"], DIRTY, "{program:?}");
        // What the server has is zeroes there, and is known to be.
        assert_eq!(report["zero_bytes"], 128 * 1024);
        let empty = format!("{URI} 3.qcow2 --bitmap other --backing 2.qcow2 --verify=all");
        assert_eq!(place.report(&empty)["bytes"], 0);
        let _ = daemon.quit();
        assert_eq!(place.info("2.qcow2")["backing-filename"], "1.raw");
        for target in ["2.qcow2", "3.qcow2"] {
            place.assert_same("disk.qcow2", target);
            place.assert_sound(target);
        }
        // Nothing has been cleared.
        assert!(place.bitmaps("disk.qcow2").contains("daily"));
    }
}

#[test]
fn the_previous_backup_itself_is_brought_up_to_date() {
    if !can_judge() {
        return;
    }
    let place = Place::new();
    let daemon = served(Program::Ringback, &place);
    place.refused(
        1,
        &format!("{URI} 1.raw --bitmap daily --backing 1.raw -F qcow2"),
        "exists",
    );
    place.refused(
        1,
        &format!("{URI} none.raw --bitmap daily --update"),
        "does not exist",
    );
    let convert = "convert -f raw -O qcow2 1.raw 1.qcow2";
    run(&mut place.tool("qemu-img", convert)).succeeded();
    std::fs::copy(place.path("1.qcow2"), place.path("odd.img")).expect("a copy");
    place.refused(
        1,
        &format!("{URI} odd.img --bitmap daily --update"),
        "say with -F",
    );
    blank(&place.path("long.raw"), 1 << 30);
    place.refused(
        1,
        &format!("{URI} long.raw --bitmap daily --update"),
        "not the previous backup",
    );
    for target in ["1.raw", "1.qcow2"] {
        let words = format!("{URI} {target} --bitmap daily --update --verify=all");
        let report = place.report(&words);
        assert_eq!(
            (&report["bytes"], &report["incremental"]),
            (&json!(DIRTY), &json!(true))
        );
    }
    let _ = daemon.quit();
    place.assert_same("disk.qcow2", "1.raw");
    place.assert_same("disk.qcow2", "1.qcow2");
    place.assert_sound("1.qcow2");
}

/// By default it serves one client at a time, and ends with the first.
#[test]
fn one_connection_is_enough() {
    if !can_judge() || !needs(&[Need::Program("qemu-nbd")]) {
        return;
    }
    let place = Place::new();
    let daemon = served(Program::Ringback, &place);
    let _ = daemon.quit();
    let socket = place.path("q.sock");
    let mut server = place.tool("qemu-nbd", "-r -f qcow2 -x disk -B daily -k");
    let server = Running::start(server.arg(&socket).arg("disk.qcow2"));
    wait_for("the server", || exists(&socket));
    let uri = "nbd+unix:///disk?socket=q.sock";
    let words = format!("{uri} 2.qcow2 --bitmap daily --backing 1.raw --verify");
    assert_eq!(place.report(&words)["bytes"], DIRTY);
    server.finish().succeeded();
    place.assert_same("disk.qcow2", "2.qcow2");
}

#[test]
fn a_bitmap_that_the_server_does_not_have() {
    if !can_judge() {
        return;
    }
    for program in programs() {
        let place = Place::new();
        let daemon = served(program, &place);
        let words = format!("{URI} 2.qcow2 --bitmap weekly --backing 1.raw");
        for text in [
            "offers no bitmap 'weekly'",
            "it has 'daily', 'other'",
            "--or-full",
        ] {
            place.refused(1, &words, text);
        }
        assert!(!exists(&place.path("2.qcow2")));
        let full = place.backup(&format!("{words} --or-full"));
        full.failed_with(4).saying("a full backup was made");
        let missing = "nbd+unix:///none?socket=nbd.sock";
        let words = format!("{missing} 3.qcow2 --bitmap daily --backing 1.raw");
        place.refused(1, &words, "Requested export not available");
        let _ = daemon.quit();
        assert!(place.info("2.qcow2")["backing-filename"].is_null());
        place.assert_same("disk.qcow2", "2.qcow2");
    }
}

#[test]
fn what_only_the_owner_of_the_server_can_do_is_refused() {
    if !can_judge() {
        return;
    }
    let place = Place::new();
    let daemon = served(Program::Ringback, &place);
    let words = format!("{URI} 2.qcow2 --bitmap daily --backing 1.raw");
    for mode in ["on-success", "always"] {
        place.refused(
            1,
            &format!("{words} --bitmap-mode {mode}"),
            "the bitmap is the NBD server's",
        );
    }
    place.refused(1, &format!("{URI} 2.qcow2 --new-bitmap x"), "--new-bitmap");
    assert!(!exists(&place.path("2.qcow2")));
    place
        .backup(&format!("{words} --bitmap-mode never"))
        .succeeded();
    let _ = daemon.quit();
}

#[test]
fn an_interrupted_increment_goes_on() {
    if !can_judge() {
        return;
    }
    for (target, how) in [("2.qcow2", "--backing 1.raw"), ("1.raw", "--update")] {
        let place = Place::new();
        let daemon = served(Program::Ringback, &place);
        let words = format!("{URI} {target} --bitmap daily {how}");
        let slowly = "--speed 1M --max-chunk 64k --checkpoint 1";
        let running = place.start(&format!("{words} {slowly}"));
        place.wait_for_note(target);
        running.signal(Signal::SIGKILL);
        running.finish();
        let other = format!("{URI} {target} --bitmap other {how} --resume");
        let way_out = match how {
            "--update" => "to begin the update anew",
            _ => "--overwrite begins anew",
        };
        place.refused(1, &other, way_out);
        let report = place.report(&format!("{words} --resume --verify=all"));
        assert_eq!(report["resumed"], true, "{report:#}");
        let bytes = report["bytes"].as_u64().expect("a number");
        let kept = report["kept_bytes"].as_u64().expect("a number");
        assert!(bytes < DIRTY && kept > 0, "{report:#}");
        assert!(!exists(&place.path(&state_of(target))));
        let _ = daemon.quit();
        place.assert_same("disk.qcow2", target);
    }
}

/// A disk whose guest writes by `qemu-io`, and what it should be at each instant.
struct Rounds<'a> {
    place: &'a Place,
    daemon: Daemon,
}

impl Rounds<'_> {
    /// The guest writes; `is_known` says whether the next backup shall show it.
    fn write(&self, value: u8, offset: u64, len: u64, is_known: bool) {
        let mut qemu_io = self
            .place
            .tool("qemu-io", "-f raw nbd+unix:///guest?socket=nbd.sock -c");
        run(qemu_io.arg(format!("write -P {value} {offset} {len}"))).succeeded();
        if is_known {
            self.expect(value, offset, len);
        }
    }

    fn expect(&self, value: u8, offset: u64, len: u64) {
        let len = usize::try_from(len).expect("small");
        write_at(&self.place.path("expected.raw"), offset, &vec![value; len]);
    }

    /// As docs/fleecing.md has it.
    fn begin(&mut self, round: usize) {
        let create = format!("create -q -u -f qcow2 -b disk.qcow2 -F qcow2 fleece.qcow2 {DISK}");
        run(&mut self.place.tool("qemu-img", &create)).succeeded();
        let qmp = &mut self.daemon.qmp;
        let node = json!({
            "driver": "qcow2", "node-name": "fleece", "backing": "disk",
            "file": { "driver": "file", "filename": "fleece.qcow2" },
        });
        qmp.run("blockdev-add", &node);
        let bitmap = |round: usize| json!({ "node": "disk", "name": format!("round{round}") });
        let mut actions = vec![json!({ "type": "block-dirty-bitmap-add", "data": bitmap(round) })];
        let mut shown = json!([]);
        if round > 0 {
            let old = bitmap(round - 1);
            actions.push(json!({ "type": "block-dirty-bitmap-disable", "data": old }));
            shown = json!([old]);
        }
        let backup = json!({ "job-id": "j", "device": "disk", "target": "fleece", "sync": "none" });
        actions.push(json!({ "type": "blockdev-backup", "data": backup }));
        qmp.run("transaction", &json!({ "actions": actions }));
        let export = json!({
            "type": "nbd", "id": "fleece", "node-name": "fleece", "bitmaps": shown,
        });
        qmp.run("block-export-add", &export);
    }

    fn end(&mut self, round: usize) {
        let deadline = std::time::Instant::now() + LIMIT;
        let qmp = &mut self.daemon.qmp;
        qmp.run(
            "block-export-del",
            &json!({ "id": "fleece", "mode": "hard" }),
        );
        let is_it = |data: &Value| data["id"] == "fleece";
        qmp.wait_event("BLOCK_EXPORT_DELETED", is_it, deadline);
        qmp.run("block-job-cancel", &json!({ "device": "j" }));
        qmp.wait_event("BLOCK_JOB_CANCELLED", |_| true, deadline);
        qmp.run("blockdev-del", &json!({ "node-name": "fleece" }));
        if round > 0 {
            let old = json!({ "node": "disk", "name": format!("round{}", round - 1) });
            qmp.run("block-dirty-bitmap-remove", &old);
        }
    }
}

#[test]
fn rounds_of_fleecing_become_a_chain_of_backups() {
    if !can_judge() {
        return;
    }
    for program in programs() {
        let place = Place::new();
        place.full_raw("expected.raw", DISK);
        write_at(&place.path("expected.raw"), 0, &noise(9, MIB));
        let convert = "convert -f raw -O qcow2 expected.raw disk.qcow2";
        run(&mut place.tool("qemu-img", convert)).succeeded();
        let words = [
            "--blockdev",
            "qcow2,node-name=disk,file.driver=file,file.filename=disk.qcow2",
            "--nbd-server",
            "addr.type=unix,addr.path=nbd.sock,max-connections=0",
            "--export",
            "nbd,id=guest,node-name=disk,name=guest,writable=on",
        ];
        let daemon = Daemon::start(program, &place.path(""), &words);
        let mut rounds = Rounds {
            place: &place,
            daemon,
        };
        let uri = "nbd+unix:///fleece?socket=nbd.sock";
        rounds.begin(0);
        rounds.write(1, 3 * MIB, MIB, false);
        place.backup(&format!("{uri} 0.qcow2 --verify")).succeeded();
        std::fs::copy(place.path("0.qcow2"), place.path("kept.qcow2")).expect("a copy");
        rounds.end(0);
        place.assert_same("expected.raw", "0.qcow2");
        rounds.expect(1, 3 * MIB, MIB);
        rounds.write(2, 5 * MIB + 4096, 8192, true);
        for round in 1..3_usize {
            rounds.begin(round);
            // Belongs to the next one, wherever it is.
            let later = 7 * MIB * round as u64;
            rounds.write(10, 3 * MIB, 65536, false);
            rounds.write(11, later, 65536, false);
            let bitmap = format!("--bitmap round{}", round - 1);
            let backing = format!("--backing {}.qcow2", round - 1);
            let words = format!("{uri} {round}.qcow2 {bitmap} {backing} --verify=all");
            let report = place.report(&words);
            assert_eq!(report["incremental"], true);
            let bytes = report["bytes"].as_u64().expect("a number");
            assert!(bytes > 0 && bytes <= 2 * MIB, "{program:?}: {report:#}");
            let words = format!("{uri} kept.qcow2 {bitmap} --update --verify=all");
            place.report(&words);
            rounds.end(round);
            place.assert_same("expected.raw", &format!("{round}.qcow2"));
            place.assert_same("expected.raw", "kept.qcow2");
            rounds.expect(10, 3 * MIB, 65536);
            rounds.expect(11, later, 65536);
        }
        let _ = rounds.daemon.quit();
    }
}
