//! Byte by byte: what a client, or somebody between, may say before TLS, and that
//! none of it counts afterwards.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use ringback_tests::certificates::HOST;
use ringback_tests::process::LIMIT;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::place::Place;

const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

const EXPORT_NAME: u32 = 1;
const ABORT: u32 = 2;
const LIST: u32 = 3;
const STARTTLS: u32 = 5;
const GO: u32 = 7;
const STRUCTURED_REPLY: u32 = 8;

const ACK: u32 = 1;
const SERVER: u32 = 2;
const ERR_INVALID: u32 = 0x8000_0003;
const ERR_TLS_REQD: u32 = 0x8000_0005;

/// Connects and takes the greeting.
fn greeted(place: &Place, flags: u32) -> UnixStream {
    let mut stream = UnixStream::connect(place.socket()).expect("a server");
    stream.set_read_timeout(Some(LIMIT)).expect("a time limit");
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).expect("a greeting");
    stream.write_all(&flags.to_be_bytes()).expect("sent");
    stream
}

fn option(kind: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("short");
    let parts: [&[u8]; 4] = [
        OPTION_MAGIC,
        &kind.to_be_bytes(),
        &len.to_be_bytes(),
        payload,
    ];
    parts.concat()
}

/// Sends an option and takes one answer: what kind, and what it says.
#[track_caller]
fn ask(stream: &mut (impl Read + Write), kind: u32, payload: &[u8]) -> (u32, String) {
    stream.write_all(&option(kind, payload)).expect("sent");
    stream.flush().expect("sent");
    answer(stream, kind)
}

#[track_caller]
fn answer(stream: &mut impl Read, kind: u32) -> (u32, String) {
    let mut header = [0; 20];
    stream.read_exact(&mut header).expect("an answer");
    let number = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("four"));
    assert_eq!(header[..8], REPLY_MAGIC.to_be_bytes());
    assert_eq!(number(8), kind);
    let mut text = vec![0; number(16) as usize];
    stream.read_exact(&mut text).expect("a text");
    (number(12), String::from_utf8_lossy(&text).into_owned())
}

/// What comes until the end of the stream.
fn rest(mut stream: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("no end: {error}"),
        _ => bytes,
    }
}

/// Starts TLS as the client of this directory.
fn secured(stream: UnixStream, directory: &Path) -> StreamOwned<ClientConnection, UnixStream> {
    let read = |name: &str| std::fs::read(directory.join(name)).expect("a file");
    let certificates = |name: &str| {
        let all = CertificateDer::pem_slice_iter(&read(name)).collect::<Result<Vec<_>, _>>();
        all.expect("certificates")
    };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates("ca-cert.pem"));
    let key = PrivateKeyDer::from_pem_slice(&read("client-key.pem")).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_client_auth_cert(certificates("client-cert.pem"), key)
        .expect("a client");
    let name = ServerName::try_from(HOST).expect("a name");
    let session = ClientConnection::new(Arc::new(config), name).expect("a session");
    StreamOwned::new(session, stream)
}

#[test]
fn tls_comes_first() {
    let place = Place::new();
    let daemon = place.daemon(&[], "");
    let mut stream = greeted(&place, 3);
    for kind in [LIST, GO, STRUCTURED_REPLY, 0, 99, u32::MAX] {
        let (error, text) = ask(&mut stream, kind, b"more than nothing");
        assert_eq!(error, ERR_TLS_REQD, "{kind}");
        assert_eq!(text, format!("Option {kind:#x} not permitted before TLS"));
    }
    // One that has no answer.
    stream
        .write_all(&option(EXPORT_NAME, b"disk"))
        .expect("sent");
    assert_eq!(rest(&stream), b"");

    let mut stream = greeted(&place, 3);
    let (error, _) = ask(&mut stream, ABORT, b"");
    assert_eq!(error, ERR_TLS_REQD);
    assert_eq!(rest(&stream), b"");

    let mut stream = greeted(&place, 3);
    let (error, text) = ask(&mut stream, STARTTLS, b"x");
    let long = "option 'starttls' has unexpected length";
    assert_eq!((error, text.as_str()), (ERR_INVALID, long));
    assert_eq!(rest(&stream), b"");

    // Who knows only the oldest option cannot ask for TLS.
    let mut stream = greeted(&place, 0);
    stream
        .write_all(&option(EXPORT_NAME, b"disk"))
        .expect("sent");
    assert_eq!(rest(&stream), b"");
    daemon
        .quit()
        .saying("Option 0x1 not permitted before TLS")
        .saying("Unsupported option 0x1");
}

/// CVE-2021-3716 and its kin: what is said in the clear has no effect under TLS.
#[test]
fn nothing_before_tls_counts() {
    let place = Place::new();
    let daemon = place.daemon(&[], "");
    let mut stream = greeted(&place, 3);
    assert_eq!(ask(&mut stream, STRUCTURED_REPLY, b"").0, ERR_TLS_REQD);
    assert_eq!(ask(&mut stream, STARTTLS, b"").0, ACK);
    let mut stream = secured(stream, &place.scratch.join("alice"));
    let again = ask(&mut stream, STARTTLS, b"");
    assert_eq!(again, (ERR_INVALID, "TLS already enabled".into()));
    let (error, text) = ask(&mut stream, STARTTLS, b"x");
    let long = "option 'starttls' has unexpected length";
    assert_eq!((error, text.as_str()), (ERR_INVALID, long));
    // For the first time.
    assert_eq!(ask(&mut stream, STRUCTURED_REPLY, b"").0, ACK);
    let (error, text) = ask(&mut stream, STRUCTURED_REPLY, b"");
    let twice = "structured reply already negotiated";
    assert_eq!((error, text.as_str()), (ERR_INVALID, twice));
    let (kind, name) = ask(&mut stream, LIST, b"");
    assert_eq!((kind, name.as_str()), (SERVER, "\0\0\0\u{4}disk"));
    assert_eq!(answer(&mut stream, LIST).0, ACK);
    assert_eq!(ask(&mut stream, ABORT, b"").0, ACK);
    // With TLS's farewell: without it this were an error.
    assert_eq!(rest(stream), b"");
    daemon.quit();
}

/// Options that somebody puts behind STARTTLS in the clear are not options.
#[test]
fn words_behind_starttls_are_not_options() {
    let place = Place::new();
    let daemon = place.daemon(&[], "");
    for injected in [
        option(LIST, b""),
        option(ABORT, b""),
        option(GO, &[&[0, 0, 0, 4][..], b"disk", &[0, 0]].concat()),
    ] {
        let mut stream = greeted(&place, 3);
        let all = [option(STARTTLS, b""), injected].concat();
        stream.write_all(&all).expect("sent");
        assert_eq!(answer(&mut stream, STARTTLS).0, ACK);
        // An alert of TLS at most, and the end.
        let rest = rest(&stream);
        assert!(rest.first().is_none_or(|kind| *kind == 0x15), "{rest:x?}");
    }
    daemon.quit().saying("TLS handshake failed");
}

#[test]
fn the_handshake_takes_its_time_from_the_client() {
    let place = Place::new();
    let daemon = place.daemon(&[], ",handshake-max-seconds=1");
    let mut silent = greeted(&place, 3);
    assert_eq!(ask(&mut silent, STARTTLS, b"").0, ACK);
    assert_eq!(rest(&silent), b"");
    daemon.quit();
}
