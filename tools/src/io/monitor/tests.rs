//! Commands on nodes of a small graph of the tests' own.

use std::cell::RefCell;
use std::path::Path;

use ringback_block::graph::{Graph, UserId};
use ringback_block::notice::Notify;
use ringback_qmp_shim::open::open as resolve;
use ringback_ring::Shards;
use ringback_ring::shards::Config;
use serde_json::Value;

use super::*;
use crate::io::disk::Node;
use crate::io::options::Options;
use crate::open::{self, Opened};

const MIB: u64 = 1 << 20;
/// Of buffers.
const ARENA_BYTES: usize = 16 << 20;

/// Runs a test on a shard.
fn on_shard<F: Future<Output = ()> + 'static>(test: impl FnOnce(Shard) -> F + Send + 'static) {
    let config = Config {
        count: 1,
        pin: false,
        arena_bytes: ARENA_BYTES,
        ..Config::default()
    };
    let shards = Shards::start(&config).expect("a shard");
    let answer = shards.spawn_on(0, test).wait();
    shards.stop();
    answer.expect("the test passes");
}

/// A graph that lends its node.
struct Lender {
    shard: Shard,
    /// None while it is changed.
    graph: RefCell<Option<Graph>>,
    opened: Opened,
    nodes: Vec<String>,
}

impl Lender {
    fn take(&self) -> Graph {
        self.graph.take().expect("one change at a time")
    }

    fn put(&self, graph: Graph) {
        *self.graph.borrow_mut() = Some(graph);
    }
}

impl Owner for Lender {
    fn resize(
        &self,
        size: u64,
        mode: Preallocation,
    ) -> Pin<Box<dyn Future<Output = Result<(), GraphError>> + '_>> {
        Box::pin(async move {
            let mut graph = self.take();
            let node = &self.opened.node;
            let result = graph.resize(&self.shard, node, size, mode).await;
            self.put(graph);
            result
        })
    }
}

/// A monitor and one node.
struct Desk {
    monitor: Monitor,
    out: Output,
    lender: Rc<Lender>,
    writethrough: bool,
}

/// A command that has answered.
struct Answered {
    reply: String,
    requests: Rc<Requests>,
    user: Option<UserId>,
}

impl Desk {
    async fn open(shard: &Shard, options: &str) -> Self {
        let mut given = Options::default();
        given.add(options);
        let given = given
            .iter()
            .map(|(key, value)| (key.to_owned(), Value::from(value)))
            .collect();
        let node = resolve(None, &given, &Default::default()).expect("good options");
        let mut graph = Graph::new();
        let notify = Notify::new(|_| {});
        let chain = open::open(
            shard,
            &mut graph,
            notify,
            node,
            false,
            open::Servers {
                find_credentials: &|id| Err(format!("no credentials '{id}'")),
                bitmap: None,
            },
            &mut std::collections::BTreeMap::new(),
        )
        .await;
        let chain = chain.expect("a node");
        let out = Output::kept();
        Self {
            monitor: Monitor::speaking(shard, out.clone()),
            out,
            lender: Rc::new(Lender {
                shard: shard.clone(),
                graph: RefCell::new(Some(graph)),
                opened: chain.top,
                nodes: chain.nodes,
            }),
            writethrough: false,
        }
    }

    /// As the daemon does it, but that the attachment stays.
    async fn begin(&self, line: &str) -> Answered {
        let lender = &self.lender;
        let none = |reply: String| Answered {
            reply,
            requests: Rc::default(),
            user: None,
        };
        let Some(call) = self.monitor.look(line) else {
            return none(String::new());
        };
        let mut graph = lender.take();
        let node = &lender.opened.node;
        let attached = graph
            .attach(&lender.shard, node, "qemu-io", call.access())
            .await;
        let facts = Node::new(&graph, &lender.opened);
        lender.put(graph);
        let (user, attachment) = match attached {
            Ok(attached) => attached,
            Err(error) => return none(reply(&open::reason(error))),
        };
        let disk = Disk::new(&lender.shard, attachment, facts, self.writethrough);
        let owner: Rc<dyn Owner> = Rc::clone(lender) as Rc<dyn Owner>;
        let ended = self.monitor.run(&call, disk, owner).await;
        Answered {
            reply: ended.reply,
            requests: ended.requests,
            user: Some(user),
        }
    }

    async fn finish(&self, answered: Answered) {
        answered.requests.drain().await;
        if let Some(user) = answered.user {
            let mut graph = self.lender.take();
            graph.detach(user).await;
            self.lender.put(graph);
        }
    }

    /// The reply and what has been printed when all has ended.
    async fn line(&self, line: &str) -> (String, String) {
        let mut answered = self.begin(line).await;
        let reply = std::mem::take(&mut answered.reply);
        self.finish(answered).await;
        (reply, self.out.take())
    }

    /// What has been printed, where nothing is replied.
    async fn says(&self, line: &str) -> String {
        let (reply, said) = self.line(line).await;
        assert_eq!(reply, "", "{line}");
        said
    }

    /// Nothing uses the nodes any more, so that they can be closed.
    async fn close(self) {
        let mut graph = self.lender.take();
        open::close(&self.lender.shard, &mut graph, &self.lender.nodes)
            .await
            .expect("nothing is in use");
    }
}

/// An image of a MiB of zeroes.
fn image(directory: &Path) -> String {
    let path = directory.join("a.img");
    let file = std::fs::File::create(&path).expect("a file");
    file.set_len(MIB).expect("room for it");
    path.to_str().expect("a name in UTF-8").to_owned()
}

fn raw(directory: &Path) -> String {
    let file = image(directory);
    format!("driver=raw,file.driver=file,file.filename={file}")
}

fn over_blkdebug(directory: &Path, rules: &str) -> String {
    let file = image(directory);
    format!(
        "driver=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename={file}{rules}"
    )
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

/// The first line; the second has times.
fn first(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

#[test]
fn what_one_command_writes_the_next_one_reads() {
    on_shard(async |shard| {
        let directory = scratch();
        let desk = Desk::open(&shard, &raw(directory.path())).await;
        let said = desk.says("write -P0x49 0 64k").await;
        assert_eq!(first(&said), "wrote 65536/65536 bytes at offset 0");
        assert_eq!(said.lines().count(), 2);
        let said = desk.says("read -P0x49 0 64k").await;
        assert_eq!(first(&said), "read 65536/65536 bytes at offset 0");
        let said = desk.says("r -P0x49 32k 64k").await;
        assert_eq!(
            first(&said),
            "Pattern verification failed at offset 32768, 65536 bytes"
        );
        assert_eq!(desk.says("").await, "");
        desk.close().await;
    });
}

#[test]
fn errors_of_requests_are_printed() {
    on_shard(async |shard| {
        let directory = scratch();
        let desk = Desk::open(&shard, &raw(directory.path())).await;
        for line in ["write 2M 512", "write 1023k 2k"] {
            let said = desk.says(line).await;
            assert_eq!(said, "write failed: Input/output error\n");
        }
        let said = desk.says("aio_read 2M 512").await;
        assert_eq!(said, "readv failed: Input/output error\n");
        let said = desk.says("break write_aio A").await;
        assert_eq!(said, "Could not set breakpoint: Operation not supported\n");
        desk.close().await;
    });
}

#[test]
fn commands_that_do_not_exist_or_are_used_wrongly() {
    on_shard(async |shard| {
        let desk = Desk::open(&shard, "driver=null-co,read-zeroes=on").await;
        for word in ["foo", "open", "close", "quit", "q"] {
            let said = desk.says(&format!("{word} x")).await;
            assert_eq!(said, format!("E: command \"{word}\" not found\n"));
        }
        assert_eq!(desk.says("help quit").await, "command quit not found\n");
        let all = desk.says("help").await;
        assert!(all.contains("\nreopen [") && !all.contains("\nopen ["));
        assert_eq!(
            desk.says("read 0").await,
            "E: bad argument count 1 to read, expected at least 2 arguments\n"
        );
        let said = desk.says("read -z 0").await;
        let (error, usage) = said.split_once('\n').expect("two lines");
        assert_eq!(error, "E: read: invalid option -- 'z'");
        assert!(usage.starts_with("read [-abCqrv] "));
        assert_eq!(
            desk.says("read 0 1x").await,
            "Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- 1x\n"
        );
        desk.close().await;
    });
}

#[test]
fn a_read_only_node_is_not_written() {
    on_shard(async |shard| {
        let desk = Desk::open(&shard, "driver=null-co,read-zeroes=on,read-only=on").await;
        for line in [
            "write 0 512",
            "writev 0 512",
            "aio_write 0 512",
            "discard 0 512",
            "truncate x",
        ] {
            let answer = desk.line(line).await;
            let refused = ("Block node is read-only\r\n".to_owned(), String::new());
            assert_eq!(answer, refused, "{line}");
        }
        // As in QEMU, arguments are counted first.
        let said = desk.says("write 0").await;
        assert!(said.starts_with("E: bad argument count 1 to write"));
        let said = desk.says("read -P 0 0 512").await;
        assert_eq!(first(&said), "read 512/512 bytes at offset 0");
        desk.close().await;
    });
}

#[test]
fn errors_of_the_block_layer_are_the_reply() {
    on_shard(async |shard| {
        let directory = scratch();
        let desk = Desk::open(&shard, &raw(directory.path())).await;
        for (line, expected) in [
            (
                "truncate -m bogus 2M",
                "Invalid preallocation mode 'bogus'\r\n",
            ),
            (
                "truncate -m full 512",
                "Cannot use preallocation for shrinking files\r\n",
            ),
            (
                "truncate 9223372036854775807",
                "offset(9223372036854775807) exceeds maximum(9223372035781033984)\r\n",
            ),
            (
                "reopen -r",
                "'reopen' is not supported in a monitor; use blockdev-reopen\r\n",
            ),
        ] {
            let answer = desk.line(line).await;
            assert_eq!(answer, (expected.to_owned(), String::new()), "{line}");
        }
        desk.close().await;
    });
}

#[test]
fn a_size_is_changed_by_who_has_the_graph() {
    on_shard(async |shard| {
        let directory = scratch();
        let desk = Desk::open(&shard, &raw(directory.path())).await;
        assert_eq!(desk.says("truncate 2M").await, "");
        assert_eq!(desk.says("length").await, "2 MiB\n");
        let file = directory.path().join("a.img");
        let size = std::fs::metadata(file).expect("it is there").len();
        assert_eq!(size, 2 * MIB);
        let said = desk.says("write 1536k 64k").await;
        assert_eq!(first(&said), "wrote 65536/65536 bytes at offset 1572864");
        desk.close().await;
    });
}

#[test]
fn a_request_beside_goes_on_when_the_command_has_answered() {
    on_shard(async |shard| {
        let directory = scratch();
        let desk = Desk::open(&shard, &over_blkdebug(directory.path(), "")).await;
        assert_eq!(desk.says("break write_aio A").await, "");
        let writing = desk.begin("aio_write -P 7 0 4k").await;
        assert_eq!(writing.reply, "");
        assert!(!writing.requests.is_idle());
        assert_eq!(desk.says("wait_break A").await, SUSPENDED);
        // What it holds nobody else needs.
        let said = desk.says("write -P 8 64k 4k").await;
        assert_eq!(first(&said), "wrote 4096/4096 bytes at offset 65536");
        assert!(!writing.requests.is_idle());
        // The request may end before its command is let go.
        let resumed = desk.begin("resume A").await;
        assert_eq!(resumed.reply, "");
        assert!(resumed.requests.is_idle());
        let flushed = desk.begin("aio_flush").await;
        assert!(writing.requests.is_idle(), "on every disk");
        let said = desk.out.take();
        let mut lines = said.lines();
        assert_eq!(lines.next(), Some("blkdebug: Resuming request 'A'"));
        assert_eq!(lines.next(), Some("wrote 4096/4096 bytes at offset 0"));
        for answered in [writing, resumed, flushed] {
            desk.finish(answered).await;
        }
        let said = desk.says("read -P 7 0 4k").await;
        assert_eq!(first(&said), "read 4096/4096 bytes at offset 0");
        let said = desk.says("resume A").await;
        assert_eq!(
            said,
            "Could not resume request: No such file or directory\n"
        );
        desk.close().await;
    });
}

const SUSPENDED: &str = "blkdebug: Suspended request 'A'\n";

#[test]
fn a_request_beside_is_told_when_it_ends() {
    on_shard(async |shard| {
        let directory = scratch();
        let desk = Desk::open(&shard, &raw(directory.path())).await;
        let writing = desk.begin("aio_write -P 7 0 4k").await;
        writing.requests.drain().await;
        assert!(writing.requests.is_idle());
        let said = desk.out.take();
        assert_eq!(first(&said), "wrote 4096/4096 bytes at offset 0");
        desk.finish(writing).await;
        desk.close().await;
    });
}

#[test]
fn only_writethrough_flushes_after_each_write() {
    on_shard(async |shard| {
        let directory = scratch();
        let rules = ",file.inject-error.0.event=flush_to_os";
        let mut desk = Desk::open(&shard, &over_blkdebug(directory.path(), rules)).await;
        let said = desk.says("write 0 4k").await;
        assert_eq!(first(&said), "wrote 4096/4096 bytes at offset 0");
        desk.writethrough = true;
        let said = desk.says("write 0 4k").await;
        assert_eq!(said, "write failed: Input/output error\n");
        desk.close().await;
    });
}

#[test]
fn a_large_transfer_does_not_wait_for_another_one_that_is_held() {
    on_shard(async |shard| {
        let directory = scratch();
        let options = over_blkdebug(directory.path(), "");
        let desk = Desk::open(&shard, &options).await;
        assert_eq!(desk.says("truncate 64M").await, "");
        assert_eq!(desk.says("break write_aio A").await, "");
        let held = desk.begin("aio_write 0 12M").await;
        assert_eq!(desk.says("wait_break A").await, SUSPENDED);
        let said = desk.says("read 0 12M").await;
        assert_eq!(said, "read failed: Cannot allocate memory\n");
        let said = desk.says("aio_write 0 12M").await;
        assert_eq!(said, "aio_write failed: Cannot allocate memory\n");
        let said = desk.says("read 32M 1M").await;
        assert_eq!(
            first(&said),
            "read 1048576/1048576 bytes at offset 33554432"
        );
        let resumed = desk.begin("resume A").await;
        desk.finish(held).await;
        desk.finish(resumed).await;
        desk.out.take();
        let said = desk.says("read -P 0xcd 0 12M").await;
        assert_eq!(first(&said), "read 12582912/12582912 bytes at offset 0");
        desk.close().await;
    });
}
