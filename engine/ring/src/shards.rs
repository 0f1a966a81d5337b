//! The set of all shards of a process: starting them, reaching them from
//! anywhere, stopping them.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Barrier, Mutex, OnceLock, PoisonError, Weak};
use std::thread::JoinHandle;

use crossbeam::channel;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use std::os::fd::AsFd;

use crate::driver::Driver;
use crate::file::{FileRef, KeepAlive};
use crate::mailbox::{Mailbox, Message};
use crate::probe::{self, Feature, Features, Unavailable};
use crate::remote::{self, Answer};
use crate::shard::{Parts, Registration, RingAddress, Shard};
use crate::sim::World;
use crate::uring::Uring;

/// Longer than the waits for a fast device with what a core takes to wake up, which is
/// measured as a part of them.
pub const DEFAULT_POLL_NS: u64 = 50_000;

/// How to start a set of shards.
#[derive(Clone, Debug)]
pub struct Config {
    /// How many; at least 1.
    pub count: usize,
    /// Pin each to a core of its own, as far as there are cores.
    pub pin: bool,
    /// Submission queue entries of each ring.
    pub ring_entries: u32,
    /// The most memory for buffers on each shard, in bytes.
    pub arena_bytes: usize,
    /// The longest that a shard looks for work before it sleeps, in nanoseconds;
    /// 0: it sleeps at once.
    pub poll_ns: u64,
    /// Kernel features that shall not be used.
    pub masked: Vec<Feature>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            count: available_cores().len().max(1),
            pin: true,
            ring_entries: 256,
            arena_bytes: 128 << 20,
            poll_ns: DEFAULT_POLL_NS,
            masked: Vec::new(),
        }
    }
}

/// Why shards could not be started.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StartError {
    /// A set needs at least one.
    #[error("the number of shards must be between 1 and {MAX_SHARDS}, not {0}")]
    Count(usize),
    /// No io_uring here.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// Threads or descriptors ran out.
    #[error("could not start a shard: {0}")]
    System(String),
}

/// More shards than this are refused.
pub const MAX_SHARDS: usize = 64;

/// Threads for calls that block: two are enough for what is rare.
const HELPER_COUNT: usize = 2;

pub(crate) struct Helpers {
    work: channel::Sender<Box<dyn FnOnce() + Send>>,
}

impl Helpers {
    fn start() -> std::io::Result<Self> {
        let (work, queue) = channel::unbounded::<Box<dyn FnOnce() + Send>>();
        for number in 0..HELPER_COUNT {
            let queue = queue.clone();
            std::thread::Builder::new()
                .name(format!("helper-{number}"))
                .spawn(move || {
                    // Ends when the set, and with it the sender, is gone.
                    for work in queue {
                        work();
                    }
                })?;
        }
        Ok(Self { work })
    }

    pub(crate) fn run(&self, work: Box<dyn FnOnce() + Send>) {
        self.work
            .send(work)
            .expect("helpers live as long as their set");
    }
}

enum Machine {
    Threads {
        helpers: Helpers,
        threads: Mutex<Vec<JoinHandle<()>>>,
        features: OnceLock<Features>,
    },
    Sim(World),
}

struct Inner {
    registrations: Vec<Registration>,
    machine: Machine,
    slots: Arc<Mutex<Slots>>,
}

/// A handle to all shards of a set; clones share it.
#[derive(Clone)]
pub struct Shards {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Shards {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Shards({})", self.count())
    }
}

impl Shards {
    /// Starts the threads and waits until every ring is up.
    ///
    /// # Errors
    ///
    /// [`StartError`]; nothing is left running then.
    pub fn start(config: &Config) -> Result<Self, StartError> {
        if config.count == 0 || config.count > MAX_SHARDS {
            return Err(StartError::Count(config.count));
        }
        let features = probe::usable(&config.masked)?;
        let system = |error: std::io::Error| StartError::System(error.to_string());
        let registrations = (0..config.count)
            .map(|_| Mailbox::with_bell().map(Registration::new))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|errno| StartError::System(errno.desc().into()))?;
        let helpers = Helpers::start().map_err(system)?;
        let machine = Machine::Threads {
            helpers,
            threads: Mutex::default(),
            features: OnceLock::new(),
        };
        let set = Self {
            inner: Arc::new(Inner {
                registrations,
                machine,
                slots: Arc::default(),
            }),
        };
        match set.start_threads(config, &features) {
            Ok(()) => Ok(set),
            Err(error) => {
                set.stop();
                Err(error)
            }
        }
    }

    pub(crate) fn simulated(count: usize, world: World) -> Self {
        let registrations = (0..count)
            .map(|_| Registration::new(Mailbox::simulated()))
            .collect();
        let machine = Machine::Sim(world);
        Self {
            inner: Arc::new(Inner {
                registrations,
                machine,
                slots: Arc::default(),
            }),
        }
    }

    fn start_threads(&self, config: &Config, features: &Features) -> Result<(), StartError> {
        let Machine::Threads {
            threads,
            features: used,
            ..
        } = &self.inner.machine
        else {
            return Ok(());
        };
        let cores = if config.pin {
            available_cores()
        } else {
            Vec::new()
        };
        // No ring closes while another shard might still send to it.
        let all_stopped = Arc::new(Barrier::new(config.count));
        let mut started = Vec::new();
        for index in 0..config.count {
            let core = (!cores.is_empty()).then(|| cores[index % cores.len()]);
            let (giver, answer) = remote::pair();
            let (set, config, features) = (self.clone(), config.clone(), features.clone());
            let all_stopped = Arc::clone(&all_stopped);
            let thread = std::thread::Builder::new()
                .name(format!("shard-{index}"))
                .spawn(move || {
                    let start = ThreadStart {
                        index,
                        core,
                        config,
                        features,
                    };
                    abort_on_panic(|| shard_main(&set, &start, giver, &all_stopped));
                })
                .map_err(|error| StartError::System(error.to_string()))?;
            threads
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(thread);
            started.push(answer);
        }
        for answer in started {
            match answer.wait() {
                Ok(Ok(in_use)) => drop(used.set(in_use)),
                Ok(Err(error)) => return Err(error),
                Err(gone) => return Err(StartError::System(gone.to_string())),
            }
        }
        Ok(())
    }

    /// How many shards.
    pub fn count(&self) -> usize {
        self.inner.registrations.len()
    }

    /// Whether the machine below is the simulation, which has no network.
    pub fn is_simulated(&self) -> bool {
        self.world().is_some()
    }

    /// What the rings use of the kernel's features.
    pub fn features(&self) -> Features {
        match &self.inner.machine {
            Machine::Threads { features, .. } => features.get().cloned().unwrap_or_default(),
            Machine::Sim(_) => Features::none(),
        }
    }

    /// Runs a closure on a shard, soon.
    pub fn run_on(&self, index: usize, work: impl FnOnce(&Shard) + Send + 'static) {
        self.mailbox(index).send(Message::Run(Box::new(work)));
    }

    /// Starts a task on a shard. `make` runs there, so the future need not be
    /// `Send`; its result must be.
    pub fn spawn_on<T, F>(
        &self,
        index: usize,
        make: impl FnOnce(Shard) -> F + Send + 'static,
    ) -> Answer<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
    {
        let (giver, answer) = remote::pair();
        self.run_on(index, move |shard| {
            let future = make(shard.clone());
            shard.spawn(async move { giver.give(future.await) });
        });
        answer
    }

    /// Starts the same task on every shard and waits for all results, in order.
    ///
    /// # Panics
    ///
    /// If the set is stopped meanwhile.
    pub async fn on_each<T, F>(&self, make: impl Fn(Shard) -> F + Clone + Send + 'static) -> Vec<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
    {
        let answers: Vec<_> = (0..self.count())
            .map(|index| self.spawn_on(index, make.clone()))
            .collect();
        let mut results = Vec::with_capacity(answers.len());
        for answer in answers {
            results.push(
                answer
                    .await
                    .expect("shards outlive the tasks that ask them"),
            );
        }
        results
    }

    /// Waits until every shard has done what it had been told to do before this call: let
    /// go of a file that nobody has any more, for instance.
    ///
    /// # Panics
    ///
    /// If the set is stopped meanwhile.
    pub async fn catch_up(&self) {
        self.on_each(|_| async {}).await;
    }

    /// Ends every shard once its operations in flight have ended, and waits for
    /// the threads. Tasks that still wait are dropped. Never on a shard.
    pub fn stop(&self) {
        let Machine::Threads { threads, .. } = &self.inner.machine else {
            return;
        };
        for index in 0..self.count() {
            self.run_on(index, Shard::stop);
        }
        let threads = std::mem::take(&mut *threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // A shard that panicked has aborted the process.
            let _ = thread.join();
        }
    }

    pub(crate) fn mailbox(&self, index: usize) -> &Mailbox {
        &self.inner.registrations[index].mailbox
    }

    pub(crate) fn registrations(&self) -> &[Registration] {
        &self.inner.registrations
    }

    pub(crate) fn helpers(&self) -> Option<&Helpers> {
        match &self.inner.machine {
            Machine::Threads { helpers, .. } => Some(helpers),
            Machine::Sim(_) => None,
        }
    }

    pub(crate) fn world(&self) -> Option<&World> {
        match &self.inner.machine {
            Machine::Threads { .. } => None,
            Machine::Sim(world) => Some(world),
        }
    }

    pub(crate) fn take_slot(&self) -> Slot {
        let number = self
            .inner
            .slots
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        Slot {
            number,
            slots: Arc::downgrade(&self.inner.slots),
        }
    }

    pub(crate) async fn register_file(&self, file: FileRef) {
        self.on_each(move |shard| async move { shard.register_file(file.slot, file.fd) })
            .await;
    }

    /// Empties the slot on every shard; `keep` is released by the last.
    pub(crate) fn unregister_file<K: KeepAlive + 'static>(&self, file: FileRef, keep: &Arc<K>) {
        for index in 0..self.count() {
            let keep = Arc::clone(keep);
            self.run_on(index, move |shard| {
                shard.unregister_file(file.slot);
                drop(keep);
            });
        }
    }
}

struct ThreadStart {
    index: usize,
    core: Option<usize>,
    config: Config,
    features: Features,
}

type Started = remote::Giver<Result<Features, StartError>>;

fn shard_main(set: &Shards, start: &ThreadStart, started: Started, all_stopped: &Barrier) {
    precise_timers();
    if let Some(core) = start.core {
        pin_to(core);
    }
    match make_shard(set, start) {
        Ok(shard) => {
            started.give(Ok(shard.features()));
            shard.run();
            shard.tear_down();
            all_stopped.wait();
        }
        Err(error) => {
            started.give(Err(error));
            all_stopped.wait();
        }
    }
}

fn make_shard(set: &Shards, start: &ThreadStart) -> Result<Shard, StartError> {
    let mailbox = set.mailbox(start.index);
    let bell = mailbox.bell().expect("threads have bells").as_fd();
    let uring = Uring::new(start.config.ring_entries, start.features.clone(), bell)
        .map_err(|error| Unavailable::new(&error))?;
    if uring.features().has(Feature::MessageRing) {
        let number = set.registrations()[start.index].number;
        mailbox.announce_ring(RingAddress {
            fd: uring.fd(),
            number,
        });
    }
    let parts = Parts {
        index: start.index,
        driver: Driver::Uring(Box::new(uring)),
        arena_bytes: start.config.arena_bytes,
        poll_ns: start.config.poll_ns,
        set: set.clone(),
    };
    Ok(Shard::new(&set.registrations()[start.index], parts))
}

/// A shard whose task panicked holds requests that nobody will ever answer;
/// going on without it would be worse than stopping.
fn abort_on_panic(run: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(run)).is_err() {
        std::process::abort();
    }
}

/// Cores that this process may use.
pub fn available_cores() -> Vec<usize> {
    match sched_getaffinity(Pid::from_raw(0)) {
        Ok(set) => (0..CpuSet::count())
            .filter(|&core| set.is_set(core) == Ok(true))
            .collect(),
        Err(_) => Vec::new(),
    }
}

/// The kernel may otherwise be 50 microseconds late with every timer, which is
/// as long as a request takes. Best effort.
fn precise_timers() {
    let _ = nix::sys::prctl::set_timerslack(1);
}

/// Best effort: a shard that cannot be pinned runs all the same.
fn pin_to(core: usize) {
    let mut set = CpuSet::new();
    if set.set(core).is_ok() {
        let _ = sched_setaffinity(Pid::from_raw(0), &set);
    }
}

/// Which numbers of the file tables are in use.
#[derive(Debug, Default)]
struct Slots {
    free: Vec<u32>,
    next: u32,
}

impl Slots {
    fn take(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        })
    }
}

/// A number in the file table of every ring, given back when dropped.
pub(crate) struct Slot {
    number: u32,
    slots: Weak<Mutex<Slots>>,
}

impl Slot {
    pub(crate) fn number(&self) -> u32 {
        self.number
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(slots) = self.slots.upgrade() {
            slots
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .free
                .push(self.number);
        }
    }
}
