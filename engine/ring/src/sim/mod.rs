//! A deterministic simulation of the machine below the engine.
//!
//! All shards of a [`Sim`] run in one thread. A seed decides which shard goes
//! on, which of its ready tasks, how long each operation takes, in which order
//! its parts take effect, which operations fail, and what survives a power cut.
//! A failure is a seed: the same seed replays it.

mod disk;
mod random;
mod world;

pub use disk::FileOptions;
pub use random::Random;
pub use world::World;

pub(crate) use world::SimPort;

use crate::driver::Driver;
use crate::remote::Answer;
use crate::shard::{Parts, Shard};
use crate::shards::Shards;

/// At most this many tasks are polled before another shard may go on.
const TURN_TASKS_MAX: usize = 4;

/// No run takes longer, in simulated time.
const LIMIT_NS: u64 = 10_000_000_000;

/// A run whose tasks all wait for something that will never come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the simulation stalled: tasks wait for something that does not come")]
pub struct Stalled;

/// A simulated machine and the shards that run on it.
pub struct Sim {
    world: World,
    set: Shards,
    shards: Vec<Shard>,
}

impl Sim {
    /// A machine with `shards` shards whose whole future follows from `seed`.
    pub fn new(seed: u64, shards: usize) -> Self {
        let world = World::new(seed, shards);
        Self::boot(world, shards)
    }

    fn boot(world: World, count: usize) -> Self {
        let set = Shards::simulated(count, world.clone());
        let shards = set
            .registrations()
            .iter()
            .enumerate()
            .map(|(index, registration)| {
                let parts = Parts {
                    index,
                    set: set.clone(),
                    driver: Driver::Sim(SimPort::new(world.clone(), index)),
                    arena_bytes: 16 << 20,
                    poll_ns: 0,
                };
                Shard::new(registration, parts)
            })
            .collect();
        Self { world, set, shards }
    }

    /// The files and the clock.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// The set of shards, as a real machine would give it.
    pub fn shards(&self) -> &Shards {
        &self.set
    }

    /// Runs until the answer is there.
    ///
    /// # Errors
    ///
    /// [`Stalled`] if nothing can go on before that, or if the simulated clock
    /// has run for ten seconds: tasks that only wait for timers go on for ever.
    pub fn run<T>(&mut self, answer: &Answer<T>) -> Result<T, Stalled> {
        let limit_ns = self.world.now_ns().saturating_add(LIMIT_NS);
        loop {
            if let Some(result) = answer.try_take() {
                return result.map_err(|_| Stalled);
            }
            if self.world.now_ns() > limit_ns || !self.step() {
                return Err(Stalled);
            }
        }
    }

    /// Runs until an instant of the simulated clock, or until nothing is left
    /// to do.
    pub fn run_until(&mut self, instant_ns: u64) {
        while self.world.now_ns() < instant_ns && self.step() {}
    }

    /// One random step: a shard's turn, or time passes. False: nothing to do.
    fn step(&mut self) -> bool {
        let due = self.world.now_ns();
        let timer_due = |shard: &Shard| shard.next_deadline().is_some_and(|at| at <= due);
        let runnable: Vec<usize> = (0..self.shards.len())
            .filter(|&index| self.shards[index].has_work() || timer_due(&self.shards[index]))
            .collect();
        // Steps that are due compete with runnable shards.
        if self.world.has_due_step() && (runnable.is_empty() || self.world.choose(2) == 0) {
            return self.world.step(None);
        }
        if runnable.is_empty() {
            return self.advance();
        }
        let shard = &self.shards[runnable[self.world.choose(runnable.len())]];
        let world = &self.world;
        shard.turn(1 + world.choose(TURN_TASKS_MAX), |count| {
            world.choose(count)
        });
        world.pass_time();
        true
    }

    /// Nothing is ready: on to the next step or timer.
    fn advance(&mut self) -> bool {
        let timer = self.shards.iter().filter_map(Shard::next_deadline).min();
        if self.world.step(timer) {
            return true;
        }
        match timer {
            Some(instant) => {
                self.world.jump_to(instant);
                true
            }
            None => false,
        }
    }

    /// Cuts the power: every task is gone, unflushed writes may be lost or
    /// torn. The machine that comes back has the same files.
    #[must_use]
    pub fn cut_power(mut self) -> Self {
        let shards = std::mem::take(&mut self.shards);
        let count = shards.len();
        for shard in &shards {
            shard.cut_power();
        }
        drop(shards);
        self.world.cut_power();
        Self::boot(self.world.clone(), count)
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        for shard in &self.shards {
            shard.cut_power();
        }
    }
}
