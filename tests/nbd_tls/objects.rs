//! Credentials and lists as a monitor makes them.

use std::fs;

use ringback_tests::needs::{Need, needs};
use ringback_tests::qmp::{Daemon, Program, Qmp};
use serde_json::{Value, json};

use crate::place::Place;

fn x509(id: &str, directory: &str, endpoint: &str) -> Value {
    json!({
        "qom-type": "tls-creds-x509", "id": id, "dir": directory, "endpoint": endpoint,
    })
}

fn server(creds: &str) -> Value {
    json!({
        "addr": { "type": "unix", "data": { "path": "nbd.sock" } },
        "tls-creds": creds,
    })
}

#[track_caller]
fn refused(qmp: &mut Qmp, command: &str, arguments: &Value, text: &str) {
    let refusal = qmp.refused(command, arguments);
    assert!(refusal.desc.starts_with(text), "{refusal:?}");
}

/// Both daemons, in the same words.
#[test]
fn refused_as_qemu_does() {
    let place = Place::new();
    for name in ["no-ca", "no-cert", "no-key", "other-ca"] {
        let directory = place.scratch.directory(name);
        place.authority.trusted_in(&directory);
        place.authority.sign(&directory, "server", name);
    }
    let remove = |name: &str| fs::remove_file(place.scratch.join(name)).expect("a file");
    remove("no-ca/ca-cert.pem");
    remove("no-cert/server-cert.pem");
    remove("no-key/server-key.pem");
    let other = ringback_tests::certificates::Authority::new("other");
    other.trusted_in(&place.scratch.join("other-ca"));

    let mut programs = vec![Program::Ringback];
    if needs(&[Need::Program("qemu-storage-daemon")]) {
        programs.push(Program::Qemu);
    }
    for program in programs {
        let mut daemon = Daemon::start(program, place.scratch.path(), &[]);
        let qmp = &mut daemon.qmp;
        for (directory, text) in [
            (
                "nowhere",
                "Unable to access credentials nowhere/ca-cert.pem: No such file",
            ),
            (
                "no-ca",
                "Unable to access credentials no-ca/ca-cert.pem: No such file",
            ),
            (
                "no-cert",
                "Unable to access credentials no-cert/server-cert.pem: No such",
            ),
            (
                "no-key",
                "Unable to access credentials no-key/server-key.pem: No such file",
            ),
            (
                "other-ca",
                "Our own certificate other-ca/server-cert.pem failed validation against \
                 other-ca/ca-cert.pem: The certificate hasn't got a known issuer",
            ),
        ] {
            refused(qmp, "object-add", &x509("t", directory, "server"), text);
        }
        qmp.run("object-add", &x509("ours", "server", "server"));
        qmp.run("object-add", &x509("theirs", "alice", "client"));
        let secret = json!({ "qom-type": "secret", "id": "s", "data": "x" });
        qmp.run("object-add", &secret);
        let start = "nbd-server-start";
        refused(
            qmp,
            start,
            &server("nope"),
            "No TLS credentials with id 'nope'",
        );
        let text = "Object with id 's' is not TLS credentials";
        refused(qmp, start, &server("s"), text);
        let text = "Expected TLS credentials for a server endpoint";
        refused(qmp, start, &server("theirs"), text);
        qmp.run(start, &server("ours"));
        qmp.run("object-del", &json!({ "id": "ours" }));
        let endpoint = json!({ "path": "/objects/theirs", "property": "endpoint" });
        assert_eq!(qmp.run("qom-get", &endpoint), "client");
        daemon.quit();
    }
}

/// What QEMU has and we have not is refused by its name, with a way out.
#[test]
fn refused_by_name() {
    let place = Place::new();
    let mut daemon = Daemon::start(Program::Ringback, place.scratch.path(), &[]);
    let qmp = &mut daemon.qmp;
    for (object, text) in [
        (
            json!({ "qom-type": "tls-creds-psk", "id": "t", "dir": ".", "endpoint": "server" }),
            "ringback has no objects of the type 'tls-creds-psk': use certificates",
        ),
        (
            json!({ "qom-type": "tls-creds-anon", "id": "t", "endpoint": "server" }),
            "ringback has no objects of the type 'tls-creds-anon': use certificates",
        ),
        (
            json!({ "qom-type": "authz-list-file", "id": "t", "filename": "f" }),
            "Parameter 'qom-type' does not accept value 'authz-list-file'",
        ),
        (
            json!({ "qom-type": "authz-listfile", "id": "t", "filename": "f" }),
            "ringback has no objects of the type 'authz-listfile'",
        ),
    ] {
        refused(qmp, "object-add", &object, text);
    }
    for (property, value, text) in [
        ("passwordid", "s", "ringback does not support 'passwordid'"),
        (
            "priority",
            "SECURE256",
            "ringback does not support the priority 'SECURE256'",
        ),
    ] {
        let mut object = x509("t", "server", "server");
        object[property] = value.into();
        refused(qmp, "object-add", &object, text);
    }
    let mut plain = x509("t", "server", "server");
    plain["priority"] = "NORMAL".into();
    plain["verify-peer"] = false.into();
    qmp.run("object-add", &plain);
    let list = json!({ "qom-type": "authz-list", "id": "l" });
    qmp.run("object-add", &list);
    let mut server = server("t");
    server["tls-authz"] = "l".into();
    let text = "'tls-authz' needs credentials with 'verify-peer'";
    refused(qmp, "nbd-server-start", &server, text);
    daemon.quit();
}
