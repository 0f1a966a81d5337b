//! `throttle`: requests wait so that no more than a group's limits pass.
//!
//! Several nodes may be members of a group and share its limits. Each member
//! has one queue a direction; the members are served in turn, one request at a
//! time. Flushes, resizes and looks at what is there are free.
//!
//! # Who waits for what
//!
//! In each direction one member has the turn. Its first request sleeps until
//! the buckets let it pass; all others sleep until they are the first one. A
//! request that passes gives the turn to the next member that has any, and
//! wakes its first request, on whatever shard that lives.
//!
//! # Draining
//!
//! Whoever drains a path releases the throttles on it first: what waits, and
//! what comes until the drain ends, passes at once. It is accounted all the
//! same.

mod bucket;
mod limits;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::fence;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use ringback_ring::{Shard, WaitQueue};

use bucket::Buckets;
pub(crate) use bucket::Direction;
pub use limits::{Limits, LimitsError, Rate, Rates};

use crate::sync::Ordering;

/// Limits that several nodes share.
pub struct ThrottleGroup {
    state: Mutex<State>,
    /// Woken when the limits have changed or a member is released.
    changed: WaitQueue,
}

impl std::fmt::Debug for ThrottleGroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ThrottleGroup")
            .field("limits", &self.limits())
            .finish_non_exhaustive()
    }
}

/// One node's place in a group.
#[derive(Debug)]
pub struct Throttle {
    group: Arc<ThrottleGroup>,
    id: u64,
}

struct State {
    buckets: Buckets,
    /// Counts changes of the limits and releases.
    epoch: u64,
    members: BTreeMap<u64, Member>,
    next_member: u64,
    next_ticket: u64,
    /// Which member has the turn, by direction; none: nobody waits.
    turn: [Option<u64>; 2],
}

#[derive(Default)]
struct Member {
    queues: [VecDeque<Waiting>; 2],
    /// Drains that go on.
    releases: u64,
}

struct Waiting {
    ticket: u64,
    /// Of a request that is not the first one.
    waker: Option<Waker>,
}

/// What a request does next.
enum Step {
    Pass,
    /// Not the first one.
    Queue,
    /// The first one: until an instant, or until the epoch has changed.
    Sleep {
        until_ns: u64,
        epoch: u64,
    },
}

/// A request's place in a queue, given up when dropped.
struct Place<'a> {
    throttle: &'a Throttle,
    direction: Direction,
    ticket: u64,
    len: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let waker = self
            .throttle
            .group
            .lock()
            .leave(self.throttle.id, self.direction, self.ticket);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl State {
    fn member(&mut self, id: u64) -> &mut Member {
        self.members
            .get_mut(&id)
            .expect("a member stays until its node is gone")
    }

    /// The next member after `id`, in turn, that has requests waiting.
    fn next_after(&self, id: u64, direction: Direction) -> Option<u64> {
        let waits = |member: &Member| !member.queues[direction as usize].is_empty();
        let behind = self.members.range(id + 1..);
        let before = self.members.range(..=id);
        behind
            .chain(before)
            .find(|(_, member)| waits(member))
            .map(|(&id, _)| id)
    }

    /// Takes a request out. Answers whom to wake: who is first now.
    fn leave(&mut self, id: u64, direction: Direction, ticket: u64) -> Option<Waker> {
        let queue = &mut self.member(id).queues[direction as usize];
        let was_first = queue.front().is_some_and(|first| first.ticket == ticket);
        queue.retain(|other| other.ticket != ticket);
        let had_turn = self.turn[direction as usize] == Some(id);
        if !was_first || !had_turn {
            return None;
        }
        let next = self.next_after(id, direction);
        self.turn[direction as usize] = next;
        let first = self.member(next?).queues[direction as usize].front_mut()?;
        first.waker.take()
    }

    fn step(&mut self, id: u64, direction: Direction, ticket: u64, now_ns: u64) -> Step {
        if self.member(id).releases > 0 {
            return Step::Pass;
        }
        let queue = &self.member(id).queues[direction as usize];
        let is_first = queue.front().is_some_and(|first| first.ticket == ticket);
        if !is_first || self.turn[direction as usize] != Some(id) {
            return Step::Queue;
        }
        match self.buckets.wait_ns(direction, now_ns) {
            0 => Step::Pass,
            wait_ns => Step::Sleep {
                until_ns: now_ns.saturating_add(wait_ns),
                epoch: self.epoch,
            },
        }
    }

    fn wakers(&mut self, id: u64) -> Vec<Waker> {
        let queues = self.member(id).queues.iter_mut();
        queues
            .flatten()
            .filter_map(|waiting| waiting.waker.take())
            .collect()
    }
}

impl ThrottleGroup {
    /// A group whose buckets are empty now.
    ///
    /// # Errors
    ///
    /// [`LimitsError`].
    pub fn new(shard: &Shard, limits: Limits) -> Result<Self, LimitsError> {
        limits.check()?;
        Ok(Self {
            state: Mutex::new(State {
                buckets: Buckets::new(limits, shard.now_ns()),
                epoch: 0,
                members: BTreeMap::new(),
                next_member: 0,
                next_ticket: 0,
                turn: [None; 2],
            }),
            changed: WaitQueue::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As they are now.
    pub fn limits(&self) -> Limits {
        self.lock().buckets.limits()
    }

    /// New limits, also while requests wait. The buckets are empty then.
    ///
    /// # Errors
    ///
    /// [`LimitsError`]; nothing has changed then.
    pub fn set_limits(&self, shard: &Shard, limits: Limits) -> Result<(), LimitsError> {
        limits.check()?;
        {
            let mut state = self.lock();
            state.buckets = Buckets::new(limits, shard.now_ns());
            state.epoch += 1;
        }
        self.wake();
        Ok(())
    }

    /// After a new epoch.
    fn wake(&self) {
        fence(Ordering::SeqCst);
        self.changed.wake_all();
    }
}

impl Throttle {
    /// A new member.
    pub fn new(group: &Arc<ThrottleGroup>) -> Self {
        let mut state = group.lock();
        let id = state.next_member;
        state.next_member += 1;
        state.members.insert(id, Member::default());
        Self {
            group: Arc::clone(group),
            id,
        }
    }

    /// The group whose limits count.
    pub fn group(&self) -> &Arc<ThrottleGroup> {
        &self.group
    }

    /// A request of `len` bytes waits until it may pass.
    pub(crate) async fn admit(&self, shard: &Shard, direction: Direction, len: u64) {
        let place = {
            let mut state = self.group.lock();
            let is_released = state.member(self.id).releases > 0;
            let nobody_waits = state.turn[direction as usize].is_none();
            let now_ns = shard.now_ns();
            if is_released || (nobody_waits && state.buckets.wait_ns(direction, now_ns) == 0) {
                state.buckets.account(direction, len);
                return;
            }
            let ticket = state.next_ticket;
            state.next_ticket += 1;
            state.turn[direction as usize].get_or_insert(self.id);
            let waiting = Waiting {
                ticket,
                waker: None,
            };
            state.member(self.id).queues[direction as usize].push_back(waiting);
            Place {
                throttle: self,
                direction,
                ticket,
                len,
            }
        };
        while let Some((until_ns, epoch)) = self.wait_in_queue(shard, &place).await {
            let has_changed = || self.group.lock().epoch != epoch;
            shard
                .wait(&[&self.group.changed], Some(until_ns), has_changed)
                .await;
        }
    }

    /// Waits until the request is the first one, or is released. None: it has
    /// been let pass. Else: until when it has to sleep, and in which epoch that
    /// was.
    async fn wait_in_queue(&self, shard: &Shard, place: &Place<'_>) -> Option<(u64, u64)> {
        let direction = place.direction;
        std::future::poll_fn(|cx| {
            let mut state = self.group.lock();
            match state.step(self.id, direction, place.ticket, shard.now_ns()) {
                Step::Pass => {
                    state.buckets.account(direction, place.len);
                    Poll::Ready(None)
                }
                Step::Sleep { until_ns, epoch } => Poll::Ready(Some((until_ns, epoch))),
                Step::Queue => {
                    let mut queue = state.member(self.id).queues[direction as usize].iter_mut();
                    if let Some(own) = queue.find(|other| other.ticket == place.ticket) {
                        own.waker = Some(cx.waker().clone());
                    }
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// A drain begins: from now on nobody waits here.
    pub(crate) fn release(&self) {
        let wakers = {
            let mut state = self.group.lock();
            state.member(self.id).releases += 1;
            state.epoch += 1;
            state.wakers(self.id)
        };
        self.group.wake();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// A drain has ended.
    pub(crate) fn hold_again(&self) {
        let mut state = self.group.lock();
        let member = state.member(self.id);
        member.releases = member.releases.saturating_sub(1);
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        // Nobody waits here: requests hold their path, and that holds this.
        self.group.lock().members.remove(&self.id);
    }
}
