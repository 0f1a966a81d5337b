//! An image in a graph, for a test.

use std::path::Path;

use ringback_block::format::qcow2::OpenOptions;
use ringback_block::graph::{Access, Graph, GraphError, NodeSpec, Qcow2Spec, UserId};
use ringback_block::port::Attachment;
use ringback_ring::file::Cache;
use ringback_ring::shards::Config;
use ringback_ring::{Errno, Shard, Shards};

pub(crate) fn start_shards(count: usize) -> Shards {
    let config = Config {
        count,
        arena_bytes: 64 << 20,
        ..Config::default()
    };
    Shards::start(&config).expect("shards start")
}

/// Runs something on the first shard.
pub(crate) fn on_shard<F, T>(shards: &Shards, work: impl FnOnce(Shard) -> F + Send + 'static) -> T
where
    F: Future<Output = T> + 'static,
    T: Send + 'static,
{
    let answer = shards.spawn_on(0, work);
    answer.wait().expect("the work ends")
}

/// An image without a backing file: nodes "file" and "disk".
pub(crate) struct Session {
    pub(crate) graph: Graph,
    pub(crate) shard: Shard,
    guest: Option<(UserId, Attachment)>,
}

impl Session {
    pub(crate) async fn open(
        shard: &Shard,
        path: &Path,
        options: OpenOptions,
    ) -> Result<Self, GraphError> {
        let mut graph = Graph::new();
        let write = options.write;
        let file = NodeSpec::File {
            path: path.to_owned(),
            write,
            cache: Cache::Buffered,
            discard: true,
        };
        graph.add(shard, "file", file).await?;
        let spec = Qcow2Spec {
            file: "file".into(),
            backing: None,
            data_file: None,
            options,
            force_share: false,
        };
        graph.add(shard, "disk", NodeSpec::Qcow2(spec)).await?;
        let access = Access {
            read: true,
            write,
            ..Access::default()
        };
        let guest = graph.attach(shard, "disk", "guest", access).await?;
        Ok(Self {
            graph,
            shard: shard.clone(),
            guest: Some(guest),
        })
    }

    fn attachment(&self) -> &Attachment {
        &self.guest.as_ref().expect("until it is closed").1
    }

    pub(crate) async fn write(&self, offset: u64, len: usize, value: u8) -> Result<(), Errno> {
        let mut buf = self.shard.buffer(len).await;
        buf[..len].fill(value);
        let port = self.attachment().port(&self.shard);
        port.write(&self.shard, offset, buf, 0..len).await.0
    }

    pub(crate) async fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>, Errno> {
        let buf = self.shard.buffer(len).await;
        let port = self.attachment().port(&self.shard);
        let (result, buf) = port.read(&self.shard, offset, buf, 0..len).await;
        result.map(|()| buf[..len].to_vec())
    }

    pub(crate) async fn flush(&self) -> Result<(), Errno> {
        let port = self.attachment().port(&self.shard);
        port.flush(&self.shard).await
    }

    pub(crate) async fn close(mut self) -> Result<(), GraphError> {
        if let Some((user, _)) = self.guest.take() {
            self.graph.detach(user).await;
        }
        self.graph.remove(&self.shard, "disk").await
    }
}
