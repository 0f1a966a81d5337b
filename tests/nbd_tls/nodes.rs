//! Nodes of a daemon that are disks of a server which wants TLS.

use std::io::{Read, Write, copy};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::{JoinHandle, spawn};

use ringback_tests::certificates::{Authority, HOST};
use ringback_tests::image::{MIB, blank, content, noise, write_at};
use ringback_tests::needs::{Need, needs};
use ringback_tests::qmp::{Daemon, Program, Qmp};
use serde_json::{Value, json};

use crate::place::{Place, SIZE};

/// Credentials of every kind under the names `alice`, `server`, `doubter` (believes
/// another authority), `stranger` (is of another authority), and a secret `s`.
const OBJECTS: [&str; 5] = [
    "tls-creds-x509,id=alice,dir=alice,endpoint=client",
    "tls-creds-x509,id=server,dir=server,endpoint=server",
    "tls-creds-x509,id=doubter,dir=doubter,endpoint=client,sanity-check=off",
    "tls-creds-x509,id=stranger,dir=stranger,endpoint=client,sanity-check=off",
    "secret,id=s,data=x",
];

fn programs() -> Vec<Program> {
    let mut programs = vec![Program::Ringback];
    if needs(&[Need::Program("qemu-storage-daemon")]) {
        programs.push(Program::Qemu);
    }
    programs
}

/// A daemon with [`OBJECTS`] and a file `local`.
fn client(program: Program, place: &Place) -> Daemon {
    let another = Authority::new("Another authority");
    let doubter = place.client("doubter");
    another.trusted_in(&doubter);
    let stranger = place.client("stranger");
    another.sign(&stranger, "client", "stranger");
    let local = place.scratch.join("local.img");
    if !local.exists() {
        blank(&local, SIZE);
    }
    let mut words = vec!["--blockdev", "file,node-name=local,filename=local.img"];
    for object in OBJECTS {
        words.extend(["--object", object]);
    }
    Daemon::start(program, place.scratch.path(), &words)
}

fn unix() -> Value {
    json!({ "type": "unix", "path": "nbd.sock" })
}

/// The export `disk` of a server as the node `remote`, with further options.
fn remote(server: &Value, more: &Value) -> Value {
    let mut node = json!({
        "driver": "nbd", "node-name": "remote", "export": "disk", "server": server,
    });
    let more = more.as_object().expect("options").clone();
    node.as_object_mut().expect("options").extend(more);
    node
}

fn trusting() -> Value {
    json!({ "tls-creds": "alice", "tls-hostname": HOST })
}

/// Copies one node to another.
fn transfer(qmp: &mut Qmp, from: &str, to: &str) {
    let job = json!({
        "job-id": "j", "device": from, "target": to, "sync": "full", "auto-dismiss": false,
    });
    qmp.run("blockdev-backup", &job);
    qmp.wait_job("j", "concluded");
    let jobs = qmp.run("query-jobs", &json!({}));
    assert_eq!(jobs[0].get("error"), None, "{jobs}");
    qmp.run("job-dismiss", &json!({ "id": "j" }));
}

/// Why a node cannot be had.
#[track_caller]
fn refusal(qmp: &mut Qmp, more: &Value) -> String {
    qmp.refused("blockdev-add", &remote(&unix(), more)).desc
}

/// Everybody who connects reaches the server of the place. Answers the port.
fn tunnel(place: &Place) -> u16 {
    let listener = TcpListener::bind((HOST, 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let socket: PathBuf = place.socket();
    // It ends with the test.
    spawn(move || {
        for near in listener.incoming() {
            let near = near.expect("a client");
            let far = UnixStream::connect(&socket).expect("a server");
            carry(near, far);
        }
    });
    port
}

fn carry(near: TcpStream, far: UnixStream) {
    let (mut near_in, mut far_in) = (
        near.try_clone().expect("a descriptor"),
        far.try_clone().expect("a descriptor"),
    );
    let (mut near_out, mut far_out) = (near, far);
    // Either may hang up at any time.
    spawn(move || {
        let _ = copy(&mut near_in, &mut far_out);
        let _ = far_out.shutdown(Shutdown::Both);
    });
    spawn(move || {
        let _ = copy(&mut far_in, &mut near_out);
        let _ = near_out.shutdown(Shutdown::Both);
    });
}

#[test]
fn data_comes_and_goes_whole_with_either_server() {
    for program in programs() {
        let place = Place::new();
        let server = place.server(program, &[], "");
        let mut daemon = client(Program::Ringback, &place);
        let qmp = &mut daemon.qmp;
        qmp.run("blockdev-add", &remote(&unix(), &trusting()));
        // The node keeps what it was opened with.
        qmp.run("object-del", &json!({ "id": "alice" }));
        let (disk, local) = (
            place.scratch.join("disk.img"),
            place.scratch.join("local.img"),
        );
        transfer(qmp, "remote", "local");
        assert!(content(&disk) == content(&local), "what was read differs");

        write_at(&local, 0, &noise(5, SIZE - MIB));
        transfer(qmp, "local", "remote");
        daemon.quit();
        let said = server.quit();
        assert!(
            content(&disk) == content(&local),
            "what was written differs"
        );
        assert!(!said.stderr.contains("TLS"), "{said:#?}");
    }
}

/// What comes back speaks TLS as well, or nothing could be read.
#[test]
fn a_server_that_is_started_again() {
    let place = Place::new();
    let server = place.daemon(&[], "");
    let mut daemon = client(Program::Ringback, &place);
    let mut more = trusting();
    more["reconnect-delay"] = 60.into();
    daemon.qmp.run("blockdev-add", &remote(&unix(), &more));
    transfer(&mut daemon.qmp, "remote", "local");
    server.quit();
    write_at(&place.scratch.join("disk.img"), MIB, &noise(6, 3 * MIB));
    let server = place.daemon(&[], "");
    transfer(&mut daemon.qmp, "remote", "local");
    daemon.quit();
    server.quit();
    let (disk, local) = (
        place.scratch.join("disk.img"),
        place.scratch.join("local.img"),
    );
    assert!(content(&disk) == content(&local), "what was read differs");
}

/// A server that is reached by a name must be called so, if nobody says otherwise.
#[test]
fn the_name_of_the_host_counts() {
    let place = Place::new();
    let server = place.daemon(&[], "");
    let port = tunnel(&place).to_string();
    let inet = |host: &str| json!({ "type": "inet", "host": host, "port": port, "ipv4": true });
    for program in programs() {
        let mut daemon = client(program, &place);
        let qmp = &mut daemon.qmp;
        let by_number = remote(&inet("127.0.0.1"), &json!({ "tls-creds": "alice" }));
        assert_eq!(
            qmp.refused("blockdev-add", &by_number).desc,
            "Certificate does not match the hostname 127.0.0.1"
        );
        let gone = json!({ "node-name": "remote" });
        qmp.run("blockdev-add", &remote(&inet("127.0.0.1"), &trusting()));
        qmp.run("blockdev-del", &gone);
        let by_name = remote(&inet(HOST), &json!({ "tls-creds": "alice" }));
        qmp.run("blockdev-add", &by_name);
        qmp.run("blockdev-del", &gone);
        daemon.quit();
    }
    server.quit();
}

/// Both daemons, in the same words.
#[test]
fn refused_as_qemu_does() {
    let place = Place::new();
    let server = place.daemon(&[], "");
    for program in programs() {
        let mut daemon = client(program, &place);
        let qmp = &mut daemon.qmp;
        for (creds, host, text) in [
            ("zz", HOST, "No TLS credentials with id 'zz'"),
            ("s", HOST, "Object with id 's' is not TLS credentials"),
            (
                "server",
                HOST,
                "Expected TLS credentials for a client endpoint",
            ),
            (
                "alice",
                "wrong.example",
                "Certificate does not match the hostname wrong.example",
            ),
        ] {
            let more = json!({ "tls-creds": creds, "tls-hostname": host });
            assert_eq!(refusal(qmp, &more), text, "{program:?}");
        }
        assert_eq!(
            refusal(qmp, &json!({ "tls-creds": "alice" })),
            "No hostname for certificate validation",
            "{program:?}"
        );
        assert_eq!(
            refusal(qmp, &json!({ "tls-hostname": HOST })),
            "TLS negotiation required before option 7 (go)",
            "{program:?}"
        );
        // The words for this are those of the library.
        let doubt = json!({ "tls-creds": "doubter", "tls-hostname": HOST });
        refusal(qmp, &doubt);
        // QEMU's sometimes waits for ever when a server hangs up on it.
        if program == Program::Ringback {
            let strange = json!({ "tls-creds": "stranger", "tls-hostname": HOST });
            let text = refusal(qmp, &strange);
            assert!(text.starts_with("Failed to "), "{text}");
        }
        // Nothing of all that has harmed anybody.
        qmp.run("blockdev-add", &remote(&unix(), &trusting()));
        daemon.quit();
    }
    server.quit();
}

/// Who wants TLS does not do without it.
#[test]
fn a_server_in_the_clear_is_refused() {
    let place = Place::new();
    let words = [
        "--blockdev",
        "file,node-name=disk,filename=disk.img",
        "--nbd-server",
        "addr.type=unix,addr.path=nbd.sock",
        "--export",
        "nbd,id=e,node-name=disk",
    ];
    let server = Daemon::start(Program::Ringback, place.scratch.path(), &words);
    for program in programs() {
        let mut daemon = client(program, &place);
        let qmp = &mut daemon.qmp;
        assert_eq!(
            refusal(qmp, &trusting()),
            "Denied by server for option 5 (starttls)",
            "{program:?}"
        );
        // Of no meaning without credentials.
        let mut more = json!({ "tls-hostname": "wrong.example" });
        more["read-only"] = true.into();
        qmp.run("blockdev-add", &remote(&unix(), &more));
        daemon.quit();
    }
    server.quit();
}

/// Answers one client: a greeting, and behind the client's flags and first option
/// so many further bytes.
fn scripted(place: &Place, greeting: &[u8], answer: Option<Vec<u8>>) -> JoinHandle<()> {
    let listener = UnixListener::bind(place.socket()).expect("a socket");
    let greeting = greeting.to_vec();
    spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        stream.write_all(&greeting).expect("a client that listens");
        if let Some(answer) = answer {
            let mut said = [0; 20];
            stream.read_exact(&mut said).expect("flags and an option");
            assert_eq!(said[4..], *b"IHAVEOPT\0\0\0\x05\0\0\0\0", "STARTTLS");
            stream.write_all(&answer).expect("a client that listens");
        }
        // What else it says does not count; it must not hang.
        let _ = stream.read_to_end(&mut Vec::new());
    })
}

/// Servers that cannot do it, and one that only says that it can.
#[test]
fn servers_without_tls_are_refused() {
    let new_style = b"NBDMAGICIHAVEOPT\0\x03";
    let old_style = [&b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53"[..], &[0; 136]].concat();
    let reply = |kind: u32, behind: &[u8]| {
        let option = [0x0003_e889, 0x0455_65a9, 5, kind, 0_u32];
        let mut bytes: Vec<u8> = option.into_iter().flat_map(u32::to_be_bytes).collect();
        bytes.extend_from_slice(behind);
        Some(bytes)
    };
    for program in programs() {
        let place = Place::new();
        let mut daemon = client(program, &place);
        for (greeting, answer, text) in [
            (
                &new_style[..],
                reply(0x8000_0001, b""),
                "Server don't support STARTTLS option",
            ),
            (
                b"NBDMAGICIHAVEOPT\0\0",
                None,
                "Server does not support STARTTLS",
            ),
            (&old_style, None, "Server does not support STARTTLS"),
            // An answer to the next option, in the clear.
            (
                new_style,
                reply(1, &reply(0x8000_0001, b"").unwrap_or_default()),
                "",
            ),
        ] {
            let server = scripted(&place, greeting, answer);
            let told = refusal(&mut daemon.qmp, &trusting());
            assert!(text.is_empty() || told == text, "{program:?}: {told}");
            server.join().expect("the script was followed");
            std::fs::remove_file(place.socket()).expect("a socket");
        }
        daemon.quit();
    }
}
