//! Server and clients over TCP, IPv4 and IPv6.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};

use ringback_tests::image::assert_identical;
use ringback_tests::needs::{Need, needs};
use ringback_tests::qmp::{Daemon, Program};

use crate::{make_disks, program, scratch};

const NEEDED: &[Need] = &[
    Need::Program("qemu-img"),
    Need::Program("qemu-io"),
    Need::Program("nbdinfo"),
    Need::Program("nbdcopy"),
];

/// A port at this address that was free just now. None: this machine has no such
/// address.
fn free_port(address: IpAddr) -> Option<u16> {
    let listener = TcpListener::bind((address, 0)).ok()?;
    Some(listener.local_addr().expect("bound").port())
}

/// Copies there and back by everybody's clients, from a server at `host`.
fn copies(host: &str, address: IpAddr) {
    if !needs(NEEDED) {
        return;
    }
    let Some(port) = free_port(address) else {
        println!("skipped: needs the address {address}");
        return;
    };
    let scratch = scratch();
    make_disks(scratch.path());
    let here = |words: &[&str]| program(scratch.path(), words);
    let nodes = [
        "--blockdev",
        "raw,node-name=r,file.driver=file,file.filename=plain.raw",
        "--blockdev",
        "raw,node-name=w,file.driver=file,file.filename=copy.raw",
    ];
    here(&["qemu-img", "create", "-q", "-f", "raw", "copy.raw", "5000k"]);
    let server = format!("addr.type=inet,addr.host={host},addr.port={port},max-connections=0");
    let exports = [
        "--nbd-server",
        &server,
        "--export",
        "nbd,id=e0,node-name=r,name=r",
        "--export",
        "nbd,id=e1,node-name=w,name=w,writable=on",
    ];
    let words = [&nodes[..], &exports[..]].concat();
    let daemon = Daemon::start(Program::Ringback, scratch.path(), &words);
    let authority = match address {
        IpAddr::V4(_) => format!("{address}:{port}"),
        IpAddr::V6(_) => format!("[{address}]:{port}"),
    };
    let [from, to] = ["r", "w"].map(|export| format!("nbd://{authority}/{export}"));
    assert_eq!(here(&["nbdinfo", "--size", &from]), "5120000\n");
    let list = here(&["nbdinfo", "--list", "--json", &format!("nbd://{authority}")]);
    assert!(list.contains("\"export-name\": \"w\""), "{list}");
    here(&["nbdcopy", "--connections=4", "--requests=32", &from, &to]);
    let raw = ["-f", "raw", "-F", "raw"];
    here(&[&["qemu-img", "compare"], &raw[..], &[&from, &to]].concat());
    here(&["qemu-img", "convert", "-O", "raw", &to, "back.raw"]);
    let _ = daemon.quit();
    for copy in ["copy.raw", "back.raw"] {
        assert_identical(&scratch.join(copy), &scratch.join("plain.raw"));
    }
}

#[test]
fn over_ipv4() {
    copies("127.0.0.1", Ipv4Addr::LOCALHOST.into());
}

#[test]
fn over_ipv6() {
    copies("::1", Ipv6Addr::LOCALHOST.into());
}

/// A name is looked up, whichever kind of address it has here.
#[test]
fn over_ipv4_by_name() {
    copies("localhost,addr.ipv4=on", Ipv4Addr::LOCALHOST.into());
}
