//! Reading the whole request, and answering while the client still sends.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::Method;
use http::header::{CONTENT_LENGTH, EXPECT};
use pingora::Result;
use pingora::http::ResponseHeader;
use pingora::protocols::http::HttpTask;
use pingora::proxy::Session;
use tokio::time::timeout;

use super::rejection::Rejection;

/// How long a client may go on sending after it was refused.
const LINGER: Duration = Duration::from_secs(5);
/// Bodies up to this many bytes are read before their refusal, so that the connection can live on.
const SMALL: u64 = 100_000;
/// Room made at first for a body that comes in pieces; a length is only a claim.
const FIRST_ROOM: usize = 64 * 1024;

/// Refuses a body that says it is larger than `max` bytes, and tells a client that waits for it to send one that is not.
/// Pingora does not, and towards an engine nobody would.
pub async fn welcome(session: &mut Session, max: u64) -> Result<()> {
    if declared(session).is_some_and(|length| length > max) {
        return Err(Rejection::BodyTooLarge(max).into());
    }
    if session.req_header().headers.contains_key(EXPECT) {
        session.write_continue_response().await?;
        session.req_header_mut().remove_header(&EXPECT);
    }
    Ok(())
}

/// The whole body, of at most `max` bytes, with no silence longer than `silence` on the way.
pub async fn read(session: &mut Session, max: u64, silence: Duration) -> Result<Bytes> {
    welcome(session, max).await?;
    let Some(first) = piece(session, silence).await? else { return Ok(Bytes::new()) };
    if within(first.len(), max)? && session.is_body_done() {
        return Ok(first); // the usual prompt: no copy
    }
    let mut whole = BytesMut::with_capacity(FIRST_ROOM.max(first.len()));
    whole.extend_from_slice(&first);
    while let Some(more) = piece(session, silence).await? {
        within(whole.len() + more.len(), max)?;
        whole.extend_from_slice(&more);
    }
    Ok(whole.freeze())
}

async fn piece(session: &mut Session, silence: Duration) -> Result<Option<Bytes>> {
    match timeout(silence, session.read_request_body()).await {
        Ok(piece) => piece.map_err(pingora::Error::into_down),
        Err(_) => Err(Rejection::BodyTooSlow(silence).into()),
    }
}

fn within(length: usize, max: u64) -> Result<bool> {
    if length as u64 > max { Err(Rejection::BodyTooLarge(max).into()) } else { Ok(true) }
}

fn declared(session: &Session) -> Option<u64> {
    session.get_header(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Answers, then lets the client finish sending, so that it sees the answer and not a reset. Whether its connection can
/// live on.
///
/// With more to come than was read before, Pingora says `Connection: close`, and rightly: a client that has its answer may
/// send its next request while this one is still being read and dropped.
pub async fn answer(session: &mut Session, header: ResponseHeader, body: Bytes) -> Result<bool> {
    let waits = session.req_header().headers.contains_key(EXPECT);
    if !waits && declared(session).is_none_or(|length| length <= SMALL) && !session.is_body_done() {
        let _ = timeout(Duration::from_secs(1), drain(session, SMALL)).await;
    }
    let ends_with_header = body.is_empty() || session.req_header().method == Method::HEAD;
    let mut tasks = vec![HttpTask::Header(Box::new(header), ends_with_header)];
    if !ends_with_header {
        tasks.push(HttpTask::Body(Some(body), true));
    }
    // Pingora's `write_response_header` would leave the end to an empty piece of body, which gRPC's clients take for an error.
    session.write_response_tasks(tasks).await?;
    if session.is_body_done() {
        return Ok(true);
    }
    let _ = timeout(LINGER, drain(session, u64::MAX)).await;
    Ok(false)
}

/// Reads and drops what the client still sends, up to about `most` bytes.
async fn drain(session: &mut Session, most: u64) -> Result<()> {
    let mut dropped = 0;
    while dropped < most {
        match session.read_request_body().await? {
            Some(piece) => dropped += piece.len() as u64,
            None => break,
        }
    }
    Ok(())
}
