//! Where Prometheus asks: `GET /metrics` over HTTP, one request a connection.
//!
//! The server has tasks of its own on the control shard, and gathers from the shards
//! what they have measured without the control task: a client that is slow, silent or
//! hostile takes one of a few places for a few seconds, and nothing else. There is
//! neither TLS nor a password; who may come is for the address to say.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use ringback_block::metrics;
use ringback_net::{Connection, Incoming, Reader};
use ringback_qmp_shim::command_error::CommandError;
use ringback_qmp_shim::command_line::SocketAddress;
use ringback_ring::shard::Task;
use ringback_ring::socket::Batch;
use ringback_ring::{LocalQueue, Shard};

use super::control::Control;
use super::exposition;
use super::listen::listen;

/// Connections at a time. More wait in the kernel.
const CONNECTIONS_MAX: usize = 8;
/// Bytes of a request with its headers.
const REQUEST_BYTES_MAX: usize = 8 << 10;
/// Headers of a request.
const HEADERS_MAX: usize = 64;
/// Time for a request to come, and again for its answer to go.
const PATIENCE_NS: u64 = 5_000_000_000;
/// A failure to accept that may pass: how long to wait for it.
const RETRY_NS: u64 = 100_000_000;

impl Control {
    /// Gives latencies out at an address.
    pub(super) async fn serve_metrics(
        &mut self,
        address: &SocketAddress,
    ) -> Result<(), CommandError> {
        let generic = |error: io::Error| CommandError::generic(error.to_string());
        let mut address = address.clone();
        if let SocketAddress::Unix(unix) = &mut address
            && !unix.is_abstract
        {
            // The socket file is removed at the end, and the process may go elsewhere
            // until then.
            let path = std::path::absolute(&unix.path).map_err(generic)?;
            unix.path = path.to_string_lossy().into_owned();
        }
        let listener = listen(&self.shard, &address).await?;
        let incoming = listener.incoming(&self.shard).map_err(generic)?;
        self.scraped = Some(ScrapeServer::start(&self.shard, incoming));
        Ok(())
    }

    /// Gives nothing out any more.
    pub(super) async fn stop_metrics(&mut self) {
        if let Some(server) = self.scraped.take() {
            server.stop().await;
        }
    }
}

/// A server that listens until it is stopped.
pub(super) struct ScrapeServer {
    inner: Rc<Inner>,
    /// Owns what listens.
    accepting: Task<()>,
}

#[derive(Default)]
struct Inner {
    is_stopping: Cell<bool>,
    next: Cell<u64>,
    connections: RefCell<BTreeMap<u64, Rc<Connection>>>,
    /// A connection has gone, or the server is to stop.
    changed: LocalQueue,
}

impl ScrapeServer {
    fn start(shard: &Shard, incoming: Incoming) -> Self {
        let inner = Rc::new(Inner::default());
        let (server, here) = (Rc::clone(&inner), shard.clone());
        let accepting = shard.spawn(async move { accept_all(&here, &server, &incoming).await });
        Self { inner, accepting }
    }

    /// Accepts nobody any more, cuts all connections, and waits for their end.
    async fn stop(self) {
        let inner = self.inner;
        inner.is_stopping.set(true);
        inner.changed.wake_all();
        self.accepting.join().await;
        for connection in inner.connections.borrow().values() {
            connection.shut_down();
        }
        let is_empty = || inner.connections.borrow().is_empty();
        inner.changed.wait_until(is_empty).await;
    }
}

async fn accept_all(shard: &Shard, server: &Rc<Inner>, incoming: &Incoming) {
    loop {
        let has_place = || server.connections.borrow().len() < CONNECTIONS_MAX;
        let may_go_on = || has_place() || server.is_stopping.get();
        server.changed.wait_until(may_go_on).await;
        let stop = server.changed.wait_until(|| server.is_stopping.get());
        match incoming.next(stop).await {
            Ok(None) => return,
            Ok(Some(_)) if server.is_stopping.get() => return,
            Ok(Some(client)) => {
                let connection = Connection::new(shard, client);
                let number = server.next.replace(server.next.get() + 1);
                let mut connections = server.connections.borrow_mut();
                connections.insert(number, Rc::clone(&connection));
                let (server, here) = (Rc::clone(server), shard.clone());
                shard.spawn(async move {
                    attend(&here, &connection).await;
                    server.connections.borrow_mut().remove(&number);
                    server.changed.wake_all();
                });
            }
            Err(error) => {
                // Somebody who hung up at once, or no descriptor left for now.
                tracing::warn!("metrics: no connection accepted: {error}");
                shard.sleep_ns(RETRY_NS).await;
            }
        }
    }
}

/// One request and its answer. Reading and sending are tasks of their own: when time is
/// up the connection is shut down, and what they wait for ends.
async fn attend(shard: &Shard, connection: &Rc<Connection>) {
    let mut reader = Reader::new(connection);
    let reading = shard.spawn(async move { read(&mut reader).await });
    let deadline_ns = shard.now_ns().saturating_add(PATIENCE_NS);
    let answer = match shard.join_until(reading, Some(deadline_ns)).await {
        Some(None) => return,
        Some(Some(Asked::Metrics { head_only, format })) => {
            let text = exposition::text(metrics::look(shard.set()).await);
            respond("200 OK", format, "", &text, head_only)
        }
        Some(Some(Asked::Refused(refusal))) => refusal.answer(),
        None => Refusal::TooSlow.answer(),
    };
    let mut batch = Batch::default();
    batch.push_bytes(answer.as_bytes());
    let sender = Rc::clone(connection);
    let sending = shard.spawn(async move { sender.send(batch).await.map(drop) });
    let deadline_ns = shard.now_ns().saturating_add(PATIENCE_NS);
    // Who does not take the answer goes without.
    let _ = shard.join_until(sending, Some(deadline_ns)).await;
    connection.finish().await;
}

/// None: the client has gone before it asked for something.
async fn read(reader: &mut Reader) -> Option<Asked> {
    loop {
        if let Some(asked) = look_at(reader.buffered()) {
            return Some(asked);
        }
        let wanted = reader.buffered().len() + 1;
        reader.fill(wanted).await.ok()?;
    }
}

/// What a client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Metrics {
        head_only: bool,
        format: &'static str,
    },
    Refused(Refusal),
}

/// Why a client does not get it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    NotHttp,
    NotFound,
    Method,
    TooSlow,
    TooLarge,
}

impl Refusal {
    fn answer(self) -> String {
        let (status, more) = match self {
            Self::NotHttp => ("400 Bad Request", ""),
            Self::NotFound => ("404 Not Found", ""),
            Self::Method => ("405 Method Not Allowed", "Allow: GET, HEAD\r\n"),
            Self::TooSlow => ("408 Request Timeout", ""),
            Self::TooLarge => ("431 Request Header Fields Too Large", ""),
        };
        let text = format!("{status}\n");
        respond(status, "text/plain; charset=utf-8", more, &text, false)
    }
}

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// None: the request is not at its end.
fn look_at(bytes: &[u8]) -> Option<Asked> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let refusal = match request.parse(bytes) {
        Ok(httparse::Status::Partial) if bytes.len() < REQUEST_BYTES_MAX => return None,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => Refusal::TooLarge,
        Err(_) => Refusal::NotHttp,
        Ok(httparse::Status::Complete(_)) => {
            let path = request.path.unwrap_or_default();
            let path = path.split_once('?').map_or(path, |(path, _)| path);
            match (path, request.method) {
                ("/metrics", Some(method @ ("GET" | "HEAD"))) => {
                    return Some(Asked::Metrics {
                        head_only: method == "HEAD",
                        format: format_for(request.headers),
                    });
                }
                ("/metrics", _) => Refusal::Method,
                _ => Refusal::NotFound,
            }
        }
    };
    Some(Asked::Refused(refusal))
}

/// The name of the format that a client takes.
fn format_for(headers: &[httparse::Header<'_>]) -> &'static str {
    let takes_open_metrics = headers.iter().any(|header| {
        let value = String::from_utf8_lossy(header.value).to_ascii_lowercase();
        header.name.eq_ignore_ascii_case("accept") && value.contains("application/openmetrics-text")
    });
    if takes_open_metrics {
        OPEN_METRICS
    } else {
        PROMETHEUS
    }
}

fn respond(status: &str, format: &str, more: &str, text: &str, head_only: bool) -> String {
    let len = text.len();
    let body = if head_only { "" } else { text };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {format}\r\nContent-Length: {len}\r\n\
         Connection: close\r\n{more}\r\n{body}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(text: &str) -> Option<Asked> {
        look_at(text.as_bytes())
    }

    #[test]
    fn metrics_are_got_in_the_format_that_is_taken() {
        let plain = "GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n";
        let wanted = Asked::Metrics {
            head_only: false,
            format: PROMETHEUS,
        };
        assert_eq!(asked(plain), Some(wanted));
        let accept = "accept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.1";
        let newer = format!("HEAD /metrics?x=1 HTTP/1.0\r\n{accept}\r\n\r\n");
        let wanted = Asked::Metrics {
            head_only: true,
            format: OPEN_METRICS,
        };
        assert_eq!(asked(&newer), Some(wanted));
        for end in 0..plain.len() {
            assert_eq!(asked(&plain[..end]), None, "{end}");
        }
    }

    #[test]
    fn refusals() {
        let long = format!("GET /{} ", "x".repeat(REQUEST_BYTES_MAX));
        let many = format!(
            "GET /metrics HTTP/1.1\r\n{}\r\n",
            "A: b\r\n".repeat(HEADERS_MAX + 1)
        );
        for (text, wanted) in [
            ("GET / HTTP/1.1\r\n\r\n", Refusal::NotFound),
            ("GET /metrics/x HTTP/1.1\r\n\r\n", Refusal::NotFound),
            ("POST /metrics HTTP/1.1\r\n\r\n", Refusal::Method),
            ("hello, daemon\r\n\r\n", Refusal::NotHttp),
            ("GET /metrics HTTP/9\r\n\r\n", Refusal::NotHttp),
            ("\0", Refusal::NotHttp),
            (long.as_str(), Refusal::TooLarge),
            (many.as_str(), Refusal::TooLarge),
        ] {
            assert_eq!(asked(text), Some(Asked::Refused(wanted)), "{text:?}");
        }
    }

    #[test]
    fn answers_say_how_long_they_are() {
        let answer = Refusal::Method.answer();
        let (head, body) = answer.split_once("\r\n\r\n").expect("an end of the head");
        assert!(head.starts_with("HTTP/1.1 405 Method Not Allowed\r\n"));
        assert!(head.contains("\r\nAllow: GET, HEAD"));
        assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())));
        let head = respond("200 OK", PROMETHEUS, "", "four", true);
        assert!(head.contains("Content-Length: 4\r\n") && head.ends_with("\r\n\r\n"));
    }
}
