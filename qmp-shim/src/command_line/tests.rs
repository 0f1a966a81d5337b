use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::address::MAX_PATH;
use super::chardev::{Side, Socket};
use super::drive::{Interface, Media, ReadErrorAction, WriteErrorAction};
use super::export::ExportBitmap;
use super::*;
use crate::blockdev::{Aio, DetectZeroes};
use crate::visit::{Leaves, Reader};

fn run(words: &[&str]) -> Answer {
    let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
    parse("rb", &words)
}

fn line(words: &[&str]) -> CommandLine {
    match run(words).request {
        Ok(Request::Run(line)) => *line,
        other => panic!("{words:?} gave {other:?}"),
    }
}

fn error(words: &[&str]) -> String {
    match run(words).request {
        Err(text) => text,
        Ok(other) => panic!("{words:?} gave {other:?}"),
    }
}

fn shown(words: &[&str]) -> String {
    match run(words).request {
        Ok(Request::Show(text)) => text,
        other => panic!("{words:?} gave {other:?}"),
    }
}

fn members(value: &Value) -> &Map<String, Value> {
    value.as_object().unwrap()
}

#[test]
fn options_keep_their_order_and_their_words() {
    let line = line(&[
        "--blockdev=null-co,node-name=n",
        "--pid",
        "p",
        "--chardev",
        "null,id=c",
        "--mon",
        "c",
        "--object",
        "iothread,id=i",
        "--nbd-server",
        "addr.type=unix,addr.path=s",
        "--export",
        "nbd,id=e,node-name=n,iothread=i",
        "--drive",
        "if=none,id=d",
        "--device",
        "scsi-cd,drive=d",
        "--daemonize",
        "--shards",
        "4",
        "--poll",
        "0",
        "-vv",
        "-T",
        "block_*",
    ]);
    let words: Vec<_> = line
        .options
        .iter()
        .map(|placed| placed.words.as_str())
        .collect();
    let wanted = [
        "--blockdev=null-co,node-name=n",
        "--chardev null,id=c",
        "--mon c",
        "--object iothread,id=i",
        "--nbd-server addr.type=unix,addr.path=s",
        "--export nbd,id=e,node-name=n,iothread=i",
        "--drive if=none,id=d",
        "--device scsi-cd,drive=d",
    ];
    assert_eq!(words, wanted);
    assert!(matches!(line.options[0].option, Opt::Blockdev(_)));
    assert!(matches!(line.options[7].option, Opt::Device(_)));
    let said = line.options[2].complain("rb", "no");
    assert_eq!(said, "rb: --mon c: no");
    assert_eq!(line.pidfile.as_deref(), Some("p"));
    assert!(line.daemonize);
    assert_eq!(line.shards.map(NonZeroU16::get), Some(4));
    assert_eq!(line.poll, Some(Duration::ZERO));
    assert_eq!(line.verbosity, 2);
}

#[test]
fn metrics_have_an_address_in_one_word() {
    let address = |word: &str| {
        let line = line(&["--metrics", word]);
        match &line.options[..] {
            [
                Placed {
                    option: Opt::Metrics(address),
                    ..
                },
            ] => address.clone(),
            other => panic!("{other:?}"),
        }
    };
    for (word, host) in [
        ("localhost:9100", "localhost"),
        ("[::1]:9100", "::1"),
        (":9100", ""),
    ] {
        let wanted = SocketAddress::Inet(InetAddress {
            host: host.into(),
            port: "9100".into(),
            ..InetAddress::default()
        });
        assert_eq!(address(word), wanted);
    }
    let unix = address("unix:/run/a:1");
    assert!(matches!(unix, SocketAddress::Unix(unix) if unix.path == "/run/a:1"));
    for word in ["", "host", "::1:9", "[::1:9", "h:", "h:x", "h:65536"] {
        let why = format!("'{word}' is no address: HOST:PORT or unix:PATH is wanted");
        assert_eq!(
            error(&["--metrics", word]),
            format!("rb: --metrics {word}: {why}")
        );
    }
    assert_eq!(
        error(&["--metrics", ":1", "--metrics", ":2"]),
        "rb: --metrics :2: Metrics are served already"
    );
}

#[test]
fn help_and_version_end_the_reading() {
    assert_eq!(
        shown(&["x", "-V", "--bogus"]),
        format!("rb {}\n", env!("CARGO_PKG_VERSION"))
    );
    assert!(shown(&["x", "--h"]).starts_with("Usage: rb [OPTIONS]"));
    assert_eq!(
        error(&["--bogus", "-h"]),
        "rb: unrecognized option '--bogus'"
    );
    assert!(shown(&["-T", "help"]).is_empty());
    assert!(shown(&["--chardev", "help"]).contains("\n  socket\n"));
    assert!(shown(&["--chardev", "null,help"]).contains("\n  wait=<bool (on/off)>\n"));
    for words in ["help", "bogus,help", "help,id=x", "?"] {
        let text = shown(&["--object", words]);
        assert!(text.contains("\n  tls-creds-x509\n"), "{text}");
    }
    let text = shown(&["--object", "secret,?"]);
    assert!(
        text.starts_with("secret options:\n  data=<string>\n"),
        "{text}"
    );
    let text = shown(&["--object", "throttle-group,help"]);
    assert_eq!(text.lines().count(), 1 + 2 * 19, "{text}");
}

#[test]
fn what_is_ours_is_checked() {
    let shards = "The number of shards must be from 1 to 1024";
    for number in ["0", "-1", "1025", "x", "", "65537"] {
        let wanted = format!("rb: --shards {number}: {shards}");
        assert_eq!(error(&["--shards", number]), wanted);
    }
    let poll = "The time must be from 0 to 1000000 microseconds";
    for time in ["-1", "1000001", "x", ""] {
        let wanted = format!("rb: --poll {time}: {poll}");
        assert_eq!(error(&["--poll", time]), wanted);
    }
    assert_eq!(error(&["--", "x"]), "rb: x: Unexpected argument");
    assert_eq!(error(&["--", "--help"]), "rb: --help: Unexpected argument");
}

#[test]
fn warnings_come_before_the_error() {
    let answer = run(&["--chardev", "socket,id=a,path=p,server,nowait,bogus,foo"]);
    let wanted = [
        "rb: --chardev socket,id=a,path=p,server,nowait,bogus,foo: warning: short-form boolean \
         option 'server' deprecated\nPlease use server=on instead",
        "rb: --chardev socket,id=a,path=p,server,nowait,bogus,foo: warning: short-form boolean \
         option 'nowait' deprecated\nPlease use wait=off instead",
        "rb: --chardev socket,id=a,path=p,server,nowait,bogus,foo: warning: short-form boolean \
         option 'bogus' deprecated\nPlease use bogus=on instead",
    ];
    assert_eq!(answer.warnings, wanted);
    assert!(
        answer
            .request
            .unwrap_err()
            .ends_with(": Invalid parameter 'bogus'")
    );
}

fn socket(text: &str) -> Socket {
    let line = line(&["--chardev", text]);
    match &line.options[0].option {
        Opt::Chardev(Chardev {
            backend: Backend::Socket(socket),
            ..
        }) => socket.clone(),
        other => panic!("{text} gave {other:?}"),
    }
}

#[test]
fn sockets_wait_or_do_not_or_connect() {
    for (rest, side) in [
        ("server=on", Side::Server { wait: true }),
        ("server", Side::Server { wait: true }),
        ("server=on,wait=on", Side::Server { wait: true }),
        ("server=on,wait=off", Side::Server { wait: false }),
        ("server,nowait", Side::Server { wait: false }),
        ("noserver", Side::Client { reconnect_ms: 0 }),
        ("reconnect=2", Side::Client { reconnect_ms: 2000 }),
        ("reconnect-ms=7", Side::Client { reconnect_ms: 7 }),
    ] {
        assert_eq!(
            socket(&format!("socket,id=a,path=p,{rest}")).side,
            side,
            "{rest}"
        );
    }
    let found = socket("socket,id=a,host=h,port=1,to=9,ipv6=off,nodelay,server=on");
    let wanted = InetAddress {
        host: "h".to_owned(),
        port: "1".to_owned(),
        to: Some(9),
        ipv6: Some(false),
        ..InetAddress::default()
    };
    assert_eq!(found.address, SocketAddress::Inet(wanted));
    assert!(found.no_delay);
    assert!(socket("socket,id=a,host=h,port=1,delay=off").no_delay);
    assert!(!socket("socket,id=a,host=h,port=1").no_delay);
    assert_eq!(socket("socket,id=a,fd=3").address.descriptor(), Ok(Some(3)));
    let found = socket("socket,id=a,path=p,abstract=on,tight=off").address;
    let wanted = UnixAddress {
        path: "p".to_owned(),
        is_abstract: true,
        is_tight: false,
    };
    assert_eq!(found, SocketAddress::Unix(wanted));
}

#[test]
fn paths_have_the_length_that_the_kernel_has_room_for() {
    for (rest, max) in [("", MAX_PATH), (",addr.abstract=on", MAX_PATH - 1)] {
        let server = |len| {
            NbdServer::parse(&format!(
                "addr.type=unix,addr.path={}{rest}",
                "x".repeat(len)
            ))
        };
        assert!(server(max).is_ok());
        let found = server(max + 1).unwrap_err().to_string();
        assert!(
            found.ends_with(&format!("\nPath must be less than {max} bytes")),
            "{found}"
        );
    }
}

#[test]
fn objects_are_read_from_both_languages() {
    let make = |text: &str| match ObjectOptions::parse(text).unwrap() {
        ObjectRequest::Make(object) => object,
        ObjectRequest::Help(text) => panic!("{text}"),
    };
    for (text, arguments) in [
        (
            "iothread,id=i,poll-max-ns=5,thread-pool-max=3",
            json!({"qom-type": "iothread", "id": "i", "poll-max-ns": 5, "thread-pool-max": 3}),
        ),
        (
            "secret,id=s,data=eHk=,format=base64",
            json!({"qom-type": "secret", "id": "s", "data": "eHk=", "format": "base64"}),
        ),
        (
            "secret,id=s,file=f",
            json!({"qom-type": "secret", "id": "s", "file": "f"}),
        ),
        (
            "tls-creds-x509,id=t,dir=d,endpoint=server,verify-peer=off,passwordid=s",
            json!({
                "qom-type": "tls-creds-x509", "id": "t", "dir": "d", "endpoint": "server",
                "verify-peer": false, "passwordid": "s",
            }),
        ),
        (
            "tls-creds-psk,id=t,dir=d,username=u",
            json!({"qom-type": "tls-creds-psk", "id": "t", "dir": "d", "username": "u"}),
        ),
        (
            "authz-list,id=a,policy=allow,rules.0.match=m,rules.0.policy=deny,rules.0.format=glob",
            json!({
                "qom-type": "authz-list", "id": "a", "policy": "allow",
                "rules": [{"match": "m", "policy": "deny", "format": "glob"}],
            }),
        ),
        (
            "authz-listfile,id=a,filename=f,refresh=off",
            json!({
                "qom-type": "authz-listfile", "id": "a", "filename": "f", "refresh": false,
            }),
        ),
        (
            "throttle-group,id=g,limits.iops-total=5",
            json!({"qom-type": "throttle-group", "id": "g", "limits": {"iops-total": 5}}),
        ),
    ] {
        let object = make(text);
        let found = ObjectOptions::read(Reader::new(members(&arguments), Leaves::Typed));
        assert_eq!(found, Ok(object.clone()), "{text}");
        assert_eq!(make(&arguments.to_string()), object, "{text}");
    }
    let ObjectKind::Secret(secret) = make("secret,id=s,data=eHk=,format=base64").kind else {
        panic!("a secret");
    };
    let wanted = object::SecretSource::Data(object::Secret(b"xy".to_vec()));
    assert_eq!(secret.source, wanted);
}

#[test]
fn servers_are_read_from_both_languages() {
    let text = "addr.type=inet,addr.host=h,addr.port=1,addr.to=5,tls-creds=t,max-connections=7";
    let server = NbdServer::parse(text).unwrap();
    let legacy = json!({
        "addr": {"type": "inet", "data": {"host": "h", "port": "1", "to": 5}},
        "tls-creds": "t", "max-connections": 7,
    });
    assert_eq!(
        NbdServer::from_arguments(Reader::new(members(&legacy), Leaves::Typed)),
        Ok(server.clone())
    );
    assert_eq!(server.handshake_max_seconds, 10);
    let server = NbdServer::parse("addr.type=unix,addr.path=p").unwrap();
    assert_eq!(server.max_connections, 100);
    // A monitor may have given it a name.
    let legacy = json!({"addr": {"type": "fd", "data": {"str": "name"}}});
    let server = NbdServer::from_arguments(Reader::new(members(&legacy), Leaves::Typed)).unwrap();
    assert_eq!(server.address, SocketAddress::Fd("name".to_owned()));
    for (arguments, wanted) in [
        (
            json!({"addr": {"type": "unix", "path": "p"}}),
            "Parameter 'addr.data' is missing",
        ),
        (
            json!({"addr": {"type": "unix", "data": {}}}),
            "Parameter 'addr.data.path' is missing",
        ),
        (
            json!({"addr": {"type": "unix", "data": {"path": "p", "x": 1}}}),
            "Parameter 'addr.data.x' is unexpected",
        ),
        (
            json!({"addr": {"type": "unix", "data": {"path": "p\0"}}}),
            "Parameter 'path' contains a NUL character",
        ),
    ] {
        let found =
            NbdServer::from_arguments(Reader::new(members(&arguments), Leaves::Typed)).unwrap_err();
        assert_eq!(found.to_string(), wanted);
    }
}

#[test]
fn exports_are_read_from_both_languages() {
    let text = "nbd,id=e,node-name=n,name=x,description=d,writable=on,bitmaps.0=b,\
                bitmaps.1.node=m,bitmaps.1.name=c,allocation-depth=on,allow-inactive=on";
    let export = Export::parse(text).unwrap();
    let arguments = json!({
        "type": "nbd", "id": "e", "node-name": "n", "name": "x", "description": "d",
        "writable": true, "bitmaps": ["b", {"node": "m", "name": "c"}],
        "allocation-depth": true, "allow-inactive": true,
    });
    assert_eq!(
        Export::from_arguments(Reader::new(members(&arguments), Leaves::Typed)),
        Ok(export.clone())
    );
    let ExportKind::Nbd(own) = export.kind else {
        panic!("NBD");
    };
    let bitmap = |node: Option<&str>, name: &str| ExportBitmap {
        node: node.map(str::to_owned),
        name: name.to_owned(),
    };
    assert_eq!(own.bitmaps, [bitmap(None, "b"), bitmap(Some("m"), "c")]);
    let text = "vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=p,logical-block-size=4k";
    let ExportKind::VhostUserBlk(own) = Export::parse(text).unwrap().kind else {
        panic!("vhost-user");
    };
    assert_eq!((own.logical_block_size, own.num_queues), (4096, 1));
    // Known, but not to be had.
    let text = "fuse,id=e,node-name=n,mountpoint=m";
    let found = Export::parse(text).unwrap().check_supported().unwrap_err();
    assert_eq!(
        found.to_string(),
        "Exports of type 'fuse' are not supported by ringback; use nbd or vhost-user-blk"
    );
}

fn drive(text: &str) -> Drive {
    Drive::parse(text, &mut Vec::new()).unwrap()
}

#[test]
fn drives_are_taken_apart() {
    let found = drive(
        "id=d,if=virtio,index=3,file=a.img,format=raw,cache=none,aio=native,snapshot=on,\
         werror=stop,rerror=ignore,bps=5,group=g,file.locking=off,node-name=n,discard=unmap,\
         detect-zeroes=unmap",
    );
    assert_eq!(found.id.as_deref(), Some("d"));
    assert_eq!(found.interface, Interface::Virtio);
    assert_eq!(found.place.index, Some(3));
    assert_eq!(found.file.as_deref(), Some("a.img"));
    let options = json!({
        "file.locking": "off", "node-name": "n", "discard": "unmap", "driver": "raw",
    });
    assert_eq!(Value::Object(found.options.clone()), options);
    assert!(found.settings.direct && found.settings.direct_given && found.settings.read_only);
    assert_eq!(found.settings.detect_zeroes, DetectZeroes::Unmap);
    assert_eq!(found.aio, Some(Aio::Native));
    assert_eq!(found.werror, WriteErrorAction::Stop);
    assert_eq!(found.rerror, ReadErrorAction::Ignore);
    assert!(found.snapshot && !found.writethrough);
    let throttle = found.throttle.as_ref().unwrap();
    assert_eq!(throttle.group.as_deref(), Some("g"));
    assert_eq!(throttle.limits.to_json()["bps-total"], 5);
    let Some(crate::open::OpenNode::Driver(node)) = found.open().unwrap() else {
        panic!("a node with a driver");
    };
    assert_eq!(node.driver.name(), "raw");

    let empty = drive("if=none,id=d,media=cdrom,file=");
    assert!(empty.is_empty() && empty.settings.read_only);
    assert_eq!(empty.media, Media::Cdrom);
    assert_eq!(empty.open(), Ok(None));

    let zeroes = drive("file=a.img,format=raw,detect-zeroes=unmap").settings;
    assert_eq!(zeroes.detect_zeroes, DetectZeroes::On);
    for (mode, direct, writethrough, no_flush) in [
        ("none", true, false, false),
        ("off", true, false, false),
        ("directsync", true, true, false),
        ("writeback", false, false, false),
        ("writethrough", false, true, false),
        ("unsafe", false, false, true),
    ] {
        let found = drive(&format!("file=a.img,format=raw,cache={mode}"));
        let wanted = (direct, writethrough, no_flush);
        let settings = found.settings;
        assert_eq!(
            (settings.direct, found.writethrough, settings.no_flush),
            wanted,
            "{mode}"
        );
    }
    assert!(drive("file=a,format=raw,cache=none,cache.writeback=off").writethrough);
    let mut warnings = Vec::new();
    let text = "file=a.img,format=raw,readonly,copy-on-read=on";
    assert!(!Drive::parse(text, &mut warnings).unwrap().copy_on_read);
    assert_eq!(warnings.len(), 2, "{warnings:?}");
}

/// Each of these was given to qemu-system-x86_64 10.0, but for the last group.
#[test]
fn errors_of_drives_are_those_of_qemu() {
    let id = "Parameter 'id' expects an identifier\nIdentifiers consist of letters, digits, '-', \
              '.', '_', starting with a letter.";
    let both = "bps/iops/max total values and read/write values cannot be used at the same time";
    let nothing = "Must specify either driver or file";
    for (text, wanted) in [
        ("if=none,id=1", id),
        ("if=none,iops=x,id=1", id),
        ("if=x", "unsupported bus type 'x'"),
        ("if=default", "unsupported bus type 'default'"),
        ("if=none,foo=1", nothing),
        ("if=none,cache=none", nothing),
        ("if=none,discard=unmap", nothing),
        ("if=none,node-name=x", nothing),
        ("help", nothing),
        ("if=none,file=a.img,format=zz", "Unknown driver 'zz'"),
        (
            "if=none,file=a.img,driver=raw,format=raw",
            "Cannot specify both 'driver' and 'format'",
        ),
        ("if=none,driver=zz", "Unknown driver 'zz'"),
        (
            "if=none,format=raw",
            "A block device must be specified for \"file\"",
        ),
        ("if=none,media=x,if=y", "'x' invalid media"),
        (
            "if=none,snapshot=x",
            "Parameter 'snapshot' expects 'on' or 'off'",
        ),
        ("if=none,cache=x,bus=y", "invalid cache option"),
        ("if=none,aio=x,file=a.img,format=raw", "invalid aio option"),
        (
            "if=none,aio=native,file=a.img,format=raw",
            "aio=native was specified, but it requires cache.direct=on, which was not specified.",
        ),
        (
            "if=none,discard=x,file=a.img,format=raw",
            "Invalid discard option",
        ),
        ("if=none,detect-zeroes=x", "invalid parameter value: x"),
        (
            "if=none,readonly=x",
            "Parameter 'read-only' expects 'on' or 'off'",
        ),
        (
            "if=none,readonly=on,read-only=on,file=a.img,format=raw",
            "'read-only' and its alias 'readonly' can't be used at the same time",
        ),
        (
            "if=none,copy-on-read=x",
            "Parameter 'copy-on-read' expects 'on' or 'off'",
        ),
        ("if=none,werror=x", "'x' invalid write error action"),
        (
            "if=none,rerror=enospc",
            "'enospc' invalid read error action",
        ),
        (
            "if=floppy,werror=stop",
            "werror is not supported by this bus type",
        ),
        (
            "if=floppy,rerror=stop",
            "rerror is not supported by this bus type",
        ),
        (
            "if=none,bus=x,readonly=y",
            "Parameter 'bus' expects a number",
        ),
        ("if=none,unit=x", "Parameter 'unit' expects a number"),
        ("if=none,index=x", "Parameter 'index' expects a number"),
        (
            "if=none,index=1,bus=1",
            "index cannot be used with bus and unit",
        ),
        (
            "if=ide,index=1,unit=2",
            "index cannot be used with bus and unit",
        ),
        ("if=x,media=y", "'y' invalid media"),
        ("if=x,index=1,bus=2", "unsupported bus type 'x'"),
        (
            "if=none,bps=1M",
            "Parameter 'throttling.bps-total' expects a number",
        ),
        (
            "if=none,bps=1,throttling.bps-total=2",
            "'throttling.bps-total' and its alias 'bps' can't be used at the same time",
        ),
        ("if=none,bps=1,bps_rd=2", both),
        ("if=none,bps=1,bps_rd=1,detect-zeroes=x", both),
        (
            "if=none,iops_size=3",
            "iops size requires an iops value to be set",
        ),
        ("if=none,werror=x,aio=y", "invalid aio option"),
        (
            "if=none,werror=x,snapshot=y",
            "'x' invalid write error action",
        ),
        (
            "if=none,aio=x,throttling.bps-total=y",
            "Parameter 'throttling.bps-total' expects a number",
        ),
        (
            "if=none,format=raw,driver=raw,werror=x",
            "Cannot specify both 'driver' and 'format'",
        ),
        (
            "if=scsi,file=a.img,format=zz,werror=x",
            "'x' invalid write error action",
        ),
        (
            "if=none,file=a.img,format=raw,bps=1000000000000001",
            "bps/iops/max values must be within [0, 1000000000000000]",
        ),
        (
            "if=none,file=a.img,format=raw,throttling.iops-total-max-length=0",
            "the burst length cannot be 0",
        ),
        (
            "if=none,file=a.img,format=raw,throttling.foo=1",
            "Block format 'raw' does not support the option 'throttling.foo'",
        ),
        (
            "if=none,cache.writeback=x",
            "Parameter 'cache.writeback' expects 'on' or 'off'",
        ),
        (
            "if=none,node-name=1,file=a.img,format=raw",
            "Invalid node-name: '1'",
        ),
        (
            "if=none,file=a.img,format=raw,foo=1",
            "Block format 'raw' does not support the option 'foo'",
        ),
        (
            "if=none,file=a.img,format=raw,file.foo=1",
            "Block protocol 'file' doesn't support the option 'foo'",
        ),
        // Our own.
        (
            "if=none,file=a.img,stats-account-invalid=on",
            "Parameter 'stats-account-invalid' is not supported by ringback; leave it out",
        ),
        (
            "if=none,index=-1",
            "Parameter 'index' must be a number from 0 to 65535",
        ),
    ] {
        let found = Drive::parse(text, &mut Vec::new());
        assert_eq!(found.unwrap_err().to_string(), wanted, "{text}");
    }
}

#[test]
fn devices_keep_what_they_do_not_know() {
    let text = "virtio-blk,drive=n,id=d,bus=b,share-rw=on,bootindex=1";
    let found = Device::parse(text, &mut Vec::new()).unwrap();
    assert_eq!(found.model.name(), "virtio-blk");
    assert_eq!(found.drive.as_deref(), Some("n"));
    assert_eq!(found.id.as_deref(), Some("d"));
    assert_eq!(found.bus.as_deref(), Some("b"));
    assert!(found.share_rw);
    assert_eq!(
        Value::Object(found.properties.clone()),
        json!({"bootindex": "1"})
    );
    assert!(found.check_properties(&["bootindex"]).is_ok());
    let refused = found.check_properties(&[]).unwrap_err().to_string();
    assert_eq!(refused, "Property 'virtio-blk.bootindex' not found");
    let arguments = json!({"driver": "scsi-hd", "share-rw": true, "lun": 3, "removable": true});
    let found = Device::from_arguments(members(&arguments)).unwrap();
    assert_eq!(Value::Object(found.properties.clone()), json!({"lun": 3}));
    assert!(found.is_removable());
    let json = Device::parse(&arguments.to_string(), &mut Vec::new());
    assert_eq!(json, Ok(found));
    for (name, disk, controller, removable) in [
        ("virtio-blk-ccw", true, false, false),
        ("scsi-cd", true, false, true),
        ("floppy", true, false, true),
        ("nvme", true, true, false),
        ("virtio-scsi", false, true, false),
        ("pcie-root-port", false, true, false),
    ] {
        let device = Device::parse(name, &mut Vec::new()).unwrap();
        let found = (
            device.is_disk(),
            device.is_controller(),
            device.is_removable(),
        );
        assert_eq!(found, (disk, controller, removable), "{name}");
    }
}

/// Each of these was given to qemu-system-x86_64 10.0, but for the last one.
#[test]
fn errors_of_devices_are_those_of_qemu() {
    for (text, wanted) in [
        ("", "Parameter 'driver' is missing"),
        ("id=a", "Parameter 'driver' is missing"),
        ("zz", "'zz' is not a valid device model name"),
        ("driver=", "'' is not a valid device model name"),
        (",id=x", "'' is not a valid device model name"),
        (
            "virtio-blk,drive=n,share-rw=x",
            "Parameter 'share-rw' expects 'on' or 'off'",
        ),
        (r#"{"driver":1}"#, "Parameter 'driver' is missing"),
        (
            r#"{"driver":"virtio-blk","share-rw":"on","drive":"n"}"#,
            "Invalid parameter type for 'share-rw', expected: boolean",
        ),
    ] {
        let found = Device::parse(text, &mut Vec::new()).unwrap_err();
        assert_eq!(found.to_string(), wanted, "{text}");
    }
    let found = Device::parse("scsi-block", &mut Vec::new()).unwrap_err();
    assert!(matches!(found, ArgumentError::UnsupportedModel { .. }));
}

/// Words that get further than chance would.
fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        "--?[a-z]{0,10}(=[a-z.,=]{0,10})?",
        "(socket|null|nbd|iothread|secret|virtio-blk|if=none|addr.type=unix)(,(id|path|file|server|addr.path|node-name|data)(=[a-z0-9,.{]{0,6})?){0,5}",
        ".{0,20}",
    ]
}

proptest! {
    #[test]
    fn any_words_are_a_command_line_or_an_error(words in prop::collection::vec(word(), 0..6)) {
        let _ = parse("rb", &words);
    }

    #[test]
    fn any_argument_is_an_option_or_an_error(
        option in prop::sample::select(vec![
            "--chardev", "--monitor", "--object", "--nbd-server", "--export", "--drive",
            "--device", "--trace", "--shards", "--metrics", "--poll",
        ]),
        argument in word(),
    ) {
        let _ = parse("rb", &[option.to_owned(), argument]);
    }
}
