//! Character devices: where monitors talk. Each has threads of its own, because a
//! person or a program at the other end may take any time.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};

use nix::sys::stat::{Mode, umask};

use super::inbox::{Address, Message, Places, Room};

/// Bytes that are read at once.
const CHUNK_BYTES: usize = 64 << 10;
/// Chunks of one device that may wait for the control task.
const CHUNKS_MAX: usize = 8;
/// Bytes that may wait for a client who does not read. Whoever lets more come
/// together is hung up on.
const WAITING_MAX: usize = 64 << 20;

/// Where a device leads.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// A socket in the file system.
    Unix(PathBuf),
    /// A host and a port, and whether small packets are sent at once.
    Tcp(String, u16, bool),
    /// A socket that the caller has opened.
    Descriptor(i32),
    /// Standard input and output.
    Standard,
    /// Nowhere.
    Null,
}

/// A device as it is asked for.
#[derive(Clone, Debug)]
pub(super) struct Spec {
    pub(super) id: String,
    pub(super) place: Place,
    /// Waits for others to connect; otherwise it connects itself.
    pub(super) is_server: bool,
    /// Whether to wait for the first client before anything else.
    pub(super) waits: bool,
    /// Connects once more when a connection has ended, so many milliseconds later;
    /// 0: does not.
    pub(super) reconnect_ms: u64,
}

/// A connection, or what becomes one.
enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    fn try_clone(&self) -> std::io::Result<Self> {
        Ok(match self {
            Self::Unix(stream) => Self::Unix(stream.try_clone()?),
            Self::Tcp(stream) => Self::Tcp(stream.try_clone()?),
        })
    }

    fn shut_down(&self) {
        // Who has gone already need not be told.
        let _ = match self {
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
        };
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(buf),
            Self::Tcp(stream) => stream.read(buf),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(buf),
            Self::Tcp(stream) => stream.write(buf),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

enum Listener {
    Unix(UnixListener),
    /// With small packets sent at once, or not.
    Tcp(TcpListener, bool),
}

impl Listener {
    fn accept(&self) -> std::io::Result<Stream> {
        Ok(match self {
            Self::Unix(listener) => Stream::Unix(listener.accept()?.0),
            Self::Tcp(listener, no_delay) => {
                let stream = listener.accept()?.0;
                stream.set_nodelay(*no_delay)?;
                Stream::Tcp(stream)
            }
        })
    }
}

/// The way back to a client.
pub(super) struct Writer {
    lines: Sender<Vec<u8>>,
    /// Bytes of lines that are not written yet.
    waiting: Arc<AtomicUsize>,
    /// Gives an end when the last line is written.
    written: Receiver<()>,
    stream: Option<Stream>,
}

impl Writer {
    /// A thread that writes, so that nobody has to wait for the client.
    fn start(mut sink: impl Write + Send + 'static, stream: Option<Stream>) -> Self {
        let (lines, to_write) = unbounded::<Vec<u8>>();
        let (done, written) = bounded(1);
        let waiting = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&waiting);
        std::thread::spawn(move || {
            while let Ok(line) = to_write.recv() {
                if sink.write_all(&line).and_then(|()| sink.flush()).is_err() {
                    break;
                }
                count.fetch_sub(line.len(), Ordering::Relaxed);
            }
            drop(done);
        });
        Self {
            lines,
            waiting,
            written,
            stream,
        }
    }

    /// Sends a line; without waiting, whatever the client does.
    pub(super) fn send(&self, line: &str) {
        let line = format!("{line}\r\n").into_bytes();
        let before = self.waiting.fetch_add(line.len(), Ordering::Relaxed);
        if before + line.len() <= WAITING_MAX {
            // The thread has ended if the client has gone.
            let _ = self.lines.send(line);
        } else if before <= WAITING_MAX {
            tracing::warn!("a monitor's client does not read: what else it would be told is lost");
            if let Some(stream) = &self.stream {
                stream.shut_down();
            }
        }
    }

    /// Waits until everything has been written, or the client is gone, and hangs
    /// up.
    pub(super) fn finish(self) {
        let Self {
            lines,
            written,
            stream,
            ..
        } = self;
        drop(lines);
        // A client who does not read must not keep the process from ending.
        let _ = written.recv_timeout(std::time::Duration::from_secs(5));
        if let Some(stream) = stream {
            stream.shut_down();
        }
    }
}

/// Opens a device and lets a thread serve it.
///
/// # Errors
///
/// The reason, as it is printed behind the option.
pub(super) fn start(spec: Spec, address: &Address) -> Result<(), String> {
    match &spec.place {
        Place::Null => Ok(()),
        Place::Standard => {
            let address = address.clone();
            std::thread::spawn(move || {
                let writer = Writer::start(std::io::stdout(), None);
                address.send(Message::Connected {
                    chardev: spec.id.clone(),
                    writer,
                });
                pass_on(std::io::stdin(), &spec.id, &address);
                // The end of standard input is not the end of the program.
            });
            Ok(())
        }
        _ if spec.is_server => {
            let listener = listen(&spec.place)?;
            let first = if spec.waits {
                let first = listener.accept().map_err(|error| text_of(&error))?;
                Some(first)
            } else {
                None
            };
            let address = address.clone();
            std::thread::spawn(move || serve_all(&listener, first, &spec.id, &address));
            Ok(())
        }
        _ => {
            let first = connect(&spec.place);
            if spec.reconnect_ms == 0
                && let Err(error) = first
            {
                return Err(error);
            }
            let address = address.clone();
            std::thread::spawn(move || connect_again(&spec, first.ok(), &address));
            Ok(())
        }
    }
}

fn connect_again(spec: &Spec, mut stream: Option<Stream>, address: &Address) {
    loop {
        if let Some(stream) = stream.take() {
            serve(stream, &spec.id, address);
        }
        if spec.reconnect_ms == 0 {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(spec.reconnect_ms));
        stream = connect(&spec.place).ok();
    }
}

/// One client after the other.
fn serve_all(listener: &Listener, first: Option<Stream>, id: &str, address: &Address) {
    if let Some(stream) = first {
        serve(stream, id, address);
    }
    loop {
        match listener.accept() {
            Ok(stream) => serve(stream, id, address),
            Err(error) => {
                tracing::error!("chardev '{id}': {error}");
                // Out of descriptors, most likely: not a reason to spin.
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
        }
    }
}

fn serve(stream: Stream, id: &str, address: &Address) {
    let (Ok(sink), Ok(handle)) = (stream.try_clone(), stream.try_clone()) else {
        return;
    };
    address.send(Message::Connected {
        chardev: id.to_owned(),
        writer: Writer::start(sink, Some(handle)),
    });
    pass_on(stream, id, address);
    address.send(Message::Disconnected {
        chardev: id.to_owned(),
    });
}

fn pass_on(mut source: impl Read, id: &str, address: &Address) {
    let places = Places::new(CHUNKS_MAX);
    let mut buf = vec![0; CHUNK_BYTES];
    loop {
        let count = match source.read(&mut buf) {
            Ok(0) => return,
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        let Some(room) = Room::take(&places) else {
            return;
        };
        address.send(Message::Received {
            chardev: id.to_owned(),
            bytes: buf[..count].to_vec(),
            _room: room,
        });
    }
}

fn listen(place: &Place) -> Result<Listener, String> {
    match place {
        Place::Unix(path) => {
            // What a process that died has left; somebody alive answers.
            if UnixStream::connect(path).is_err() && is_socket(path) {
                let _ = std::fs::remove_file(path);
            }
            // Whoever connects commands: nobody but the user shall.
            let mask = umask(Mode::from_bits_truncate(0o177));
            let bound = UnixListener::bind(path);
            umask(mask);
            bound.map(Listener::Unix).map_err(|error| {
                format!(
                    "Failed to bind socket to {}: {}",
                    path.display(),
                    text_of(&error)
                )
            })
        }
        Place::Tcp(host, port, no_delay) => TcpListener::bind((host.as_str(), *port))
            .map(|listener| Listener::Tcp(listener, *no_delay))
            .map_err(|error| {
                format!(
                    "Failed to bind socket to {host}:{port}: {}",
                    text_of(&error)
                )
            }),
        Place::Descriptor(number) => {
            let socket = descriptor(*number)?;
            Ok(if is_unix(&socket) {
                Listener::Unix(UnixListener::from(socket))
            } else {
                Listener::Tcp(TcpListener::from(socket), false)
            })
        }
        Place::Standard | Place::Null => Err("not a socket".into()),
    }
}

fn connect(place: &Place) -> Result<Stream, String> {
    match place {
        Place::Unix(path) => UnixStream::connect(path)
            .map(Stream::Unix)
            .map_err(|error| {
                format!(
                    "Failed to connect to '{}': {}",
                    path.display(),
                    text_of(&error)
                )
            }),
        Place::Tcp(host, port, no_delay) => TcpStream::connect((host.as_str(), *port))
            .and_then(|stream| {
                stream.set_nodelay(*no_delay)?;
                Ok(Stream::Tcp(stream))
            })
            .map_err(|error| format!("Failed to connect to '{host}:{port}': {}", text_of(&error))),
        Place::Descriptor(number) => {
            let socket = descriptor(*number)?;
            Ok(if is_unix(&socket) {
                Stream::Unix(UnixStream::from(socket))
            } else {
                Stream::Tcp(TcpStream::from(socket))
            })
        }
        Place::Standard | Place::Null => Err("not a socket".into()),
    }
}

/// A socket that came with the process: opened anew through `/proc` it would be
/// another one, so it is duplicated.
fn descriptor(number: i32) -> Result<OwnedFd, String> {
    ringback_ring::inherited_descriptor(number).map_err(|errno| {
        format!(
            "Invalid file descriptor {number}: {}",
            ringback_ring::error_text(errno)
        )
    })
}

fn is_unix(socket: &OwnedFd) -> bool {
    let copy = socket.try_clone().map(UnixStream::from);
    // It says so if it is a socket of another family.
    copy.is_ok_and(|stream| stream.local_addr().is_ok())
}

fn is_socket(path: &std::path::Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

/// As the C library words it.
fn text_of(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => ringback_ring::error_text(nix::errno::Errno::from_raw(number)),
        None => error.to_string(),
    }
}
