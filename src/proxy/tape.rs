//! The client of a flight: it has asked already, and what it is answered goes to all who watch and into the store.
//!
//! It leaves when the last of them does.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, SET_COOKIE, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, StatusCode};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Digest;
use pingora::protocols::http::HttpTask;
use pingora::protocols::http::custom::server::Session as CustomSession;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::{Error, ErrorType, ErrorType::InternalError, OrErr, Result};

use super::caching::{Flight, Story};
use super::messages::no_custom_messages;
use crate::access::Model;
use crate::cache::admission::keep;
use crate::cache::canonical::PromptKey;
use crate::cache::flight::Recorder;
use crate::cache::store::{Fill, Label, Store};

/// A flight's client.
pub(super) struct Tape {
    flight: Arc<Flight>,
    request: RequestHeader,
    recorder: Option<Recorder<ResponseHeader, Story>>,
    keeper: Keeper,
    written: Option<Arc<ResponseHeader>>,
    sent: usize,
}

/// Puts an answer into the store, if it may be kept.
pub(super) struct Keeper {
    store: Arc<Store>,
    key: PromptKey,
    model: Arc<str>,
    ttl: Duration,
    /// The largest body that is kept, in bytes.
    max_body: usize,
}

// === impl Keeper ===

impl Keeper {
    pub(super) fn new(store: Arc<Store>, key: PromptKey, model: &Model, max_body: usize) -> Self {
        let ttl = model.cache.map_or(Duration::ZERO, |terms| terms.ttl);
        Self { store, key, model: model.name.clone(), ttl, max_body }
    }

    /// The whole answer, on its way in. Until now its tape held it, and nobody holds it twice.
    fn fill(&self, header: &ResponseHeader, body: &[Bytes]) -> Option<Fill> {
        let size: usize = body.iter().map(Bytes::len).sum();
        keep(header.status, size as u64, self.max_body as u64).ok()?;
        let label = Label { key: self.key, model: &self.model, ttl: self.ttl };
        self.store.fill(label, &lines(header), body, Instant::now()).ok() // else it is computed again
    }
}

/// A header as it is kept: what is about one connection, one client or the length is left out.
fn lines(header: &ResponseHeader) -> Vec<u8> {
    let mut lines = Vec::with_capacity(256);
    for (name, value) in &header.headers {
        if ![CONTENT_LENGTH, TRANSFER_ENCODING, CONNECTION, SET_COOKIE].contains(name) {
            lines.extend_from_slice(name.as_str().as_bytes());
            lines.push(b':');
            lines.extend_from_slice(value.as_bytes());
            lines.push(b'\n');
        }
    }
    lines
}

/// The header that was kept so.
pub(super) fn header(lines: &[u8]) -> Result<ResponseHeader> {
    let mut header = ResponseHeader::build(StatusCode::OK, Some(12))?;
    for line in lines.split(|byte| *byte == b'\n') {
        if let Some(at) = line.iter().position(|byte| *byte == b':') {
            let name = HeaderName::from_bytes(&line[..at]).or_err(InternalError, "a kept header's name")?;
            header.append_header(name, line[at + 1..].to_vec())?;
        }
    }
    Ok(header)
}

// === impl Tape ===

impl Tape {
    pub(super) fn new(
        flight: Arc<Flight>,
        request: RequestHeader,
        recorder: Recorder<ResponseHeader, Story>,
        keeper: Keeper,
    ) -> Self {
        Self { flight, request, recorder: Some(recorder), keeper, written: None, sent: 0 }
    }

    fn header(&mut self, header: ResponseHeader) {
        if header.status.is_informational() {
            return;
        }
        let header = Arc::new(header);
        self.written = Some(header.clone());
        if let Some(recorder) = &mut self.recorder {
            if let Some(story) = self.flight.story.lock().take() {
                recorder.sum(story);
            }
            recorder.header(header);
        }
    }

    async fn piece(&mut self, piece: Bytes) {
        self.sent += piece.len();
        if let Some(recorder) = self.recorder.as_mut().filter(|_| !piece.is_empty()) {
            recorder.body(piece).await;
        }
    }

    /// The answer is complete. It is in the store before the flight is over, so that there always is one of them.
    fn end(&mut self) {
        if let Some(mut recorder) = self.recorder.take() {
            let may = !self.flight.shared.faulty.load(Relaxed);
            let whole = self.written.as_ref().zip(recorder.whole()).filter(|_| may);
            if let Some(fill) = whole.and_then(|(header, body)| self.keeper.fill(header, &body)) {
                recorder.land(|| fill.finish());
            }
            recorder.finish();
        }
    }
}

#[async_trait]
impl CustomSession for Tape {
    fn req_header(&self) -> &RequestHeader {
        &self.request
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        &mut self.request
    }

    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        Ok(None)
    }

    async fn drain_request_body(&mut self) -> Result<()> {
        Ok(())
    }

    fn is_body_done(&mut self) -> bool {
        true
    }

    fn is_body_empty(&mut self) -> bool {
        true
    }

    fn enable_retry_buffering(&mut self) {}

    fn retry_buffer_truncated(&self) -> bool {
        false
    }

    fn get_retry_buffer(&self) -> Option<Bytes> {
        None
    }

    async fn read_body_or_idle(&mut self, _: bool) -> Result<Option<Bytes>> {
        match &mut self.recorder {
            Some(recorder) => recorder.deserted().await,
            None => std::future::pending().await,
        }
        Err(Error::new_down(ErrorType::ConnectionClosed))
    }

    async fn write_response_header(&mut self, header: Box<ResponseHeader>, end: bool) -> Result<()> {
        self.header(*header);
        if end {
            self.end();
        }
        Ok(())
    }

    async fn write_response_header_ref(&mut self, header: &ResponseHeader, end: bool) -> Result<()> {
        self.write_response_header(Box::new(header.clone()), end).await
    }

    async fn write_body(&mut self, piece: Bytes, end: bool) -> Result<()> {
        self.piece(piece).await;
        if end {
            self.end();
        }
        Ok(())
    }

    async fn write_trailers(&mut self, _: HeaderMap) -> Result<()> {
        self.end();
        Ok(())
    }

    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        let mut ended = false;
        for task in tasks {
            match task {
                HttpTask::Header(header, end) => {
                    self.header(*header);
                    ended |= end;
                }
                HttpTask::Body(piece, end) => {
                    self.piece(piece.unwrap_or_default()).await;
                    ended |= end;
                }
                HttpTask::Trailer(_) | HttpTask::Done => ended = true,
                HttpTask::Failed(e) => return Err(e),
                HttpTask::UpgradedBody(..) => return Err(Error::new_in(ErrorType::InternalError)),
            }
        }
        if ended {
            self.end();
        }
        Ok(ended)
    }

    async fn finish(&mut self) -> Result<()> {
        Ok(())
    }

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    async fn shutdown(&mut self, _: u32, _: &str) {
        self.recorder = None; // unless it was complete, all who watch see it break off
    }

    fn response_written(&self) -> Option<&ResponseHeader> {
        self.written.as_deref()
    }

    fn body_bytes_sent(&self) -> usize {
        self.sent
    }

    fn body_bytes_read(&self) -> usize {
        0
    }

    // --- nothing is behind it ---

    fn set_read_timeout(&mut self, _: Option<Duration>) {}

    fn get_read_timeout(&self) -> Option<Duration> {
        None
    }

    fn set_write_timeout(&mut self, _: Option<Duration>) {}

    fn get_write_timeout(&self) -> Option<Duration> {
        None
    }

    fn set_total_drain_timeout(&mut self, _: Option<Duration>) {}

    fn get_total_drain_timeout(&self) -> Option<Duration> {
        None
    }

    fn request_summary(&self) -> String {
        "a flight".into()
    }

    fn digest(&self) -> Option<&Digest> {
        None
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        None
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        None
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        None
    }

    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        Bytes::new()
    }

    no_custom_messages!();
}
