//! What all shards know of a node: where its server is, what was agreed upon, and
//! whether it is there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ringback_ring::Shards;

use super::connect::Server;
use super::error::NbdError;
use super::lanes::Lanes;
use super::terms::Terms;
use super::wire::export_flags as has;

/// What all shards know of a node.
pub(super) struct Shared {
    /// Nodes are numbered.
    pub(super) node: u64,
    /// The shard whose connection counts.
    pub(super) owner: usize,
    pub(super) server: Server,
    pub(super) reconnect_delay_ns: u64,
    /// Changes when the node is reopened.
    is_writable: AtomicBool,
    /// What was agreed upon first: requests are made for it.
    pub(super) terms: Terms,
    /// The server has broken the rules.
    is_dead: AtomicBool,
    /// The owner's connection is there.
    is_up: AtomicBool,
    /// The server allows several connections.
    is_multi: AtomicBool,
}

impl Shared {
    /// Of a new node, whose owner's connection is there.
    pub(super) fn new(
        owner: usize,
        server: Server,
        reconnect_delay_ns: u64,
        is_writable: bool,
        terms: Terms,
    ) -> Arc<Self> {
        static NODES: AtomicU64 = AtomicU64::new(0);
        Arc::new(Self {
            node: NODES.fetch_add(1, Ordering::Relaxed),
            owner,
            server,
            reconnect_delay_ns,
            terms,
            is_writable: AtomicBool::new(is_writable),
            is_dead: AtomicBool::new(false),
            is_up: AtomicBool::new(true),
            is_multi: AtomicBool::new(terms.has(has::CAN_MULTI_CONN)),
        })
    }

    pub(super) fn is_dead(&self) -> bool {
        self.is_dead.load(Ordering::Relaxed)
    }

    /// The server has broken the rules: every shard leaves it for good.
    pub(super) fn kill(&self, set: &Shards) {
        self.is_dead.store(true, Ordering::Relaxed);
        let node = self.node;
        for index in 0..set.count() {
            set.run_on(index, move |shard| {
                if let Some(lane) = shard.local::<Lanes>().get(node) {
                    lane.hang_up();
                }
            });
        }
    }

    pub(super) fn set_up(&self, terms: &Terms) {
        let is_multi = terms.has(has::CAN_MULTI_CONN);
        self.is_multi.store(is_multi, Ordering::Relaxed);
        self.is_up.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_up(&self) -> bool {
        self.is_up.load(Ordering::Relaxed)
    }

    /// Whether other shards than the owner may connect now.
    pub(super) fn may_join(&self) -> bool {
        self.is_up() && self.is_multi.load(Ordering::Relaxed)
    }

    pub(super) fn is_writable(&self) -> bool {
        self.is_writable.load(Ordering::Relaxed)
    }

    pub(super) fn set_writable(&self, is_writable: bool) {
        self.is_writable.store(is_writable, Ordering::Relaxed);
    }

    pub(super) fn set_down(&self) {
        self.is_up.store(false, Ordering::Relaxed);
    }

    /// Whether the node can go on with a further connection.
    pub(super) fn check_successor(&self, terms: &Terms) -> Result<(), NbdError> {
        let needs_context = self.server.wishes.context.is_some();
        self.terms
            .check_successor(terms, self.is_writable(), needs_context)
    }
}
