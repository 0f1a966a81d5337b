//! A client's requests.

use std::rc::Rc;

use ringback_block::metrics::clients::Recorder;
use ringback_block::port::Port;
use ringback_block::protocol::nbd::wire::{
    EXTENDED_REQUEST_BYTES, EXTENDED_REQUEST_MAGIC, REQUEST_BYTES, REQUEST_MAGIC, Request, command,
    request_flags as flag,
};
use ringback_net::{Connection, ReadError, Reader};
use ringback_ring::Shard;

use super::context::Context;
use super::export::Visit;
use super::reply::{self, Failure, Headers, Outbox};
use super::request::{self, CACHE_BYTES, Payload, Worker};
use super::status;

/// Requests of one client that the server works on at once.
const REQUESTS_MAX: usize = 128;
/// Bytes of requests that it holds for one client: beyond, no further request is
/// received. One more may be under way, so a client can bind as much and 32 MiB.
const BYTES_MAX: u64 = 32 << 20;

/// What client and server have agreed upon.
pub(super) struct Agreement {
    pub(super) visit: Visit,
    pub(super) headers: Headers,
    pub(super) contexts: Vec<Context>,
}

/// A client in transmission.
struct Session {
    shard: Shard,
    connection: Rc<Connection>,
    agreement: Agreement,
    port: Rc<Port>,
    recorder: Rc<Recorder>,
    outbox: Outbox,
}

/// Why nothing more is received.
enum Parting {
    /// The client has said so, or is gone.
    Quiet,
    /// What it sent cannot be followed any further.
    Lost(&'static str),
}

impl From<ReadError> for Parting {
    fn from(_: ReadError) -> Self {
        Self::Quiet
    }
}

/// Serves requests until the client goes, and answers what is in flight.
pub(super) async fn serve(connection: &Rc<Connection>, mut reader: Reader, agreement: Agreement) {
    let shard = connection.shard().clone();
    let session = Rc::new(Session {
        port: agreement.visit.export().attachment.port(&shard),
        recorder: Recorder::of(&shard, &agreement.visit.export().measured),
        connection: Rc::clone(connection),
        agreement,
        outbox: Outbox::default(),
        shard,
    });
    let sender = Rc::clone(&session);
    let sending = session
        .shard
        .spawn(async move { sender.outbox.send_all(&sender.connection).await });
    let parting = loop {
        session.outbox.room(REQUESTS_MAX, BYTES_MAX).await;
        if let Err(parting) = session.receive(&mut reader).await {
            break parting;
        }
    };
    if let Parting::Lost(why) = parting {
        let name = &session.agreement.visit.export().name;
        tracing::info!(export = name, "client disconnected: {why}");
    }
    session.outbox.answered().await;
    session.outbox.close();
    sending.join().await;
    session.connection.finish().await;
}

impl Session {
    /// Takes one request, and starts it.
    async fn receive(self: &Rc<Self>, reader: &mut Reader) -> Result<(), Parting> {
        let request = match self.next(reader).await? {
            Ok(request) => request,
            Err((request, failure)) => {
                self.refuse(&request, failure);
                return Err(Parting::Lost("a request without the magic number"));
            }
        };
        if request.command == command::DISC {
            return Err(Parting::Quiet);
        }
        let export = self.agreement.visit.export();
        let headers = self.agreement.headers;
        if let Err(failure) = request::check_length(&request) {
            self.refuse(&request, failure);
            return match self.payload_len(&request) > 0 {
                true => Err(Parting::Lost("a payload that is too long")),
                false => Ok(()),
            };
        }
        let payload_len = self.payload_len(&request);
        if request.command == command::BLOCK_STATUS && payload_len > 0 {
            return self.receive_status(reader, request).await;
        }
        let checked = request::check(&request, export, headers);
        if let Err(failure) = checked {
            reader.skip(payload_len).await?;
            self.refuse(&request, failure);
            return Ok(());
        }
        let payload = if payload_len > 0 {
            let len = usize::try_from(payload_len).expect("checked to be short");
            let buf = self.shard.buffer_now(len);
            let (result, buf) = reader.take_into(buf, 0..len).await;
            result?;
            Payload::Data(buf, 0..len)
        } else {
            Payload::None
        };
        self.start(request, payload);
        Ok(())
    }

    /// The next request, or one that is told only what it is wrong about.
    async fn next(
        &self,
        reader: &mut Reader,
    ) -> Result<Result<Request, (Request, Failure)>, ReadError> {
        let (decoded, expected, cookie) = if self.agreement.headers == Headers::Extended {
            let bytes = reader.take_array::<EXTENDED_REQUEST_BYTES>().await?;
            let decoded = Request::decode_extended(&bytes);
            (decoded, EXTENDED_REQUEST_MAGIC, cookie(&bytes))
        } else {
            let bytes = reader.take_array::<REQUEST_BYTES>().await?;
            (Request::decode(&bytes), REQUEST_MAGIC, cookie(&bytes))
        };
        Ok(decoded.map_err(|magic| {
            let request = Request {
                flags: 0,
                command: command::DISC,
                cookie,
                offset: 0,
                len: 0,
            };
            let text = format!("invalid magic (got {magic:#x}, expected {expected:#x})");
            (request, Failure::invalid(text))
        }))
    }

    /// Bytes that follow a request's header.
    fn payload_len(&self, request: &Request) -> u64 {
        let is_extended = self.agreement.headers == Headers::Extended;
        let has_payload = request.command == command::WRITE
            || is_extended && request.flags & flag::PAYLOAD_LEN != 0;
        if has_payload { request.len } else { 0 }
    }

    /// A question about ranges that brings its contexts.
    async fn receive_status(
        self: &Rc<Self>,
        reader: &mut Reader,
        request: Request,
    ) -> Result<(), Parting> {
        let chosen = &self.agreement.contexts;
        let len_max = 8 + 4 * chosen.len() as u64;
        let refusal = Failure::invalid("CMD_BLOCK_STATUS payload not valid");
        if request.len > len_max {
            reader.skip(request.len).await?;
            self.refuse(&request, refusal);
            return Ok(());
        }
        let len = usize::try_from(request.len).expect("a short payload");
        let bytes = reader.take(len).await?;
        let Some((contexts, len)) = parse_contexts(&bytes, chosen) else {
            self.refuse(&request, refusal);
            return Ok(());
        };
        let about = Request { len, ..request };
        let export = self.agreement.visit.export();
        if let Err(failure) = request::check(&about, export, self.agreement.headers) {
            self.refuse(&request, failure);
            return Ok(());
        }
        self.start(request, Payload::Contexts(contexts, len));
        Ok(())
    }

    fn refuse(&self, request: &Request, failure: Failure) {
        let headers = self.agreement.headers;
        self.outbox.begin(0);
        self.outbox.end(0, |batch| {
            reply::write(batch, headers, request, Err(failure))
        });
    }

    fn start(self: &Rc<Self>, request: Request, payload: Payload) {
        let held = held_bytes(&request, &payload, self.agreement.contexts.len());
        self.outbox.begin(held);
        let session = Rc::clone(self);
        self.shard.spawn(async move {
            let worker = Worker {
                shard: &session.shard,
                port: &session.port,
                export: session.agreement.visit.export(),
                recorder: &session.recorder,
                headers: session.agreement.headers,
                contexts: &session.agreement.contexts,
                is_pointless: &|| session.outbox.is_broken(),
            };
            let result = worker.run(&request, payload).await;
            session.outbox.end(held, |batch| {
                reply::write(batch, session.agreement.headers, &request, result);
            });
        });
    }
}

/// Bytes of memory that a request may take until its reply is gone.
fn held_bytes(request: &Request, payload: &Payload, chosen: usize) -> u64 {
    let extent_bytes = 16 * status::EXTENTS_MAX as u64;
    match (request.command, payload) {
        (command::READ | command::WRITE, _) => request.len,
        (command::CACHE, _) => request.len.min(CACHE_BYTES),
        (command::BLOCK_STATUS, Payload::Contexts(contexts, _)) => {
            contexts.len() as u64 * extent_bytes
        }
        (command::BLOCK_STATUS, _) => chosen as u64 * extent_bytes,
        _ => 0,
    }
}

/// Where both headers have it.
fn cookie(bytes: &[u8]) -> u64 {
    let mut cookie = [0; 8];
    cookie.copy_from_slice(&bytes[8..16]);
    u64::from_be_bytes(cookie)
}

/// A length, then numbers of chosen contexts, each once.
fn parse_contexts(bytes: &[u8], chosen: &[Context]) -> Option<(Vec<Context>, u64)> {
    let (len, ids) = bytes.split_first_chunk::<8>()?;
    if ids.is_empty() || ids.len() % 4 != 0 {
        return None;
    }
    let mut contexts = Vec::new();
    for id in ids.chunks_exact(4) {
        let id = u32::from_be_bytes(id.try_into().ok()?);
        let context = *chosen.iter().find(|context| context.id() == id)?;
        if contexts.contains(&context) {
            return None;
        }
        contexts.push(context);
    }
    contexts.sort_unstable();
    Some((contexts, u64::from_be_bytes(*len)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(len: u64, ids: &[u32]) -> Vec<u8> {
        let mut bytes = len.to_be_bytes().to_vec();
        ids.iter()
            .for_each(|id| bytes.extend_from_slice(&id.to_be_bytes()));
        bytes
    }

    #[test]
    fn contexts_of_a_question_are_chosen_ones_each_once() {
        let chosen = [Context::Allocation, Context::Bitmap(3)];
        let both = (chosen.to_vec(), 4096);
        assert_eq!(parse_contexts(&payload(4096, &[5, 0]), &chosen), Some(both));
        for (ids, why) in [
            (&[][..], "none"),
            (&[0, 0][..], "twice"),
            (&[1][..], "not chosen"),
        ] {
            assert_eq!(parse_contexts(&payload(4096, ids), &chosen), None, "{why}");
        }
        assert_eq!(parse_contexts(&payload(1, &[0])[..11], &chosen), None);
        assert_eq!(parse_contexts(&[0; 7], &chosen), None);
    }
}
