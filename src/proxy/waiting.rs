//! Waiting: in a pool's queue, for the client to go, for the daemon's end.

use std::future::{pending, poll_fn};
use std::task::Poll;
use std::time::Instant;

use pingora::proxy::Session;
use pingora::{Error, ErrorType, Result};
use tokio::time::sleep;

use super::ending::MOVED;
use super::exchange::Exchange;
use super::rejection::Rejection;
use crate::pool::settings::Queue;
use crate::pool::{Lease, Ticket};

/// Waits until it is the request's turn, its time is over, or its client has gone. Nobody else wakes it.
pub(super) async fn wait(session: &mut Session, x: &mut Exchange, queue: &Queue, mut ticket: Ticket) -> Result<Lease> {
    x.waits = true;
    let turn = tokio::select! {
        biased;
        lease = poll_fn(|cx| ticket.poll(cx)) => Ok(lease),
        gone = gone(session, x.is_cut) => Err(gone),
        () = sleep(queue.timeout) => Err(Rejection::QueueTimeout(queue.timeout).into()),
    };
    x.waits = turn.is_err();
    *x.queued.get_or_insert_default() += ticket.waited(Instant::now());
    turn
}

/// Ends when the client goes, or when the time for all is over.
pub(super) async fn gone(session: &mut Session, is_cut: fn() -> bool) -> Box<Error> {
    loop {
        let idle = tokio::select! {
            biased;
            idle = session.downstream_session.read_body_or_idle(true) => idle,
            cut = cut(is_cut) => return cut,
        };
        match idle {
            Ok(_) => {}
            // The turn came after the ticket was looked at. It is woken by that, and looked at again.
            Err(e) if *e.etype() == MOVED => pending().await,
            Err(e) => return e.into_down(),
        }
    }
}

/// Ends when an exchange is to end: for it, its client is gone.
pub(super) async fn cut(is_cut: fn() -> bool) -> Box<Error> {
    poll_fn(|_| if is_cut() { Poll::Ready(()) } else { Poll::Pending }).await;
    Error::new_down(ErrorType::ConnectionClosed)
}
