//! The law against models of devices, in a small simulation of discrete events:
//! a guest of one request at a time, a copy that does what the law allows, one
//! device under both.

#![expect(
    clippy::cast_possible_truncation,
    reason = "numbers of the simulation are small"
)]

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::governor::{Allowance, Ceiling, Governor, LatencyTarget, Seen, TICK_NS};
use super::guest::bucket;

const US: u64 = 1000;
const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// A device: when a request ends that is sent now.
struct Device {
    /// Requests that it works on at a time: each is free again at a time.
    servers: Vec<u64>,
    /// How long a server works on a request of no bytes.
    service_ns: u64,
    /// What all requests go through, one after the other.
    bytes_per_second: f64,
    wire_free_ns: u64,
    /// How much of the wire's idle time can be made up for.
    burst_ns: u64,
    /// Writes go into a cache of so many bytes, from where they drain.
    cache: Option<Cache>,
    /// From when on it takes longer, by how much: others use it, too.
    others: (u64, u64),
    /// One request of so many takes 10 ms longer; 0: none does.
    odd: u64,
    count: u64,
}

struct Cache {
    bytes: f64,
    full: f64,
    drain_per_second: f64,
    fill: f64,
    at_ns: u64,
}

impl Device {
    /// `parallel` requests at a time, `service_ns` each, over a wire.
    fn new(parallel: usize, service_ns: u64, mb_per_second: u64) -> Self {
        Self {
            servers: vec![0; parallel],
            service_ns,
            bytes_per_second: mb_per_second as f64 * 1e6,
            wire_free_ns: 0,
            burst_ns: 0,
            cache: None,
            others: (u64::MAX, 0),
            odd: 0,
            count: 0,
        }
    }

    fn submit(&mut self, now_ns: u64, bytes: u64, writes: bool) -> u64 {
        let server = self.servers.iter_mut().min().expect("at least one");
        let start_ns = now_ns.max(*server);
        let wire_ns = (bytes as f64 / self.bytes_per_second * 1e9) as u64;
        let from_ns = self
            .wire_free_ns
            .max(start_ns.saturating_sub(self.burst_ns));
        self.wire_free_ns = from_ns + wire_ns;
        let mut end_ns = self.wire_free_ns.max(start_ns) + self.service_ns;
        self.count += 1;
        if self.odd > 0 && self.count.is_multiple_of(self.odd) {
            end_ns += 10 * MS;
        }
        if now_ns >= self.others.0 {
            end_ns += self.others.1;
        }
        if let Some(cache) = &mut self.cache
            && writes
        {
            let passed_ns = end_ns.saturating_sub(cache.at_ns);
            cache.fill = (cache.fill - passed_ns as f64 / 1e9 * cache.drain_per_second).max(0.0);
            cache.at_ns = cache.at_ns.max(end_ns);
            cache.fill += bytes as f64;
            if cache.fill > cache.full {
                // Stalls until a tenth is free again.
                let stall_s = cache.bytes / 10.0 / cache.drain_per_second;
                end_ns += (stall_s * 1e9) as u64;
                self.wire_free_ns = end_ns;
            }
        }
        *server = end_ns;
        end_ns
    }
}

/// When a guest asks, and for how much.
#[derive(Clone, Copy)]
struct Guest {
    from_ns: u64,
    to_ns: u64,
    gap_ns: u64,
    bytes: u64,
}

const NO_GUEST: Guest = Guest {
    from_ns: u64::MAX,
    to_ns: u64::MAX,
    gap_ns: MS,
    bytes: 0,
};

/// A thousand writes of 4 KiB a second.
fn guest_from(from_ns: u64) -> Guest {
    Guest {
        from_ns,
        to_ns: u64::MAX,
        gap_ns: MS,
        bytes: 4 * KIB,
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Tick,
    GuestDue {
        due_ns: u64,
    },
    GuestEnd {
        sent_ns: u64,
        due_ns: u64,
    },
    Read {
        worker: u64,
        since_ns: u64,
        bytes: u64,
    },
    Copied {
        worker: u64,
        since_ns: u64,
        bytes: u64,
    },
    Rested {
        worker: u64,
    },
}

/// What came of it.
#[derive(Default)]
struct Run {
    /// When a guest's request was sent, how long it took.
    guest: Vec<(u64, u64)>,
    /// Bytes copied by when.
    copied: Vec<(u64, u64)>,
    /// What was allowed from when on.
    allowed: Vec<(u64, Allowance)>,
    target_ns: Option<u64>,
}

impl Run {
    /// Latency that a share of the guest's requests of some time did not exceed.
    fn quantile(&self, from_ns: u64, to_ns: u64, share: f64) -> u64 {
        let mut part: Vec<u64> = self
            .guest
            .iter()
            .filter(|(at_ns, _)| (from_ns..to_ns).contains(at_ns))
            .map(|(_, took_ns)| *took_ns)
            .collect();
        part.sort_unstable();
        part[((part.len() as f64 * share) as usize).min(part.len() - 1)]
    }

    fn p99(&self, from_ns: u64, to_ns: u64) -> u64 {
        self.quantile(from_ns, to_ns, 0.99)
    }

    /// Bytes a second.
    fn speed(&self, from_ns: u64, to_ns: u64) -> f64 {
        let part = self.copied.iter();
        let bytes: u64 = part
            .filter(|(at_ns, _)| (from_ns..to_ns).contains(at_ns))
            .map(|(_, bytes)| bytes)
            .sum();
        bytes as f64 / (to_ns - from_ns) as f64 * 1e9
    }

    /// Bytes that may be in flight at an instant.
    fn budget(&self, at_ns: u64) -> u64 {
        let before = self
            .allowed
            .partition_point(|(from_ns, _)| *from_ns <= at_ns);
        let allowance = self.allowed[before - 1].1;
        allowance.depth * allowance.chunk
    }

    /// Smallest and largest while the guest is not listened to.
    fn budgets(&self, from_ns: u64, to_ns: u64) -> (u64, u64) {
        let part = self
            .allowed
            .iter()
            .filter(|(at_ns, allowance)| (from_ns..to_ns).contains(at_ns) && allowance.depth > 0);
        let bytes = part.map(|(_, allowance)| allowance.depth * allowance.chunk);
        (
            bytes.clone().min().expect("some"),
            bytes.max().expect("some"),
        )
    }
}

struct Simulation {
    device: Device,
    guest: Guest,
    governor: Governor,
    seen: Seen,
    allowance: Allowance,
    ceiling: Ceiling,
    parked: Vec<u64>,
    events: BinaryHeap<Reverse<(u64, What)>>,
    run: Run,
}

const CEILING: Ceiling = Ceiling {
    depth: 64,
    chunk: MIB,
    unit: 64 * KIB,
};

impl Simulation {
    fn new(device: Device, guest: Guest, target: LatencyTarget, ceiling: Ceiling) -> Self {
        Self {
            device,
            guest,
            governor: Governor::new(ceiling, target, Seen::default()),
            seen: Seen::default(),
            allowance: Allowance::all(ceiling),
            ceiling,
            parked: (0..ceiling.depth).rev().collect(),
            events: BinaryHeap::new(),
            run: Run::default(),
        }
    }

    fn at(&mut self, at_ns: u64, what: What) {
        self.events.push(Reverse((at_ns, what)));
    }

    fn begin(&mut self, worker: u64) {
        if worker >= self.allowance.depth {
            self.parked.push(worker);
            return;
        }
        let (now_ns, bytes) = (self.seen.now_ns, self.allowance.chunk);
        self.seen.copies_started += 1;
        let end_ns = self.device.submit(now_ns, bytes, false);
        self.at(
            end_ns,
            What::Read {
                worker,
                since_ns: now_ns,
                bytes,
            },
        );
    }

    fn tick(&mut self) {
        self.allowance = self.governor.tick(self.seen.clone());
        assert!(self.allowance.depth <= self.ceiling.depth);
        assert!((self.ceiling.unit..=self.ceiling.chunk).contains(&self.allowance.chunk));
        self.seen.fastest_copy_ns = None;
        self.run.allowed.push((self.seen.now_ns, self.allowance));
        for worker in std::mem::take(&mut self.parked) {
            self.begin(worker);
        }
        self.at(self.seen.now_ns + TICK_NS, What::Tick);
    }

    fn step(&mut self, now_ns: u64, what: What) {
        self.seen.now_ns = now_ns;
        match what {
            What::Tick => self.tick(),
            What::GuestDue { due_ns } => {
                self.seen.guest.started += 1;
                let end_ns = self.device.submit(now_ns, self.guest.bytes, true);
                self.at(
                    end_ns,
                    What::GuestEnd {
                        sent_ns: now_ns,
                        due_ns,
                    },
                );
            }
            What::GuestEnd { sent_ns, due_ns } => {
                let took_ns = now_ns - sent_ns;
                self.seen.guest.ended[bucket(took_ns)] += 1;
                // Otherwise than by the real watch, only when it is over.
                self.seen.guest.busy_ns += took_ns;
                self.seen.guest.shards = 1;
                self.run.guest.push((sent_ns, took_ns));
                let due_ns = due_ns + self.guest.gap_ns;
                if due_ns < self.guest.to_ns {
                    self.at(due_ns.max(now_ns), What::GuestDue { due_ns });
                }
            }
            What::Read {
                worker,
                since_ns,
                bytes,
            } => {
                let end_ns = self.device.submit(now_ns, bytes, true);
                self.at(
                    end_ns,
                    What::Copied {
                        worker,
                        since_ns,
                        bytes,
                    },
                );
            }
            What::Copied {
                worker,
                since_ns,
                bytes,
            } => {
                let took_ns = now_ns - since_ns;
                self.seen.copies_ended += 1;
                self.seen.copied += bytes;
                let fastest_ns = self.seen.fastest_copy_ns.unwrap_or(u64::MAX);
                self.seen.fastest_copy_ns = Some(fastest_ns.min(took_ns));
                self.run.copied.push((now_ns, bytes));
                let rest_ns = (took_ns as f64 * (1.0 / self.allowance.duty - 1.0)) as u64;
                self.at(now_ns + rest_ns.min(100 * MS), What::Rested { worker });
            }
            What::Rested { worker } => self.begin(worker),
        }
    }

    fn run(mut self, until_ns: u64) -> Run {
        self.at(0, What::Tick);
        if self.guest.from_ns < until_ns {
            let due_ns = self.guest.from_ns;
            self.at(due_ns, What::GuestDue { due_ns });
        }
        while let Some(Reverse((now_ns, what))) = self.events.pop() {
            if now_ns >= until_ns {
                break;
            }
            self.step(now_ns, what);
        }
        self.run.target_ns = self.governor.standing().target_ns;
        self.run
    }
}

fn simulate(device: Device, guest: Guest, seconds: u64) -> Run {
    Simulation::new(device, guest, LatencyTarget::Auto, CEILING).run(seconds * SECOND)
}

/// One queue of 500 MB/s: what is in it, stands before the guest.
fn deep_queue() -> Device {
    Device::new(1000, 100 * US, 500)
}

/// 32 requests at a time, 400 us each, over a fast wire.
fn parallel() -> Device {
    Device::new(32, 400 * US, 6000)
}

/// A megabyte at once, then 500 MB/s.
fn capped() -> Device {
    Device {
        burst_ns: 2 * MS,
        ..deep_queue()
    }
}

#[test]
fn budgets_are_chunks_then_depth_then_larger_chunks() {
    let of = |budget: u64, ceiling| {
        let allowance = Allowance::of(budget as f64, ceiling);
        (allowance.depth, allowance.chunk / KIB, allowance.duty)
    };
    assert_eq!(of(16 * KIB, CEILING), (1, 64, 0.25));
    assert_eq!(of(64 * KIB, CEILING), (1, 64, 1.0));
    assert_eq!(of(200 * KIB, CEILING), (1, 128, 1.0));
    assert_eq!(of(256 * KIB, CEILING), (1, 256, 1.0));
    assert_eq!(of(800 * KIB, CEILING), (3, 256, 1.0));
    assert_eq!(of(2 * MIB, CEILING), (8, 256, 1.0));
    assert_eq!(of(8 * MIB, CEILING), (8, 1024, 1.0));
    assert_eq!(of(64 * MIB, CEILING), (64, 1024, 1.0));
    let alone = Ceiling {
        depth: 1,
        ..CEILING
    };
    assert_eq!(of(MIB, alone), (1, 1024, 1.0));
    let coarse = Ceiling {
        unit: 4 * MIB,
        chunk: 4 * MIB,
        depth: 4,
    };
    assert_eq!(of(64 * KIB, coarse), (1, 4096, 1.0));
    assert_eq!(of(16 * MIB, coarse), (4, 4096, 1.0));
}

#[test]
fn an_idle_disk_is_copied_at_its_speed() {
    for (device, best) in [
        (deep_queue(), 250e6),
        (capped(), 250e6),
        (parallel(), 3000e6),
    ] {
        let run = simulate(device, NO_GUEST, 3);
        let speed = run.speed(SECOND, 3 * SECOND);
        assert!(speed > 0.97 * best, "{speed} of {best}");
    }
}

#[test]
fn with_no_guest_the_queue_stays_short() {
    let run = simulate(deep_queue(), NO_GUEST, 3);
    let (least, most) = run.budgets(SECOND, 3 * SECOND);
    assert!(most <= 4 * MIB, "{most}");
    assert!(least >= MIB, "{least}");
}

#[test]
fn a_guest_stays_within_the_target_and_the_copy_goes_on() {
    for device in [deep_queue(), capped(), parallel()] {
        let run = simulate(device, guest_from(0), 20);
        let target_ns = run.target_ns.expect("there is a target");
        let p99 = run.p99(2 * SECOND, 20 * SECOND);
        assert!(p99 <= target_ns * 5 / 4, "{p99} of {target_ns}");
        let speed = run.speed(2 * SECOND, 20 * SECOND);
        assert!(speed > 100e6, "{speed}");
    }
}

/// Fast while its cache has room, then it stalls.
fn caching() -> Device {
    Device {
        cache: Some(Cache {
            bytes: 256e6,
            full: 256e6,
            drain_per_second: 150e6,
            fill: 0.0,
            at_ns: 0,
        }),
        ..Device::new(1000, 100 * US, 1000)
    }
}

#[test]
fn it_does_not_swing_once_it_has_settled() {
    for device in [deep_queue(), capped(), parallel()] {
        let run = simulate(device, guest_from(0), 20);
        let speeds: Vec<f64> = (5..20)
            .map(|second| run.speed(second * SECOND, (second + 1) * SECOND))
            .collect();
        let most = speeds.iter().copied().fold(0.0, f64::max);
        let least = speeds.iter().copied().fold(f64::MAX, f64::min);
        assert!(least > 0.8 * most, "{least} to {most} bytes a second");
        // Between two looks at the guest alone it moves by one step and back.
        let (least, most) = run.budgets(5 * SECOND, 8 * SECOND);
        assert!(most <= 4 * least, "{least} to {most} bytes in flight");
    }
}

#[test]
fn room_is_made_as_soon_as_a_guest_wakes() {
    for device in [deep_queue(), capped(), parallel()] {
        let run = simulate(device, guest_from(SECOND), 3);
        assert!(run.budget(SECOND - MS) >= MIB);
        let first = run.allowed.iter().find(|(at_ns, allowance)| {
            *at_ns >= SECOND && allowance.depth * allowance.chunk <= 256 * KIB
        });
        let (cut_ns, _) = first.expect("the budget is cut");
        assert!(*cut_ns <= SECOND + 2 * TICK_NS, "after {}", cut_ns - SECOND);
        // The first request waits for what was in the queue, and no other.
        let worst = run.quantile(SECOND, 2 * SECOND, 1.0);
        assert!(worst <= 12 * MS, "{worst}");
        let p99 = run.p99(SECOND + 20 * MS, 2 * SECOND);
        assert!(p99 <= 5 * MS / 4, "{p99}");
    }
}

#[test]
fn all_of_the_disk_is_taken_when_the_guest_has_gone() {
    let guest = Guest {
        to_ns: 2 * SECOND,
        ..guest_from(0)
    };
    let run = simulate(deep_queue(), guest, 3);
    let speed = run.speed(2200 * MS, 3 * SECOND);
    assert!(speed > 240e6, "{speed}");
}

#[test]
fn a_cache_that_fills_does_not_stall_the_guest_more_often_than_it_must() {
    let run = simulate(caching(), guest_from(0), 30);
    let p99 = run.p99(5 * SECOND, 30 * SECOND);
    assert!(p99 <= 500 * US, "{p99}");
    // Drains 150 MB/s.
    let speed = run.speed(5 * SECOND, 30 * SECOND);
    assert!(speed > 100e6, "{speed}");
}

#[test]
fn a_given_target_is_kept_without_listening() {
    let target = LatencyTarget::Bound(2 * MS);
    let run = Simulation::new(deep_queue(), guest_from(0), target, CEILING).run(10 * SECOND);
    assert_eq!(run.target_ns, Some(2 * MS));
    let p99 = run.p99(2 * SECOND, 10 * SECOND);
    assert!(p99 <= 5 * MS / 2, "{p99}");
    let speed = run.speed(2 * SECOND, 10 * SECOND);
    assert!(speed > 230e6, "{speed}");
    let stands_still =
        |&&(at_ns, allowance): &&(u64, Allowance)| at_ns > 100 * MS && allowance.depth == 0;
    assert_eq!(run.allowed.iter().filter(stands_still).count(), 0);
}

#[test]
fn a_target_that_cannot_be_met_does_not_starve_the_copy() {
    let target = LatencyTarget::Bound(10 * US);
    let run = Simulation::new(deep_queue(), guest_from(0), target, CEILING).run(10 * SECOND);
    let speed = run.speed(SECOND, 10 * SECOND);
    assert!((5e6..50e6).contains(&speed), "{speed}");
}

#[test]
fn a_guest_that_gets_no_answer_does_not_starve_the_copy() {
    // One request is sent and never ends.
    let mut simulation = Simulation::new(deep_queue(), NO_GUEST, LatencyTarget::Auto, CEILING);
    simulation.seen.guest.started = 1;
    let run = simulation.run(10 * SECOND);
    let speed = run.speed(SECOND, 10 * SECOND);
    assert!(speed > 5e6, "{speed}");
}

#[test]
fn a_copy_that_hangs_lets_others_go_on() {
    let mut simulation = Simulation::new(
        deep_queue(),
        guest_from(0),
        LatencyTarget::Bound(US),
        CEILING,
    );
    // Worker 0 has begun and does not come back.
    simulation.seen.copies_started = 1;
    simulation.parked.retain(|worker| *worker != 0);
    let run = simulation.run(20 * SECOND);
    let copies = run.copied.len();
    assert!(copies > 20, "{copies} copies in 20 s");
}

/// What others do to the guest is not taken for the copy's doing for long.
#[test]
fn the_copy_does_not_give_way_to_others_for_nothing() {
    let device = Device {
        others: (10 * SECOND, 2 * MS),
        ..parallel()
    };
    let run = simulate(device, guest_from(0), 30);
    let before = run.speed(5 * SECOND, 10 * SECOND);
    assert!(before > 2500e6, "{before}");
    let after = run.speed(15 * SECOND, 30 * SECOND);
    assert!(after > 1000e6, "{after}");
}

/// Each request of the guest takes half of its pace, alone: with twice as much it would fall
/// behind, long before the median or the p99 says so.
#[test]
fn a_guest_that_needs_its_pauses_keeps_up() {
    let device = Device::new(1, 500 * US, 2000);
    let run = simulate(device, guest_from(0), 20);
    let (from_ns, to_ns) = (5 * SECOND, 20 * SECOND);
    let sent = run.guest.iter();
    let sent = sent.filter(|(at_ns, _)| (from_ns..to_ns).contains(at_ns));
    let share = sent.count() as f64 / 15_000.0;
    assert!(share > 0.99, "{share}");
    assert!(run.speed(from_ns, to_ns) > 1e6, "it is copied meanwhile");
}

#[test]
fn requests_that_are_late_anyhow_prove_little() {
    for odd in [150, 31, 13] {
        let device = Device {
            odd,
            ..deep_queue()
        };
        let run = simulate(device, guest_from(0), 30);
        let speed = run.speed(5 * SECOND, 30 * SECOND);
        assert!(speed > 25e6, "one in {odd}: {speed}");
        let p90 = run.quantile(5 * SECOND, 30 * SECOND, 0.9);
        assert!(p90 < 3 * MS, "one in {odd}: {p90}");
    }
}

#[test]
fn a_slow_guest_is_a_guest() {
    let guest = Guest {
        gap_ns: 130 * MS,
        ..guest_from(0)
    };
    let run = simulate(deep_queue(), guest, 60);
    let worst = run.quantile(20 * SECOND, 60 * SECOND, 0.95);
    assert!(worst <= 2 * MS, "{worst}");
    let speed = run.speed(20 * SECOND, 60 * SECOND);
    assert!(speed > 80e6, "{speed}");
}

#[test]
fn one_worker_is_one_worker() {
    let ceiling = Ceiling {
        depth: 1,
        ..CEILING
    };
    for guest in [NO_GUEST, guest_from(0)] {
        let simulation = Simulation::new(deep_queue(), guest, LatencyTarget::Auto, ceiling);
        let run = simulation.run(2 * SECOND);
        assert!(
            run.allowed
                .iter()
                .all(|(_, allowance)| allowance.depth <= 1)
        );
        assert!(run.speed(SECOND, 2 * SECOND) > 50e6);
    }
}

#[test]
fn without_a_target_everything_is_allowed() {
    let simulation = Simulation::new(deep_queue(), guest_from(0), LatencyTarget::Off, CEILING);
    let run = simulation.run(SECOND);
    assert!(
        run.allowed
            .iter()
            .all(|(_, allowance)| *allowance == Allowance::all(CEILING))
    );
    assert_eq!(run.target_ns, None);
}

#[test]
fn a_target_can_be_changed_on_the_way() {
    let mut governor = Governor::new(CEILING, LatencyTarget::Off, Seen::default());
    let seen = |tick: u64| Seen {
        now_ns: tick * TICK_NS,
        ..Seen::default()
    };
    assert_eq!(governor.tick(seen(1)), Allowance::all(CEILING));
    governor.set_target(LatencyTarget::Bound(MS));
    for tick in 2..20 {
        governor.tick(seen(tick));
    }
    assert_eq!(governor.standing().target_ns, Some(MS));
    assert!(governor.tick(seen(20)).depth < CEILING.depth);
    governor.set_target(LatencyTarget::Off);
    assert_eq!(governor.tick(seen(21)), Allowance::all(CEILING));
    assert_eq!(governor.standing().target_ns, None);
}

/// A request of so many milliseconds every other tick, beside a copy that is
/// flushed or not.
fn budget_beside(latency_ms: u64, is_flushing: bool) -> u64 {
    let mut governor = Governor::new(CEILING, LatencyTarget::Bound(MS), Seen::default());
    let mut seen = Seen::default();
    let mut allowed = 0;
    for tick in 1..200u64 {
        seen.now_ns = tick * TICK_NS;
        seen.guest.started += 1;
        let is_late = tick > 100;
        let latency_ns = if is_late { latency_ms * MS } else { MS / 10 };
        seen.guest.ended[bucket(latency_ns)] += 1;
        seen.is_flushing = is_late && is_flushing;
        seen.copies_started += 1;
        seen.copies_ended += 1;
        seen.copied += MIB;
        seen.fastest_copy_ns = Some(MS);
        let allowance = governor.tick(seen.clone());
        allowed = allowance.depth * allowance.chunk;
    }
    allowed
}

#[test]
fn whom_a_flush_holds_up_does_not_count() {
    let undisturbed = budget_beside(0, false);
    assert!(budget_beside(20, false) < undisturbed / 2);
    assert!(budget_beside(20, true) >= undisturbed / 2);
}

/// What may be in flight, and written before a flush, after many that took `flush_ms`
/// of every 40 milliseconds, beside a guest whose requests took `guest_ms` meanwhile.
fn allowed_beside(flush_ms: u64, guest_ms: u64) -> Allowance {
    let mut governor = Governor::new(CEILING, LatencyTarget::Bound(MS), Seen::default());
    let mut seen = Seen::default();
    let mut allowed = Allowance::all(CEILING);
    for tick in 1..2000u64 {
        seen.now_ns = tick * TICK_NS;
        let in_turn = seen.now_ns / MS % 40;
        let was_flushing = seen.is_flushing;
        seen.is_flushing = in_turn < flush_ms;
        if was_flushing && !seen.is_flushing {
            seen.flushes += 1;
            seen.flushing_ns += flush_ms * MS;
        }
        let latency_ns = if was_flushing { guest_ms * MS } else { MS / 10 };
        seen.guest.started += 1;
        seen.guest.ended[bucket(latency_ns)] += 1;
        allowed = governor.tick(seen.clone());
    }
    allowed
}

#[test]
fn flushes_are_as_small_as_the_guest_needs_them() {
    let unflushed = |flush_ms, guest_ms| allowed_beside(flush_ms, guest_ms).unflushed;
    assert_eq!(unflushed(8, 5), MIB, "it feels them");
    assert_eq!(unflushed(8, 0), 32 * MIB, "it does not");
    assert_eq!(unflushed(30, 5), 32 * MIB, "they are all that is done");
}

#[test]
fn where_little_is_done_but_flushing_less_is_copied() {
    let in_flight = |flush_ms| {
        let allowed = allowed_beside(flush_ms, 5);
        allowed.depth as f64 * allowed.chunk as f64 * allowed.duty
    };
    assert!(in_flight(8) > 64.0 * KIB as f64, "{}", in_flight(8));
    assert!(in_flight(30) < 16.0 * KIB as f64, "{}", in_flight(30));
}

/// The same beside one request after another that takes 40 milliseconds and copies that
/// take 200, with a flush of 2 milliseconds in every `period_ms`.
fn allowed_beside_slow_requests(period_ms: u64) -> Allowance {
    let mut governor = Governor::new(CEILING, LatencyTarget::Bound(MS), Seen::default());
    let mut seen = Seen::default();
    let mut allowed = Allowance::all(CEILING);
    for tick in 1..2000u64 {
        seen.now_ns = tick * TICK_NS;
        let now_ms = seen.now_ns / MS;
        let was_flushing = seen.is_flushing;
        seen.is_flushing = now_ms % period_ms < 2;
        if was_flushing && !seen.is_flushing {
            seen.flushes += 1;
            seen.flushing_ns += 2 * MS;
        }
        seen.guest.started = 1 + now_ms / 40;
        seen.guest.ended[bucket(40 * MS)] = now_ms / 40;
        seen.copies_started = 1 + now_ms / 10;
        seen.copies_ended = seen.copies_started.saturating_sub(20);
        allowed = governor.tick(seen.clone());
    }
    allowed
}

#[test]
fn copies_in_flight_do_not_excuse_who_is_late_after_a_flush() {
    let allowed = allowed_beside_slow_requests(100);
    assert!(allowed.duty < 1.0, "{allowed:?}");
}

#[test]
fn flushes_that_follow_each_other_too_closely_become_fewer() {
    assert_eq!(allowed_beside_slow_requests(100).unflushed, MIB);
    assert!(allowed_beside_slow_requests(6).unflushed > 16 * MIB);
}

#[test]
fn of_a_pause_nothing_is_learned() {
    let mut governor = Governor::new(CEILING, LatencyTarget::Bound(MS), Seen::default());
    let mut seen = Seen::default();
    let mut before = governor.tick(seen.clone());
    for tick in 1..20u64 {
        seen.now_ns = tick * TICK_NS;
        seen.guest.started += 1;
        seen.guest.ended[bucket(MS / 10)] += 1;
        before = governor.tick(seen.clone());
    }
    // A minute in which the guest was there, and late now and then.
    seen.now_ns += 60 * SECOND;
    seen.guest.started += 60_000;
    seen.guest.ended[bucket(MS / 10)] += 59_000;
    seen.guest.ended[bucket(50 * MS)] += 1_000;
    governor.resume(seen.clone());
    seen.now_ns += TICK_NS;
    seen.guest.started += 1;
    seen.guest.ended[bucket(MS / 10)] += 1;
    assert_eq!(governor.tick(seen), before);
}
