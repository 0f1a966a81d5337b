//! The simulated machine: its files, its clock, and the operations under way.
//!
//! # Time and tearing
//!
//! An operation gets a random duration. A transfer is cut into a few pieces,
//! each of which takes effect at an instant of its own between submission and
//! completion: overlapping requests therefore tear each other as real ones may,
//! and completions arrive in any order.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::disk::{Disk, FileOptions, SECTOR};
use super::random::Random;
use crate::file::{Geometry, OpenError, OpenOptions};
use crate::op::{Operation, Verb};
use crate::{Errno, IoResult};

/// A transfer is torn into at most this many pieces.
const PIECES_MAX: u64 = 4;
/// How much longer a slow operation may take.
const SLOWNESS: u64 = 20;

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    /// Part of a transfer takes effect: from, to, within the transfer.
    Piece(u64, u64),
    Complete,
}

struct UnderWay {
    shard: usize,
    key: u32,
    verb: Verb,
    slot: u32,
    offset: u64,
    len: u64,
    /// What a write carries, or what a read has gathered.
    data: Vec<u8>,
    failure: Option<Errno>,
    sync_mark: u64,
}

struct Completion {
    key: u32,
    result: i64,
    data: Vec<u8>,
}

struct State {
    random: Random,
    now_ns: u64,
    disks: Vec<Disk>,
    names: BTreeMap<PathBuf, u32>,
    under_way: BTreeMap<u64, UnderWay>,
    next_id: u64,
    steps: BinaryHeap<Reverse<(u64, u64, Step)>>,
    completed: Vec<VecDeque<Completion>>,
}

/// A handle to the simulated machine; clones share it. Everything is run by one
/// thread: the lock is never contended, it only satisfies the types.
#[derive(Clone)]
pub struct World {
    state: Arc<Mutex<State>>,
}

impl World {
    pub(super) fn new(seed: u64, shards: usize) -> Self {
        let state = State {
            random: Random::new(seed),
            now_ns: 1_000_000,
            disks: Vec::new(),
            names: BTreeMap::new(),
            under_way: BTreeMap::new(),
            next_id: 0,
            steps: BinaryHeap::new(),
            completed: (0..shards).map(|_| VecDeque::new()).collect(),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a file that reads as zeroes.
    pub fn create(&self, name: impl Into<PathBuf>, size: u64, options: FileOptions) {
        let mut state = self.state();
        let slot = u32::try_from(state.disks.len()).expect("few simulated files");
        state.disks.push(Disk::new(size, options));
        state.names.insert(name.into(), slot);
    }

    pub(crate) fn create_if_missing(&self, name: &Path) {
        if !self.exists(name) {
            self.create(name, 0, FileOptions::default());
        }
    }

    /// Makes a file that holds these bytes, durably.
    pub fn create_with(&self, name: impl Into<PathBuf>, bytes: Vec<u8>, options: FileOptions) {
        let name = name.into();
        self.create(name.clone(), 0, options);
        let mut state = self.state();
        let slot = state.slot(&name);
        state.disks[slot].fill(bytes);
    }

    /// Changes how a file behaves from now on.
    pub fn set_options(&self, name: impl AsRef<Path>, change: impl FnOnce(&mut FileOptions)) {
        let mut state = self.state();
        let slot = state.slot(name.as_ref());
        change(&mut state.disks[slot].options);
    }

    /// Whether there is a file of that name.
    pub fn exists(&self, name: impl AsRef<Path>) -> bool {
        self.state().names.contains_key(name.as_ref())
    }

    /// All bytes that a reader would see now.
    pub fn content(&self, name: impl AsRef<Path>) -> Vec<u8> {
        let state = self.state();
        let slot = state.slot(name.as_ref());
        state.disks[slot].live().to_vec()
    }

    /// The simulated clock.
    pub fn now_ns(&self) -> u64 {
        self.state().now_ns
    }

    /// A random choice that belongs to this run.
    pub(crate) fn choose(&self, count: usize) -> usize {
        self.state().random.index(count)
    }

    pub(crate) fn open(&self, options: &OpenOptions) -> Result<(u32, Geometry), OpenError> {
        let state = self.state();
        match state.names.get(&options.path) {
            Some(&slot) => Ok((slot, state.disks[slot as usize].geometry(options.write))),
            None => Err(OpenError::System {
                path: options.path.clone(),
                errno: Errno::ENOENT,
            }),
        }
    }

    pub(crate) fn seek(&self, slot: u32, offset: u64, data: bool) -> IoResult<u64> {
        self.state().disks[slot as usize].seek(offset, data)
    }

    pub(crate) fn truncate(&self, slot: u32, size: u64) -> IoResult<()> {
        self.state().truncate(slot, size)
    }

    pub(crate) fn size(&self, slot: u32) -> u64 {
        self.state().disks[slot as usize].size()
    }

    /// Lets the clock run: tasks took a little time.
    pub(super) fn pass_time(&self) {
        let mut state = self.state();
        let spent = state.random.below(2_000);
        state.now_ns += spent;
    }

    /// Takes the next step of an operation, if it is due before `limit_ns`.
    pub(super) fn step(&self, limit_ns: Option<u64>) -> bool {
        self.state().step(limit_ns)
    }

    /// Nothing to run until this timer: the clock jumps.
    pub(super) fn jump_to(&self, instant_ns: u64) {
        let mut state = self.state();
        state.now_ns = state.now_ns.max(instant_ns);
    }

    /// Steps that are due already.
    pub(super) fn has_due_step(&self) -> bool {
        let state = self.state();
        state
            .steps
            .peek()
            .is_some_and(|Reverse((due, ..))| *due <= state.now_ns)
    }

    pub(super) fn cut_power(&self) {
        let mut state = self.state();
        let State { random, disks, .. } = &mut *state;
        for disk in disks {
            disk.cut_power(random);
        }
        state.under_way.clear();
        state.steps.clear();
        state.completed.iter_mut().for_each(VecDeque::clear);
    }
}

impl State {
    fn slot(&self, name: &Path) -> usize {
        let slot = self
            .names
            .get(name)
            .unwrap_or_else(|| panic!("no file {}", name.display()));
        *slot as usize
    }

    fn submit(&mut self, shard: usize, key: u32, operation: &Operation, data: Option<Vec<u8>>) {
        let disk = &self.disks[operation.file.slot as usize];
        let (low, high) = disk.options.latency_ns;
        let slow_rate = disk.options.slow_rate;
        // Without a rate nothing is drawn.
        let is_slow = slow_rate > 0 && self.random.per_million(slow_rate);
        let high = if is_slow { high * SLOWNESS } else { high };
        let end_ns = self.now_ns + self.random.between(low, high + 1);
        let (failure, len) = self.fate(operation);
        let data = data.unwrap_or_else(|| match operation.verb {
            Verb::Read => vec![0; usize::try_from(operation.len).expect("small")],
            _ => Vec::new(),
        });
        let id = self.next_id;
        self.next_id += 1;
        self.schedule_pieces(id, operation.verb, len, end_ns);
        self.steps.push(Reverse((end_ns, id, Step::Complete)));
        let sync_mark = self.disks[operation.file.slot as usize].sync_mark();
        let (verb, slot, offset) = (operation.verb, operation.file.slot, operation.offset);
        let under_way = UnderWay {
            shard,
            key,
            verb,
            slot,
            offset,
            len,
            data,
            failure,
            sync_mark,
        };
        self.under_way.insert(id, under_way);
    }

    /// Whether the operation will fail, and how much of it will happen.
    fn fate(&mut self, operation: &Operation) -> (Option<Errno>, u64) {
        let disk = &self.disks[operation.file.slot as usize];
        let options = disk.options.clone();
        let (verb, len) = (operation.verb, operation.len);
        let transfers = matches!(verb, Verb::Read | Verb::Write);
        if transfers && !disk.accepts(operation.offset, len) {
            return (Some(Errno::EINVAL), 0);
        }
        let fallocates = !transfers && verb != Verb::Sync;
        if fallocates && options.no_fallocate {
            return (Some(Errno::EOPNOTSUPP), 0);
        }
        let consumes = matches!(verb, Verb::Write | Verb::ZeroRange | Verb::Allocate);
        if consumes && let Err(errno) = disk.check_room(operation.offset, len) {
            return (Some(errno), 0);
        }
        if self.random.per_million(options.again_rate) {
            return (Some(Errno::EAGAIN), 0);
        }
        let error_rate = match verb {
            Verb::Read => options.read_error_rate,
            Verb::Sync => options.sync_error_rate,
            _ => options.write_error_rate,
        };
        if self.random.per_million(error_rate) {
            // A failed write may have reached the disk in part.
            let reached = self.random.below(len / SECTOR + 1) * SECTOR;
            return (Some(Errno::EIO), reached);
        }
        let unit = SECTOR.max(options.request_alignment.into());
        if transfers && len > unit && self.random.per_million(options.short_rate) {
            return (None, self.random.between(1, len / unit) * unit);
        }
        (None, len)
    }

    fn schedule_pieces(&mut self, id: u64, verb: Verb, len: u64, end_ns: u64) {
        if verb == Verb::Sync || len == 0 {
            return;
        }
        let sectors = len.div_ceil(SECTOR);
        let pieces = 1 + self.random.below(PIECES_MAX.min(sectors));
        let mut from = 0;
        for piece in 1..=pieces {
            let to = if piece == pieces {
                len
            } else {
                sectors * piece / pieces * SECTOR
            };
            let at_ns = self.random.between(self.now_ns, end_ns);
            self.steps.push(Reverse((at_ns, id, Step::Piece(from, to))));
            from = to;
        }
    }

    fn truncate(&mut self, slot: u32, size: u64) -> IoResult<()> {
        let disk = &mut self.disks[slot as usize];
        let zeroed = disk.block_at_end().filter(|_| size > disk.size());
        disk.truncate(size)?;
        let collides = zeroed.is_some_and(|block| {
            self.under_way.values().any(|op| {
                let is_there = op.offset < block.end && block.start < op.offset + op.len;
                op.slot == slot && op.verb == Verb::Write && is_there
            })
        });
        if collides && disk.options.request_alignment > 1 {
            disk.collide();
        }
        Ok(())
    }

    fn step(&mut self, limit_ns: Option<u64>) -> bool {
        let due = self.steps.peek().map(|Reverse((due, ..))| *due);
        match (due, limit_ns) {
            (None, _) => return false,
            (Some(due), Some(limit)) if due > limit => return false,
            _ => {}
        }
        let Some(Reverse((due, id, step))) = self.steps.pop() else {
            return false;
        };
        self.now_ns = self.now_ns.max(due);
        match step {
            Step::Piece(from, to) => self.take_effect(id, from, to),
            Step::Complete => self.complete(id),
        }
        true
    }

    fn take_effect(&mut self, id: u64, from: u64, to: u64) {
        let op = self
            .under_way
            .get_mut(&id)
            .expect("pieces come before completion");
        let disk = &mut self.disks[op.slot as usize];
        let (start, end) = (
            usize::try_from(from).expect("small"),
            usize::try_from(to).expect("small"),
        );
        let offset = op.offset + from;
        match op.verb {
            Verb::Read => {
                disk.read(offset, &mut op.data[start..end]);
            }
            Verb::Write => disk.write(offset, &op.data[start..end]),
            Verb::ZeroRange => disk.zero(offset, to - from, true),
            Verb::PunchHole => disk.zero(offset, to - from, false),
            // Only makes room: what is there stays.
            Verb::Allocate | Verb::Sync => {}
            Verb::Receive { .. } | Verb::Send | Verb::Readable | Verb::Writable => {
                unreachable!("the simulated machine has no network")
            }
        }
    }

    fn complete(&mut self, id: u64) {
        let op = self
            .under_way
            .remove(&id)
            .expect("an operation completes once");
        let disk = &mut self.disks[op.slot as usize];
        let result = match (op.failure, op.verb) {
            (Some(errno), _) => -i64::from(errno as i32),
            (None, Verb::Read) => {
                let available = disk.size().saturating_sub(op.offset);
                i64::try_from(op.len.min(available)).expect("small")
            }
            (None, Verb::Write) => i64::try_from(op.len).expect("small"),
            (None, Verb::Sync) if disk.take_collision() => -i64::from(Errno::EIO as i32),
            (None, Verb::Sync) => {
                disk.sync(op.sync_mark);
                0
            }
            (None, _) => 0,
        };
        let count = usize::try_from(result).unwrap_or(0);
        let data = if op.verb == Verb::Read {
            op.data[..count].to_vec()
        } else {
            Vec::new()
        };
        self.completed[op.shard].push_back(Completion {
            key: op.key,
            result,
            data,
        });
    }
}

/// One shard's ring in the simulated machine.
pub(crate) struct SimPort {
    world: World,
    shard: usize,
}

impl SimPort {
    pub(super) fn new(world: World, shard: usize) -> Self {
        Self { world, shard }
    }

    pub(crate) fn submit(&mut self, key: u32, operation: &Operation, data: Option<Vec<u8>>) {
        self.world.state().submit(self.shard, key, operation, data);
    }

    /// Hands out completed operations: key, result, bytes read.
    pub(crate) fn reap(&mut self, mut completed: impl FnMut(u32, i64, &[u8])) -> bool {
        let all = std::mem::take(&mut self.world.state().completed[self.shard]);
        for completion in &all {
            completed(completion.key, completion.result, &completion.data);
        }
        !all.is_empty()
    }

    pub(crate) fn has_completions(&self) -> bool {
        !self.world.state().completed[self.shard].is_empty()
    }

    pub(crate) fn now_ns(&self) -> u64 {
        self.world.state().now_ns
    }
}
