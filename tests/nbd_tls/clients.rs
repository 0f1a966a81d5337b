//! Programs that know nothing of us.

use std::fs;
use std::process::Command;

use ringback_tests::certificates::Authority;
use ringback_tests::image::{MIB, blank, content, noise, write_at};
use ringback_tests::needs::{Need, needs};
use ringback_tests::process::run;
use serde_json::json;

use crate::place::{Place, SIZE};

const LIBNBD: [Need; 2] = [Need::Program("nbdinfo"), Need::Program("nbdcopy")];

#[test]
fn data_comes_and_goes_whole() {
    if !needs(&LIBNBD) {
        return;
    }
    let place = Place::new();
    let daemon = place.daemon(&[], "");
    let size = place.ask_size("alice").succeeded();
    assert_eq!(size.stdout.trim(), SIZE.to_string());

    let (uri, copy) = (place.uri("alice"), place.scratch.join("copy.img"));
    let copy_name = copy.to_str().expect("a plain name");
    run(Command::new("nbdcopy").args([&uri, copy_name])).succeeded();
    let disk = place.scratch.join("disk.img");
    assert!(content(&copy) == content(&disk), "what was read differs");

    write_at(&copy, 0, &noise(2, SIZE - MIB));
    run(Command::new("nbdcopy").args(["--flush", copy_name, &uri])).succeeded();
    daemon.quit();
    assert!(content(&copy) == content(&disk), "what was written differs");
}

#[test]
fn qemu_reads_the_same_with_either_version() {
    if !needs(&[Need::Program("qemu-img")]) {
        return;
    }
    let place = Place::new();
    let mut daemon = place.daemon(&[], "");
    for version in ["", ",priority=NORMAL:-VERS-TLS1.3"] {
        place.compare("disk.img", "alice", version).succeeded();
    }
    // The server keeps what it was started with.
    daemon.qmp.run("object-del", &json!({ "id": "tls" }));
    place.compare("disk.img", "alice", "").succeeded();

    blank(&place.scratch.join("other.img"), SIZE);
    write_at(&place.scratch.join("other.img"), MIB, &noise(3, MIB));
    place.compare("other.img", "alice", "").failed_with(1);
    // A client that does not believe the server. It is believed itself, or the server
    // might hang up first.
    let doubter = place.client("doubter");
    Authority::new("Another authority").trusted_in(&doubter);
    place
        .compare("disk.img", "doubter", ",sanity-check=off")
        .failed_with(2)
        .saying("The certificate hasn't got a known issuer");
    // One below what we offer.
    let old = ",priority=NORMAL:-VERS-ALL:+VERS-TLS1.1";
    place.compare("disk.img", "alice", old).failed_with(2);
    daemon.quit();
}

/// Who shows no certificate of ours sees nothing of the disk.
#[test]
fn strangers_are_turned_away() {
    if !needs(&LIBNBD) {
        return;
    }
    let place = Place::new();
    let daemon = place.daemon(&[], "");

    let plain = format!("nbd+unix:///disk?socket={}", place.socket().display());
    run(Command::new("nbdinfo").args(["--size", &plain]))
        .failed_with(1)
        .saying("server requires TLS");

    let nobody = place.client("nobody");
    fs::remove_file(nobody.join("client-cert.pem")).expect("a file to remove");
    fs::remove_file(nobody.join("client-key.pem")).expect("a file to remove");
    place.ask_size("nobody").failed_with(1);

    let stranger = place.client("stranger");
    Authority::new("Another authority").sign(&stranger, "client", "alice");
    place.ask_size("stranger").failed_with(1);

    place.ask_size("alice").succeeded();
    // GnuTLS shows no certificate to who would not believe it.
    daemon
        .quit()
        .saying("option negotiation failed: Verify failed: No certificate was found.");
}

/// Without `verify-peer` everybody may come, but only under TLS.
#[test]
fn a_server_that_does_not_ask() {
    if !needs(&LIBNBD) {
        return;
    }
    let place = Place::new();
    let open = "tls-creds-x509,id=open,dir=server,endpoint=server,verify-peer=off";
    let mut daemon = place.daemon(&["--object", open], "");
    daemon.qmp.run("nbd-server-stop", &json!({}));
    let server = json!({
        "addr": { "type": "unix", "data": { "path": "nbd.sock" } },
        "tls-creds": "open",
    });
    daemon.qmp.run("nbd-server-start", &server);
    let export = json!({ "type": "nbd", "id": "e", "node-name": "disk" });
    daemon.qmp.run("block-export-add", &export);
    let nobody = place.client("nobody");
    fs::remove_file(nobody.join("client-cert.pem")).expect("a file to remove");
    place.ask_size("nobody").succeeded();
    daemon.quit();
}

#[test]
fn those_on_the_list_may_come() {
    if !needs(&LIBNBD) {
        return;
    }
    let place = Place::new();
    place.client("bob");
    place.client("bert");
    let list = "authz-list,id=who,policy=deny,\
                rules.0.match=O=Acme,,CN=bert,rules.0.policy=deny,\
                rules.1.match=O=Acme,,CN=b*,rules.1.policy=allow,rules.1.format=glob";
    let mut daemon = place.daemon(&["--object", list], ",tls-authz=who");
    place.ask_size("bob").succeeded();
    place.ask_size("bert").failed_with(1);
    place.ask_size("alice").failed_with(1);

    // Looked for each time: nobody may come while there is no list.
    daemon.qmp.run("object-del", &json!({ "id": "who" }));
    place.ask_size("bob").failed_with(1);
    let one = json!({
        "qom-type": "authz-simple", "id": "who", "identity": "O=Acme,CN=alice",
    });
    daemon.qmp.run("object-add", &one);
    place.ask_size("alice").succeeded();
    place.ask_size("bob").failed_with(1);
    daemon
        .quit()
        .saying("TLS x509 authz check for O=Acme,CN=bert is denied")
        .saying("TLS x509 authz check for O=Acme,CN=alice is denied")
        .saying("TLS x509 authz check for O=Acme,CN=bob is denied")
        .saying("Cannot find QAuthZ object ID who");
}
