//! The lanes of one shard: which servers it has a connection to, and how it gets one
//! of its own to a server whose node another shard owns.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use ringback_ring::Shard;

use super::connect::{ATTEMPT_NS, Connected, SECOND_NS, attempt};
use super::lane::Lane;
use super::shared::Shared;

/// After a connection for another shard could not be made, so long none is tried.
const OTHERS_PAUSE_NS: u64 = 30 * SECOND_NS;

/// What a shard has to do with a server.
#[derive(Default)]
struct Entry {
    lane: Option<Rc<Lane>>,
    /// Nobody tries to connect before then, in the shard's time.
    next_try_ns: u64,
}

/// The lanes of one shard, by the number of the node.
#[derive(Default)]
pub(super) struct Lanes {
    entries: RefCell<BTreeMap<u64, Entry>>,
}

impl Lanes {
    pub(super) fn get(&self, node: u64) -> Option<Rc<Lane>> {
        self.entries.borrow().get(&node)?.lane.clone()
    }

    pub(super) fn insert(&self, node: u64, lane: Rc<Lane>) {
        self.entries.borrow_mut().entry(node).or_default().lane = Some(lane);
    }

    /// The node is closed.
    pub(super) fn remove(&self, node: u64) -> Option<Rc<Lane>> {
        self.entries.borrow_mut().remove(&node)?.lane
    }

    /// A lane has ended.
    pub(super) fn forget(&self, node: u64, lane: &Rc<Lane>) {
        if let Some(entry) = self.entries.borrow_mut().get_mut(&node)
            && entry.lane.as_ref().is_some_and(|own| Rc::ptr_eq(own, lane))
        {
            entry.lane = None;
        }
    }

    /// Makes a connection of this shard's own, unless that is being tried already or
    /// has failed a short while ago. Nobody waits for it.
    pub(super) fn connect(self: &Rc<Self>, shard: &Shard, shared: &Arc<Shared>) {
        let now_ns = shard.now_ns();
        let mut entries = self.entries.borrow_mut();
        let entry = entries.entry(shared.node).or_default();
        if entry.lane.is_some() || now_ns < entry.next_try_ns {
            return;
        }
        entry.next_try_ns = now_ns.saturating_add(ATTEMPT_NS + OTHERS_PAUSE_NS);
        drop(entries);
        let (lanes, shard_of_task, shared) = (Rc::clone(self), shard.clone(), Arc::clone(shared));
        shard.spawn(async move {
            let shard = shard_of_task;
            match attempt(&shard, &shared.server, ATTEMPT_NS).await {
                Ok(connected) if lanes.may_begin(&shared, &connected) => {
                    let lane = Lane::start(&shard, &shared, connected, false);
                    lanes.insert(shared.node, lane);
                    lanes.set_next_try(shared.node, shard.now_ns() + SECOND_NS);
                }
                Ok(connected) => {
                    lanes.set_next_try(shared.node, shard.now_ns() + OTHERS_PAUSE_NS);
                    connected.leave().await;
                }
                Err(error) => {
                    lanes.set_next_try(shared.node, shard.now_ns() + OTHERS_PAUSE_NS);
                    let server = &shared.server.address;
                    tracing::info!(%server, shard = shard.index(), "no further connection: {error}");
                }
            }
        });
    }

    /// The node may have been closed meanwhile, or its server be trusted no more.
    fn may_begin(&self, shared: &Shared, connected: &Connected) -> bool {
        self.entries.borrow().contains_key(&shared.node)
            && !shared.is_dead()
            && shared.check_successor(&connected.terms).is_ok()
    }

    fn set_next_try(&self, node: u64, at_ns: u64) {
        if let Some(entry) = self.entries.borrow_mut().get_mut(&node) {
            entry.next_try_ns = at_ns;
        }
    }
}
