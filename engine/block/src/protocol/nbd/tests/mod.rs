//! The client against servers that follow a script: good ones, others that break
//! every rule there is, and some that go away.

mod negotiation;
mod outages;
mod pieces;
mod replies;
mod shards;

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use ringback_net::Address;
use ringback_ring::shards::Config;
use ringback_ring::{IoResult, Shard, Shards};

use super::client::{NbdProtocol, Options};
use super::terms::Headers;
use super::wire::{
    CHUNK_MAGIC, EXTENDED_CHUNK_MAGIC, EXTENDED_REQUEST_BYTES, GREETING_MAGIC, OPTION_MAGIC,
    OPTION_REPLY_MAGIC, REQUEST_BYTES, Request, SIMPLE_REPLY_MAGIC, chunk, export_flags as has,
    info, option, option_reply as reply,
};

/// Nothing takes longer.
const LIMIT: Duration = Duration::from_secs(60);

/// What a good server says of its export.
#[derive(Clone, Copy, Debug)]
struct Offer {
    headers: Headers,
    has_context: bool,
    has_bitmap: bool,
    size: u64,
    flags: u16,
    blocks: Option<[u32; 3]>,
}

const CONTEXT: u32 = 7;
/// That of the bitmap `b`.
const BITMAP: u32 = 8;

impl Default for Offer {
    fn default() -> Self {
        Self {
            headers: Headers::Structured,
            has_context: true,
            has_bitmap: false,
            size: 1 << 20,
            flags: has::HAS_FLAGS
                | has::SEND_FLUSH
                | has::SEND_TRIM
                | has::SEND_WRITE_ZEROES
                | has::SEND_FAST_ZERO,
            blocks: Some([1, 4096, 32 << 20]),
        }
    }
}

/// A client, from the server's side.
struct Peer(UnixStream);

impl Peer {
    fn put(&mut self, bytes: &[u8]) {
        // It may have hung up: that is for the client's side to judge.
        let _ = self.0.write_all(bytes);
    }

    fn take(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.0.read_exact(&mut bytes).expect("the client speaks");
        bytes
    }

    /// Whether the client hangs up next.
    fn is_left(&mut self) -> bool {
        matches!(self.0.read(&mut [0]), Ok(0) | Err(_))
    }

    /// Whether something comes before the end.
    fn has_more(&self) -> bool {
        let peeked = nix::sys::socket::recv(
            self.0.as_raw_fd(),
            &mut [0],
            nix::sys::socket::MsgFlags::MSG_PEEK,
        );
        matches!(peeked, Ok(1))
    }

    fn greet(&mut self, flags: u16) {
        self.put(&GREETING_MAGIC.to_be_bytes());
        self.put(&OPTION_MAGIC.to_be_bytes());
        self.put(&flags.to_be_bytes());
        self.take(4);
    }

    fn option(&mut self) -> (u32, Vec<u8>) {
        let head = self.take(16);
        let number = |from: usize| {
            let bytes = head[from..from + 4].try_into().expect("four bytes");
            u32::from_be_bytes(bytes)
        };
        let payload = self.take(number(12) as usize);
        (number(8), payload)
    }

    fn answer(&mut self, option: u32, kind: u32, payload: &[u8]) {
        self.put(&OPTION_REPLY_MAGIC.to_be_bytes());
        self.put(&option.to_be_bytes());
        self.put(&kind.to_be_bytes());
        let len = u32::try_from(payload.len()).expect("short");
        self.put(&len.to_be_bytes());
        self.put(payload);
    }

    fn context(&mut self, number: u32, name: &[u8]) {
        let payload = [&number.to_be_bytes(), name].concat();
        self.answer(option::SET_META_CONTEXT, reply::META_CONTEXT, &payload);
    }

    fn export_info(&mut self, size: u64, flags: u16) {
        let payload = [
            &info::EXPORT.to_be_bytes()[..],
            &size.to_be_bytes(),
            &flags.to_be_bytes(),
        ]
        .concat();
        self.answer(option::GO, reply::INFO, &payload);
    }

    fn block_info(&mut self, blocks: [u32; 3]) {
        let mut payload = info::BLOCK_SIZE.to_be_bytes().to_vec();
        for number in blocks {
            payload.extend_from_slice(&number.to_be_bytes());
        }
        self.answer(option::GO, reply::INFO, &payload);
    }

    /// A server as it should be, up to the requests.
    fn negotiate(&mut self, offer: &Offer) {
        self.greet(3);
        loop {
            let (kind, _) = self.option();
            let is_known = match kind {
                option::EXTENDED_HEADERS => offer.headers == Headers::Extended,
                option::STRUCTURED_REPLY => offer.headers != Headers::Simple,
                _ => true,
            };
            match kind {
                _ if !is_known => self.answer(kind, reply::ERR_UNSUP, b"never heard of it"),
                option::SET_META_CONTEXT => {
                    if offer.has_context {
                        self.context(CONTEXT, b"base:allocation");
                    }
                    if offer.has_bitmap {
                        self.context(BITMAP, b"qemu:dirty-bitmap:b");
                    }
                    self.answer(kind, reply::ACK, &[]);
                }
                option::GO => {
                    self.export_info(offer.size, offer.flags);
                    if let Some(blocks) = offer.blocks {
                        self.block_info(blocks);
                    }
                    self.answer(kind, reply::ACK, &[]);
                    return;
                }
                _ => self.answer(kind, reply::ACK, &[]),
            }
        }
    }

    fn request(&mut self, headers: Headers) -> Request {
        if headers == Headers::Extended {
            let bytes = self.take(EXTENDED_REQUEST_BYTES);
            let bytes = bytes.as_slice().try_into().expect("so many");
            return Request::decode_extended(bytes).expect("a request");
        }
        let bytes = self.take(REQUEST_BYTES);
        Request::decode(bytes.as_slice().try_into().expect("so many")).expect("a request")
    }

    fn simple(&mut self, request: &Request, error: u32) {
        self.put(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        self.put(&error.to_be_bytes());
        self.put(&request.cookie.to_be_bytes());
    }

    fn chunk(&mut self, headers: Headers, request: &Request, kind: u16, flags: u16, body: &[u8]) {
        let is_extended = headers == Headers::Extended;
        let magic = if is_extended {
            EXTENDED_CHUNK_MAGIC
        } else {
            CHUNK_MAGIC
        };
        let mut bytes = magic.to_be_bytes().to_vec();
        bytes.extend_from_slice(&flags.to_be_bytes());
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&request.cookie.to_be_bytes());
        if is_extended {
            bytes.extend_from_slice(&request.offset.to_be_bytes());
            bytes.extend_from_slice(&(body.len() as u64).to_be_bytes());
        } else {
            let len = u32::try_from(body.len()).expect("short");
            bytes.extend_from_slice(&len.to_be_bytes());
        }
        bytes.extend_from_slice(body);
        self.put(&bytes);
    }

    /// Bytes of a read, in one chunk.
    fn data(&mut self, headers: Headers, request: &Request, offset: u64, bytes: &[u8], last: bool) {
        let body = [&offset.to_be_bytes(), bytes].concat();
        let flags = if last { chunk::DONE } else { 0 };
        self.chunk(headers, request, chunk::OFFSET_DATA, flags, &body);
    }
}

/// A server whose script runs on a thread.
struct Scripted {
    path: PathBuf,
    thread: Option<JoinHandle<()>>,
    _directory: tempfile::TempDir,
}

/// Where clients come in.
struct Door(UnixListener);

impl Door {
    fn open(&self) -> Peer {
        let (stream, _) = self.0.accept().expect("a client");
        stream.set_read_timeout(Some(LIMIT)).expect("a time limit");
        Peer(stream)
    }
}

impl Scripted {
    fn new(script: impl FnOnce(&Door) + Send + 'static) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("s");
        let door = Door(UnixListener::bind(&path).expect("a socket"));
        Self {
            path,
            thread: Some(std::thread::spawn(move || script(&door))),
            _directory: directory,
        }
    }

    fn options(&self) -> Options {
        Options {
            address: Address::Unix(self.path.clone()),
            export: "ex".into(),
            context: None,
            bitmap: None,
            tls: None,
            reconnect_delay_s: 0,
            open_timeout_s: 0,
            write: true,
            auto_read_only: false,
        }
    }

    /// Waits for the end of the script.
    fn finish(mut self) {
        let thread = self.thread.take().expect("it is waited for once");
        thread.join().expect("the script was followed");
    }
}

/// Runs a task on the first of some shards.
fn on_shards<T, F>(count: usize, make: impl FnOnce(Shard) -> F + Send + 'static) -> T
where
    T: Send + 'static,
    F: Future<Output = T> + 'static,
{
    let config = Config {
        count,
        pin: false,
        ..Config::default()
    };
    let set = Shards::start(&config).expect("shards");
    let value = set.spawn_on(0, make).wait().expect("shards that run");
    set.stop();
    value
}

/// Opens the server's export, does something with it, closes it.
fn with_node<T: Send + 'static>(
    options: Options,
    act: impl AsyncFnOnce(Shard, Arc<NbdProtocol>) -> T + Send + 'static,
) -> T {
    on_shards(2, |shard| async move {
        let opened = NbdProtocol::open(&shard, options).await;
        let node = Arc::new(opened.expect("an export"));
        let value = act(shard.clone(), Arc::clone(&node)).await;
        node.close(&shard).await;
        value
    })
}

/// Reads so many bytes.
async fn read(node: &NbdProtocol, shard: &Shard, offset: u64, len: usize) -> IoResult<Vec<u8>> {
    let mut buf = shard.buffer_now(len);
    buf.fill(0xee);
    let (result, buf) = node.read(shard, offset, buf, 0..len).await;
    result.map(|()| buf[..len].to_vec())
}

/// Writes so many bytes of one value.
async fn write(
    node: &NbdProtocol,
    shard: &Shard,
    offset: u64,
    len: usize,
    value: u8,
) -> IoResult<()> {
    let mut buf = shard.buffer_now(len);
    buf.fill(value);
    let (result, buf) = node.write(shard, offset, buf, 0..len).await;
    assert!(
        buf[..len].iter().all(|&byte| byte == value),
        "the same buffer comes back"
    );
    result
}
