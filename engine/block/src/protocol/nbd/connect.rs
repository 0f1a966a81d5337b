//! How a connection comes to be, also again and again.

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use ringback_net::{Address, Connection, Reader};
use ringback_ring::Shard;
use ringback_ring::socket::Batch;

use super::error::NbdError;
use super::negotiation::{Agreement, Wishes, negotiate};
use super::terms::{Headers, Terms};
use super::wire::{Request, command, request_flags};

pub(super) const SECOND_NS: u64 = 1_000_000_000;

/// How long connecting and negotiating may take where nobody says.
pub(super) const ATTEMPT_NS: u64 = 30 * SECOND_NS;

/// How long taking leave may take.
pub(super) const LEAVE_NS: u64 = SECOND_NS;

/// Pauses between attempts grow up to this.
const PAUSE_MAX_NS: u64 = 16 * SECOND_NS;

/// What the standard library puts before a resolver's text.
const RESOLVER_PREFIX: &str = "failed to lookup address information: ";

/// Where an export is.
#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) address: Address,
    pub(super) wishes: Wishes,
}

/// A connection on which an export has been chosen.
pub(super) struct Connected {
    pub(super) connection: Rc<Connection>,
    pub(super) reader: Reader,
    pub(super) terms: Terms,
    /// See [`Agreement`].
    pub(super) offered_bitmaps: Option<Vec<String>>,
}

impl Connected {
    /// Takes leave before anything was asked.
    pub(super) async fn leave(self) {
        let mut batch = Batch::default();
        push_request(&mut batch, self.terms.headers, &parting());
        let farewell = async {
            // Best effort: whoever does not read it finds the end.
            let _ = self.connection.send(batch).await;
            self.connection.finish().await;
        };
        let shard = self.connection.shard();
        let deadline_ns = shard.now_ns().saturating_add(LEAVE_NS);
        let _ = shard.within(deadline_ns, farewell).await;
    }
}

/// The request that ends a connection.
pub(super) fn parting() -> Request {
    Request {
        flags: 0,
        command: command::DISC,
        cookie: 0,
        offset: 0,
        len: 0,
    }
}

/// Appends a request without its payload.
pub(super) fn push_request(batch: &mut Batch, headers: Headers, request: &Request) {
    match headers {
        Headers::Extended => {
            // There the length of a request is not that of a payload unless it says so.
            let payload = match request.command {
                command::WRITE => request_flags::PAYLOAD_LEN,
                _ => 0,
            };
            let request = Request {
                flags: request.flags | payload,
                ..*request
            };
            batch.push_bytes(&request.encode_extended());
        }
        Headers::Simple | Headers::Structured => batch.push_bytes(&request.encode()),
    }
}

/// The pause after so many earlier pauses: 1, 2, 4, 8, 16, 16... seconds.
pub(super) fn pause_ns(earlier: usize) -> u64 {
    match earlier {
        0..4 => SECOND_NS << earlier,
        _ => PAUSE_MAX_NS,
    }
}

/// Connects and negotiates, once.
///
/// # Errors
///
/// Also [`NbdError::Timeout`]; nothing is left open then.
pub(super) async fn attempt(
    shard: &Shard,
    server: &Server,
    limit_ns: u64,
) -> Result<Connected, NbdError> {
    let deadline_ns = shard.now_ns().saturating_add(limit_ns);
    let work = async {
        let socket = server.address.connect(shard, deadline_ns).await;
        let socket = socket.map_err(|error| connect_error(&server.address, &error))?;
        negotiate_on(shard, socket, &server.wishes).await
    };
    let done = shard.within(deadline_ns, work).await;
    done.unwrap_or(Err(NbdError::Timeout))
}

/// Tries again and again for so long. Tells the last reason that is more than that
/// time has run out.
pub(super) async fn attempts(
    shard: &Shard,
    server: &Server,
    limit_ns: u64,
) -> Result<Connected, NbdError> {
    let deadline_ns = shard.now_ns().saturating_add(limit_ns);
    let mut reason = NbdError::Timeout;
    for earlier in 0.. {
        let left_ns = deadline_ns.saturating_sub(shard.now_ns());
        match attempt(shard, server, left_ns).await {
            Ok(connected) => return Ok(connected),
            Err(NbdError::Timeout) => {}
            Err(error) => reason = error,
        }
        let next_ns = shard.now_ns().saturating_add(pause_ns(earlier));
        shard.sleep_until(next_ns.min(deadline_ns)).await;
        if shard.now_ns() >= deadline_ns {
            break;
        }
    }
    Err(reason)
}

/// Negotiates on a connected socket.
pub(super) async fn negotiate_on(
    shard: &Shard,
    socket: OwnedFd,
    wishes: &Wishes,
) -> Result<Connected, NbdError> {
    let connection = Connection::new(shard, socket);
    let mut reader = Reader::new(&connection);
    let agreement = negotiate(&connection, &mut reader, wishes).await?;
    let Agreement {
        terms,
        offered_bitmaps,
    } = agreement;
    Ok(Connected {
        connection,
        reader,
        terms,
        offered_bitmaps,
    })
}

fn connect_error(address: &Address, error: &io::Error) -> NbdError {
    if error.kind() == io::ErrorKind::TimedOut {
        return NbdError::Timeout;
    }
    let text = error.to_string();
    // QEMU puts no brackets around the colons of a host.
    let address = match address {
        Address::Tcp { host, port, .. } => format!("{host}:{port}"),
        other => other.to_string(),
    };
    if let Some(reason) = text.strip_prefix(RESOLVER_PREFIX) {
        return NbdError::Resolve {
            address,
            reason: reason.to_owned(),
        };
    }
    let reason = match text.rfind(" (os error ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    };
    NbdError::Connect { address, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_sixteen_seconds() {
        let seconds: Vec<u64> = (0..6)
            .map(|earlier| pause_ns(earlier) / SECOND_NS)
            .collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 16]);
    }

    #[test]
    fn a_long_header_says_that_a_payload_follows() {
        let write = Request {
            command: command::WRITE,
            len: 512,
            ..parting()
        };
        for (request, flags) in [(write, request_flags::PAYLOAD_LEN), (parting(), 0)] {
            let mut batch = Batch::default();
            push_request(&mut batch, Headers::Extended, &request);
            let bytes: Vec<u8> = batch.parts().flatten().copied().collect();
            assert_eq!(bytes[4..6], flags.to_be_bytes(), "{request:?}");
        }
    }
}
