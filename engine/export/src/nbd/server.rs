//! What listens, and how many clients there may be.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use ringback_net::{Connection, Incoming, Listener, Reader};
use ringback_ring::shard::Task;
use ringback_ring::{Shard, Shards, WaitQueue};

use super::export::Export;
use super::exports::Exports;
use super::negotiation::{self, Refusal};
use super::session;
use super::tls::Tls;

/// A failure to accept that may pass: how long to wait for it.
const RETRY_NS: u64 = 100_000_000;

/// How clients are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Most clients at once, those included that have not chosen yet; 0: any
    /// number.
    pub max_connections: u32,
    /// Time until a client must have chosen, in seconds; 0: any.
    pub handshake_seconds: u64,
}

#[derive(Debug)]
struct Inner {
    options: Options,
    tls: Option<Tls>,
    exports: Exports,
    /// Clients, those included that have not chosen yet.
    clients: AtomicU32,
    /// Woken when a client has left, or when the server is to stop.
    left: WaitQueue,
    is_stopping: AtomicBool,
}

/// A server that listens until it is stopped.
pub struct Server {
    inner: Arc<Inner>,
    shards: Shards,
    /// Owns what listens.
    accepting: Task<()>,
}

/// The clients of one shard.
#[derive(Default)]
struct Guests {
    next: Cell<u64>,
    all: RefCell<BTreeMap<u64, Guest>>,
}

struct Guest {
    server: Arc<Inner>,
    connection: Rc<Connection>,
    /// Of those who have chosen.
    export: Option<Arc<Export>>,
}

/// A place in the count of clients, until dropped.
struct Seat(Arc<Inner>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.clients.fetch_sub(1, Ordering::AcqRel);
        self.0.left.wake_all();
    }
}

impl Server {
    /// Starts to accept clients; with `tls`, only under TLS. They are spread over
    /// all shards.
    ///
    /// # Errors
    ///
    /// No descriptor is left.
    pub fn start(
        shard: &Shard,
        listener: Listener,
        options: Options,
        tls: Option<Tls>,
    ) -> io::Result<Self> {
        let inner = Arc::new(Inner {
            options,
            tls,
            exports: Exports::default(),
            clients: AtomicU32::new(0),
            left: WaitQueue::new(),
            is_stopping: AtomicBool::new(false),
        });
        let incoming = listener.incoming(shard)?;
        let (server, here) = (Arc::clone(&inner), shard.clone());
        let accepting = shard.spawn(async move { accept_all(&here, &server, &incoming).await });
        Ok(Self {
            inner,
            shards: shard.set().clone(),
            accepting,
        })
    }

    /// How clients are treated.
    pub fn options(&self) -> Options {
        self.inner.options
    }

    /// Whether clients can choose an export of this name.
    pub fn has(&self, name: &str) -> bool {
        self.inner.exports.find(name.as_bytes()).is_some()
    }

    /// Offers an export. Its name must be free.
    pub fn add(&self, export: &Arc<Export>) {
        self.inner.exports.add(export);
    }

    /// Offers an export no more. Who has chosen it stays.
    pub fn remove(&self, export: &Arc<Export>) {
        self.inner.exports.remove(export);
    }

    /// Takes an export away if nobody has chosen it.
    pub fn remove_unused(&self, export: &Arc<Export>) -> bool {
        self.inner.exports.remove_unused(export)
    }

    /// Cuts the connections of who has chosen an export. What is in flight ends
    /// later: see [`super::export::Clients::gone`].
    pub async fn cut(&self, export: &Arc<Export>) {
        let export = Arc::clone(export);
        cut_those(&self.shards, move |guest| {
            let chosen = guest.export.as_ref();
            chosen.is_some_and(|chosen| Arc::ptr_eq(chosen, &export))
        })
        .await;
    }

    /// Accepts nobody any more, cuts all connections, and waits for their end. A
    /// listening socket that somebody else holds, too, goes on to listen for them.
    pub async fn stop(self, shard: &Shard) {
        self.inner.is_stopping.store(true, Ordering::Release);
        self.inner.left.wake_all();
        // From then on nobody comes in, and the socket file's place is free.
        self.accepting.join().await;
        let server = Arc::clone(&self.inner);
        let cut = move |guest: &Guest| Arc::ptr_eq(&guest.server, &server);
        cut_those(&self.shards, cut).await;
        let inner = &self.inner;
        shard
            .wait(&[&inner.left], None, || {
                inner.clients.load(Ordering::Acquire) == 0
            })
            .await;
    }
}

async fn cut_those(shards: &Shards, is_meant: impl Fn(&Guest) -> bool + Clone + Send + 'static) {
    shards
        .on_each(move |shard| {
            let guests = shard.local::<Guests>();
            for guest in guests.all.borrow().values() {
                if is_meant(guest) {
                    guest.connection.shut_down();
                }
            }
            async {}
        })
        .await;
}

/// Until the server is stopped.
async fn accept_all(shard: &Shard, server: &Arc<Inner>, incoming: &Incoming) {
    let is_stopping = || server.is_stopping.load(Ordering::Acquire);
    let mut next_shard = 0;
    loop {
        let max = server.options.max_connections;
        shard
            .wait(&[&server.left], None, || {
                max == 0 || server.clients.load(Ordering::Acquire) < max || is_stopping()
            })
            .await;
        if is_stopping() {
            return;
        }
        let stop = async {
            shard.wait(&[&server.left], None, is_stopping).await;
        };
        match incoming.next(stop).await {
            Ok(None) => return,
            Ok(Some(client)) => {
                server.clients.fetch_add(1, Ordering::AcqRel);
                let seat = Seat(Arc::clone(server));
                let index = next_shard % shard.set().count();
                next_shard = index + 1;
                drop(
                    shard
                        .set()
                        .spawn_on(index, move |shard| serve(shard, client, seat)),
                );
            }
            Err(error) => {
                // Somebody who hung up at once, or no descriptor left for now.
                tracing::warn!("NBD server: no connection accepted: {error}");
                shard.sleep_ns(RETRY_NS).await;
            }
        }
    }
}

/// One client, from the greeting to the end.
async fn serve(shard: Shard, client: OwnedFd, seat: Seat) {
    let connection = Connection::new(&shard, client);
    let guests = shard.local::<Guests>();
    let number = guests.next.replace(guests.next.get() + 1);
    let guest = Guest {
        server: Arc::clone(&seat.0),
        connection: Rc::clone(&connection),
        export: None,
    };
    guests.all.borrow_mut().insert(number, guest);
    // Who stops the server looks for guests after it has said so.
    if !seat.0.is_stopping.load(Ordering::Acquire) {
        attend(&shard, &connection, &seat.0, &guests, number).await;
    }
    guests.all.borrow_mut().remove(&number);
}

async fn attend(
    shard: &Shard,
    connection: &Rc<Connection>,
    server: &Arc<Inner>,
    guests: &Rc<Guests>,
    number: u64,
) {
    let negotiation = shard.spawn({
        let (connection, server) = (Rc::clone(connection), Arc::clone(server));
        async move {
            let mut reader = Reader::new(&connection);
            let (exports, tls) = (&server.exports, server.tls.as_ref());
            let agreed = negotiation::negotiate(&connection, &mut reader, exports, tls).await;
            (agreed, reader)
        }
    });
    let seconds = server.options.handshake_seconds;
    let deadline = (seconds > 0)
        .then(|| seconds.checked_mul(1_000_000_000))
        .flatten()
        .and_then(|time| shard.now_ns().checked_add(time));
    let Some((agreed, reader)) = shard.join_until(negotiation, deadline).await else {
        tracing::info!("NBD client: no export chosen in {seconds} s");
        connection.shut_down();
        return;
    };
    match agreed {
        Ok(agreement) => {
            let export = Arc::clone(agreement.visit.export());
            if let Some(guest) = guests.all.borrow_mut().get_mut(&number) {
                guest.export = Some(Arc::clone(&export));
            }
            // Who takes an export away cuts its guests after that.
            let offered = server.exports.find(export.name.as_bytes());
            if !offered.is_some_and(|offered| Arc::ptr_eq(&offered, &export)) {
                return;
            }
            session::serve(connection, reader, agreement).await;
        }
        Err(Refusal::Left) => {}
        Err(Refusal::Failed(text)) => tracing::warn!("option negotiation failed: {text}"),
    }
}
