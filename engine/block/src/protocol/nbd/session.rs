//! Requests in flight on one connection; sending.
//!
//! Calls wait in their lane until there is room. What is there when the sender's
//! turn comes goes out in one operation, up to a limit: a buffer comes back when
//! its whole batch has been sent.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use ringback_net::Connection;
use ringback_ring::Errno;
use ringback_ring::socket::Batch;

use super::call::{Answer, Call, Failure, Run};
use super::connect::{Connected, parting, push_request};
use super::coverage::Coverage;
use super::lane::Lane;
use super::terms::Terms;
use super::wire::{Request, command, request_flags};

/// Requests in flight on one connection: more than servers work on at once.
pub(super) const CALLS_MAX: usize = 64;
/// Payload of one batch, unless one request alone has more, in bytes.
const BATCH_BYTES: u64 = 256 << 10;

/// How a connection has ended.
#[derive(Debug)]
pub(super) enum End {
    /// The stream has ended or broken.
    Lost(String),
    /// The server has broken the rules.
    Violation(&'static str),
}

/// A request that has been sent, or is being sent.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) cookie: u64,
    pub(super) call: Rc<Call>,
    /// Of a read, in chunks.
    pub(super) coverage: Coverage,
    /// The first error that the server has told.
    pub(super) error: Option<Errno>,
    /// The answer to a question about extents.
    pub(super) extent: Option<(u64, u32)>,
    /// The answer to a question about the bitmap.
    pub(super) runs: Option<Vec<Run>>,
}

/// One connection in use.
pub(super) struct Session {
    lane: Rc<Lane>,
    connection: Rc<Connection>,
    pub(super) terms: Terms,
    /// A cookie's low bits are its place here.
    flights: RefCell<Vec<Option<Flight>>>,
    /// So that a late answer is never taken for that of a newer request.
    serial: Cell<u64>,
    is_over: Cell<bool>,
}

const PLACE_BITS: u32 = CALLS_MAX.ilog2();

/// Sends what waits in the lane and receives the replies, until the connection
/// ends. Answers also the calls that have not ended, oldest first, with their
/// buffers.
pub(super) async fn transmit(lane: &Rc<Lane>, connected: Connected) -> (End, Vec<Rc<Call>>) {
    let Connected {
        connection,
        mut reader,
        terms,
        ..
    } = connected;
    let session = Rc::new(Session {
        lane: Rc::clone(lane),
        connection: Rc::clone(&connection),
        terms,
        flights: RefCell::new((0..CALLS_MAX).map(|_| None).collect()),
        serial: Cell::new(0),
        is_over: Cell::new(false),
    });
    let sender = Rc::clone(&session);
    let sending = lane.shard().spawn(async move { sender.send_all().await });
    let end = session.receive_all(&mut reader).await;
    session.is_over.set(true);
    connection.shut_down();
    lane.ring();
    // Buffers that were being sent come back.
    sending.join().await;
    let flights = session.flights.take();
    let mut flights: Vec<Flight> = flights.into_iter().flatten().collect();
    flights.sort_by_key(|flight| flight.cookie);
    let calls = flights.into_iter().map(|flight| flight.call);
    (end, calls.collect())
}

impl Session {
    fn has_room(&self) -> bool {
        self.flights.borrow().iter().any(Option::is_none)
    }

    async fn send_all(&self) {
        let mut batch = Batch::default();
        loop {
            let is_due = || {
                self.is_over.get()
                    || self.lane.is_closing()
                    || (self.lane.has_waiting() && self.has_room())
            };
            self.lane.wait_until(is_due).await;
            if self.is_over.get() {
                return;
            }
            let is_last = self.lane.is_closing();
            let mut launched = Vec::new();
            if is_last {
                push_request(&mut batch, self.terms.headers, &parting());
            } else {
                launched = self.launch_waiting(&mut batch);
            }
            let (result, sent) = self.connection.send_lent(batch).await;
            batch = sent;
            for (name, buf) in batch.take_back() {
                let index = usize::try_from(name).expect("an index");
                let call: &Rc<Call> = &launched[index];
                call.give_back(buf);
            }
            if is_last && result.is_ok() {
                self.connection.finish().await;
                return;
            }
            if is_last || result.is_err() {
                // Who receives must not go on either.
                self.connection.shut_down();
                return;
            }
        }
    }

    /// Puts calls that wait into a batch. A lent buffer's name in it is its call's
    /// place in the answer.
    fn launch_waiting(&self, batch: &mut Batch) -> Vec<Rc<Call>> {
        let mut launched: Vec<Rc<Call>> = Vec::new();
        let mut bytes = 0;
        while bytes < BATCH_BYTES
            && self.has_room()
            && let Some(call) = self.lane.next_waiting()
        {
            let is_about_one_extent = call.request.command == command::BLOCK_STATUS
                && call.request.flags & request_flags::REQ_ONE != 0;
            if is_about_one_extent && self.terms.contexts.usual.is_none() {
                // A server that has come back without the context: all of it is data.
                let len = call.request.len;
                call.end(Ok(Answer::Extent { len, flags: 0 }));
                continue;
            }
            let request = self.launch(&call);
            push_request(batch, self.terms.headers, &request);
            if request.command == command::WRITE
                && let Some(buf) = call.lend()
            {
                bytes += request.len;
                batch.lend_window(buf, call.window.clone(), launched.len() as u64);
            }
            launched.push(call);
        }
        launched
    }

    /// Gives a call a place and a cookie.
    fn launch(&self, call: &Rc<Call>) -> Request {
        let mut flights = self.flights.borrow_mut();
        let place = flights.iter().position(Option::is_none);
        let place = place.expect("there is room");
        let cookie = self.serial.get() << PLACE_BITS | place as u64;
        self.serial.set(self.serial.get() + 1);
        flights[place] = Some(Flight {
            cookie,
            call: Rc::clone(call),
            coverage: Coverage::default(),
            error: None,
            extent: None,
            runs: None,
        });
        Request {
            cookie,
            ..call.request
        }
    }

    /// The call that a reply is for.
    pub(super) fn call(&self, cookie: u64) -> Option<Rc<Call>> {
        let flights = self.flights.borrow();
        let flight = flights[place_of(cookie)].as_ref();
        let flight = flight.filter(|flight| flight.cookie == cookie);
        flight.map(|flight| Rc::clone(&flight.call))
    }

    /// Changes what has come of a request that is in flight.
    pub(super) fn with_flight<T>(
        &self,
        cookie: u64,
        change: impl FnOnce(&mut Flight) -> T,
    ) -> Option<T> {
        let mut flights = self.flights.borrow_mut();
        let flight = flights[place_of(cookie)].as_mut();
        let flight = flight.filter(|flight| flight.cookie == cookie);
        flight.map(change)
    }

    /// The last of a request has come.
    pub(super) fn land(&self, cookie: u64) {
        let flight = self.flights.borrow_mut()[place_of(cookie)].take();
        let Some(flight) = flight else { return };
        let call = Rc::clone(&flight.call);
        call.end(outcome(flight));
        self.lane.settle();
        if self.lane.has_waiting() {
            self.lane.ring();
        }
    }
}

fn place_of(cookie: u64) -> usize {
    usize::try_from(cookie % CALLS_MAX as u64).expect("below the number of places")
}

/// What a reply amounts to as a whole.
fn outcome(flight: Flight) -> Result<Answer, Failure> {
    if let Some(errno) = flight.error {
        return Err(Failure::Error(errno));
    }
    let request = &flight.call.request;
    match request.command {
        // A success that leaves bytes out is none: they would be stale memory.
        command::READ if !flight.coverage.is_complete(request.len) => {
            tracing::warn!(
                offset = request.offset,
                len = request.len,
                "an NBD server left out a part of what it was asked for"
            );
            Err(Failure::Error(Errno::EIO))
        }
        command::BLOCK_STATUS if request.flags & request_flags::REQ_ONE == 0 => flight
            .runs
            .map(Answer::Runs)
            .ok_or(Failure::Error(Errno::EIO)),
        command::BLOCK_STATUS => match flight.extent {
            Some((len, flags)) => Ok(Answer::Extent { len, flags }),
            None => Err(Failure::Error(Errno::EIO)),
        },
        _ => Ok(Answer::Done),
    }
}
