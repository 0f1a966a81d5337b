//! The requests of one shard, over connections that come and go.
//!
//! # When the connection breaks
//!
//! The owner's lane connects again, after pauses. Within the time that the user has
//! given (`reconnect-delay`) requests wait, and those that were in flight are sent
//! once more. After that time, or without one, requests fail at once until the
//! server is back. What comes back must be the same export as far as anybody here
//! relies on it. A server that comes back and goes again before it has answered
//! anything has not been back: the pauses grow and the time runs on.
//!
//! Another shard's lane ends with its connection: its requests go the owner's way.
//!
//! A server that has broken the rules is not asked again, by any shard.
//!
//! # What sending again may do
//!
//! Nobody has been told that a call in flight is done, and no later call that
//! overlaps it was begun: carried out twice in a row it leaves what it leaves once.
//! One danger stays, in QEMU too. A server that has lost only the connection may
//! still hold the first copy of a write. If it carries that out after the second copy
//! was answered, and after a later write to the same place, the older bytes stay. It
//! takes a slow server and a quick later write; a client can neither see nor prevent
//! it, for nothing in NBD says that two connections belong to one client.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::Poll;

use ringback_ring::{Buf, Errno, LocalQueue, Shard, WaitQueue};

use super::call::{Answer, Call, Failure};
use super::connect::{ATTEMPT_NS, Connected, LEAVE_NS, SECOND_NS, attempt, pause_ns};
use super::error::NbdError;
use super::lanes::Lanes;
use super::session::{End, transmit};
use super::shared::Shared;
use super::wire::Request;

/// A connection that has lasted so long is a new beginning.
const SETTLED_NS: u64 = 16 * SECOND_NS;

/// Pauses before attempts. The first attempt comes at once: most servers that go
/// are restarted.
#[derive(Debug, Default)]
struct Pauses {
    attempts: usize,
}

impl Pauses {
    fn next_ns(&mut self) -> u64 {
        let attempts = self.attempts;
        self.attempts += 1;
        match attempts.checked_sub(1) {
            None => 0,
            Some(earlier) => pause_ns(earlier),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Requests are sent.
    Up,
    /// They wait for a connection.
    Waiting,
    /// They fail at once; there may be a connection later.
    Down,
    /// There will be none.
    Ended,
}

/// The requests of one shard to one server.
pub(super) struct Lane {
    shard: Shard,
    shared: Arc<Shared>,
    is_owner: bool,
    phase: Cell<Phase>,
    /// When requests give up waiting, in the shard's time.
    patience_ns: Cell<u64>,
    /// The present connection has been of use, or has lasted.
    is_settled: Cell<bool>,
    waiting: RefCell<VecDeque<Rc<Call>>>,
    /// Something for the sender.
    bell: LocalQueue,
    is_closing: Cell<bool>,
    /// Closing begins, or has ended; or the server is given up.
    ending: WaitQueue,
    /// The present one.
    connection: RefCell<Weak<ringback_net::Connection>>,
}

impl Lane {
    /// Begins with a connection.
    pub(super) fn start(
        shard: &Shard,
        shared: &Arc<Shared>,
        connected: Connected,
        is_owner: bool,
    ) -> Rc<Self> {
        let lane = Rc::new(Self {
            shard: shard.clone(),
            shared: Arc::clone(shared),
            is_owner,
            phase: Cell::new(Phase::Up),
            patience_ns: Cell::new(0),
            is_settled: Cell::new(true),
            waiting: RefCell::default(),
            bell: LocalQueue::new(),
            is_closing: Cell::new(false),
            ending: WaitQueue::new(),
            connection: RefCell::default(),
        });
        shard.spawn(Rc::clone(&lane).run(connected));
        lane
    }

    pub(super) fn shard(&self) -> &Shard {
        &self.shard
    }

    pub(super) fn is_closing(&self) -> bool {
        self.is_closing.get()
    }

    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.borrow().is_empty()
    }

    pub(super) fn next_waiting(&self) -> Option<Rc<Call>> {
        self.waiting.borrow_mut().pop_front()
    }

    /// Lets the sender look again.
    pub(super) fn ring(&self) {
        self.bell.wake_all();
    }

    /// Waits for [`Lane::ring`] until there is a reason.
    pub(super) async fn wait_until(&self, is_due: impl FnMut() -> bool) {
        self.bell.wait_until(is_due).await;
    }

    /// Sends a request and waits for its end. The buffer comes back.
    pub(super) async fn call(
        &self,
        request: Request,
        cargo: Option<(Buf, Range<usize>)>,
    ) -> (Result<Answer, Failure>, Option<Buf>) {
        let call = Rc::new(Call::new(request, cargo));
        match self.phase.get() {
            _ if self.is_closing.get() => call.fail(Errno::EIO),
            Phase::Up | Phase::Waiting => {
                self.waiting.borrow_mut().push_back(Rc::clone(&call));
                self.ring();
            }
            Phase::Down => call.fail(Errno::EIO),
            Phase::Ended => call.end(Err(self.last_word())),
        }
        call.wait().await
    }

    /// What requests are told that this lane will not serve any more.
    fn last_word(&self) -> Failure {
        if self.is_owner || self.is_over() {
            Failure::Error(Errno::EIO)
        } else {
            Failure::Lost
        }
    }

    fn end_waiting(&self, failure: Failure) {
        let waiting = self.waiting.take();
        for call in waiting {
            call.end(Err(failure));
        }
    }

    async fn run(self: Rc<Self>, mut connected: Connected) {
        let mut pauses = Pauses::default();
        loop {
            let begin_ns = self.shard.now_ns();
            *self.connection.borrow_mut() = Rc::downgrade(&connected.connection);
            let (end, unfinished) = transmit(&self, connected).await;
            self.tell_of(&end);
            if let End::Violation(_) = end {
                self.shared.kill(self.shard.set());
            }
            self.take_back(unfinished);
            if !self.is_owner || self.is_over() {
                break;
            }
            if self.is_settled.get() || self.shard.now_ns() - begin_ns >= SETTLED_NS {
                pauses = Pauses::default();
                self.begin_outage();
            } else {
                self.go_on_with_outage();
            }
            self.is_settled.set(false);
            match self.while_patient(self.connect_again(&mut pauses)).await {
                Some(again) => connected = again,
                None => break,
            }
            self.phase.set(Phase::Up);
            self.shared.set_up(&connected.terms);
        }
        self.phase.set(Phase::Ended);
        if self.is_owner {
            self.shared.set_down();
        }
        self.end_waiting(self.last_word());
        let lanes = self.shard.local::<Lanes>();
        lanes.forget(self.shared.node, &self);
        self.ending.wake_all();
    }

    /// What has not been answered comes before what has not been sent.
    fn take_back(&self, unfinished: Vec<Rc<Call>>) {
        let mut waiting = self.waiting.borrow_mut();
        for call in unfinished.into_iter().rev() {
            waiting.push_front(call);
        }
    }

    fn tell_of(&self, end: &End) {
        let server = &self.shared.server.address;
        match end {
            _ if self.is_closing.get() => {}
            // Another shard has said why.
            End::Lost(_) if self.shared.is_dead() => {}
            End::Lost(why) => tracing::warn!(%server, "NBD connection lost: {why}"),
            End::Violation(what) => {
                tracing::error!(%server, "the NBD server breaks the rules and is left: {what}");
            }
        }
    }

    /// The server has answered something.
    pub(super) fn settle(&self) {
        self.is_settled.set(true);
    }

    /// Requests wait from here on, but not for ever.
    fn begin_outage(&self) {
        let patience_ns = self.shard.now_ns() + self.shared.reconnect_delay_ns;
        self.patience_ns.set(patience_ns);
        self.go_on_with_outage();
    }

    fn go_on_with_outage(&self) {
        self.shared.set_down();
        if self.shard.now_ns() >= self.patience_ns.get() {
            self.give_up();
        } else {
            self.phase.set(Phase::Waiting);
        }
    }

    /// Requests that wait for a server that is gone fail at once, and so do those
    /// that come before it is back.
    pub(super) fn stop_waiting(&self) {
        if self.phase.get() == Phase::Waiting {
            self.give_up();
        }
    }

    fn give_up(&self) {
        self.phase.set(Phase::Down);
        self.end_waiting(Failure::Error(Errno::EIO));
    }

    /// Does some work while requests wait, as long as they may, and then goes on
    /// with it while they fail.
    async fn while_patient<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        if self.phase.get() == Phase::Waiting {
            let patience_ns = self.patience_ns.get();
            if let Some(done) = self.shard.within(patience_ns, work.as_mut()).await {
                return done;
            }
            self.give_up();
        }
        work.await
    }

    /// None: somebody has closed the node, or the server is given up.
    async fn connect_again(&self, pauses: &mut Pauses) -> Option<Connected> {
        loop {
            let pause_ns = pauses.next_ns();
            self.unless_over(self.shard.sleep_ns(pause_ns)).await?;
            match self.unless_over(self.try_again()).await? {
                Ok(connected) => return Some(connected),
                Err(error) => self.tell_of_refusal(&error),
            }
        }
    }

    fn is_over(&self) -> bool {
        self.is_closing.get() || self.shared.is_dead()
    }

    /// Some work, or none when this lane is to end: then the work is dropped where
    /// it stands.
    async fn unless_over<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = std::pin::pin!(work);
        std::future::poll_fn(|cx| {
            self.ending.push(cx.waker().clone());
            if self.is_over() {
                return Poll::Ready(None);
            }
            work.as_mut().poll(cx).map(Some)
        })
        .await
    }

    async fn try_again(&self) -> Result<Connected, NbdError> {
        let shared = &self.shared;
        let connected = attempt(&self.shard, &shared.server, ATTEMPT_NS).await?;
        if let Err(error) = shared.check_successor(&connected.terms) {
            connected.leave().await;
            return Err(error);
        }
        Ok(connected)
    }

    fn tell_of_refusal(&self, error: &NbdError) {
        let server = &self.shared.server.address;
        match error {
            NbdError::Changed(_) => tracing::error!(%server, "not connected again: {error}"),
            _ => tracing::info!(%server, "not connected again: {error}"),
        }
    }

    /// Takes leave of the server; nothing should be in flight.
    pub(super) async fn close(&self) {
        self.is_closing.set(true);
        self.ending.wake_all();
        self.ring();
        let has_ended = || self.phase.get() == Phase::Ended;
        let deadline_ns = self.shard.now_ns() + LEAVE_NS;
        let ending = &[&self.ending];
        if !self.shard.wait(ending, Some(deadline_ns), has_ended).await {
            self.hang_up();
        }
    }

    /// Ends the connection without taking leave, and who is about to make one.
    pub(super) fn hang_up(&self) {
        self.ending.wake_all();
        if let Some(connection) = self.connection.borrow().upgrade() {
            connection.shut_down();
        }
    }
}
