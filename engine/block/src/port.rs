//! Where requests enter a disk: one port a shard, with a gate.
//!
//! What serves a disk (an export, a guest load) asks an [`Attachment`] for the
//! port of its shard and sends every request through it. The control side
//! replaces the path behind all ports at once: each shard closes its gate, lets
//! what is in flight end, takes the new path, opens again.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ringback_ring::{Buf, Errno, IoResult, LocalQueue, Shard, Shards};

use crate::extent::Extent;
use crate::filter::throttle::Throttle;
use crate::metrics::{Class, Metrics};
use crate::path::Path;
use crate::request::ZeroFlags;
use crate::span::Span;
use crate::usage::{Histogram, Operation, Started, Usage};

static NEXT_ID: AtomicU64 = AtomicU64::new(0);

/// One user's hold on a node, on all shards.
#[derive(Clone, Debug)]
pub struct Attachment {
    id: u64,
    shards: Shards,
    /// What a shard takes that meets this attachment for the first time.
    first: Arc<Path>,
}

/// The ports of one shard, by attachment.
#[derive(Default)]
struct Ports {
    by_id: RefCell<BTreeMap<u64, Rc<Port>>>,
}

impl Attachment {
    /// Opens ports with this path on every shard.
    pub async fn new(shards: &Shards, path: Path) -> Self {
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let this = Self {
            id,
            shards: shards.clone(),
            first: Arc::new(path),
        };
        let attachment = this.clone();
        shards
            .on_each(move |shard| {
                let attachment = attachment.clone();
                async move { attachment.make_port(&shard) }
            })
            .await;
        this
    }

    fn make_port(&self, shard: &Shard) {
        let port = Port {
            path: RefCell::new(Rc::new(self.first.as_ref().clone())),
            gate: Cell::new(Gate::Open),
            released: RefCell::default(),
            in_flight: Cell::new(0),
            waiting: LocalQueue::new(),
            emptied: LocalQueue::new(),
            usage: RefCell::default(),
        };
        shard
            .local::<Ports>()
            .by_id
            .borrow_mut()
            .insert(self.id, Rc::new(port));
    }

    /// The port of the caller's shard.
    ///
    /// # Panics
    ///
    /// After [`Attachment::detach`].
    pub fn port(&self, shard: &Shard) -> Rc<Port> {
        let ports = shard.local::<Ports>();
        let port = ports.by_id.borrow().get(&self.id).map(Rc::clone);
        port.expect("an attachment has a port on every shard until it is detached")
    }

    async fn on_each_port<F: std::future::Future<Output = ()> + 'static>(
        &self,
        act: impl Fn(Rc<Port>) -> F + Clone + Send + 'static,
    ) {
        let attachment = self.clone();
        self.shards
            .on_each(move |shard| act(attachment.port(&shard)))
            .await;
    }

    /// Closes every gate: new requests wait.
    pub async fn close(&self) {
        self.on_each_port(|port| async move { port.close() }).await;
    }

    /// Closes every gate and waits until nothing is in flight behind them.
    pub async fn drain(&self) {
        self.on_each_port(|port| async move {
            port.close();
            port.empty().await;
        })
        .await;
    }

    /// Opens every gate again, onto a new path if one is given.
    pub async fn resume(&self, path: Option<Path>) {
        self.on_each_port(move |port| {
            let path = path.clone();
            async move { port.resume(path) }
        })
        .await;
    }

    /// What was asked through all ports.
    pub async fn usage(&self) -> Usage {
        let attachment = self.clone();
        let parts = self
            .shards
            .on_each(move |shard| {
                let port = attachment.port(&shard);
                async move { port.usage.borrow().clone() }
            })
            .await;
        let mut total = Usage::default();
        for part in &parts {
            total.add(part);
        }
        total
    }

    /// Records how long requests of one kind take, from now on and from nothing;
    /// none: no more.
    pub async fn set_histogram(&self, operation: Operation, histogram: Option<&Histogram>) {
        let histogram = histogram.cloned();
        self.on_each_port(move |port| {
            let histogram = histogram.clone();
            async move { port.usage.borrow_mut().set_histogram(operation, histogram) }
        })
        .await;
    }

    /// Counts on where an attachment before this one has stopped.
    pub async fn continue_usage(&self, shard: &Shard, usage: &Usage) {
        let empty = usage.emptied();
        self.on_each_port(move |port| {
            let empty = empty.clone();
            async move { *port.usage.borrow_mut() = empty }
        })
        .await;
        *self.port(shard).usage.borrow_mut() = usage.clone();
    }

    /// Drains and takes the ports away. Requests that wait at the gates, or
    /// come later, are answered with ESHUTDOWN.
    pub async fn detach(self) {
        self.drain().await;
        let id = self.id;
        self.shards
            .on_each(move |shard| async move {
                let port = shard.local::<Ports>().by_id.borrow_mut().remove(&id);
                if let Some(port) = port {
                    port.end();
                }
            })
            .await;
    }
}

/// Whether requests may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    Open,
    /// For a while.
    Closed,
    /// For ever: the attachment is no more.
    Gone,
}

/// One shard's entrance to a disk.
pub struct Port {
    path: RefCell<Rc<Path>>,
    gate: Cell<Gate>,
    /// Throttles that hold nobody because of this gate. What is on the path may
    /// change while it is closed.
    released: RefCell<Vec<Arc<Throttle>>>,
    in_flight: Cell<usize>,
    /// Requests that met a closed gate.
    waiting: LocalQueue,
    /// A drain that waits for the last request.
    emptied: LocalQueue,
    /// Requests that were counted.
    usage: RefCell<Usage>,
}

/// A request behind the gate, until dropped.
struct Passage<'a> {
    port: &'a Port,
    path: Rc<Path>,
}

impl Drop for Passage<'_> {
    fn drop(&mut self) {
        self.port.in_flight.set(self.port.in_flight.get() - 1);
        if self.port.in_flight.get() == 0 {
            self.port.emptied.wake_all();
        }
    }
}

impl Port {
    async fn enter(&self, shard: &Shard) -> IoResult<Passage<'_>> {
        if self.gate.get() == Gate::Closed {
            let since = shard.now_ns();
            self.waiting
                .wait_until(|| self.gate.get() != Gate::Closed)
                .await;
            shard
                .local::<Metrics>()
                .record(Class::DrainPause, shard.now_ns() - since);
        }
        if self.gate.get() == Gate::Gone {
            return Err(Errno::ESHUTDOWN);
        }
        self.in_flight.set(self.in_flight.get() + 1);
        Ok(Passage {
            port: self,
            path: Rc::clone(&self.path.borrow()),
        })
    }

    /// What a throttle holds must not make a drain wait.
    fn close(&self) {
        if self.gate.replace(Gate::Closed) == Gate::Open {
            self.path.borrow().for_each_throttle(&|throttle| {
                throttle.release();
                self.released.borrow_mut().push(Arc::clone(throttle));
            });
        }
    }

    /// The drain is over: throttles on the path that was closed hold again.
    fn leave_closed(&self, gate: Gate) {
        if self.gate.replace(gate) == Gate::Closed {
            for throttle in self.released.take() {
                throttle.hold_again();
            }
        }
    }

    async fn empty(&self) {
        self.emptied.wait_until(|| self.in_flight.get() == 0).await;
    }

    fn resume(&self, path: Option<Path>) {
        debug_assert!(
            path.is_none() || (self.gate.get() == Gate::Closed && self.in_flight.get() == 0)
        );
        self.leave_closed(Gate::Open);
        if let Some(path) = path {
            *self.path.borrow_mut() = Rc::new(path);
        }
        self.waiting.wake_all();
    }

    fn end(&self) {
        self.leave_closed(Gate::Gone);
        self.waiting.wake_all();
    }

    /// A request begins that counts as a guest's; it does when
    /// [`Port::end_request`] has told how it ended.
    pub fn start_request(&self, shard: &Shard, operation: Operation, bytes: u64) -> Started {
        Started {
            operation,
            bytes,
            at_ns: shard.now_ns(),
        }
    }

    /// A request has ended.
    pub fn end_request(&self, shard: &Shard, started: Started, is_ok: bool) {
        let now_ns = shard.now_ns();
        self.usage.borrow_mut().end(started, now_ns, is_ok);
    }

    /// A guest asked for something that makes no sense and does not get here.
    pub fn refuse_request(&self, shard: &Shard, operation: Operation) {
        let now_ns = shard.now_ns();
        self.usage.borrow_mut().refuse(operation, now_ns);
    }

    /// Size of the disk in bytes.
    pub fn size(&self) -> u64 {
        self.path.borrow().size()
    }

    /// Unit of requests that the disk takes as they are, in bytes.
    pub fn request_alignment(&self) -> u64 {
        self.path.borrow().request_alignment()
    }

    /// Reads; see [`Path::read`].
    pub async fn read(
        &self,
        shard: &Shard,
        offset: u64,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        match self.enter(shard).await {
            Ok(passage) => passage.path.read(shard, offset, buf, window).await,
            Err(errno) => (Err(errno), buf),
        }
    }

    /// Writes; see [`Path::write`].
    pub async fn write(
        &self,
        shard: &Shard,
        offset: u64,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        match self.enter(shard).await {
            Ok(passage) => passage.path.write(shard, offset, buf, window).await,
            Err(errno) => (Err(errno), buf),
        }
    }

    /// Writes compressed; see [`Path::write_compressed`].
    pub async fn write_compressed(&self, shard: &Shard, offset: u64, bytes: &[u8]) -> IoResult<()> {
        let passage = self.enter(shard).await?;
        passage.path.write_compressed(shard, offset, bytes).await
    }

    /// Zeroes; see [`Path::write_zeroes`].
    pub async fn write_zeroes(&self, shard: &Shard, span: Span, flags: ZeroFlags) -> IoResult<()> {
        let passage = self.enter(shard).await?;
        passage.path.write_zeroes(shard, span, flags).await
    }

    /// Discards; see [`Path::discard`].
    pub async fn discard(&self, shard: &Shard, span: Span) -> IoResult<()> {
        let passage = self.enter(shard).await?;
        passage.path.discard(shard, span).await
    }

    /// Flushes; see [`Path::flush`].
    pub async fn flush(&self, shard: &Shard) -> IoResult<()> {
        let passage = self.enter(shard).await?;
        passage.path.flush(shard).await
    }

    /// Reads a machine's state; see [`Path::load_vmstate`].
    pub async fn load_vmstate(
        &self,
        shard: &Shard,
        position: u64,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        match self.enter(shard).await {
            Ok(passage) => {
                let path = &passage.path;
                path.load_vmstate(shard, position, buf, window).await
            }
            Err(errno) => (Err(errno), buf),
        }
    }

    /// Writes a machine's state; see [`Path::save_vmstate`].
    pub async fn save_vmstate(
        &self,
        shard: &Shard,
        position: u64,
        buf: Buf,
        window: Range<usize>,
    ) -> (IoResult<()>, Buf) {
        match self.enter(shard).await {
            Ok(passage) => {
                let path = &passage.path;
                path.save_vmstate(shard, position, buf, window).await
            }
            Err(errno) => (Err(errno), buf),
        }
    }

    /// Looks; see [`Path::extent`].
    pub async fn extent(&self, shard: &Shard, span: Span) -> IoResult<Extent> {
        let passage = self.enter(shard).await?;
        passage.path.extent(shard, span).await
    }
}

#[cfg(test)]
mod tests {
    use ringback_ring::sim::Sim;

    use crate::graph::{Access, Graph, NodeSpec};

    /// The memory of a request's task is asked for and filled each time. What is rare, or
    /// of one format only, has to be boxed.
    #[test]
    fn reads_and_writes_are_small() {
        let mut sim = Sim::new(1, 1);
        let sizes = sim.shards().spawn_on(0, |shard| async move {
            let mut graph = Graph::new();
            let null = NodeSpec::Null {
                size: 1 << 20,
                latency_ns: 0,
                read_zeroes: true,
            };
            graph.add(&shard, "disk", null).await.expect("a disk");
            let access = Access {
                read: true,
                write: true,
                ..Access::default()
            };
            let attached = graph.attach(&shard, "disk", "guest", access).await;
            let (_, attachment) = attached.expect("it is free");
            let port = attachment.port(&shard);
            let read = port.read(&shard, 0, shard.buffer_now(512), 0..512);
            let write = port.write(&shard, 0, shard.buffer_now(512), 0..512);
            [size_of_val(&read), size_of_val(&write)]
        });
        for size in sim.run(&sizes).expect("it ends") {
            assert!(size <= 2560, "{size} bytes");
        }
    }
}
