//! qcow2 images.

#![expect(clippy::cast_possible_truncation, reason = "sizes are checked")]

use std::path::PathBuf;
use std::sync::Arc;

use ringback_block::child::Child;
use ringback_block::format::qcow2::check::{Repair, check};
use ringback_block::format::qcow2::header::{Header, OpenMode, PEEK_BYTES};
use ringback_block::format::qcow2::{self, SnapshotSelector};
use ringback_block::graph::{Access, Graph, NodeSpec, Qcow2Spec, UserId};
use ringback_block::port::{Attachment, Port};
use ringback_block::protocol::{FileProtocol, Protocol};
use ringback_block::request::ZeroFlags;
use ringback_block::span::Span;
use ringback_block::storage::Storage;
use ringback_ring::file::{Cache, File, Kind, OpenOptions};
use ringback_ring::sim::{FileOptions, Sim};
use ringback_ring::{Errno, Shard};

/// Small images with something of everything, made by qemu-img and qemu-io:
/// see `make.sh` beside them.
pub const TEMPLATES: [&[u8]; 3] = [
    include_bytes!("images/old.qcow2"),
    include_bytes!("images/full.qcow2"),
    include_bytes!("images/extended.qcow2"),
];

const NAME: &str = "disk";
/// The longest image that is tried, in bytes.
const IMAGE_MAX: usize = 1 << 20;
/// Room behind the image for what is written.
const ROOM: usize = 256 << 10;
/// How many runs of a disk are looked at from either end, and how much of each.
const RUNS: u32 = 40;
const RUN_BYTES: u64 = 16 << 10;

/// A header alone.
///
/// # Panics
///
/// One that is in order cannot be written again.
pub fn header(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().max(PEEK_BYTES as usize), 0);
    let Ok(cluster_size) = Header::peek_cluster_size(&bytes) else {
        return;
    };
    let cluster = |bytes: &[u8]| {
        let mut cluster = bytes.to_vec();
        cluster.resize(cluster_size as usize, 0);
        cluster
    };
    for mode in [OpenMode::ReadOnly, OpenMode::ReadWrite, OpenMode::Check] {
        if let Ok(header) = Header::parse(&cluster(&bytes), mode)
            && let Ok(written) = header.serialize()
        {
            // Extensions that nobody knows are written in reverse, as QEMU does: what
            // was written twice more is as before.
            let mut last = written.clone();
            for _ in 0..2 {
                let again = Header::parse(&cluster(&last), mode).expect("it was in order");
                last = again.serialize().expect("it could be written");
            }
            assert!(last == written, "{header:?} did not stay as it was");
        }
    }
}

/// A good image with changes: a byte that chooses it, then three bytes each:
/// where (little-endian, in units of a byte), and what to put there.
pub fn patched(bytes: &[u8]) {
    let Some((&choice, changes)) = bytes.split_first() else {
        return;
    };
    let mut bytes = TEMPLATES[usize::from(choice) % TEMPLATES.len()].to_vec();
    let (changes, _) = changes.as_chunks::<3>();
    for &[low, high, value] in changes {
        let at = usize::from(u16::from_le_bytes([low, high])) % bytes.len();
        bytes[at] = value;
    }
    image(&bytes);
}

/// A whole image: opened, read, checked, written to, repaired.
///
/// # Panics
///
/// Something waits for ever.
pub fn image(bytes: &[u8]) {
    if bytes.len() > IMAGE_MAX {
        return;
    }
    in_simulation(bytes, |shard| async move {
        look(&shard, None).await;
        look(&shard, Some(SnapshotSelector::Name("one".into()))).await;
        run_check(&shard, Repair::Nothing).await;
    });
    in_simulation(bytes, |shard| async move {
        change(&shard).await;
        run_check(&shard, Repair::Nothing).await;
    });
    in_simulation(bytes, |shard| async move {
        run_check(&shard, Repair::Leaks).await;
        run_check(&shard, Repair::All).await;
        look(&shard, None).await;
    });
}

/// A machine with the image on a device, which cannot grow: offsets in the image
/// could be anything.
fn in_simulation<T, F>(bytes: &[u8], task: T)
where
    T: FnOnce(Shard) -> F + Send + 'static,
    F: Future<Output = ()> + 'static,
{
    let mut sim = Sim::new(1, 1);
    let mut content = bytes.to_vec();
    content.resize(bytes.len().next_multiple_of(512) + ROOM, 0);
    let options = FileOptions {
        kind: Kind::BlockDevice,
        latency_ns: (1, 2),
        ..FileOptions::default()
    };
    sim.world().create_with(NAME, content, options);
    let answer = sim.shards().spawn_on(0, task);
    sim.run(&answer).expect("it ends");
}

/// An open image.
struct Opened {
    graph: Graph,
    user: UserId,
    attachment: Attachment,
}

impl Opened {
    async fn end(mut self, shard: &Shard) {
        self.graph.detach(self.user).await;
        let _ = self.graph.remove(shard, "image").await;
    }
}

async fn open(shard: &Shard, write: bool, snapshot: Option<SnapshotSelector>) -> Option<Opened> {
    let mut graph = Graph::new();
    let file = NodeSpec::File {
        path: PathBuf::from(NAME),
        write,
        cache: Cache::Auto,
        discard: true,
    };
    graph.add(shard, "file", file).await.expect("a file");
    let mut options = qcow2::OpenOptions::new(write);
    options.snapshot = snapshot;
    let image = NodeSpec::Qcow2(Qcow2Spec {
        file: "file".into(),
        backing: None,
        data_file: None,
        options,
        force_share: false,
    });
    graph.add(shard, "image", image).await.ok()?;
    let access = Access {
        read: true,
        write,
        alone_writing: false,
        ..Access::default()
    };
    let attached = graph.attach(shard, "image", "user", access).await;
    let (user, attachment) = attached.ok()?;
    Some(Opened {
        graph,
        user,
        attachment,
    })
}

/// Opens the image and reads what is mapped, from the start and at the end.
async fn look(shard: &Shard, snapshot: Option<SnapshotSelector>) {
    let Some(opened) = open(shard, false, snapshot).await else {
        return;
    };
    let port = opened.attachment.port(shard);
    read(shard, &port, 0).await;
    read(shard, &port, port.size().saturating_sub(256 << 10)).await;
    drop(port);
    opened.end(shard).await;
}

async fn read(shard: &Shard, port: &Port, from: u64) {
    let mut at = from;
    for _ in 0..RUNS {
        let rest = port.size().saturating_sub(at);
        if rest == 0 {
            break;
        }
        let len = rest.min(RUN_BYTES);
        let buf = shard.buffer(RUN_BYTES as usize).await;
        let (_, _) = port.read(shard, at, buf, 0..len as usize).await;
        let span = Span::new(at, rest);
        at += match port.extent(shard, span).await {
            Ok(extent) => {
                assert!(
                    0 < extent.len && extent.len <= rest,
                    "{extent:?} of {span:?}"
                );
                extent.len
            }
            Err(_) => len,
        };
    }
}

/// Opens the image and changes it all over.
async fn change(shard: &Shard) {
    let Some(opened) = open(shard, true, None).await else {
        return;
    };
    let port = opened.attachment.port(shard);
    let size = port.size();
    for step in 0..12 {
        let at = (size / 12 * step).min(size);
        let span = Span::new(at, (size - at).min(3000));
        let zero = ZeroFlags {
            may_unmap: step % 2 == 0,
            no_fallback: false,
        };
        let _: Result<(), Errno> = match step % 4 {
            0 | 1 => {
                let mut buf = shard.buffer(4096).await;
                buf.fill(7);
                let window = 0..span.len as usize;
                port.write(shard, at, buf, window).await.0
            }
            2 => port.write_zeroes(shard, span, zero).await,
            _ => port.discard(shard, span).await,
        };
        if step % 5 == 4 {
            let _ = port.flush(shard).await;
        }
    }
    drop(port);
    opened.end(shard).await;
}

async fn run_check(shard: &Shard, repair: Repair) {
    let options = OpenOptions {
        path: PathBuf::from(NAME),
        write: repair != Repair::Nothing,
        cache: Cache::Auto,
    };
    let file = File::open(shard, options).await.expect("a file");
    let protocol = Protocol::File(FileProtocol::new(file, true));
    let child = Child::Storage(Arc::new(Storage::new(protocol, 1)));
    let _ = check(shard, &child, repair, &mut |finding| {
        let _ = finding.to_string();
    })
    .await;
}
