//! How much of a disk a copy may take, so that its guest does not feel it.
//!
//! A pure law: it is told at every tick what the guest and the copy have
//! measured, and answers how many chunks of which size may be in flight. It
//! knows no clock, no thread, no disk. The reasons and what was learned from
//! whom are in `docs/decisions/0015-guest-first-copy.md`.
//!
//! # The budget
//!
//! What it moves is one number, the bytes in flight. Small budgets are one chunk
//! at a time; the smallest, less than one chunk, are rests between chunks; large
//! ones are more and larger chunks (`Allowance::of`). Two bounds hold it:
//!
//! - *What the device can use.* More bytes in flight than it moves within a
//!   given time only stand in its queue, where a guest finds them. The time is
//!   the guest's latency target while there is a guest, `QUEUE_NS` while there
//!   is none, and never less than a few times what a lone copy takes, so that a
//!   disk that works in parallel or is far away gets its depth.
//! - *What the guest allows.* Each request that took longer than the target
//!   takes a share of the budget away and, for a p99, earns it back only with
//!   ninety-nine that did not; with fewer if more than one in two hundred are late
//!   without the copy, because then they prove less. The budget that hurt is remembered: up to there
//!   it grows fast, beyond it slowly.
//!
//! # Flushes
//!
//! A device that has to write down at the end all that its cache holds serves
//! nobody else meanwhile. So the target is flushed bit by bit, as `flushes.rs` says.
//! Whom a flush holds up says nothing of the budget, unless flushes prevail.
//!
//! # Pauses
//!
//! A guest at a pace of its own must not lose all of its pauses (`pauses.rs`).
//!
//! # The target
//!
//! If nobody has given one it is learned: every few seconds the copy stands
//! still for some tens of milliseconds (`Phase::Listening`); two and a half times the
//! p99 of what the guest feels then is the target, and six times the median must not
//! be exceeded by more than half of its requests.

use crate::copy::flushes::Flushes;
use crate::copy::guest::{BUCKETS, Counts, bucket};
use crate::copy::measure::{Best, Distribution};
use crate::copy::pauses::Pauses;

const MS: u64 = 1_000_000;
const KIB: f64 = 1024.0;

/// How often the law wants to be asked, in nanoseconds. A guest that wakes is
/// seen within this time.
pub const TICK_NS: u64 = 2 * MS;

/// With no guest, no more is in flight than the device moves in this time:
/// that is what a guest which wakes up has to wait for.
const QUEUE_NS: f64 = 10.0 * MS as f64;

/// Nobody's request for this long, or four times as long as usual: no guest.
const IDLE_NS: u64 = 100 * MS;
const IDLE_NS_MAX: u64 = 1000 * MS;

/// Speed is measured over stretches of this length, and the best of the last
/// seconds counts.
const SPEED_NS: u64 = 20 * MS;
const SPEED_MEMORY_NS: u64 = 1000 * MS;
/// The time of a lone copy is the shortest of the last ten seconds.
const COPY_MEMORY_NS: u64 = 5000 * MS;

/// Budgets in bytes: below the first there are rests.
const CHUNK_MIN: f64 = 64.0 * KIB;
/// Chunks grow to this size before there are several.
const CHUNK_GOOD: f64 = 256.0 * KIB;
const DEPTH_GOOD: f64 = 8.0;
/// A copy is never slowed down further than to an eighth of the time.
const BUDGET_MIN: f64 = CHUNK_MIN / 8.0;
/// What needs no proof with no guest about.
const BUDGET_IDLE: f64 = 4.0 * CHUNK_GOOD;

/// What a late request leaves of the budget, and a guest without pauses.
const CUT: f64 = 0.6;
/// While a request stands for so many targets, next to nothing is sent: what is
/// in the queue must go first.
const BRAKE: u64 = 4;
/// The share of late requests that is in order: one in a hundred, and twice what
/// is late without the copy.
const LATE: f64 = 0.01;
const LATE_MAX: f64 = 0.25;
/// No more late requests than this are paid for.
const DEBTS_MAX: f64 = 3.0;
/// Growth with each request in time: away from the budget that hurt, and near
/// it. More if more may be late, so that growth and cuts keep that balance.
const GROWTH_FAST: f64 = 0.02;
const GROWTH_SLOW: f64 = 0.002;
/// A guest that sends one request after the other gets as much done as these are
/// short: the median, too, may only be so many times what it is alone. So many more
/// requests above than below, and it is not kept.
const SLOW_BY_MEDIAN: u64 = 6;
const SLOW_MAX: f64 = 32.0;
/// What slow requests leave of the budget: there is no hurry.
const EASE: f64 = 0.85;
/// The budget that hurt is near from this share of it up to as much beyond.
const NEAR: f64 = 0.8;
/// Time that counts as one request in time: guests may be slow.
const SLOW_GUEST_NS: f64 = 30.0 * MS as f64;
/// What was in flight at a cut is gone by then at the latest.
const CLEARED_NS: u64 = 250 * MS;

/// How often, how long and for how many requests the guest is listened to.
const LISTEN_EVERY_NS: u64 = 4000 * MS;
/// So often if the guest is late although next to nothing is copied: it may not
/// be the copy that is in its way.
const LISTEN_AGAIN_NS: u64 = 1000 * MS;
const LISTEN_NS: u64 = 40 * MS;
const LISTEN_FIRST_NS: u64 = 80 * MS;
const LISTEN_REQUESTS: f64 = 64.0;
/// So long it is waited for a first request when the copy starts.
const LISTEN_START_NS: u64 = 10 * MS;
/// How long it is waited until nothing of the copy is in flight.
const DRAIN_NS: u64 = 100 * MS;
/// What older listening still counts.
const BASELINE_DECAY: f64 = 0.75;
/// Less than this says nothing.
const BASELINE_MIN: f64 = 8.0;

/// A learned target: so much more than the guest's p99 alone, which is taken for no
/// more than so many times the median, because few requests tell little of the
/// rarest; never below, and what it is before anything is known.
const TARGET_BY_P99: f64 = 2.5;
const P99_BY_MEDIAN: u64 = 12;
const TARGET_MIN_NS: u64 = 300_000;
const TARGET_UNKNOWN_NS: u64 = MS;

/// A copy in which nothing ends for so long does not keep others from starting.
const STUCK_NS: u64 = 500 * MS;

/// What a guest may feel of a copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LatencyTarget {
    /// Two and a half times the p99 of what it feels without, within bounds.
    #[default]
    Auto,
    /// 99 of 100 requests take no longer than this many nanoseconds.
    Bound(u64),
    /// Whatever comes: the copy takes what it can get.
    Off,
}

/// What a copy may have in flight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Allowance {
    /// Chunks at a time; 0 while the guest is listened to.
    pub depth: u64,
    /// Bytes of a chunk, at most.
    pub chunk: u64,
    /// The share of its time in which a copy of depth 1 works; it rests for the
    /// others.
    pub duty: f64,
    /// Bytes that may be written to the target before it is flushed.
    pub unflushed: u64,
}

/// The most that a copy may ever have in flight.
#[derive(Clone, Copy, Debug)]
pub struct Ceiling {
    /// Chunks at a time.
    pub depth: u64,
    /// Bytes of a chunk.
    pub chunk: u64,
    /// Bytes of the smallest chunk.
    pub unit: u64,
}

impl Ceiling {
    fn bytes(self) -> f64 {
        self.depth as f64 * self.chunk as f64
    }
}

impl Allowance {
    /// Everything.
    pub fn all(ceiling: Ceiling) -> Self {
        Self {
            depth: ceiling.depth,
            chunk: ceiling.chunk,
            duty: 1.0,
            unflushed: u64::MAX,
        }
    }

    /// The chunks that a number of bytes in flight stands for: one up to 256 KiB,
    /// then eight of these, then larger ones.
    pub(crate) fn of(budget: f64, ceiling: Ceiling) -> Self {
        let (least, most) = (ceiling.unit as f64, ceiling.chunk as f64);
        let by_depth = budget / (ceiling.depth as f64).min(DEPTH_GOOD);
        let wish = by_depth.max(budget.min(CHUNK_GOOD)).max(CHUNK_MIN);
        // Powers of two, so that a device sees few sizes.
        let chunk = (wish.log2() + 1e-9).floor().exp2().clamp(least, most);
        let depth = (budget / chunk).floor().clamp(1.0, ceiling.depth as f64);
        Self {
            depth: whole(depth),
            chunk: whole(chunk),
            duty: (budget / CHUNK_MIN).min(1.0),
            unflushed: Flushes::between_alone(),
        }
    }
}

/// The whole part of a number that is not negative.
#[expect(
    clippy::cast_possible_truncation,
    reason = "it saturates, which is as good"
)]
pub(crate) fn whole(number: f64) -> u64 {
    number as u64
}

/// What has been measured since the copy began.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Now, in nanoseconds.
    pub now_ns: u64,
    /// Of the guest.
    pub guest: Counts,
    /// Copies of data that have begun and that have ended.
    pub copies_started: u64,
    /// See `copies_started`.
    pub copies_ended: u64,
    /// Bytes of data that were copied.
    pub copied: u64,
    /// The shortest copy that has ended since the last tick, in nanoseconds.
    pub fastest_copy_ns: Option<u64>,
    /// The copy is making its target durable.
    pub is_flushing: bool,
    /// How often it has done so.
    pub flushes: u64,
    /// How long that took, all together, in nanoseconds.
    pub flushing_ns: u64,
}

/// How things stand, for those who ask.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Standing {
    /// Chunks at a time.
    pub depth: u64,
    /// Bytes of a chunk.
    pub chunk: u64,
    /// The target in nanoseconds; none: off.
    pub target_ns: Option<u64>,
    /// What 99 of the guest's last 100 requests did not exceed, in nanoseconds;
    /// none: there were none.
    pub guest_p99_ns: Option<u64>,
}

/// What the law is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Waits for its own copies, and what the guest sent among them, to end.
    Draining { until_ns: u64, sent: Option<u64> },
    /// The copy stands still.
    Listening { since_ns: u64 },
    /// There is no guest.
    Alone,
    /// There is one.
    Sharing,
}

/// The law, and what it remembers.
#[derive(Clone, Debug)]
pub struct Governor {
    ceiling: Ceiling,
    target: LatencyTarget,
    phase: Phase,
    seen: Seen,
    // The guest.
    /// When it last asked for something, and how far its requests are apart.
    asked_ns: u64,
    gap_ns: f64,
    /// Ticks at which requests had begun that have not all ended: how many had
    /// begun, and when that was.
    pending: std::collections::VecDeque<(u64, u64)>,
    recent: Distribution,
    recent_ns: u64,
    // The target.
    baseline: Distribution,
    target_ns: u64,
    /// What half of the requests should not exceed.
    slow_ns: u64,
    /// The share of requests that may be late.
    may_be_late: f64,
    listened_ns: Option<u64>,
    heard: [u64; BUCKETS],
    pauses: Pauses,
    // The device.
    speed: Best,
    speed_from: (u64, u64),
    copy_ns: Best,
    /// When a copy last ended, or none was there to end.
    moved_ns: u64,
    extra: u64,
    // The budget.
    budget: f64,
    hurt: f64,
    debt: f64,
    /// How many more requests were slow than were not.
    slow: f64,
    /// After a cut, until what was in flight then is gone: by when, and the
    /// guest's requests and the copies that must have ended.
    cut: Option<(u64, u64, u64)>,
    /// What is waited for was held up by a flush.
    is_excused: bool,
    flushes: Flushes,
}

impl Governor {
    /// For a copy that starts now.
    pub fn new(ceiling: Ceiling, target: LatencyTarget, seen: Seen) -> Self {
        let now_ns = seen.now_ns;
        Self {
            ceiling,
            target,
            phase: Phase::Listening { since_ns: now_ns },
            asked_ns: 0,
            gap_ns: 0.0,
            pending: std::collections::VecDeque::new(),
            recent: Distribution::default(),
            recent_ns: now_ns,
            baseline: Distribution::default(),
            target_ns: TARGET_UNKNOWN_NS,
            slow_ns: TARGET_UNKNOWN_NS,
            may_be_late: LATE,
            listened_ns: None,
            heard: [0; BUCKETS],
            pauses: Pauses::new(&seen),
            speed: Best::default(),
            speed_from: (now_ns, seen.copied),
            copy_ns: Best::default(),
            moved_ns: now_ns,
            extra: 0,
            budget: CHUNK_GOOD,
            hurt: f64::INFINITY,
            debt: 0.0,
            slow: 0.0,
            cut: None,
            is_excused: false,
            flushes: Flushes::new(&seen),
            seen,
        }
    }

    /// Another target from now on.
    pub fn set_target(&mut self, target: LatencyTarget) {
        self.target = target;
        // A number is a bound, whatever others do; otherwise it is learned again.
        self.may_be_late = LATE;
        self.listened_ns = None;
        self.hurt = f64::INFINITY;
        self.debt = 0.0;
        self.slow = 0.0;
        self.pauses.forgive();
    }

    /// What is allowed from now on.
    pub fn tick(&mut self, seen: Seen) -> Allowance {
        let ended = self.note_guest(&seen);
        self.note_copy(&seen);
        let before = std::mem::replace(&mut self.seen, seen);
        if self.target != LatencyTarget::Off {
            self.turn(&ended, &before);
        }
        let is_shared = self.phase == Phase::Sharing;
        self.flushes.follow(&self.seen, is_shared);
        self.allowance()
    }

    /// The copy goes on after a pause, of which nothing is to be learned.
    pub fn resume(&mut self, seen: Seen) {
        let _ = self.note_guest(&seen);
        self.note_copy(&seen);
        self.seen = seen;
        self.flushes.follow(&self.seen, false);
        self.excuse();
    }

    /// How things stand.
    pub fn standing(&self) -> Standing {
        let allowance = self.allowance();
        Standing {
            depth: allowance.depth,
            chunk: allowance.chunk,
            target_ns: (self.target != LatencyTarget::Off).then(|| self.target_ns()),
            guest_p99_ns: self.recent.quantile(0.99),
        }
    }

    fn target_ns(&self) -> u64 {
        match self.target {
            LatencyTarget::Bound(bound_ns) => bound_ns,
            LatencyTarget::Auto | LatencyTarget::Off => self.target_ns,
        }
    }

    fn requests_ended(&self) -> u64 {
        self.seen.guest.ended.iter().sum()
    }

    fn copies_in_flight(&self) -> u64 {
        self.seen.copies_started - self.seen.copies_ended
    }

    /// Requests that have ended since the last tick.
    fn note_guest(&mut self, seen: &Seen) -> [u64; BUCKETS] {
        let mut ended = [0; BUCKETS];
        for (index, count) in ended.iter_mut().enumerate() {
            *count = seen.guest.ended[index] - self.seen.guest.ended[index];
        }
        let started = seen.guest.started - self.seen.guest.started;
        let all_ended: u64 = seen.guest.ended.iter().sum();
        if started > 0 {
            let since = (seen.now_ns - self.asked_ns).min(IDLE_NS_MAX) as f64;
            self.gap_ns += (since / started as f64 - self.gap_ns) / 8.0;
        }
        if started > 0 || seen.guest.started > all_ended {
            self.asked_ns = seen.now_ns;
        }
        while self
            .pending
            .front()
            .is_some_and(|first| first.0 <= all_ended)
        {
            self.pending.pop_front();
        }
        if started > 0 && seen.guest.started > all_ended {
            self.pending.push_back((seen.guest.started, seen.now_ns));
        }
        if seen.now_ns - self.recent_ns >= 1000 * MS {
            self.recent.decay(0.5);
            self.recent_ns = seen.now_ns;
        }
        self.recent.add(&ended);
        ended
    }

    /// How long the oldest request has been in flight at least. A tick's requests
    /// are not told apart from later ones: this may be too little, and is right
    /// when nothing ends any more.
    fn oldest_ns(&self) -> u64 {
        let oldest = self.pending.front();
        oldest.map_or(0, |&(_, since_ns)| self.seen.now_ns - since_ns)
    }

    fn note_copy(&mut self, seen: &Seen) {
        let now_ns = seen.now_ns;
        let (from_ns, from) = self.speed_from;
        self.speed.age(now_ns, SPEED_MEMORY_NS);
        if now_ns - from_ns >= SPEED_NS {
            if seen.copied > from {
                let speed = (seen.copied - from) as f64 / (now_ns - from_ns) as f64;
                self.speed.put(speed, f64::max);
            }
            self.speed_from = (now_ns, seen.copied);
        }
        self.copy_ns.age(now_ns, COPY_MEMORY_NS);
        if let Some(fastest_ns) = seen.fastest_copy_ns {
            self.copy_ns.put(fastest_ns as f64, f64::min);
        }
        if seen.copies_ended > self.seen.copies_ended || seen.copies_started == seen.copies_ended {
            self.moved_ns = now_ns;
            self.extra = 0;
        } else if now_ns - self.moved_ns >= STUCK_NS {
            self.moved_ns = now_ns;
            self.extra += 1;
        }
    }

    /// No more in flight than the device moves within a time, or than keeps it
    /// busy.
    fn usable(&self, time_ns: f64, copies: f64, least: f64) -> f64 {
        let copy_ns = self.copy_ns.get(f64::min).unwrap_or(0.0);
        let speed = self.speed.get(f64::max).unwrap_or(0.0);
        (speed * time_ns.max(copies * copy_ns))
            .max(least)
            .min(self.ceiling.bytes())
    }

    fn allowance(&self) -> Allowance {
        let mut allowance = match self.phase {
            _ if self.target == LatencyTarget::Off => Allowance::all(self.ceiling),
            Phase::Draining { .. } | Phase::Listening { .. } => Allowance {
                depth: 0,
                ..Allowance::of(self.budget, self.ceiling)
            },
            Phase::Alone => Allowance::of(self.usable(QUEUE_NS, 3.0, BUDGET_IDLE), self.ceiling),
            Phase::Sharing if self.oldest_ns() > self.target_ns().saturating_mul(BRAKE) => {
                Allowance::of(BUDGET_MIN, self.ceiling)
            }
            Phase::Sharing => Allowance::of(self.budget, self.ceiling),
        };
        if self.phase == Phase::Sharing && self.target != LatencyTarget::Off {
            allowance.unflushed = self.flushes.between();
        }
        if allowance.depth > 0 {
            allowance.depth = (allowance.depth + self.extra).min(self.ceiling.depth);
        }
        allowance
    }

    fn turn(&mut self, ended: &[u64; BUCKETS], before: &Seen) {
        let now_ns = self.seen.now_ns;
        let idle_ns = whole(4.0 * self.gap_ns).clamp(IDLE_NS, IDLE_NS_MAX);
        let is_idle = self.asked_ns == 0 || now_ns - self.asked_ns > idle_ns;
        match self.phase {
            Phase::Draining { until_ns, sent } => self.drain(until_ns, sent),
            Phase::Listening { since_ns } => {
                for (sum, count) in self.heard.iter_mut().zip(ended) {
                    *sum += count;
                }
                let heard: u64 = self.heard.iter().sum();
                if now_ns - since_ns >= self.listen_ns() || heard as f64 >= LISTEN_REQUESTS {
                    self.learn(since_ns);
                    self.phase = if is_idle {
                        Phase::Alone
                    } else {
                        Phase::Sharing
                    };
                }
            }
            Phase::Alone if !is_idle => {
                // A guest has woken up.
                self.budget = self.budget.min(CHUNK_GOOD);
                self.share_or_listen();
            }
            Phase::Alone => {}
            Phase::Sharing if is_idle => self.phase = Phase::Alone,
            Phase::Sharing => {
                self.adapt(ended, before);
                self.share_or_listen();
            }
        }
    }

    fn share_or_listen(&mut self) {
        let now_ns = self.seen.now_ns;
        let every_ns = if self.budget < CHUNK_MIN {
            LISTEN_AGAIN_NS
        } else {
            LISTEN_EVERY_NS
        };
        let is_due = self
            .listened_ns
            .is_none_or(|listened_ns| now_ns - listened_ns >= every_ns);
        self.phase = if self.target == LatencyTarget::Auto && is_due {
            Phase::Draining {
                until_ns: now_ns + DRAIN_NS,
                sent: None,
            }
        } else {
            Phase::Sharing
        };
    }

    /// The guest's requests that were sent while copies were in flight are no
    /// measure of the guest alone.
    fn drain(&mut self, until_ns: u64, sent: Option<u64>) {
        let now_ns = self.seen.now_ns;
        let sent = match sent {
            None if self.copies_in_flight() == 0 && !self.seen.is_flushing => {
                Some(self.seen.guest.started)
            }
            sent => sent,
        };
        if sent.is_some_and(|sent| self.requests_ended() >= sent) {
            self.heard = [0; BUCKETS];
            self.pauses.listen(&self.seen);
            self.phase = Phase::Listening { since_ns: now_ns };
        } else if now_ns >= until_ns {
            self.listened_ns = Some(now_ns);
            self.phase = Phase::Sharing;
        } else {
            self.phase = Phase::Draining { until_ns, sent };
        }
    }

    fn listen_ns(&self) -> u64 {
        if self.asked_ns == 0 {
            LISTEN_START_NS
        } else if self.target != LatencyTarget::Auto {
            0
        } else if self.baseline.total < LISTEN_REQUESTS / 2.0 {
            LISTEN_FIRST_NS
        } else {
            LISTEN_NS
        }
    }

    /// What was heard is what the guest feels without the copy.
    fn learn(&mut self, since_ns: u64) {
        if self.asked_ns == 0 {
            return;
        }
        let is_next_to_nothing_copied = self.budget < CHUNK_MIN;
        self.pauses
            .learn(&self.seen, since_ns, is_next_to_nothing_copied);
        self.listened_ns = Some(self.seen.now_ns);
        if self.baseline.total >= 2.0 * BASELINE_MIN {
            self.baseline.decay(BASELINE_DECAY);
        }
        self.baseline.add(&self.heard);
        self.heard = [0; BUCKETS];
        // Nothing that was in flight before is: what comes now is ours.
        self.cut = None;
        self.is_excused = false;
        if self.baseline.total < BASELINE_MIN {
            return;
        }
        let quantile = |share| self.baseline.quantile(share).unwrap_or(0);
        let usual_ns = quantile(0.99).min(P99_BY_MEDIAN * quantile(0.5));
        self.target_ns = whole(TARGET_BY_P99 * usual_ns as f64).max(TARGET_MIN_NS);
        self.slow_ns = (SLOW_BY_MEDIAN * quantile(0.5)).max(TARGET_MIN_NS);
        if self.target == LatencyTarget::Auto {
            // What others do to the guest goes on while the copy runs.
            let late = self.baseline.share_above(self.target_ns);
            self.may_be_late = (LATE + 2.0 * late).min(LATE_MAX);
        }
    }

    /// The guest is there: more or less than before?
    fn adapt(&mut self, ended: &[u64; BUCKETS], before: &Seen) {
        let now_ns = self.seen.now_ns;
        let target_ns = self.target_ns();
        let first_late = bucket(target_ns) + 1;
        let count = |part: &[u64]| part.iter().sum::<u64>() as f64;
        let in_time = count(&ended[..first_late]);
        let late = count(&ended[first_late..]);
        let oldest_ns = self.oldest_ns();
        let earned = in_time.max((now_ns - before.now_ns) as f64 / SLOW_GUEST_NS);
        if self.target == LatencyTarget::Auto {
            self.pauses.press(&self.seen, before);
        }
        if self.flushes.are_seen(&self.seen) {
            if !before.is_flushing {
                self.flushes.begin(self.requests_ended());
            }
            self.flushes.feel(late > 0.0 || oldest_ns > target_ns);
            if !self.flushes.prevail() {
                self.excuse();
                return;
            }
        }
        let debt = 1.0 / self.may_be_late - 1.0;
        if !self.is_excused {
            self.debt = (self.debt + debt * late - earned).clamp(0.0, DEBTS_MAX * debt);
            if self.target == LatencyTarget::Auto && self.cut.is_none() {
                let slow = count(&ended[bucket(self.slow_ns) + 1..]);
                let more = 2.0 * slow - (in_time + late);
                self.slow = (self.slow + more).clamp(-SLOW_MAX, SLOW_MAX);
            }
        }
        if let Some((until_ns, requests, copies)) = self.cut {
            // What ends meanwhile was in flight, and has been answered.
            let is_cleared = self.requests_ended() >= requests && self.seen.copies_ended >= copies;
            if is_cleared || now_ns >= until_ns {
                self.cut = None;
                self.is_excused = false;
            }
            return;
        }
        if late > 0.0 || oldest_ns > target_ns || self.pauses.are_gone() {
            self.cut(CUT);
        } else if self.slow >= SLOW_MAX {
            self.cut(EASE);
        } else if self.debt == 0.0 && self.slow <= 0.0 && self.pauses.are_enough() {
            let is_near = (NEAR..1.0 / NEAR).contains(&(self.budget / self.hurt));
            let growth =
                if is_near { GROWTH_SLOW } else { GROWTH_FAST } * (self.may_be_late / LATE);
            let usable = self.usable(target_ns as f64, 2.5, CHUNK_GOOD);
            let grown = self.budget * (growth * earned).exp();
            // What is more than the device can use goes slowly: its speed is
            // never known for sure.
            self.budget = if self.budget > usable {
                (self.budget * (-GROWTH_FAST * earned).exp()).max(usable)
            } else {
                grown.min(usable)
            };
        }
    }

    fn cut(&mut self, leaves: f64) {
        self.hurt = self.budget;
        self.budget = (self.budget * leaves).max(BUDGET_MIN);
        self.slow = 0.0;
        self.pauses.forgive();
        self.wait_until_cleared();
    }

    /// Whom something else than the budget holds up now is not judged. Copies that are
    /// in flight are no excuse: there are some at any time.
    fn excuse(&mut self) {
        self.is_excused = true;
        let requests = self.seen.guest.started;
        self.cut = Some((self.seen.now_ns + CLEARED_NS, requests, 0));
    }

    /// What is in flight now is not judged any more.
    fn wait_until_cleared(&mut self) {
        self.cut = Some((
            self.seen.now_ns + CLEARED_NS,
            self.seen.guest.started,
            self.seen.copies_started,
        ));
    }
}
