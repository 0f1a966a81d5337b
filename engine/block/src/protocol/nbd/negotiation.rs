//! From the greeting to the export.
//!
//! The newer ways are asked for first; whatever a server refuses is done without,
//! but for the export itself. A reply is looked at only after its whole header has
//! been checked, and no length of a server makes us take memory before the bytes
//! are there.

use std::rc::Rc;

use ringback_net::{ClientCredentials, Connection, ReadError, Reader};
use ringback_ring::socket::Batch;

use super::error::NbdError;
use super::terms::{Blocks, Contexts, Headers, Terms};
use super::wire::{
    BASE_ALLOCATION, DIRTY_BITMAP_PREFIX, GREETING_MAGIC, OLD_STYLE_MAGIC, OPTION_MAGIC,
    OPTION_REPLY_MAGIC, PAYLOAD_MAX, STRING_MAX, field, handshake, info, option,
    option_reply as reply,
};

/// What is asked of a server.
#[derive(Clone, Debug)]
pub(super) struct Wishes {
    /// The export's name; empty is the server's own choice.
    pub(super) export: String,
    /// The context of metadata, if not the usual one.
    pub(super) context: Option<String>,
    /// The name of a bitmap whose context is asked for as well.
    pub(super) bitmap: Option<String>,
    /// Nothing is said in the clear that could be said otherwise.
    pub(super) tls: Option<Tls>,
}

/// How a server is spoken to under TLS.
#[derive(Clone, Debug)]
pub struct Tls {
    /// What we show, and whom we believe.
    pub credentials: ClientCredentials,
    /// What the server is called, by a name or a number.
    pub host: Option<String>,
}

impl Wishes {
    fn context(&self) -> &str {
        self.context.as_deref().unwrap_or(BASE_ALLOCATION)
    }

    /// The context of the bitmap.
    pub(super) fn bitmap_context(&self) -> Option<String> {
        let name = self.bitmap.as_ref()?;
        Some(format!("{DIRTY_BITMAP_PREFIX}{name}"))
    }
}

/// Zeroes behind the answer to `EXPORT_NAME`, and in the greeting of old.
const ZEROES: u64 = 124;
/// Bytes of a server's explanation that are shown.
const SHOWN_MAX: usize = 4096;
/// Bitmaps of a server that are listed.
const LISTED_MAX: usize = 64;

/// What has come of the negotiation.
#[derive(Debug)]
pub(super) struct Agreement {
    pub(super) terms: Terms,
    /// The bitmaps that there are, where the one that was asked for is not among them;
    /// none: the server has not said.
    pub(super) offered_bitmaps: Option<Vec<String>>,
}

/// A reply to an option, before its payload.
#[derive(Clone, Copy, Debug)]
struct Answer {
    kind: u32,
    len: u32,
}

impl Answer {
    fn is_error(self) -> bool {
        self.kind & reply::ERROR != 0
    }
}

/// Negotiates on a new connection.
///
/// # Errors
///
/// The server refuses, is none, or breaks the rules. It has been told if it can be.
pub(super) async fn negotiate(
    connection: &Rc<Connection>,
    reader: &mut Reader,
    wishes: &Wishes,
) -> Result<Agreement, NbdError> {
    let mut talk = Talk {
        connection,
        reader,
        wishes,
        offered_bitmaps: None,
    };
    let terms = talk.negotiate().await?;
    Ok(Agreement {
        terms,
        offered_bitmaps: talk.offered_bitmaps,
    })
}

struct Talk<'a> {
    connection: &'a Rc<Connection>,
    reader: &'a mut Reader,
    wishes: &'a Wishes,
    /// See [`Agreement`].
    offered_bitmaps: Option<Vec<String>>,
}

impl Talk<'_> {
    async fn negotiate(&mut self) -> Result<Terms, NbdError> {
        let first = u64::from_be_bytes(self.take("read initial magic").await?);
        if first != GREETING_MAGIC {
            return Err(NbdError::InitialMagic(first));
        }
        match u64::from_be_bytes(self.take("read server magic").await?) {
            OPTION_MAGIC => self.new_style().await,
            OLD_STYLE_MAGIC => self.old_style().await,
            other => Err(NbdError::ServerMagic(other)),
        }
    }

    async fn take<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], NbdError> {
        let taken = self.reader.take_array().await;
        taken.map_err(|error| self.unread(what, error))
    }

    async fn skip(&mut self, len: u64) -> Result<(), NbdError> {
        let skipped = self.reader.skip(len).await;
        skipped.map_err(|error| self.unread("read option reply", error))
    }

    /// Why something could not be read.
    fn unread(&self, what: &'static str, error: ReadError) -> NbdError {
        if self.connection.is_tls() {
            NbdError::read_under_tls(what, error)
        } else {
            NbdError::read(what, error)
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), NbdError> {
        let mut batch = Batch::default();
        batch.push_bytes(bytes);
        let sent = self.connection.send(batch).await;
        let is_tls = self.connection.is_tls();
        sent.map(drop)
            .map_err(|errno| NbdError::sent("send option request", errno, is_tls))
    }

    async fn send_option(&mut self, option: u32, payload: &[u8]) -> Result<(), NbdError> {
        let mut bytes = Vec::with_capacity(16 + payload.len());
        bytes.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        bytes.extend_from_slice(&option.to_be_bytes());
        bytes.extend_from_slice(&length(payload.len()));
        bytes.extend_from_slice(payload);
        self.send(&bytes).await
    }

    /// The next reply to an option.
    async fn answer(&mut self, option: u32) -> Result<Answer, NbdError> {
        let bytes: [u8; 20] = self.take("read option reply").await?;
        let magic = u64::from_be_bytes(field(&bytes, 0));
        let got = u32::from_be_bytes(field(&bytes, 8));
        let kind = u32::from_be_bytes(field(&bytes, 12));
        let len = u32::from_be_bytes(field(&bytes, 16));
        if magic != OPTION_REPLY_MAGIC {
            return Err(NbdError::ReplyMagic);
        }
        if got != option {
            return Err(NbdError::OtherOption {
                got,
                wanted: option,
            });
        }
        if len > PAYLOAD_MAX || (kind == reply::ACK && len != 0) {
            return Err(NbdError::ReplyLength { option });
        }
        Ok(Answer { kind, len })
    }

    /// Reads what a server explains, if it does, and logs it.
    async fn explanation(&mut self, answer: Answer) -> Result<Option<String>, NbdError> {
        let len = u64::from(answer.len);
        let shown = (answer.len as usize).min(SHOWN_MAX);
        let text = self.reader.take(shown).await;
        let text = text.map_err(|error| self.unread("read option reply", error))?;
        self.skip(len - shown as u64).await?;
        if text.is_empty() {
            return Ok(None);
        }
        let text = harmless(&text);
        tracing::info!(export = self.wishes.export, "server reported: {text}");
        Ok(Some(text))
    }

    async fn new_style(&mut self) -> Result<Terms, NbdError> {
        let offered = u16::from_be_bytes(self.take("read server flags").await?);
        let flags = offered & (handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES);
        self.send(&u32::from(flags).to_be_bytes()).await?;
        let no_zeroes = flags & handshake::NO_ZEROES != 0;
        if flags & handshake::FIXED_NEWSTYLE == 0 {
            self.check_in_clear()?;
            let contexts = Contexts::default();
            return self.export_name(Headers::Simple, contexts, no_zeroes).await;
        }
        let chosen = self.choose(no_zeroes).await;
        if let Err(error) = &chosen
            && !matches!(error, NbdError::Stream { .. } | NbdError::Tls(_))
        {
            // Best effort: whoever does not read it finds the end.
            let _ = self.send_option(option::ABORT, &[]).await;
        }
        chosen
    }

    /// A server that cannot be asked for TLS is of no use to who wants it.
    fn check_in_clear(&self) -> Result<(), NbdError> {
        match self.wishes.tls {
            None => Ok(()),
            Some(_) => Err(NbdError::NoTls),
        }
    }

    async fn choose(&mut self, no_zeroes: bool) -> Result<Terms, NbdError> {
        // Before anything else: what is agreed upon in the clear, somebody in between
        // could have said.
        if let Some(tls) = &self.wishes.tls {
            self.start_tls(tls).await?;
        }
        let headers = if self.agree(option::EXTENDED_HEADERS).await? {
            Headers::Extended
        } else if self.agree(option::STRUCTURED_REPLY).await? {
            Headers::Structured
        } else {
            Headers::Simple
        };
        let contexts = match headers {
            Headers::Simple => Contexts::default(),
            _ => self.set_contexts().await?,
        };
        match self.go(headers, contexts).await? {
            Some(terms) => Ok(terms),
            None => {
                self.check_listed().await?;
                self.export_name(headers, contexts, no_zeroes).await
            }
        }
    }

    async fn start_tls(&mut self, tls: &Tls) -> Result<(), NbdError> {
        const OPTION: u32 = option::STARTTLS;
        self.send_option(OPTION, &[]).await?;
        let answer = self.answer(OPTION).await?;
        if answer.is_error() {
            let text = self.explanation(answer).await?;
            return Err(match answer.kind {
                reply::ERR_UNSUP => NbdError::TlsUnknown,
                code => refused(code, OPTION).explained(text),
            });
        }
        if answer.kind != reply::ACK {
            return Err(NbdError::OtherReply {
                got: answer.kind,
                wanted: reply::ACK,
            });
        }
        let host = tls.host.as_deref();
        let started = self
            .connection
            .start_tls_client(self.reader, &tls.credentials, host);
        started.await.map_err(NbdError::Tls)
    }

    /// Whether the server does what an option without a payload asks for.
    async fn agree(&mut self, option: u32) -> Result<bool, NbdError> {
        self.send_option(option, &[]).await?;
        let answer = self.answer(option).await?;
        if answer.is_error() {
            self.skip(answer.len.into()).await?;
            return Ok(false);
        }
        match answer.kind {
            reply::ACK => Ok(true),
            got => Err(NbdError::OtherReply {
                got,
                wanted: reply::ACK,
            }),
        }
    }

    /// The numbers of the contexts of metadata, as far as the export has them.
    async fn set_contexts(&mut self) -> Result<Contexts, NbdError> {
        const OPTION: u32 = option::SET_META_CONTEXT;
        let usual = self.wishes.context().to_owned();
        let bitmap = self.wishes.bitmap_context();
        let other = bitmap.as_ref().filter(|bitmap| **bitmap != usual);
        let queries: Vec<&str> = [&usual]
            .into_iter()
            .chain(other)
            .map(String::as_str)
            .collect();
        self.send_queries(OPTION, &queries).await?;
        let mut contexts = Contexts::default();
        loop {
            let answer = self.answer(OPTION).await?;
            if answer.is_error() {
                self.skip(answer.len.into()).await?;
                // Whether there is such an export at all, the next question tells.
                return Ok(Contexts::default());
            }
            match answer.kind {
                reply::ACK => break,
                reply::META_CONTEXT => {
                    let (number, got) = self.context(OPTION, answer).await?;
                    contexts = self.add_context(contexts, number, &got)?;
                }
                got => {
                    return Err(NbdError::OtherReply {
                        got,
                        wanted: reply::META_CONTEXT,
                    });
                }
            }
        }
        if bitmap.is_some() && contexts.bitmap.is_none() {
            self.offered_bitmaps = self.list_bitmaps().await?;
        }
        Ok(contexts)
    }

    /// A context that the server has chosen must be one of those that we have named.
    fn add_context(
        &self,
        mut contexts: Contexts,
        number: u32,
        name: &[u8],
    ) -> Result<Contexts, NbdError> {
        let usual = self.wishes.context();
        let bitmap = self.wishes.bitmap_context();
        let is_usual = name == usual.as_bytes();
        let is_bitmap = bitmap.is_some_and(|bitmap| name == bitmap.as_bytes());
        if !is_usual && !is_bitmap {
            return Err(NbdError::OtherContext {
                wanted: usual.to_owned(),
                got: harmless(name),
            });
        }
        let is_known = [contexts.usual, contexts.bitmap].contains(&Some(number));
        if is_known
            || (is_usual && contexts.usual.is_some())
            || (is_bitmap && contexts.bitmap.is_some())
        {
            return Err(NbdError::ManyContexts);
        }
        if is_usual {
            contexts.usual = Some(number);
        }
        if is_bitmap {
            contexts.bitmap = Some(number);
        }
        Ok(contexts)
    }

    /// The bitmaps that the export has. None: the server does not tell.
    async fn list_bitmaps(&mut self) -> Result<Option<Vec<String>>, NbdError> {
        const OPTION: u32 = option::LIST_META_CONTEXT;
        self.send_queries(OPTION, &[DIRTY_BITMAP_PREFIX]).await?;
        let mut bitmaps = Vec::new();
        loop {
            let answer = self.answer(OPTION).await?;
            if answer.is_error() {
                self.skip(answer.len.into()).await?;
                return Ok(None);
            }
            match answer.kind {
                reply::ACK => return Ok(Some(bitmaps)),
                reply::META_CONTEXT => {
                    let (_, name) = self.context(OPTION, answer).await?;
                    let name = name.strip_prefix(DIRTY_BITMAP_PREFIX.as_bytes());
                    let has_room = bitmaps.len() < LISTED_MAX;
                    bitmaps.extend(name.filter(|_| has_room).map(harmless));
                }
                got => {
                    return Err(NbdError::OtherReply {
                        got,
                        wanted: reply::META_CONTEXT,
                    });
                }
            }
        }
    }

    /// Asks something about contexts of the export.
    async fn send_queries(&mut self, option: u32, queries: &[&str]) -> Result<(), NbdError> {
        let mut payload = name(&self.wishes.export);
        payload.extend_from_slice(&length(queries.len()));
        for query in queries {
            payload.extend_from_slice(&name(query));
        }
        self.send_option(option, &payload).await
    }

    async fn context(&mut self, option: u32, answer: Answer) -> Result<(u32, Vec<u8>), NbdError> {
        let Some(name_len) = (answer.len as usize).checked_sub(4) else {
            return Err(NbdError::ReplyLength { option });
        };
        if name_len > STRING_MAX {
            return Err(NbdError::ReplyLength { option });
        }
        let number = u32::from_be_bytes(self.take("read option reply").await?);
        let name = self.reader.take(name_len).await;
        let name = name.map_err(|error| self.unread("read option reply", error))?;
        Ok((number, name))
    }

    /// Chooses the export. None: the server does not know how.
    async fn go(
        &mut self,
        headers: Headers,
        contexts: Contexts,
    ) -> Result<Option<Terms>, NbdError> {
        const OPTION: u32 = option::GO;
        let mut payload = name(&self.wishes.export);
        payload.extend_from_slice(&1_u16.to_be_bytes());
        payload.extend_from_slice(&info::BLOCK_SIZE.to_be_bytes());
        self.send_option(OPTION, &payload).await?;
        let (mut export, mut blocks) = (None, None);
        loop {
            let answer = self.answer(OPTION).await?;
            if answer.is_error() {
                let text = self.explanation(answer).await?;
                return match answer.kind {
                    reply::ERR_UNSUP => Ok(None),
                    code => Err(refused(code, OPTION).explained(text)),
                };
            }
            match answer.kind {
                // Flags of 0 cannot be: there is one which says that there are flags.
                reply::ACK => match export {
                    Some((size, flags)) if flags != 0 => {
                        return Terms::new(size, flags, headers, contexts, blocks).map(Some);
                    }
                    _ => return Err(NbdError::NoInfo),
                },
                reply::INFO => self.info(answer, &mut export, &mut blocks).await?,
                got => {
                    return Err(NbdError::OtherReply {
                        got,
                        wanted: reply::INFO,
                    });
                }
            }
        }
    }

    /// A piece of information about the export.
    async fn info(
        &mut self,
        answer: Answer,
        export: &mut Option<(u64, u16)>,
        blocks: &mut Option<Blocks>,
    ) -> Result<(), NbdError> {
        let wrong_length = Err(NbdError::ReplyLength { option: option::GO });
        let Some(len) = answer.len.checked_sub(2) else {
            return wrong_length;
        };
        match u16::from_be_bytes(self.take("read option reply").await?) {
            info::EXPORT if len != 10 => wrong_length,
            info::EXPORT => {
                let bytes: [u8; 10] = self.take("read option reply").await?;
                let size = u64::from_be_bytes(field(&bytes, 0));
                *export = Some((size, u16::from_be_bytes(field(&bytes, 8))));
                Ok(())
            }
            info::BLOCK_SIZE if len != 12 => wrong_length,
            info::BLOCK_SIZE => {
                let bytes: [u8; 12] = self.take("read option reply").await?;
                let number = |from| u32::from_be_bytes(field(&bytes, from));
                *blocks = Some(Blocks::new(number(0), number(4), number(8))?);
                Ok(())
            }
            _ => self.skip(len.into()).await,
        }
    }

    /// A server that lists its exports must list ours. One that does not is asked
    /// for it all the same.
    async fn check_listed(&mut self) -> Result<(), NbdError> {
        const OPTION: u32 = option::LIST;
        self.send_option(OPTION, &[]).await?;
        let (mut is_empty, mut is_listed) = (true, false);
        loop {
            let answer = self.answer(OPTION).await?;
            if answer.is_error() {
                let text = self.explanation(answer).await?;
                return match answer.kind {
                    reply::ERR_UNSUP => Ok(()),
                    code => Err(refused(code, OPTION).explained(text)),
                };
            }
            match answer.kind {
                reply::ACK if is_empty || is_listed => return Ok(()),
                reply::ACK => return Err(NbdError::NotListed(self.wishes.export.clone())),
                reply::SERVER => {
                    is_empty = false;
                    is_listed |= self.is_ours(answer).await?;
                }
                got => {
                    return Err(NbdError::OtherReply {
                        got,
                        wanted: reply::SERVER,
                    });
                }
            }
        }
    }

    /// Whether an entry of the list names our export.
    async fn is_ours(&mut self, answer: Answer) -> Result<bool, NbdError> {
        let wrong_length = NbdError::ReplyLength {
            option: option::LIST,
        };
        let Some(rest) = answer.len.checked_sub(4) else {
            return Err(wrong_length);
        };
        let name_len = u32::from_be_bytes(self.take("read option reply").await?);
        if name_len > rest {
            return Err(wrong_length);
        }
        let wanted = self.wishes.export.as_bytes();
        if name_len as usize != wanted.len() {
            self.skip(rest.into()).await?;
            return Ok(false);
        }
        let name = self.reader.take(wanted.len()).await;
        let name = name.map_err(|error| self.unread("read option reply", error))?;
        self.skip(u64::from(rest - name_len)).await?;
        Ok(name == wanted)
    }

    /// The oldest way to choose: a server that does not like the name hangs up.
    async fn export_name(
        &mut self,
        headers: Headers,
        contexts: Contexts,
        no_zeroes: bool,
    ) -> Result<Terms, NbdError> {
        let export = self.wishes.export.clone();
        self.send_option(option::EXPORT_NAME, export.as_bytes())
            .await?;
        let size = u64::from_be_bytes(self.take("read export length").await?);
        let flags = u16::from_be_bytes(self.take("read export flags").await?);
        if !no_zeroes {
            self.skip(ZEROES).await?;
        }
        Terms::new(size, flags, headers, contexts, None)
    }

    async fn old_style(&mut self) -> Result<Terms, NbdError> {
        self.check_in_clear()?;
        if !self.wishes.export.is_empty() {
            return Err(NbdError::OldStyleName);
        }
        let size = u64::from_be_bytes(self.take("read export length").await?);
        let flags = u32::from_be_bytes(self.take("read export flags").await?);
        let flags = u16::try_from(flags).map_err(|_| NbdError::ExportFlags(flags))?;
        self.skip(ZEROES).await?;
        Terms::new(size, flags, Headers::Simple, Contexts::default(), None)
    }
}

/// An option that a server knows and refuses.
fn refused(code: u32, option: u32) -> NbdError {
    match code {
        reply::ERR_UNKNOWN => NbdError::NoExport,
        code => NbdError::Refused { code, option },
    }
}

/// A text of the server's, without what would do something to a terminal.
fn harmless(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let shown = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().map(shown).collect()
}

/// A length of 32 bits, as it is sent.
fn length(len: usize) -> [u8; 4] {
    let len = u32::try_from(len).expect("names and queries have been checked");
    len.to_be_bytes()
}

/// A name with its length before it.
fn name(text: &str) -> Vec<u8> {
    [&length(text.len()), text.as_bytes()].concat()
}
