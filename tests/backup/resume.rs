//! Interrupted backups go on where they stopped, and believe nothing that they
//! have not compared.

use std::os::unix::process::ExitStatusExt;

use nix::sys::signal::Signal;
use ringback_tests::image::{MIB, noise, write_at};
use ringback_tests::needs::{Need, needs};
use ringback_tests::process::{Finished, Running, wait_for};

use crate::harness::{Place, can_judge, exists, state_of};

const SIZE: u64 = 24 * MIB;
/// Slow enough to be caught half way.
const SLOWLY: &str = "--speed 4M --max-chunk 64k --checkpoint 1";

/// A backup that ended by a signal after it had noted something.
#[track_caller]
fn stopped_by(place: &Place, signal: Signal, words: &str, target: &str) -> Finished {
    let running = place.start(&format!("{words} {SLOWLY}"));
    place.wait_for_note(target);
    running.signal(signal);
    let finished = running.finish();
    assert!(exists(&place.path(&state_of(target))), "{finished:#?}");
    finished
}

/// Goes on, and finds that something was kept.
#[track_caller]
fn goes_on(place: &Place, words: &str, target: &str) {
    let report = place.report(&format!("{words} --verify=all"));
    assert_eq!(report["resumed"], true, "{report:#}");
    let bytes = |name: &str| report[name].as_u64().expect("a number");
    assert!(bytes("kept_bytes") > 0, "{report:#}");
    assert!(bytes("bytes") < SIZE, "{report:#}");
    assert!(!exists(&place.path(&state_of(target))));
}

#[test]
fn after_ctrl_c() {
    if !can_judge() {
        return;
    }
    let place = Place::new();
    place.full_raw("a.raw", SIZE);
    let finished = stopped_by(&place, Signal::SIGINT, "a.raw b.raw", "b.raw");
    let finished = finished.failed_with(130).saying("--resume");
    assert!(finished.stdout.is_empty(), "{finished:#?}");
    goes_on(&place, "a.raw b.raw --resume", "b.raw");
    place.assert_same("a.raw", "b.raw");
}

#[test]
fn after_sigterm_and_without_being_told() {
    if !can_judge() {
        return;
    }
    let place = Place::new();
    place.full_raw("a.raw", SIZE);
    stopped_by(&place, Signal::SIGTERM, "a.raw b.qcow2", "b.qcow2").failed_with(143);
    place.assert_sound("b.qcow2");
    goes_on(&place, "a.raw b.qcow2", "b.qcow2");
    place.assert_sound("b.qcow2");
    place.assert_same("a.raw", "b.qcow2");
}

#[test]
fn after_a_kill() {
    if !can_judge() {
        return;
    }
    for (target, options) in [("b.raw", ""), ("b.qcow2", ""), ("c.qcow2", "--compress")] {
        let place = Place::new();
        place.full_raw("a.raw", SIZE);
        let words = format!("a.raw {target} {options}");
        let finished = stopped_by(&place, Signal::SIGKILL, &words, target);
        assert_eq!(finished.status.signal(), Some(9), "{finished:#?}");
        goes_on(&place, &format!("{words} --resume"), target);
        if target.ends_with("qcow2") {
            place.assert_not_corrupt(target);
        }
        place.assert_same("a.raw", target);
    }
}

#[test]
fn under_nohup_it_outlives_the_terminal() {
    if !can_judge() || !needs(&[Need::Program("nohup")]) {
        return;
    }
    let place = Place::new();
    place.full_raw("a.raw", SIZE);
    let words = format!("a.raw b.raw {SLOWLY}");
    let running = Running::start(&mut place.under("nohup", &words));
    place.wait_for_note("b.raw");
    running.signal(Signal::SIGHUP);
    let before = place.noted("b.raw");
    wait_for("more to be done", || place.noted("b.raw") > before);
    running.signal(Signal::SIGTERM);
    running.finish().failed_with(143);
}

#[test]
fn twice() {
    if !can_judge() {
        return;
    }
    let place = Place::new();
    place.full_raw("a.raw", SIZE);
    stopped_by(&place, Signal::SIGKILL, "a.raw b.raw", "b.raw");
    let before = place.noted("b.raw");
    let running = place.start(&format!("a.raw b.raw --resume {SLOWLY}"));
    wait_for("more to be done", || place.noted("b.raw") > before);
    running.signal(Signal::SIGKILL);
    running.finish();
    goes_on(&place, "a.raw b.raw --resume", "b.raw");
    place.assert_same("a.raw", "b.raw");
}

#[test]
fn what_was_damaged_meanwhile_is_copied_again() {
    if !can_judge() {
        return;
    }
    let place = Place::new();
    place.full_raw("a.raw", SIZE);
    stopped_by(&place, Signal::SIGINT, "a.raw b.raw", "b.raw");
    write_at(&place.path("b.raw"), 1000, &noise(9, 5000));
    goes_on(&place, "a.raw b.raw --resume", "b.raw");
    place.assert_same("a.raw", "b.raw");
}

#[test]
fn an_increment_and_its_bitmap() {
    if !can_judge() {
        return;
    }
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let place = Place::new();
        place.qcow2("disk.qcow2", SIZE);
        place
            .backup("disk.qcow2 1.qcow2 --new-bitmap b")
            .succeeded();
        place.write("disk.qcow2", 7, "2M", "16M");
        let words = "disk.qcow2 2.qcow2 --bitmap b --backing 1.qcow2";
        stopped_by(&place, signal, words, "2.qcow2");
        assert_eq!(place.bitmaps("disk.qcow2"), r#""b" ["auto"];"#);
        goes_on(&place, &format!("{words} --resume"), "2.qcow2");
        place.assert_same("disk.qcow2", "2.qcow2");
        place.write("disk.qcow2", 8, "1M", "64k");
        let words = "disk.qcow2 3.qcow2 --bitmap b --backing 2.qcow2 --verify=all";
        assert_eq!(place.report(words)["bytes"], 64 * 1024);
    }
}

#[test]
fn always_takes_what_was_copied_out_of_the_bitmap() {
    if !can_judge() {
        return;
    }
    let place = Place::new();
    place.qcow2("disk.qcow2", SIZE);
    place
        .backup("disk.qcow2 1.qcow2 --new-bitmap b")
        .succeeded();
    place.write("disk.qcow2", 7, "2M", "16M");
    let words = "disk.qcow2 2.qcow2 --bitmap b --bitmap-mode always --backing 1.qcow2";
    let running = place.start(&format!("{words} {SLOWLY}"));
    place.wait_for_note("2.qcow2");
    running.signal(Signal::SIGINT);
    running.finish().failed_with(130).saying("keep this target");
    assert!(!exists(&place.path(&state_of("2.qcow2"))));
    let words = "disk.qcow2 3.qcow2 --bitmap b --backing 2.qcow2 --verify=all";
    let bytes = place.report(words)["bytes"].as_u64().expect("a number");
    assert!((1..16 * MIB).contains(&bytes), "{bytes} bytes were left");
    place.assert_same("disk.qcow2", "3.qcow2");
}

#[test]
fn a_target_that_fails_can_be_gone_on_with() {
    if !can_judge() {
        return;
    }
    let place = Place::new();
    place.full_raw("a.raw", SIZE);
    ringback_tests::image::blank(&place.path("b.raw"), SIZE);
    let rules = "[inject-error]\nevent = \"write_aio\"\nerrno = \"5\"\nsector = \"20480\"\n";
    std::fs::write(place.path("rules"), rules).expect("a file");
    let words = "a.raw blkdebug:rules:b.raw --state state --workers 1";
    place
        .backup(&format!("{words} --overwrite"))
        .failed_with(1)
        .saying("writing the target failed");
    std::fs::write(place.path("rules"), "").expect("a file");
    let report = place.report(&format!("{words} --resume --verify"));
    assert_eq!(report["kept_bytes"], 10 * MIB, "{report:#}");
    assert!(!exists(&place.path("state")));
    place.assert_same("a.raw", "b.raw");
}

#[test]
fn the_state_of_another_backup_is_refused() {
    if !can_judge() {
        return;
    }
    let place = Place::new();
    place.full_raw("a.raw", SIZE);
    place.full_raw("other.raw", SIZE);
    stopped_by(&place, Signal::SIGINT, "a.raw b.qcow2", "b.qcow2");
    let another = "is the state of another backup";
    for words in [
        "other.raw b.qcow2",
        "other.raw b.qcow2 --resume",
        "a.raw b.qcow2 --resume --compress",
        "a.raw b.qcow2 --resume -F raw",
    ] {
        place.refused(1, words, another);
    }
    write_at(&place.path("a.raw"), 0, &noise(3, 512));
    place.refused(1, "a.raw b.qcow2 --resume", "has changed since");
    assert!(place.noted("b.qcow2") > 0, "it is still there");
    place
        .backup("a.raw b.qcow2 --overwrite --verify")
        .succeeded();
    place.assert_same("a.raw", "b.qcow2");
    assert!(!exists(&place.path(&state_of("b.qcow2"))));
}

#[test]
fn a_target_that_was_replaced_or_is_gone_is_refused() {
    if !can_judge() {
        return;
    }
    let place = Place::new();
    place.full_raw("a.raw", SIZE);
    stopped_by(&place, Signal::SIGINT, "a.raw b.raw", "b.raw");
    std::fs::rename(place.path("b.raw"), place.path("c.raw")).expect("a new name");
    place.refused(1, "a.raw b.raw --resume", "does not exist");
    place.full_raw("b.raw", SIZE);
    place.refused(1, "a.raw b.raw --resume", "of another target");
    std::fs::rename(place.path("c.raw"), place.path("b.raw")).expect("the old name");
    goes_on(&place, "a.raw b.raw --resume", "b.raw");
}

#[test]
fn a_state_that_is_none_is_refused() {
    if !can_judge() {
        return;
    }
    let place = Place::new();
    place.full_raw("a.raw", MIB);
    std::fs::write(place.path(&state_of("b.raw")), "nonsense").expect("a file");
    place.refused(1, "a.raw b.raw", "is not the state of a backup");
    place.backup("a.raw b.raw --overwrite").succeeded();
}
