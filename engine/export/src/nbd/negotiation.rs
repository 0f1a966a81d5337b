//! From the greeting to the choice of an export.
//!
//! Each option is read as a whole before it is looked at, so that whatever is
//! wrong with it, the next one begins where it should. What is longer than an option
//! that makes sense is not kept while it is read.

use std::rc::Rc;

use ringback_block::protocol::nbd::wire::{
    GREETING_MAGIC, OPTION_MAGIC, PAYLOAD_MAX, STRING_MAX, handshake, info, option, option_name,
    option_reply as answer,
};
use ringback_net::{Connection, ReadError, Reader};
use ringback_ring::Errno;
use ringback_ring::socket::Batch;

use super::context::{Context, Search};
use super::export::{Export, Visit};
use super::exports::Exports;
use super::option::{Denial, Payload, deny, invalid, not_present, push_answer};
use super::reply::Headers;
use super::session::Agreement;
use super::tls::Tls;

/// Most bytes of an option that are held, nearly twice what the longest `INFO` or `GO` can
/// have. No list of contexts that a client asks for comes near.
const OPTION_BYTES_MAX: usize = 256 << 10;
/// Queries for contexts between two turns of others.
const QUERIES_MAX: usize = 64;

/// Why nothing was agreed upon.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The client has gone away in good order.
    Left,
    /// What to tell the log.
    Failed(String),
}

impl From<ReadError> for Refusal {
    fn from(error: ReadError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        match errno {
            // It did not wait for what it had asked for.
            Errno::EPIPE | Errno::ECONNRESET => Self::Left,
            _ => Self::Failed(ringback_ring::error_text(errno)),
        }
    }
}

/// A client that has not chosen yet.
pub(super) struct Negotiation<'a> {
    connection: &'a Rc<Connection>,
    reader: &'a mut Reader,
    exports: &'a Exports,
    /// What the client must do before anything else.
    tls: Option<&'a Tls>,
    headers: Headers,
    no_zeroes: bool,
    /// What was chosen last, of which export.
    contexts: Option<(String, Vec<Context>)>,
}

/// Greets a client and answers until it has chosen an export.
pub(super) async fn negotiate(
    connection: &Rc<Connection>,
    reader: &mut Reader,
    exports: &Exports,
    tls: Option<&Tls>,
) -> Result<Agreement, Refusal> {
    let mut greeting = Batch::default();
    greeting.push_bytes(&GREETING_MAGIC.to_be_bytes());
    greeting.push_bytes(&OPTION_MAGIC.to_be_bytes());
    let flags = handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES;
    greeting.push_bytes(&flags.to_be_bytes());
    connection.send(greeting).await?;
    let flags = match reader.take_array::<4>().await {
        Ok(flags) => u32::from_be_bytes(flags),
        // Somebody who only looked whether there is a server.
        Err(_) => return Err(Refusal::Left),
    };
    let (fixed, no_zeroes) = (
        u32::from(handshake::FIXED_NEWSTYLE),
        u32::from(handshake::NO_ZEROES),
    );
    if flags & !(fixed | no_zeroes) != 0 {
        let text = format!("Unknown client flags {flags:#x} received");
        return Err(Refusal::Failed(text));
    }
    let mut negotiation = Negotiation {
        connection,
        reader,
        exports,
        tls,
        headers: Headers::Simple,
        no_zeroes: flags & no_zeroes != 0,
        contexts: None,
    };
    loop {
        let chosen = negotiation.option(flags & fixed != 0).await?;
        if let Some(visit) = chosen {
            return Ok(negotiation.agree(visit));
        }
    }
}

impl Negotiation<'_> {
    fn agree(self, visit: Visit) -> Agreement {
        // Contexts belong to the export for which they were chosen.
        let contexts = match self.contexts {
            Some((name, contexts)) if name == visit.export().name => contexts,
            _ => Vec::new(),
        };
        Agreement {
            visit,
            headers: self.headers,
            contexts,
        }
    }

    /// Reads and answers one option. The visit begins with the last of them.
    async fn option(&mut self, is_fixed: bool) -> Result<Option<Visit>, Refusal> {
        let header = match self.reader.take_array::<16>().await {
            Ok(header) => header,
            Err(error) => {
                return Err(Refusal::Failed(format!(
                    "Failed to read opts magic: {error}"
                )));
            }
        };
        let (magic, rest) = header.split_at(8);
        if magic != OPTION_MAGIC.to_be_bytes() {
            return Err(Refusal::Failed("Bad magic received".into()));
        }
        let number = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().expect("four bytes"));
        let (kind, len) = (number(&rest[..4]), number(&rest[4..]));
        if len > PAYLOAD_MAX {
            let text = format!("len ({len}) is larger than max len ({PAYLOAD_MAX})");
            return Err(Refusal::Failed(text));
        }
        if let Some(tls) = self.tls
            && !self.connection.is_tls()
        {
            return self
                .demand_tls(tls, kind, len, is_fixed)
                .await
                .map(|()| None);
        }
        if !is_fixed && kind != option::EXPORT_NAME {
            let name = option_name(kind);
            return Err(Refusal::Failed(format!(
                "Unsupported option {kind} ({name})"
            )));
        }
        match kind {
            option::EXPORT_NAME => return self.export_name(len).await.map(Some),
            option::ABORT => {
                // It may be gone already.
                let _ = self.answer(kind, answer::ACK, &[]).await;
                self.connection.finish().await;
                return Err(Refusal::Left);
            }
            _ => {}
        }
        let mut batch = Batch::default();
        let chosen = match self.payload(kind, len as usize).await? {
            Ok(payload) => self.reply(kind, &payload, &mut batch).await,
            Err(denial) => Err(denial),
        };
        let (last, visit) = match chosen {
            Ok(visit) => ((answer::ACK, String::new()), visit),
            Err(denial) => ((denial.kind, denial.text), None),
        };
        push_answer(&mut batch, kind, last.0, &[last.1.as_bytes()]);
        self.connection.send(batch).await?;
        Ok(visit)
    }

    /// What an option carries. If it cannot be looked at it is read, and kept
    /// nowhere.
    async fn payload(
        &mut self,
        kind: u32,
        len: usize,
    ) -> Result<Result<Vec<u8>, Denial>, ReadError> {
        let name = option_name(kind);
        let has_payload = matches!(
            kind,
            option::INFO | option::GO | option::LIST_META_CONTEXT | option::SET_META_CONTEXT
        );
        if has_payload && len <= OPTION_BYTES_MAX {
            return Ok(Ok(self.reader.take(len).await?));
        }
        self.reader.skip(len as u64).await?;
        if kind == option::SET_META_CONTEXT {
            // As with any other that is refused.
            self.contexts = None;
        }
        Ok(if has_payload {
            let text = format!("option '{name}' is longer than {OPTION_BYTES_MAX} bytes");
            deny(answer::ERR_TOO_BIG, text)
        } else if name == "<unknown>" {
            let text = format!("Unsupported option {kind} (<unknown>)");
            deny(answer::ERR_UNSUP, text)
        } else if len > 0 {
            invalid(format!("option '{name}' has unexpected length"))
        } else {
            Ok(Vec::new())
        })
    }

    /// Answers one option of a client that must start TLS first. Nothing that it
    /// says before counts, for anybody on the way may have said it.
    async fn demand_tls(
        &mut self,
        tls: &Tls,
        kind: u32,
        len: u32,
        is_fixed: bool,
    ) -> Result<(), Refusal> {
        if !is_fixed {
            return Err(Refusal::Failed(format!("Unsupported option {kind:#x}")));
        }
        let not_permitted = format!("Option {kind:#x} not permitted before TLS");
        if kind == option::EXPORT_NAME {
            return Err(Refusal::Failed(not_permitted));
        }
        if kind == option::STARTTLS && len == 0 {
            self.answer(kind, answer::ACK, &[]).await?;
            let started = tls.start(self.connection, self.reader).await;
            return started.map_err(Refusal::Failed);
        }
        if kind == option::STARTTLS {
            // Where TLS should begin is anybody's guess.
            let text = "option 'starttls' has unexpected length";
            let _ = self
                .answer(kind, answer::ERR_INVALID, &[text.as_bytes()])
                .await;
            return Err(Refusal::Failed(text.into()));
        }
        let required = answer::ERR_TLS_REQD;
        if kind == option::ABORT {
            let _ = self
                .answer(kind, required, &[not_permitted.as_bytes()])
                .await;
            return Err(Refusal::Left);
        }
        self.reader.skip(len.into()).await?;
        self.answer(kind, required, &[not_permitted.as_bytes()])
            .await?;
        Ok(())
    }

    async fn answer(&self, option: u32, kind: u32, parts: &[&[u8]]) -> Result<(), Errno> {
        let mut batch = Batch::default();
        push_answer(&mut batch, option, kind, parts);
        self.connection.send(batch).await.map(drop)
    }

    /// The option that has no answer if anything is wrong with it.
    async fn export_name(&mut self, len: u32) -> Result<Visit, Refusal> {
        if self.headers == Headers::Extended {
            return Err(Refusal::Failed(
                "Extended headers already negotiated".into(),
            ));
        }
        let len = len as usize;
        if len > STRING_MAX {
            return Err(Refusal::Failed("Bad length received".into()));
        }
        let bytes = self.reader.take(len).await?;
        let name = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
        let Some(visit) = self.exports.visit(name) else {
            return Err(Refusal::Failed("export not found".into()));
        };
        let export = visit.export();
        let mut batch = Batch::default();
        batch.push_bytes(&export.size.to_be_bytes());
        batch.push_bytes(&export.flags(self.headers, false).to_be_bytes());
        if !self.no_zeroes {
            batch.push_bytes(&[0; 124]);
        }
        self.connection.send(batch).await?;
        Ok(visit)
    }

    /// What comes before the last part of the answer.
    async fn reply(
        &mut self,
        kind: u32,
        payload: &[u8],
        batch: &mut Batch,
    ) -> Result<Option<Visit>, Denial> {
        let payload = Payload {
            bytes: payload,
            name: option_name(kind),
        };
        match kind {
            option::LIST => {
                for export in self.exports.all() {
                    let len = u32::try_from(export.name.len()).expect("names are short");
                    let description = export.description.as_deref().unwrap_or_default();
                    let parts = [
                        &len.to_be_bytes()[..],
                        export.name.as_bytes(),
                        description.as_bytes(),
                    ];
                    push_answer(batch, kind, answer::SERVER, &parts);
                }
                Ok(None)
            }
            option::STARTTLS => match self.tls {
                Some(_) => invalid("TLS already enabled"),
                None => deny(answer::ERR_POLICY, "TLS not configured"),
            },
            option::INFO | option::GO => self.choose(kind, payload, batch),
            option::STRUCTURED_REPLY => {
                match self.headers {
                    Headers::Simple => self.headers = Headers::Structured,
                    Headers::Structured => {
                        return invalid("structured reply already negotiated");
                    }
                    Headers::Extended => {
                        let text = "extended headers already negotiated";
                        return deny(answer::ERR_EXT_HEADER_REQD, text);
                    }
                }
                Ok(None)
            }
            option::EXTENDED_HEADERS => {
                if self.headers == Headers::Extended {
                    return invalid("extended headers already negotiated");
                }
                self.headers = Headers::Extended;
                Ok(None)
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                self.meta_contexts(kind, payload, batch).await?;
                Ok(None)
            }
            _ => unreachable!("unknown options are refused before"),
        }
    }

    /// Describes an export; with `GO` it is chosen, too.
    fn choose(
        &self,
        kind: u32,
        mut payload: Payload<'_>,
        batch: &mut Batch,
    ) -> Result<Option<Visit>, Denial> {
        let name = payload.name()?;
        let count = u16::from_be_bytes(payload.array()?);
        let mut asked = Vec::new();
        for _ in 0..count {
            asked.push(u16::from_be_bytes(payload.array()?));
        }
        payload.end()?;
        let Some(visit) = self.exports.visit(name) else {
            return not_present(name);
        };
        let export = visit.export();
        self.push_infos(kind, export, &asked, batch);
        let asked_for_blocks = asked.contains(&info::BLOCK_SIZE);
        if kind == option::INFO && !asked_for_blocks && export.minimum_block > 1 {
            let text = "request NBD_INFO_BLOCK_SIZE to use this export";
            return deny(answer::ERR_BLOCK_SIZE_REQD, text);
        }
        Ok((kind == option::GO).then_some(visit))
    }

    fn push_infos(&self, kind: u32, export: &Export, asked: &[u16], batch: &mut Batch) {
        let mut push = |info: u16, parts: &[&[u8]]| {
            let info = info.to_be_bytes();
            let parts: Vec<&[u8]> = std::iter::once(&info[..])
                .chain(parts.iter().copied())
                .collect();
            push_answer(batch, kind, answer::INFO, &parts);
        };
        if asked.contains(&info::NAME) {
            push(info::NAME, &[export.name.as_bytes()]);
        }
        if let Some(description) = &export.description {
            push(info::DESCRIPTION, &[description.as_bytes()]);
        }
        // Who does not ask will not keep to it.
        let minimum = match kind == option::INFO || asked.contains(&info::BLOCK_SIZE) {
            true => export.minimum_block,
            false => 1,
        };
        let sizes = [
            minimum.to_be_bytes(),
            minimum.max(4096).to_be_bytes(),
            PAYLOAD_MAX.to_be_bytes(),
        ];
        push(info::BLOCK_SIZE, &[sizes.as_flattened()]);
        let chosen = self.contexts.as_ref();
        let has_contexts =
            chosen.is_some_and(|(name, contexts)| *name == export.name && !contexts.is_empty());
        let flags = export.flags(self.headers, kind == option::INFO || has_contexts);
        let parts = [&export.size.to_be_bytes()[..], &flags.to_be_bytes()];
        push(info::EXPORT, &parts);
    }

    async fn meta_contexts(
        &mut self,
        kind: u32,
        mut payload: Payload<'_>,
        batch: &mut Batch,
    ) -> Result<(), Denial> {
        let is_set = kind == option::SET_META_CONTEXT;
        if is_set {
            if self.headers == Headers::Simple {
                return invalid(format!(
                    "request option '{}' when structured reply is not negotiated",
                    payload.name
                ));
            }
            // Also if nothing takes its place.
            self.contexts = None;
        }
        let name = payload.name()?;
        let Some(export) = self.exports.find(name) else {
            return not_present(name);
        };
        let mut search = Search::new(&export);
        let count = payload.length()?;
        for number in 0..count {
            if number % QUERIES_MAX == QUERIES_MAX - 1 {
                self.connection.shard().yield_now().await;
            }
            let len = payload.length()?;
            if len > STRING_MAX {
                // Nothing has such a name.
                payload.take(len)?;
            } else if is_set {
                search.exact(payload.text(len)?);
            } else {
                search.matching(payload.text(len)?);
            }
        }
        payload.end()?;
        if count == 0 && !is_set {
            search.all();
        }
        let contexts = search.into_contexts();
        for context in &contexts {
            let id = if is_set { context.id() } else { 0 };
            let name = context.name(&export);
            let parts = [&id.to_be_bytes()[..], name.as_bytes()];
            push_answer(batch, kind, answer::META_CONTEXT, &parts);
        }
        if is_set {
            self.contexts = Some((export.name.clone(), contexts));
        }
        Ok(())
    }
}
