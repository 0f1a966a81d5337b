//! One thread's executor and ring, as the tasks on it see them.
//!
//! # One turn
//!
//! Messages, completions, due timers, then ready tasks until none is left or
//! the budget is spent; then everything queued goes to the kernel in one
//! submission. With nothing ready the same call sleeps until a completion, a
//! message or a deadline, unless looking for them pays (`polling.rs`).
//!
//! # Ownership
//!
//! A [`Shard`] is a handle (`Rc`): it cannot leave its thread. When a shard
//! ends it waits for every operation in flight, drops its ring, and only then
//! its buffers.

use std::any::{Any, TypeId};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

use crate::buffer::{Arena, Buf};
use crate::driver::Driver;
use crate::mailbox::{Mailbox, Message};
use crate::op::{Operation, Ops};
use crate::polling::Polling;
use crate::probe::Features;
use crate::shards::Shards;
use crate::task::{TaskId, Tasks};
use crate::timer::Timers;
use crate::wait_queue::{LocalQueue, WaitQueue};

/// Tasks polled in one turn before completions are looked at again.
const TURN_BUDGET: usize = 256;

/// Mailboxes of all shards of this process, simulated ones included, by the
/// number that wakers carry.
static REGISTRY: RwLock<Vec<Option<Arc<Mailbox>>>> = RwLock::new(Vec::new());

thread_local! {
    /// The shard whose turn it is on this thread.
    static CURRENT: RefCell<Option<Shard>> = const { RefCell::new(None) };
}

struct Inner {
    /// In the process-wide registry.
    number: u16,
    /// Position in its set.
    index: usize,
    set: Shards,
    tasks: Tasks,
    timers: Timers,
    /// Declared, and so dropped, before the buffers that it may know.
    driver: RefCell<Driver>,
    ops: Ops,
    arena: Arena,
    mailbox: Arc<Mailbox>,
    locals: RefCell<BTreeMap<TypeId, Rc<dyn Any>>>,
    stopping: Cell<bool>,
    polling: Polling,
}

/// A handle to the shard that the current task runs on.
#[derive(Clone)]
pub struct Shard {
    inner: Rc<Inner>,
}

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Shard({})", self.inner.index)
    }
}

/// Where another shard's ring is reached.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RingAddress {
    pub(crate) fd: std::os::fd::RawFd,
    /// In the registry.
    pub(crate) number: u16,
}

/// A number in the registry, given back when dropped.
pub(crate) struct Registration {
    pub(crate) number: u16,
    pub(crate) mailbox: Arc<Mailbox>,
}

impl Registration {
    pub(crate) fn new(mailbox: Mailbox) -> Self {
        let mailbox = Arc::new(mailbox);
        let mut registry = REGISTRY.write().unwrap_or_else(PoisonError::into_inner);
        let vacant = registry
            .iter()
            .position(Option::is_none)
            .unwrap_or(registry.len());
        if vacant == registry.len() {
            registry.push(None);
        }
        registry[vacant] = Some(Arc::clone(&mailbox));
        let number = u16::try_from(vacant).expect("fewer than 65536 shards in a process");
        Self { number, mailbox }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        REGISTRY.write().unwrap_or_else(PoisonError::into_inner)[usize::from(self.number)] = None;
    }
}

/// Wakes a task on whatever shard it lives.
pub(crate) fn wake_task(id: TaskId) {
    let woken_here = CURRENT.with_borrow(|current| match current {
        Some(shard) if shard.inner.number == id.shard() => {
            shard.inner.tasks.wake(id);
            true
        }
        _ => false,
    });
    if woken_here {
        return;
    }
    let mailbox = REGISTRY
        .read()
        .unwrap_or_else(PoisonError::into_inner)
        .get(usize::from(id.shard()))
        .and_then(Clone::clone);
    if let Some(mailbox) = mailbox {
        mailbox.send(Message::Wake(id));
    }
}

/// A ring could not be reached through a ring: its eventfd will do.
fn ring_bell_of(number: u16) {
    let registry = REGISTRY.read().unwrap_or_else(PoisonError::into_inner);
    if let Some(Some(mailbox)) = registry.get(usize::from(number)) {
        mailbox.ring_bell();
    }
}

/// Wakes another ring through the ring of the calling thread, if it has one.
pub(crate) fn message_ring(target: RingAddress) -> bool {
    CURRENT.with_borrow(|current| {
        let Some(shard) = current else { return false };
        // Busy: somebody pushes from inside the driver; the bell will do.
        let Ok(mut driver) = shard.inner.driver.try_borrow_mut() else {
            return false;
        };
        match &mut *driver {
            Driver::Uring(uring) => uring.push_message(target),
            Driver::Sim(_) => false,
        }
    })
}

/// What a shard is made of; its thread puts it together.
pub(crate) struct Parts {
    pub(crate) index: usize,
    pub(crate) set: Shards,
    pub(crate) driver: Driver,
    pub(crate) arena_bytes: usize,
    /// The longest that it looks for work before it sleeps.
    pub(crate) poll_ns: u64,
}

impl Shard {
    pub(crate) fn new(registration: &Registration, parts: Parts) -> Self {
        let inner = Rc::new(Inner {
            number: registration.number,
            index: parts.index,
            set: parts.set,
            tasks: Tasks::new(registration.number),
            ops: Ops::default(),
            timers: Timers::default(),
            arena: Arena::new(parts.arena_bytes),
            driver: RefCell::new(parts.driver),
            mailbox: Arc::clone(&registration.mailbox),
            locals: RefCell::default(),
            stopping: Cell::new(false),
            polling: Polling::new(parts.poll_ns),
        });
        let weak = Rc::downgrade(&inner);
        inner.arena.register_with(Box::new(move |start, len| {
            weak.upgrade()?
                .driver
                .borrow_mut()
                .register_buffer(start, len)
        }));
        Self { inner }
    }

    /// Position of this shard in its set: 0 to `count - 1`.
    pub fn index(&self) -> usize {
        self.inner.index
    }

    /// The set that this shard belongs to.
    pub fn set(&self) -> &Shards {
        &self.inner.set
    }

    /// This shard's buffers.
    pub fn arena(&self) -> &Arena {
        &self.inner.arena
    }

    /// A buffer of `len` bytes (at least 1), after a wait if there is none.
    pub async fn buffer(&self, len: usize) -> Buf {
        self.inner.arena.take(len).await
    }

    /// A buffer at once: for who holds one already (see [`Arena::take_now`]).
    pub fn buffer_now(&self, len: usize) -> Buf {
        self.inner.arena.take_now(len)
    }

    /// Nanoseconds since some fixed instant; never goes back.
    pub fn now_ns(&self) -> u64 {
        match &*self.inner.driver.borrow() {
            Driver::Uring(_) => monotonic_ns(),
            Driver::Sim(port) => port.now_ns(),
        }
    }

    /// Sleeps until an instant of [`Shard::now_ns`]. An instant that has passed
    /// does not sleep.
    pub async fn sleep_until(&self, deadline_ns: u64) {
        let mut set = false;
        std::future::poll_fn(|cx| {
            if self.now_ns() >= deadline_ns {
                return Poll::Ready(());
            }
            if !set {
                set = true;
                self.inner.timers.set(deadline_ns, cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }

    /// Waits until `ready` says so, asked again after each wake-up of one of
    /// the queues, or until a deadline. False: the deadline came first.
    pub async fn wait(
        &self,
        queues: &[&WaitQueue],
        deadline_ns: Option<u64>,
        mut ready: impl FnMut() -> bool,
    ) -> bool {
        let mut timer_set = false;
        std::future::poll_fn(|cx| {
            queues
                .iter()
                .for_each(|queue| queue.push(cx.waker().clone()));
            // The wakers first, then the look: see WaitQueue's Order.
            fence(Ordering::SeqCst);
            if ready() {
                return Poll::Ready(true);
            }
            let Some(deadline_ns) = deadline_ns else {
                return Poll::Pending;
            };
            if self.now_ns() >= deadline_ns {
                return Poll::Ready(false);
            }
            if !timer_set {
                timer_set = true;
                self.inner.timers.set(deadline_ns, cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    /// A task's result, or None if the deadline comes first; the task then runs
    /// on alone.
    pub async fn join_until<T>(&self, task: Task<T>, deadline_ns: Option<u64>) -> Option<T> {
        match deadline_ns {
            Some(deadline_ns) => self.within(deadline_ns, task.join()).await,
            None => Some(task.join().await),
        }
    }

    /// The result of some work, or None if an instant of [`Shard::now_ns`] comes
    /// first; the work is then dropped where it stands.
    pub async fn within<T>(&self, deadline_ns: u64, work: impl Future<Output = T>) -> Option<T> {
        let mut work = std::pin::pin!(work);
        let mut sleep = std::pin::pin!(self.sleep_until(deadline_ns));
        std::future::poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(value) => Poll::Ready(Some(value)),
            Poll::Pending => sleep.as_mut().poll(cx).map(|()| None),
        })
        .await
    }

    /// Sleeps for a duration.
    pub async fn sleep_ns(&self, duration_ns: u64) {
        self.sleep_until(self.now_ns().saturating_add(duration_ns))
            .await;
    }

    /// Lets every other ready task go first.
    pub async fn yield_now(&self) {
        let mut yielded = false;
        std::future::poll_fn(|cx| {
            if yielded {
                return Poll::Ready(());
            }
            yielded = true;
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    /// Starts a task on this shard. Dropping the handle lets it run on alone.
    pub fn spawn<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> Task<T> {
        let state = Rc::new(TaskState {
            value: RefCell::new(None),
            ended: LocalQueue::new(),
        });
        let task = Task {
            state: Rc::clone(&state),
        };
        self.inner.tasks.spawn(Box::pin(Run { future, state }));
        task
    }

    /// The one value of type `T` that lives on this shard, made at first use.
    pub fn local<T: Default + 'static>(&self) -> Rc<T> {
        let mut locals = self.inner.locals.borrow_mut();
        let entry = locals
            .entry(TypeId::of::<T>())
            .or_insert_with(|| Rc::new(T::default()));
        Rc::clone(entry)
            .downcast::<T>()
            .expect("the key is the type")
    }

    /// Runs a closure that may block on a helper thread. In the simulation it
    /// runs at once: there nothing blocks.
    ///
    /// # Panics
    ///
    /// If the closure panicked.
    pub async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        match self.inner.set.helpers() {
            None => work(),
            Some(helpers) => {
                let (giver, answer) = crate::remote::pair();
                helpers.run(Box::new(move || giver.give(work())));
                answer.await.expect("a helper's closure does not panic")
            }
        }
    }

    /// What this shard's ring uses of the kernel; nothing, in the simulation.
    pub fn features(&self) -> Features {
        match &*self.inner.driver.borrow() {
            Driver::Uring(uring) => uring.features().clone(),
            Driver::Sim(_) => Features::none(),
        }
    }

    pub(crate) fn ops(&self) -> &Ops {
        &self.inner.ops
    }

    pub(crate) fn driver_submit(&self, key: u32, operation: &Operation) {
        self.inner
            .driver
            .borrow_mut()
            .submit(key, operation, &self.inner.ops);
    }

    pub(crate) fn driver_cancel_wait(&self, key: u32) {
        self.inner.driver.borrow_mut().cancel_wait(key);
    }

    pub(crate) fn register_file(&self, slot: u32, fd: std::os::fd::RawFd) {
        if let Driver::Uring(uring) = &mut *self.inner.driver.borrow_mut() {
            uring.register_file(slot, fd);
        }
    }

    pub(crate) fn unregister_file(&self, slot: u32) {
        if let Driver::Uring(uring) = &mut *self.inner.driver.borrow_mut() {
            uring.unregister_file(slot);
        }
    }

    /// Ends the loop of [`Shard::run`].
    pub(crate) fn stop(&self) {
        self.inner.stopping.set(true);
    }

    fn as_current<T>(&self, run: impl FnOnce() -> T) -> T {
        let outer = CURRENT.replace(Some(self.clone()));
        let value = run();
        CURRENT.set(outer);
        value
    }

    /// Whether a turn would do anything now.
    pub(crate) fn has_work(&self) -> bool {
        self.inner.tasks.ready_count() > 0
            || !self.inner.mailbox.is_empty()
            || matches!(&*self.inner.driver.borrow(), Driver::Sim(port) if port.has_completions())
    }

    pub(crate) fn next_deadline(&self) -> Option<u64> {
        self.inner.timers.next_deadline()
    }

    /// One turn with a bound on the tasks polled; `choose` picks among several
    /// ready ones.
    pub(crate) fn turn(&self, budget: usize, mut choose: impl FnMut(usize) -> usize) {
        self.as_current(|| {
            while let Some(message) = self.inner.mailbox.pop() {
                self.receive(message);
            }
            self.reap();
            if self.inner.timers.next_deadline().is_some() {
                self.inner.timers.fire(self.now_ns());
            }
            for _ in 0..budget {
                if !self.inner.tasks.poll_one(&mut choose) {
                    break;
                }
            }
        });
    }

    fn reap(&self) {
        let missed = self.inner.driver.borrow_mut().reap(&self.inner.ops);
        for number in missed {
            ring_bell_of(number);
        }
    }

    fn receive(&self, message: Message) {
        match message {
            Message::Wake(id) => self.inner.tasks.wake(id),
            Message::Run(work) => work(self),
        }
    }

    /// The thread's loop, until [`Shard::stop`]. Then every task is dropped,
    /// whatever it waits for, and what the kernel still works on is waited for.
    pub(crate) fn run(&self) {
        while !self.inner.stopping.get() {
            self.turn(TURN_BUDGET, |_| 0);
            if self.has_work() || self.inner.stopping.get() {
                self.inner.driver.borrow_mut().submit_queued();
            } else {
                self.rest();
            }
        }
        self.tear_down();
        while self.inner.ops.in_flight() > 0 {
            if let Driver::Uring(uring) = &mut *self.inner.driver.borrow_mut() {
                uring.wait(None);
            }
            self.reap();
        }
        self.silence_bell();
    }

    /// The ring reads the bell all the time; that read must end before its
    /// memory goes.
    fn silence_bell(&self) {
        if let Driver::Uring(uring) = &mut *self.inner.driver.borrow_mut()
            && let Some(bell) = self.inner.mailbox.bell()
        {
            while uring.is_bell_armed() {
                let _ = bell.write(1);
                uring.wait(None);
                uring.reap(|_, _| {});
            }
        }
    }

    /// Nothing is ready: wait until something is.
    fn rest(&self) {
        let since_ns = monotonic_ns();
        let patience_ns = self.inner.polling.patience_ns();
        if patience_ns == 0 || !self.look_for_work(since_ns + patience_ns) {
            self.sleep();
        }
        self.inner.polling.learn(monotonic_ns() - since_ns);
    }

    /// Whether there is something to do before an instant of the clock.
    fn look_for_work(&self, until_ns: u64) -> bool {
        let mut driver = self.inner.driver.borrow_mut();
        let Driver::Uring(uring) = &mut *driver else {
            unreachable!("the simulation runs turns, not loops")
        };
        uring.submit();
        let timer_ns = self.next_deadline().unwrap_or(u64::MAX);
        loop {
            if uring.has_completions() {
                // Those that the kernel still has to finish are finished by this.
                uring.submit();
                return true;
            }
            let now_ns = monotonic_ns();
            if !self.inner.mailbox.is_empty() || now_ns >= timer_ns {
                return true;
            }
            if now_ns >= until_ns {
                return false;
            }
            std::thread::yield_now();
        }
    }

    fn sleep(&self) {
        if !self.inner.mailbox.park() {
            return;
        }
        let timeout = self
            .next_deadline()
            .map(|due| due.saturating_sub(monotonic_ns()));
        match &mut *self.inner.driver.borrow_mut() {
            Driver::Uring(uring) => uring.wait(timeout),
            Driver::Sim(_) => unreachable!("the simulation runs turns, not loops"),
        }
        self.inner.mailbox.unpark();
    }

    /// Drops all tasks, then whatever the shard kept for them. The ring goes
    /// with the last handle, before the buffers.
    pub(crate) fn tear_down(&self) {
        self.as_current(|| {
            self.inner.tasks.clear();
            self.inner.timers.clear();
            let locals = std::mem::take(&mut *self.inner.locals.borrow_mut());
            drop(locals);
        });
    }

    /// Forgets operations in flight: the simulated machine lost its power.
    pub(crate) fn cut_power(&self) {
        self.tear_down();
        self.inner.ops.clear();
    }

    /// How many tasks live here.
    pub fn task_count(&self) -> usize {
        self.inner.tasks.live_count()
    }
}

fn monotonic_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .expect("CLOCK_MONOTONIC always works");
    let seconds = u64::try_from(now.tv_sec()).expect("monotonic time is positive");
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec()).expect("monotonic time is positive")
}

struct TaskState<T> {
    value: RefCell<Option<T>>,
    ended: LocalQueue,
}

pin_project! {
    /// A future whose value goes to its [`Task`]. An `async` block would hold the future
    /// twice: as what it was given and as what it waits for.
    struct Run<F: Future> {
        #[pin]
        future: F,
        state: Rc<TaskState<F::Output>>,
    }
}

impl<F: Future> Future for Run<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        this.future.poll(cx).map(|value| {
            *this.state.value.borrow_mut() = Some(value);
            this.state.ended.wake_all();
        })
    }
}

/// A task's result, as a future on the same shard.
pub struct Task<T> {
    state: Rc<TaskState<T>>,
}

impl<T> Task<T> {
    /// Waits until the task has ended.
    pub async fn join(self) -> T {
        let mut value = None;
        self.state
            .ended
            .wait_until(|| {
                value = self.state.value.borrow_mut().take();
                value.is_some()
            })
            .await;
        value.expect("the wait ends with a value")
    }

    /// Whether the task has ended.
    pub fn is_finished(&self) -> bool {
        self.state.value.borrow().is_some()
    }
}
