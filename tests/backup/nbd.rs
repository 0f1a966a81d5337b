//! Sources and targets behind NBD servers.

use ringback_tests::image::MIB;
use ringback_tests::qmp::{Daemon, Program};

use crate::harness::{Place, can_judge};

const SOURCE: &str = "nbd+unix:///a?socket=nbd.sock";
const TARGET: &str = "nbd+unix:///b?socket=nbd.sock";

#[test]
fn from_a_server_and_to_one() {
    if !can_judge() {
        return;
    }
    let place = Place::new();
    place.raw("a.raw", 4 * MIB);
    place.full_raw("b.raw", 4 * MIB);
    let directory = place.path("");
    let words = [
        "--blockdev",
        "file,node-name=a,filename=a.raw",
        "--blockdev",
        "file,node-name=b,filename=b.raw",
        "--nbd-server",
        "addr.type=unix,addr.path=nbd.sock",
        "--export",
        "nbd,id=a,node-name=a",
        "--export",
        "nbd,id=b,node-name=b,writable=on",
    ];
    let daemon = Daemon::start(Program::Ringback, &directory, &words);
    place
        .backup(&format!("{SOURCE} copy.qcow2 --verify"))
        .succeeded();
    place.refused(1, &format!("{SOURCE} {TARGET}"), "--overwrite");
    place
        .backup(&format!("{SOURCE} {TARGET} --overwrite --verify"))
        .succeeded();
    let _ = daemon.quit();
    place.assert_same("a.raw", "copy.qcow2");
    place.assert_same("a.raw", "b.raw");
}
