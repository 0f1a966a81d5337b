//! `ringback backup` and `ringback io` as clients of servers that want TLS.

use std::process::Command;

use ringback_tests::binary::ringback;
use ringback_tests::certificates::{Authority, HOST};
use ringback_tests::image::content;
use ringback_tests::needs::{Need, needs};
use ringback_tests::process::{Finished, run};
use ringback_tests::qmp::Program;

use crate::place::{Place, SIZE};

const OBJECT: &str = "tls-creds-x509,id=t,dir=alice,endpoint=client";

fn programs() -> Vec<Program> {
    let mut programs = vec![Program::Ringback];
    if needs(&[Need::Program("qemu-storage-daemon")]) {
        programs.push(Program::Qemu);
    }
    programs
}

fn ringback_in(place: &Place, words: &[&str]) -> Finished {
    let mut command = Command::new(ringback());
    command.current_dir(place.scratch.path());
    run(command.args(words))
}

fn uri(more: &str) -> String {
    format!("nbds+unix://{HOST}/disk?socket=nbd.sock{more}")
}

fn json_name(more: &str) -> String {
    format!(
        "json:{{\"driver\":\"raw\",\"file\":{{\"driver\":\"nbd\",\"export\":\"disk\",\
         \"server\":{{\"type\":\"unix\",\"path\":\"nbd.sock\"}}{more}}}}}"
    )
}

#[test]
fn a_disk_is_backed_up_from_either_server_and_restored_to_it() {
    for program in programs() {
        let place = Place::new();
        let server = place.server(program, &[], "");
        let disk = place.scratch.join("disk.img");
        let before = content(&disk);
        let by_json = json_name(&format!(",\"tls-creds\":\"t\",\"tls-hostname\":\"{HOST}\""));
        let names = [
            (uri("&tls-certificates=alice"), vec![]),
            (uri("&tls-creds=t"), vec!["--object", OBJECT]),
            // The only ones that there are.
            (uri(""), vec!["--object", OBJECT]),
            (by_json, vec!["--object", OBJECT]),
        ];
        for (name, more) in names {
            let words = [
                &["backup", &name, "copy.raw", "--overwrite", "--verify"],
                &more[..],
            ];
            ringback_in(&place, &words.concat()).succeeded();
            assert!(content(&place.scratch.join("copy.raw")) == before, "{name}");
        }
        let changed: Vec<u8> = before.iter().map(|byte| !byte).collect();
        std::fs::write(place.scratch.join("copy.raw"), &changed).expect("a file");
        let target = uri("&tls-certificates=alice");
        let words = ["backup", "copy.raw", &target, "--overwrite", "--verify"];
        ringback_in(&place, &words).succeeded();
        assert!(content(&disk) == changed, "{program:?}");
        let _ = server.quit();
    }
}

#[test]
fn commands_reach_a_disk() {
    for program in programs() {
        let place = Place::new();
        let server = place.server(program, &[], "");
        let options = format!(
            "driver=nbd,server.type=unix,server.path=nbd.sock,export=disk,tls-creds=t,\
             tls-hostname={HOST}"
        );
        let write = [
            "io",
            "--object",
            OBJECT,
            "--image-opts",
            &options,
            "-c",
            "write -P 7 0 4k",
        ];
        ringback_in(&place, &write).succeeded();
        let name = uri("&tls-certificates=alice");
        let read = [
            "io",
            "-r",
            "-f",
            "raw",
            &name,
            "-c",
            "read -P 7 0 4k",
            "-c",
            "length",
        ];
        let finished = ringback_in(&place, &read).succeeded();
        assert!(finished.stdout.contains("24 MiB"), "{finished:#?}");
        let _ = server.quit();
        assert_eq!(content(&place.scratch.join("disk.img"))[..4096], [7; 4096]);
    }
}

/// What is wrong, and what to do.
#[test]
fn errors_say_what_to_do() {
    let place = Place::new();
    let another = Authority::new("Another authority");
    let doubter = place.client("doubter");
    another.trusted_in(&doubter);
    another.sign(&doubter, "client", "doubter");
    let stranger = place.client("stranger");
    another.sign(&stranger, "client", "stranger");
    let odd = "tls-creds-x509,id=odd,dir=stranger,endpoint=client,sanity-check=off";
    let nobody = place.scratch.directory("nobody");
    place.authority.trusted_in(&nobody);
    let server = place.daemon(&[], "");
    let object = ["--object", OBJECT];
    let no_host = "nbds+unix:///disk?socket=nbd.sock&tls-certificates=alice".to_owned();
    let clear = "nbd+unix:///disk?socket=nbd.sock".to_owned();
    for (name, more, texts) in [
        (
            uri("&tls-certificates=nowhere"),
            &[][..],
            [
                "Unable to access credentials nowhere/ca-cert.pem",
                "client-cert.pem with",
            ],
        ),
        (
            uri("&tls-creds=t&tls-hostname=wrong.example"),
            &object,
            [
                "does not match the hostname wrong.example",
                "tls-hostname=NAME says",
            ],
        ),
        (
            no_host,
            &[],
            [
                "No hostname for certificate validation",
                "tls-hostname=NAME does",
            ],
        ),
        (
            uri("&tls-certificates=doubter"),
            &[],
            [
                "invalid peer certificate",
                "ca-cert.pem of the credentials must be",
            ],
        ),
        (
            uri("&tls-creds=odd"),
            &["--object", odd],
            ["'nbds+unix://localhost/disk", "the server has hung up"],
        ),
        (
            uri("&tls-certificates=nobody"),
            &[],
            ["'nbds+unix://localhost/disk", "the server has hung up"],
        ),
        (
            uri("&tls-certificates=stranger"),
            &[],
            ["stranger", "failed validation"],
        ),
        (
            uri(""),
            &[],
            ["which credentials?", "--object tls-creds-x509"],
        ),
        (
            uri("&tls-creds=zz"),
            &object,
            ["No TLS credentials with id 'zz'", "zz"],
        ),
        (
            uri("&tls-creds=s"),
            &["--object", "tls-creds-x509,id=s,dir=server,endpoint=server"],
            ["Expected TLS credentials for a client endpoint", "client"],
        ),
        (clear, &[], ["TLS negotiation required", "nbds://"]),
    ] {
        let words = [&["backup", &name, "copy.raw"], more].concat();
        let mut finished = ringback_in(&place, &words).failed_with(1);
        for text in texts {
            finished = finished.saying(text);
        }
    }
    let missing = "tls-creds-x509,id=t,dir=nowhere,endpoint=client";
    for words in [
        ["backup", "--object", missing, "disk.img", "copy.raw"],
        ["io", "--object", missing, "-r", "disk.img"],
    ] {
        let finished = ringback_in(&place, &words).failed_with(1);
        finished.saying("Unable to access credentials nowhere/ca-cert.pem");
    }
    let _ = server.quit();
    assert!(!place.scratch.join("copy.raw").exists());
    let words = ["--export", "nbd,id=e,node-name=disk,name=disk"];
    let server = ringback_tests::qmp::Daemon::start(
        Program::Ringback,
        place.scratch.path(),
        &[
            &["--blockdev", "file,node-name=disk,filename=disk.img"],
            &["--nbd-server", "addr.type=unix,addr.path=nbd.sock"],
            &words[..],
        ]
        .concat(),
    );
    let name = uri("&tls-certificates=alice");
    let finished = ringback_in(&place, &["backup", &name, "copy.raw"]).failed_with(1);
    finished.saying("does without TLS");
    let _ = server.quit();
    assert_eq!(content(&place.scratch.join("disk.img")).len() as u64, SIZE);
}
