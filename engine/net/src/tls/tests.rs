//! Two sides of a connection under TLS, on shards of the kernel's ring.

use std::fs;
use std::future::Future;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SerialNumber, date_time_ymd,
};
use ringback_ring::shards::Config;
use ringback_ring::socket::Batch;
use ringback_ring::{Errno, Shard, Shards};
use tempfile::TempDir;

use super::*;
use crate::{Connection, ReadError, Reader};

const MIB: usize = 1 << 20;
/// Nothing takes longer.
const LIMIT: Duration = Duration::from_secs(60);
const DEMANDS: Demands = Demands {
    verify_peer: true,
    sanity_check: true,
};

/// Who signs certificates.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Self { issuer, pem }
    }

    /// A directory for a side that trusts this authority, with a certificate of the
    /// other one.
    fn directory(
        &self,
        side: &str,
        signer: &Self,
        change: impl FnOnce(&mut CertificateParams),
    ) -> TempDir {
        let directory = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(vec!["here.example".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::OrganizationName, "Acme");
        params.distinguished_name.push(DnType::CommonName, side);
        params.extended_key_usages = vec![match side {
            "server" => ExtendedKeyUsagePurpose::ServerAuth,
            _ => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        params.serial_number = Some(SerialNumber::from(7));
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let own = params.signed_by(&key, &signer.issuer).unwrap();
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        write("ca-cert.pem", &self.pem);
        write(&format!("{side}-cert.pem"), &own.pem());
        write(&format!("{side}-key.pem"), &key.serialize_pem());
        directory
    }

    fn server(&self) -> ServerCredentials {
        let directory = self.directory("server", self, |_| {});
        ServerCredentials::load(directory.path(), DEMANDS).unwrap()
    }

    fn client(&self) -> ClientCredentials {
        let directory = self.directory("client", self, |_| {});
        ClientCredentials::load(directory.path(), DEMANDS).unwrap()
    }

    fn revoke(&self, directory: &Path, serial: u64) {
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(4000, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: SerialNumber::from(serial),
                revocation_time: date_time_ymd(2020, 1, 1),
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.issuer).unwrap();
        fs::write(directory.join("ca-crl.pem"), list.pem().unwrap()).unwrap();
    }
}

/// Runs the two ends of a connection, each on a shard of its own.
fn between<S, C>(
    server: impl FnOnce(Rc<Connection>, Reader) -> S + Send + 'static,
    client: impl FnOnce(Rc<Connection>, Reader) -> C + Send + 'static,
) where
    S: Future<Output = ()> + 'static,
    C: Future<Output = ()> + 'static,
{
    let config = Config {
        count: 2,
        arena_bytes: 64 << 20,
        ..Config::default()
    };
    let shards = Shards::start(&config).unwrap();
    let (here, there) = UnixStream::pair().unwrap();
    let ends = |shard: &Shard, socket: UnixStream| {
        let connection = Connection::new(shard, socket.into());
        let reader = Reader::new(&connection);
        (connection, reader)
    };
    let server = shards.spawn_on(0, move |shard| {
        let (connection, reader) = ends(&shard, here);
        server(connection, reader)
    });
    let client = shards.spawn_on(1, move |shard| {
        let (connection, reader) = ends(&shard, there);
        client(connection, reader)
    });
    server.wait().unwrap();
    client.wait().unwrap();
    shards.stop();
}

fn text(bytes: &[u8]) -> Batch {
    let mut batch = Batch::default();
    batch.push_bytes(bytes);
    batch
}

/// Byte number `index` of a stream.
fn pattern(index: usize) -> u8 {
    u8::try_from((index * 31 + index / 251) & 0xff).unwrap()
}

/// Sends a stream in windows of buffers and small parts between.
async fn send_pattern(connection: &Connection, len: usize) {
    let mut sent = 0;
    let mut size = 1;
    while sent < len {
        let mut batch = Batch::default();
        let small: Vec<u8> = (sent..len.min(sent + 28)).map(pattern).collect();
        batch.push_bytes(&small);
        sent += small.len();
        let large = size.min(len - sent);
        let mut buf = connection.shard().buffer(large.max(1)).await;
        (0..large).for_each(|at| buf[at] = pattern(sent + at));
        batch.push_window(buf, 0..large);
        sent += large;
        size = (size * 3).min(2 * MIB);
        connection.send(batch).await.unwrap();
    }
}

async fn receive_pattern(reader: &mut Reader, shard: &Shard, len: usize) {
    let mut received = 0;
    let mut size = 1;
    while received < len {
        let small = reader.take((len - received).min(16)).await.unwrap();
        assert!(
            small
                .iter()
                .enumerate()
                .all(|(at, byte)| *byte == pattern(received + at))
        );
        received += small.len();
        let large = size.min(len - received);
        if large > 0 {
            let buf = shard.buffer(large).await;
            let (result, buf) = reader.take_into(buf, 0..large).await;
            result.unwrap();
            assert!((0..large).all(|at| buf[at] == pattern(received + at)));
            received += large;
        }
        size = (size * 5).min(3 * MIB);
    }
}

#[test]
fn both_sides_send_at_once() {
    let authority = Authority::new("authority");
    let (ours, theirs) = (authority.server(), authority.client());
    const LEN: usize = 24 * MIB;
    async fn both(connection: Rc<Connection>, mut reader: Reader) {
        let shard = connection.shard().clone();
        let sender = Rc::clone(&connection);
        let sending = shard.spawn(async move { send_pattern(&sender, LEN).await });
        receive_pattern(&mut reader, &shard, LEN).await;
        sending.join().await;
        connection.finish().await;
        assert_eq!(reader.fill(1).await, Err(ReadError::End));
    }
    between(
        |connection, mut reader| async move {
            connection
                .start_tls_server(&mut reader, &ours)
                .await
                .unwrap();
            assert!(connection.is_tls());
            assert_eq!(connection.peer_name().unwrap(), "O=Acme,CN=client");
            both(connection, reader).await;
        },
        |connection, mut reader| async move {
            let host = Some("here.example");
            connection
                .start_tls_client(&mut reader, &theirs, host)
                .await
                .unwrap();
            assert_eq!(connection.peer_name().unwrap(), "O=Acme,CN=server");
            both(connection, reader).await;
        },
    );
}

/// Small messages back and forth, each with what was received ahead.
#[test]
fn small_messages() {
    let authority = Authority::new("authority");
    let (ours, theirs) = (authority.server(), authority.client());
    between(
        |connection, mut reader| async move {
            // The client's first bytes have come before anybody thinks of TLS.
            reader.fill(1).await.unwrap();
            connection
                .start_tls_server(&mut reader, &ours)
                .await
                .unwrap();
            for _ in 0..200 {
                let asked = reader.take_array::<4>().await.unwrap();
                connection.send(text(&asked)).await.unwrap();
            }
            assert_eq!(reader.fill(1).await, Err(ReadError::End));
        },
        |connection, mut reader| async move {
            let host = Some("here.example");
            connection
                .start_tls_client(&mut reader, &theirs, host)
                .await
                .unwrap();
            for number in 0..200u32 {
                connection.send(text(&number.to_be_bytes())).await.unwrap();
                let answer = reader.take_array::<4>().await.unwrap();
                assert_eq!(u32::from_be_bytes(answer), number);
            }
            connection.send(Batch::default()).await.unwrap();
            connection.finish().await;
        },
    );
}

#[test]
fn words_in_the_clear_are_not_taken_for_tls() {
    let authority = Authority::new("authority");
    let ours = authority.server();
    between(
        |connection, mut reader| async move {
            reader.fill(5).await.unwrap();
            let started = connection.start_tls_server(&mut reader, &ours).await;
            assert!(matches!(started, Err(TlsError::Refused(_))), "{started:?}");
            assert_eq!(reader.buffered(), b"");
        },
        |connection, mut reader| async move {
            connection
                .send(text(b"IHAVEOPT in the clear"))
                .await
                .unwrap();
            // An alert, and then the end.
            while reader.fill(1).await.is_ok() {
                reader.consume(1);
            }
        },
    );
}

/// What breaks a session ends the connection, also for who sends.
#[test]
fn broken_bytes_end_the_connection() {
    let authority = Authority::new("authority");
    let (ours, theirs) = (authority.server(), authority.client());
    between(
        |connection, mut reader| async move {
            connection
                .start_tls_server(&mut reader, &ours)
                .await
                .unwrap();
            assert_eq!(&reader.take(5).await.unwrap(), b"whole");
            assert_eq!(reader.fill(1).await, Err(ReadError::Io(Errno::EPROTO)));
            let sent = connection.send(text(b"too late")).await;
            assert_eq!(sent.unwrap_err(), Errno::EPIPE);
        },
        |connection, mut reader| async move {
            let host = Some("here.example");
            connection
                .start_tls_client(&mut reader, &theirs, host)
                .await
                .unwrap();
            connection.send(text(b"whole")).await.unwrap();
            // A record of data by its header, and of nothing by its content.
            let mut socket = connection.raw();
            socket.write_all(&[0x17, 3, 3, 0, 32]).unwrap();
            socket.write_all(&[0x55; 32]).unwrap();
            let told = reader.fill(1).await;
            assert!(
                matches!(told, Err(ReadError::Io(Errno::EPROTO))),
                "{told:?}"
            );
        },
    );
}

/// Who breaks a session and does not read why, is not waited for.
#[test]
fn a_peer_that_does_not_read_is_left_all_the_same() {
    let authority = Authority::new("authority");
    let (ours, theirs) = (authority.server(), authority.client());
    let (is_full, was_filled) = std::sync::mpsc::channel();
    let (is_left, was_left) = std::sync::mpsc::channel();
    between(
        |connection, mut reader| async move {
            connection
                .start_tls_server(&mut reader, &ours)
                .await
                .unwrap();
            let mut socket = connection.raw();
            socket.set_nonblocking(true).unwrap();
            for size in [4096, 1] {
                while socket.write(&vec![0; size]).is_ok() {}
            }
            socket.set_nonblocking(false).unwrap();
            is_full.send(()).unwrap();
            assert_eq!(reader.fill(1).await, Err(ReadError::Io(Errno::EPROTO)));
            is_left.send(()).unwrap();
        },
        |connection, mut reader| async move {
            let host = Some("here.example");
            connection
                .start_tls_client(&mut reader, &theirs, host)
                .await
                .unwrap();
            was_filled.recv_timeout(LIMIT).unwrap();
            let mut socket = connection.raw();
            socket.write_all(&[0x17, 3, 3, 0, 32]).unwrap();
            socket.write_all(&[0x55; 32]).unwrap();
            was_left.recv_timeout(LIMIT).unwrap();
        },
    );
}

#[test]
fn an_end_without_farewell_is_an_end() {
    let authority = Authority::new("authority");
    let (ours, theirs) = (authority.server(), authority.client());
    between(
        |connection, mut reader| async move {
            connection
                .start_tls_server(&mut reader, &ours)
                .await
                .unwrap();
            assert_eq!(&reader.take(4).await.unwrap(), b"half");
            assert_eq!(reader.fill(1).await, Err(ReadError::End));
        },
        |connection, mut reader| async move {
            let host = Some("here.example");
            connection
                .start_tls_client(&mut reader, &theirs, host)
                .await
                .unwrap();
            connection.send(text(b"half")).await.unwrap();
            connection.shut_down();
        },
    );
}

/// A sender that is stopped half-way leaves no peer waiting for the rest.
#[test]
fn a_sender_that_is_dropped_ends_the_connection() {
    let authority = Authority::new("authority");
    let (ours, theirs) = (authority.server(), authority.client());
    let (begun, has_begun) = std::sync::mpsc::channel();
    let (dropped, is_dropped) = std::sync::mpsc::channel();
    between(
        move |connection, mut reader| async move {
            connection
                .start_tls_server(&mut reader, &ours)
                .await
                .unwrap();
            // More than the socket holds; beyond the first bytes nobody reads.
            let large = vec![1; 16 * MIB];
            let shard = connection.shard();
            {
                let mut sending = std::pin::pin!(connection.send(text(&large)));
                let begun = shard.blocking(move || has_begun.recv().unwrap());
                let mut begun = std::pin::pin!(begun);
                std::future::poll_fn(|cx| {
                    assert!(sending.as_mut().poll(cx).is_pending());
                    begun.as_mut().poll(cx)
                })
                .await;
            }
            dropped.send(()).unwrap();
            assert!(connection.send(text(b"more")).await.is_err());
        },
        move |connection, mut reader| async move {
            let host = Some("here.example");
            connection
                .start_tls_client(&mut reader, &theirs, host)
                .await
                .unwrap();
            reader.fill(1).await.unwrap();
            begun.send(()).unwrap();
            is_dropped.recv().unwrap();
            // To the end, which comes when the sender is dropped.
            connection.raw().read_to_end(&mut Vec::new()).unwrap();
        },
    );
}

/// What the two sides say of a handshake.
fn met(
    ours: ServerCredentials,
    theirs: ClientCredentials,
    host: Option<&'static str>,
) -> (Result<(), TlsError>, Result<Vec<u8>, ()>) {
    let told = Arc::new(Mutex::new(Ok(())));
    let heard = Arc::new(Mutex::new(Err(())));
    let (tell, hear) = (told.clone(), heard.clone());
    between(
        |connection, mut reader| async move {
            let started = connection.start_tls_server(&mut reader, &ours).await;
            if started.is_ok() {
                connection.send(text(b"welcome")).await.unwrap();
                connection.finish().await;
            }
            *tell.lock().unwrap() = started;
        },
        move |connection, mut reader| async move {
            let started = connection
                .start_tls_client(&mut reader, &theirs, host)
                .await;
            match started {
                Ok(()) => *hear.lock().unwrap() = reader.take(7).await.map_err(drop),
                Err(error) => {
                    connection.shut_down();
                    *hear.lock().unwrap() = Ok(error.to_string().into_bytes());
                }
            }
        },
    );
    let told = told.lock().unwrap().clone();
    let heard = heard.lock().unwrap().clone();
    (told, heard)
}

#[test]
fn who_is_believed() {
    let (good, bad) = (Authority::new("good"), Authority::new("bad"));
    let host = Some("here.example");
    let welcome = Ok(b"welcome".to_vec());
    let open = |verify_peer| Demands {
        verify_peer,
        ..DEMANDS
    };
    let unchecked = Demands {
        sanity_check: false,
        ..DEMANDS
    };

    let (told, heard) = met(good.server(), good.client(), host);
    assert_eq!((told, heard), (Ok(()), welcome.clone()));

    // A client of another authority.
    let stranger = good.directory("client", &bad, |_| {});
    let refused = ClientCredentials::load(stranger.path(), DEMANDS).unwrap_err();
    assert!(
        matches!(refused, CredentialsError::Invalid { .. }),
        "{refused}"
    );
    let stranger = ClientCredentials::load(stranger.path(), unchecked).unwrap();
    let (told, heard) = met(good.server(), stranger.clone(), host);
    assert!(matches!(told, Err(TlsError::Refused(_))), "{told:?}");
    assert_eq!(heard, Err(()));

    // A client without a certificate.
    let nobody = good.directory("client", &good, |_| {});
    fs::remove_file(nobody.path().join("client-cert.pem")).unwrap();
    let nobody = ClientCredentials::load(nobody.path(), DEMANDS).unwrap();
    let (told, heard) = met(good.server(), nobody.clone(), host);
    assert_eq!((told, heard), (Err(TlsError::NoCertificate), Err(())));

    // Neither matters to a server that does not ask.
    let directory = good.directory("server", &good, |_| {});
    let open_server = ServerCredentials::load(directory.path(), open(false)).unwrap();
    assert!(!open_server.verifies());
    for client in [stranger, nobody] {
        let (told, heard) = met(open_server.clone(), client, host);
        assert_eq!((told, heard), (Ok(()), welcome.clone()));
    }

    // A server of another name, of none, of another authority.
    let (told, heard) = met(good.server(), good.client(), Some("there.example"));
    assert!(told.is_err());
    let text = "Certificate does not match the hostname there.example";
    assert_eq!(heard, Ok(text.into()));
    let (_, heard) = met(good.server(), good.client(), None);
    assert_eq!(heard, Ok("No hostname for certificate validation".into()));
    let (told, heard) = met(bad.server(), good.client(), host);
    assert!(told.is_err());
    assert!(heard.is_ok_and(|heard| heard.starts_with(b"TLS handshake failed")));

    // None of it matters to a client that does not ask.
    let directory = good.directory("client", &good, |_| {});
    let trusting = ClientCredentials::load(directory.path(), open(false)).unwrap();
    let directory = bad.directory("server", &bad, |_| {});
    let open_server = ServerCredentials::load(directory.path(), open(false)).unwrap();
    for host in [None, Some("there.example")] {
        let (told, heard) = met(open_server.clone(), trusting.clone(), host);
        assert_eq!((told, heard), (Ok(()), welcome.clone()));
    }
}

#[test]
fn what_is_revoked_is_not_believed() {
    let authority = Authority::new("authority");
    for (serial, is_refused) in [(7, true), (8, false)] {
        let directory = authority.directory("server", &authority, |_| {});
        authority.revoke(directory.path(), serial);
        let ours = ServerCredentials::load(directory.path(), DEMANDS).unwrap();
        let (told, _) = met(ours, authority.client(), Some("here.example"));
        assert_eq!(told.is_err(), is_refused, "{serial}: {told:?}");
    }
}

/// Every file that is missing or wrong is named.
#[test]
fn directories_of_no_use() {
    let (authority, other) = (Authority::new("authority"), Authority::new("other"));
    type Spoil<'a> = &'a dyn Fn(&Path);
    let junk = |name: &'static str| move |path: &Path| fs::write(path.join(name), "junk").unwrap();
    let gone = |name: &'static str| move |path: &Path| fs::remove_file(path.join(name)).unwrap();
    let cases: [(Spoil<'_>, &str); 8] = [
        (
            &gone("ca-cert.pem"),
            "Unable to access credentials {}/ca-cert.pem: No such file",
        ),
        (
            &gone("server-cert.pem"),
            "Unable to access credentials {}/server-cert.pem: No such",
        ),
        (
            &gone("server-key.pem"),
            "Unable to access credentials {}/server-key.pem: No such",
        ),
        (
            &junk("ca-cert.pem"),
            "Unable to import CA certificate list {}/ca-cert.pem: ",
        ),
        (&junk("ca-crl.pem"), "Cannot load CRL '{}/ca-crl.pem': "),
        (
            &junk("server-cert.pem"),
            "Unable to import server certificate {}/server-cert.pem: ",
        ),
        (
            &junk("server-key.pem"),
            "Cannot load certificate '{}/server-cert.pem' & key '{}/server-key.pem': no key",
        ),
        (
            &|path| {
                let key = KeyPair::generate().unwrap().serialize_pem();
                fs::write(path.join("server-key.pem"), key).unwrap();
            },
            "Cannot load certificate '{}/server-cert.pem' & key '{}/server-key.pem': The \
             certificate and the given key do not match.",
        ),
    ];
    for (spoil, wanted) in cases {
        let directory = authority.directory("server", &authority, |_| {});
        spoil(directory.path());
        refuses(directory.path(), wanted);
    }
    refuses(
        authority.directory("server", &other, |_| {}).path(),
        "Our own certificate {}/server-cert.pem failed validation against {}/ca-cert.pem: The \
         certificate hasn't got a known issuer",
    );
    let old = authority.directory("server", &authority, |params| {
        params.not_after = date_time_ymd(2020, 1, 1);
    });
    refuses(
        old.path(),
        "The server certificate {}/server-cert.pem has expired",
    );
    let early = authority.directory("server", &authority, |params| {
        params.not_before = date_time_ymd(4000, 1, 1);
    });
    refuses(
        early.path(),
        "The server certificate {}/server-cert.pem is not yet active",
    );
    let humble = authority.directory("server", &authority, |_| {});
    fs::copy(
        humble.path().join("server-cert.pem"),
        humble.path().join("ca-cert.pem"),
    )
    .unwrap();
    refuses(
        humble.path(),
        "The certificate {}/ca-cert.pem basic constraints do not show a CA",
    );
}

#[track_caller]
fn refuses(directory: &Path, wanted: &str) {
    let refused = ServerCredentials::load(directory, DEMANDS).unwrap_err();
    let wanted = wanted.replace("{}", directory.to_str().unwrap());
    let refused = refused.to_string();
    assert!(refused.starts_with(&wanted), "{refused}");
}
