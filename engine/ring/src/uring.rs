//! The kernel's ring: SQEs out, CQEs in.
//!
//! # Soundness
//!
//! Every SQE is pushed by [`Uring::push`]. It may hold a pointer into a buffer, or
//! to a [`Message`] with its table and the buffers that this points to, because
//! the op slab's entry of the same key owns all of that until the completion with
//! this key has been reaped (`op.rs`), and because a ring is torn down only when
//! nothing is in flight. A message is boxed: its header does not move with the
//! entry, and nobody changes its batch before it has come back.

#![expect(
    unsafe_code,
    reason = "SQEs carry raw pointers; this file is the only one that pushes them"
)]

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr::NonNull;

use io_uring::squeue::Entry as Sqe;
use io_uring::{IoUring, opcode, squeue, types};
use nix::libc;

use crate::buffer::SLAB_BYTES;
use crate::op::{Load, Operation, Verb};
use crate::probe::{Feature, Features};
use crate::shard::RingAddress;
use crate::socket::Batch;

/// Size of the tables of registered files and buffers.
const FILE_SLOTS: u32 = 1024;
const BUFFER_SLOTS: u32 = 1024;

/// UIO_MAXIOV.
const PARTS_MAX: usize = 1024;

/// `user_data` of what is not an operation; slab keys stay below 2^32.
const BELL: u64 = u64::MAX;
const MESSAGE_RECEIVED: u64 = u64::MAX - 1;
const CANCELLED: u64 = u64::MAX - 2;
/// With the number of the shard that the message was for.
const MESSAGE_SENT: u64 = 1 << 62;

/// One io_uring, owned by the thread that made it.
pub(crate) struct Uring {
    ring: IoUring,
    features: Features,
    bell: RawFd,
    bell_armed: bool,
    /// Where the kernel puts the bell's counter. Boxed: the address must not
    /// move while a read is in flight.
    bell_count: Box<[u8; 8]>,
    buffers: u16,
    /// Submissions that found the queue full, oldest first.
    backlog: VecDeque<Sqe>,
    /// Shards that a message could not reach.
    missed: Vec<u16>,
    /// Which slots of the file table hold a file; the kernel may refuse one.
    files: Vec<bool>,
}

/// Where the bytes of a transfer are.
#[derive(Clone, Copy)]
pub(crate) struct Window {
    start: *const u8,
    registered: Option<u16>,
}

/// What of an operation's load the kernel is pointed to.
pub(crate) enum Target {
    None,
    Window(Window),
    Message(*const libc::msghdr),
}

impl Target {
    fn window(&self) -> Window {
        match *self {
            Self::Window(window) => window,
            Self::None | Self::Message(_) => unreachable!("a transfer owns a buffer"),
        }
    }

    pub(crate) fn of(load: &mut Load) -> Self {
        match load {
            Load::None => Self::None,
            Load::Window(buf, window) => Self::Window(Window {
                start: buf[window.clone()].as_ptr(),
                registered: buf.registered(),
            }),
            Load::Message(message) => Self::Message(message.header()),
        }
    }
}

/// A batch that goes into a socket by one operation. The kernel reads the table
/// of parts and what it points to until that has ended, so all of it is owned
/// here, behind a box that does not move.
pub(crate) struct Message {
    batch: Batch,
    table: Vec<libc::iovec>,
    header: libc::msghdr,
}

impl Message {
    pub(crate) fn new(batch: Batch) -> Box<Self> {
        // SAFETY: all-zero bytes are a valid msghdr: null pointers and no lengths.
        let header = unsafe { std::mem::zeroed() };
        let table = Vec::new();
        Box::new(Self {
            batch,
            table,
            header,
        })
    }

    pub(crate) fn batch(&mut self) -> &mut Batch {
        &mut self.batch
    }

    pub(crate) fn into_batch(self) -> Batch {
        self.batch
    }

    fn header(&mut self) -> *const libc::msghdr {
        self.table.clear();
        let parts = self.batch.parts().take(PARTS_MAX);
        self.table.extend(parts.map(|part| libc::iovec {
            iov_base: part.as_ptr().cast_mut().cast(),
            iov_len: part.len(),
        }));
        self.header.msg_iov = self.table.as_mut_ptr();
        self.header.msg_iovlen = self.table.len();
        &raw const self.header
    }
}

impl Uring {
    /// Sets a ring up on this thread, with what `features` allows.
    pub(crate) fn new(
        entries: u32,
        features: Features,
        bell: BorrowedFd<'_>,
    ) -> std::io::Result<Self> {
        let ring = build(entries, &features)?;
        let mut this = Self {
            ring,
            features,
            bell: bell.as_raw_fd(),
            bell_armed: false,
            bell_count: Box::new([0; 8]),
            buffers: 0,
            backlog: VecDeque::new(),
            missed: Vec::new(),
            files: vec![false; FILE_SLOTS as usize],
        };
        this.make_tables();
        Ok(this)
    }

    /// Tables that the kernel refuses are done without: files then go by
    /// descriptor and buffers by address.
    fn make_tables(&mut self) {
        let submitter = self.ring.submitter();
        if self.features.has(Feature::FixedFiles)
            && submitter.register_files_sparse(FILE_SLOTS).is_err()
        {
            self.features.remove(Feature::FixedFiles);
        }
        if self.features.has(Feature::FixedBuffers)
            && submitter.register_buffers_sparse(BUFFER_SLOTS).is_err()
        {
            self.features.remove(Feature::FixedBuffers);
        }
    }

    pub(crate) fn features(&self) -> &Features {
        &self.features
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    /// Registers one slab; None if the kernel refuses (locked-memory limit).
    pub(crate) fn register_buffer(&mut self, start: NonNull<u8>, len: usize) -> Option<u16> {
        debug_assert!(len <= SLAB_BYTES);
        if !self.features.has(Feature::FixedBuffers) || u32::from(self.buffers) == BUFFER_SLOTS {
            return None;
        }
        let iovec = libc::iovec {
            iov_base: start.as_ptr().cast(),
            iov_len: len,
        };
        // SAFETY: the arena keeps its slabs until the shard ends, and the shard
        // drops its ring before its arena.
        let updated = unsafe {
            self.ring
                .submitter()
                .register_buffers_update(self.buffers.into(), &[iovec], None)
        };
        if updated.is_err() {
            self.features.remove(Feature::FixedBuffers);
            return None;
        }
        self.buffers += 1;
        Some(self.buffers - 1)
    }

    /// Puts a descriptor into the ring's file table; without room there its
    /// operations go by descriptor.
    pub(crate) fn register_file(&mut self, slot: u32, fd: RawFd) {
        if self.features.has(Feature::FixedFiles)
            && let Some(held) = self.files.get_mut(slot as usize)
        {
            *held = self
                .ring
                .submitter()
                .register_files_update(slot, &[fd])
                .is_ok();
        }
    }

    /// Empties a slot. What was pushed before goes to the kernel first, so that
    /// it still finds the file.
    pub(crate) fn unregister_file(&mut self, slot: u32) {
        self.submit();
        if let Some(held) = self.files.get_mut(slot as usize)
            && std::mem::take(held)
        {
            let _ = self.ring.submitter().register_files_update(slot, &[-1]);
        }
    }

    /// Queues one operation; the kernel sees it at the next `submit` or `wait`.
    pub(crate) fn push_operation(&mut self, key: u32, operation: &Operation, target: &Target) {
        let slot = operation.file.slot as usize;
        let fixed = self.files.get(slot).copied().unwrap_or(false);
        let sqe = if fixed {
            let index = RawFd::try_from(operation.file.slot).expect("a slot is a small number");
            encode(operation, target, types::Fd(index)).flags(squeue::Flags::FIXED_FILE)
        } else {
            encode(operation, target, types::Fd(operation.file.fd))
        };
        self.push(sqe.user_data(key.into()));
    }

    /// Ends a wait for readiness early: it completes with ECANCELED, unless it has
    /// completed already. Its key cannot mean another operation by then, for the
    /// kernel takes what is queued in order.
    pub(crate) fn cancel_wait(&mut self, key: u32) {
        let sqe = opcode::PollRemove::new(key.into()).build();
        self.push(sqe.user_data(CANCELLED));
    }

    /// Wakes another ring by a completion on it. False: not possible here.
    pub(crate) fn push_message(&mut self, target: RingAddress) -> bool {
        if !self.features.has(Feature::MessageRing) {
            return false;
        }
        let fd = types::Fd(target.fd);
        let message = opcode::MsgRingData::new(fd, 0, MESSAGE_RECEIVED, None).build();
        self.push(message.user_data(MESSAGE_SENT | u64::from(target.number)));
        true
    }

    /// Shards that a message could not reach.
    pub(crate) fn take_missed(&mut self) -> Vec<u16> {
        std::mem::take(&mut self.missed)
    }

    /// A full submission queue is an ordinary event: the kernel may even refuse
    /// to take more until completions have been reaped, so what does not fit
    /// waits here.
    fn push(&mut self, sqe: Sqe) {
        if self.backlog.is_empty() && self.try_push(&sqe) {
            return;
        }
        self.backlog.push_back(sqe);
        self.submit();
    }

    fn try_push(&mut self, sqe: &Sqe) -> bool {
        // SAFETY: see the module's Soundness: the memory that the SQE names
        // is owned by the op's slab entry (or is `bell_count`, owned by this
        // ring) until its completion is reaped.
        unsafe { self.ring.submission().push(sqe) }.is_ok()
    }

    fn push_backlog(&mut self) {
        while let Some(sqe) = self.backlog.pop_front() {
            if !self.try_push(&sqe) {
                self.backlog.push_front(sqe);
                return;
            }
        }
    }

    /// Gives what is queued to the kernel without waiting, and lets it finish what it
    /// has left to the next call.
    pub(crate) fn submit(&mut self) {
        let queue = self.ring.submission();
        if queue.is_empty() && !queue.taskrun() && !queue.cq_overflow() {
            return;
        }
        drop(queue);
        self.enter(0, None);
        if !self.backlog.is_empty() {
            self.push_backlog();
            self.enter(0, None);
        }
    }

    /// Submits, then sleeps until a completion or the timeout.
    pub(crate) fn wait(&mut self, timeout_ns: Option<u64>) {
        self.arm_bell();
        self.push_backlog();
        self.enter(1, timeout_ns);
    }

    /// Whether completions have come, or are left to the next `submit` or `wait`.
    pub(crate) fn has_completions(&mut self) -> bool {
        self.ring.submission().taskrun() || !self.ring.completion().is_empty()
    }

    /// Whether the kernel may still write the bell's counter.
    pub(crate) fn is_bell_armed(&self) -> bool {
        self.bell_armed
    }

    fn arm_bell(&mut self) {
        if self.bell_armed {
            return;
        }
        let read = opcode::Read::new(types::Fd(self.bell), self.bell_count.as_mut_ptr(), 8);
        self.push(read.build().user_data(BELL));
        self.bell_armed = true;
    }

    fn enter(&mut self, want: usize, timeout_ns: Option<u64>) {
        let timeout = timeout_ns.map(|ns| {
            let nanos = u32::try_from(ns % 1_000_000_000).expect("below 10^9");
            types::Timespec::new().sec(ns / 1_000_000_000).nsec(nanos)
        });
        let result = match &timeout {
            Some(timespec) => {
                let args = types::SubmitArgs::new().timespec(timespec);
                self.ring.submitter().submit_with_args(want, &args)
            }
            None => self.ring.submitter().submit_and_wait(want),
        };
        if let Err(error) = result {
            match error.raw_os_error() {
                // Nothing is lost in any of these: a signal, the timeout, a
                // kernel out of memory for now, or completions to reap first.
                Some(libc::EINTR | libc::ETIME | libc::EAGAIN | libc::EBUSY) => {}
                _ => panic!("io_uring_enter failed: {error}"),
            }
        }
    }

    /// Hands out completed operations.
    pub(crate) fn reap(&mut self, mut completed: impl FnMut(u32, i64)) {
        for cqe in self.ring.completion() {
            match cqe.user_data() {
                BELL => self.bell_armed = false,
                MESSAGE_RECEIVED | CANCELLED => {}
                sent if sent & MESSAGE_SENT != 0 => {
                    if cqe.result() < 0 {
                        let number = u16::try_from(sent & !MESSAGE_SENT);
                        self.missed
                            .push(number.expect("shards have 16-bit numbers"));
                    }
                }
                key => {
                    let key = u32::try_from(key).expect("operations have 32-bit keys");
                    completed(key, cqe.result().into());
                }
            }
        }
    }
}

/// The setup flags follow the features; without them the ring is plain.
fn build(entries: u32, features: &Features) -> std::io::Result<IoUring> {
    let mut builder = IoUring::builder();
    // Room for bursts: every entry may be in flight many times over.
    builder
        .setup_clamp()
        .setup_cqsize(entries.saturating_mul(4))
        .dontfork();
    if features.has(Feature::SingleIssuer) {
        builder.setup_single_issuer();
    }
    if features.has(Feature::DeferTaskrun) {
        builder.setup_defer_taskrun().setup_taskrun_flag();
    }
    builder.build(entries)
}

/// One SQE. A flat table: one arm an operation.
fn encode(operation: &Operation, target: &Target, fd: types::Fd) -> Sqe {
    let Operation {
        verb, offset, len, ..
    } = *operation;
    match verb {
        Verb::Read | Verb::Write => {
            encode_transfer(verb, target.window(), fd, offset, below_4_gib(len))
        }
        Verb::Receive { all } => {
            let start = target.window().start.cast_mut();
            let flags = if all { libc::MSG_WAITALL } else { 0 };
            opcode::Recv::new(fd, start, below_4_gib(len))
                .flags(flags)
                .build()
        }
        Verb::Send => {
            let Target::Message(header) = target else {
                unreachable!("a send owns a message")
            };
            // A peer that is gone is an error, not a signal.
            let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
            opcode::SendMsg::new(fd, *header)
                .flags(flags.cast_unsigned())
                .build()
        }
        Verb::Readable => opcode::PollAdd::new(fd, libc::POLLIN.cast_unsigned().into()).build(),
        Verb::Writable => opcode::PollAdd::new(fd, libc::POLLOUT.cast_unsigned().into()).build(),
        Verb::Sync => opcode::Fsync::new(fd)
            .flags(types::FsyncFlags::DATASYNC)
            .build(),
        Verb::ZeroRange => fallocate(fd, offset, len, libc::FALLOC_FL_ZERO_RANGE),
        Verb::PunchHole => {
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            fallocate(fd, offset, len, mode)
        }
        Verb::Allocate => fallocate(fd, offset, len, 0),
    }
}

fn below_4_gib(len: u64) -> u32 {
    u32::try_from(len).expect("one transfer stays below 4 GiB")
}

fn encode_transfer(verb: Verb, window: Window, fd: types::Fd, offset: u64, len: u32) -> Sqe {
    let start = window.start.cast_mut();
    match (verb, window.registered) {
        (Verb::Read, Some(index)) => opcode::ReadFixed::new(fd, start, len, index)
            .offset(offset)
            .build(),
        (Verb::Read, None) => opcode::Read::new(fd, start, len).offset(offset).build(),
        (_, Some(index)) => opcode::WriteFixed::new(fd, start, len, index)
            .offset(offset)
            .build(),
        (_, None) => opcode::Write::new(fd, start, len).offset(offset).build(),
    }
}

fn fallocate(fd: types::Fd, offset: u64, len: u64, mode: i32) -> Sqe {
    opcode::Fallocate::new(fd, len)
        .offset(offset)
        .mode(mode)
        .build()
}

/// Whether the kernel takes the setup flags of these features.
pub(crate) fn builds_with(features: &Features) -> std::io::Result<()> {
    build(8, features).map(drop)
}

/// Whether the kernel has sparse tables of that kind.
pub(crate) fn has_table(feature: Feature) -> bool {
    let Ok(ring) = build(8, &Features::none()) else {
        return false;
    };
    match feature {
        Feature::FixedFiles => ring.submitter().register_files_sparse(8).is_ok(),
        Feature::FixedBuffers => ring.submitter().register_buffers_sparse(8).is_ok(),
        _ => false,
    }
}

/// Which opcodes the kernel knows, as a probe answers.
pub(crate) fn opcodes() -> std::io::Result<Vec<(&'static str, bool)>> {
    let ring = build(8, &Features::none())?;
    let mut probe = io_uring::Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let known = [
        ("read", opcode::Read::CODE),
        ("write", opcode::Write::CODE),
        ("read-fixed", opcode::ReadFixed::CODE),
        ("write-fixed", opcode::WriteFixed::CODE),
        ("fsync", opcode::Fsync::CODE),
        ("fallocate", opcode::Fallocate::CODE),
        ("msg-ring", opcode::MsgRingData::CODE),
        ("recv", opcode::Recv::CODE),
        ("sendmsg", opcode::SendMsg::CODE),
        ("poll-add", opcode::PollAdd::CODE),
        ("poll-remove", opcode::PollRemove::CODE),
    ];
    Ok(known
        .into_iter()
        .map(|(name, code)| (name, probe.is_supported(code)))
        .collect())
}
