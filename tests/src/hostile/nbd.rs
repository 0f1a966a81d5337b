//! Clients of the NBD server.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Instant;

use ringback_block::bitmap::DirtyBitmap;
use ringback_block::graph::{Access, Graph, NodeSpec};
use ringback_block::metrics::clients::Measured;
use ringback_block::protocol::nbd::wire::{OPTION_MAGIC, option};
use ringback_export::nbd::export::Clients;
use ringback_export::nbd::{Export, ExportedBitmap, Options, Server};
use ringback_net::Address;
use ringback_ring::shards::Config;
use ringback_ring::{Shard, Shards};

use crate::process::LIMIT;

const DISK_BYTES: u64 = 1 << 20;
const GRANULE_BYTES: u64 = 4096;

/// A server for all clients of this process, on the kernel's ring.
struct Place {
    address: SocketAddr,
    exports: Vec<Arc<Export>>,
    /// Keeps them running.
    _shards: Shards,
}

impl Place {
    fn get() -> &'static Self {
        static PLACE: OnceLock<Place> = OnceLock::new();
        PLACE.get_or_init(Self::start)
    }

    fn start() -> Self {
        let config = Config {
            count: 1,
            pin: false,
            ..Config::default()
        };
        let shards = Shards::start(&config).expect("a ring");
        let name = format!("ringback-hostile-{}", std::process::id()).into_bytes();
        let address = SocketAddr::from_abstract_name(&name).expect("a short name");
        let started = shards.spawn_on(0, move |shard| async move {
            let mut graph = Graph::new();
            let exports = vec![
                export(&shard, &mut graph, "", false).await,
                export(&shard, &mut graph, "d", true).await,
            ];
            let listener = Address::Abstract(name).listen().expect("a name of its own");
            let options = Options {
                max_connections: 0,
                handshake_seconds: 0,
            };
            let server = Server::start(&shard, listener, options, None).expect("descriptors");
            exports.iter().for_each(|export| server.add(export));
            shard.spawn(async move {
                // Both live as long as the process.
                let _kept = (graph, server);
                std::future::pending::<()>().await;
            });
            exports
        });
        Self {
            address,
            exports: started.wait().expect("a server"),
            _shards: shards,
        }
    }
}

/// A disk of zeroes with everything that can be asked about one.
async fn export(shard: &Shard, graph: &mut Graph, name: &str, is_writable: bool) -> Arc<Export> {
    let node = format!("node-{name}");
    let null = NodeSpec::Null {
        size: DISK_BYTES,
        latency_ns: 0,
        read_zeroes: true,
    };
    graph.add(shard, &node, null).await.expect("a node");
    let access = Access {
        read: true,
        write: is_writable,
        ..Access::default()
    };
    let attached = graph.attach(shard, &node, "clients", access).await;
    let (_, attachment) = attached.expect("nobody else is there");
    let bits = DirtyBitmap::new(DISK_BYTES, GRANULE_BYTES, 1).expect("a small bitmap");
    bits.mark(0, 3 * GRANULE_BYTES, 5 * GRANULE_BYTES);
    Arc::new(Export {
        name: name.into(),
        description: Some("zeroes".into()),
        is_writable,
        is_writethrough: false,
        bitmaps: vec![ExportedBitmap {
            name: "b".into(),
            bits: Arc::new(bits),
        }],
        has_depth: true,
        attachment,
        size: DISK_BYTES,
        minimum_block: 1,
        is_multi_conn: true,
        measured: Measured {
            number: 0,
            id: name.into(),
        },
        clients: Clients::default(),
    })
}

fn push_option(bytes: &mut Vec<u8>, kind: u32, payload: &[u8]) {
    bytes.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    bytes.extend_from_slice(&kind.to_be_bytes());
    let len = u32::try_from(payload.len()).expect("a short payload");
    bytes.extend_from_slice(&len.to_be_bytes());
    bytes.extend_from_slice(payload);
}

/// What a client in order says until it has chosen an export, if `how` asks for
/// that: 0 nothing, 1 for simple replies, 2 structured ones, 3 long headers.
fn introduction(how: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    if how == 0 {
        return bytes;
    }
    bytes.extend_from_slice(&[0, 0, 0, 3]);
    match how {
        1 => {}
        2 => push_option(&mut bytes, option::STRUCTURED_REPLY, &[]),
        _ => push_option(&mut bytes, option::EXTENDED_HEADERS, &[]),
    }
    if how > 1 {
        // Export `d`; two queries, `base:allocation` and `qemu:dirty-bitmap:b`.
        let contexts = b"\0\0\0\x01d\0\0\0\x02\0\0\0\x0fbase:allocation\
            \0\0\0\x13qemu:dirty-bitmap:b";
        push_option(&mut bytes, option::SET_META_CONTEXT, contexts);
    }
    push_option(&mut bytes, option::GO, b"\0\0\0\x01d\0\0");
    bytes
}

/// A client that says whatever it likes. The first byte tells how: its lowest two
/// bits, how it introduces itself; the next, whether it leaves without waiting for
/// answers; the others, the length of the pieces in which it sends.
///
/// # Panics
///
/// The server does not let it go, or still counts it afterwards.
pub fn nbd_client(bytes: &[u8]) {
    let Some((&how, said)) = bytes.split_first() else {
        return;
    };
    let place = Place::get();
    let mut stream = UnixStream::connect_addr(&place.address).expect("the server listens");
    stream.set_read_timeout(Some(LIMIT)).expect("a time limit");
    stream.set_write_timeout(Some(LIMIT)).expect("a time limit");
    let mut all = introduction(how & 3);
    all.extend_from_slice(said);
    let is_leaving = how & 4 != 0;
    let piece_len = match how >> 3 {
        0 => all.len().max(1),
        len => usize::from(len),
    };
    let receiving = (!is_leaving).then(|| {
        let mut stream = stream.try_clone().expect("a descriptor is left");
        thread::spawn(move || {
            let mut buf = vec![0; 64 << 10];
            loop {
                match stream.read(&mut buf) {
                    Ok(0) => return,
                    Ok(_) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return,
                    Err(error) => panic!("the server does not let its client go: {error}"),
                }
            }
        })
    });
    for piece in all.chunks(piece_len) {
        // The server may have hung up.
        if stream.write_all(piece).is_err() {
            break;
        }
    }
    match receiving {
        Some(receiving) => {
            // As above.
            let _ = stream.shutdown(Shutdown::Write);
            receiving.join().expect("the server lets its client go");
        }
        None => drop(stream),
    }
    let end = Instant::now() + LIMIT;
    while place.exports.iter().any(|it| it.clients.count() > 0) {
        assert!(Instant::now() < end, "a client that has gone still counts");
        thread::yield_now();
    }
}
