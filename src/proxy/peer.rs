//! Server → the peer that Pingora connects to.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use pingora::Result;
use pingora::protocols::TcpKeepalive;
use pingora::upstreams::peer::{HttpPeer, HttpUpstreamRequestPolicy};

use super::cork::Connector;
use super::rejection::Rejection;
use crate::pool::Settings;
use crate::pool::settings::{Endpoint, Limits, Protocol};

/// Groups of connections that nothing else shares: Pingora 0.9.1 cannot be told to leave its pool aside.
static FRESH: AtomicU64 = AtomicU64::new(1 << 63);

/// An engine's host that has lost its power is noticed after a minute, in the middle of a stream too.
const KEEPALIVE: TcpKeepalive = TcpKeepalive {
    idle: Duration::from_secs(30),
    interval: Duration::from_secs(10),
    count: 3,
    user_timeout: Duration::ZERO,
};

/// By how much our clock is ahead of Pingora's.
const AFTER_OUR_CLOCK: Duration = Duration::from_millis(100);
/// The most requests that share an HTTP/2 connection; an engine may allow fewer.
const STREAMS: u32 = 100;
/// The bytes that an engine may send on an HTTP/2 stream before its client has taken any.
const WINDOW: u32 = 1 << 20;

/// The peer at `endpoint`. A `fresh` one is reached over a connection that no request used before and none will after.
///
/// # Errors
/// When the path of a unix socket is none.
pub fn of(settings: &Settings, endpoint: &Endpoint, fresh: bool) -> Result<Box<HttpPeer>> {
    let mut peer = Box::new(match endpoint {
        Endpoint::Socket(address) => HttpPeer::new(address, false, String::new()),
        Endpoint::Unix(path) => HttpPeer::new_uds(path.to_str().ok_or(Rejection::Unavailable)?, false, String::new())?,
    });
    let options = &mut peer.options;
    options.total_connection_timeout = settings.connect; // the other one does not hold for a connector of one's own
    options.idle_timeout = Some(settings.idle_timeout);
    if let Endpoint::Socket(_) = endpoint {
        options.tcp_keepalive = Some(KEEPALIVE);
        if settings.protocol == Protocol::Http1 {
            // Over HTTP/2 the requests that share a connection would hold each other up.
            options.custom_l4 = Some(Connector::shared());
        }
    }
    options.http_upstream_request_policy = HttpUpstreamRequestPolicy::deny_upgrades();
    if settings.protocol == Protocol::Http2 {
        options.set_http_version(2, 2);
        options.max_h2_streams = STREAMS as usize;
        // The connection's window holds all of its streams' windows: clients that read nothing hold up no others.
        options.h2_stream_window_size = Some(WINDOW);
        options.h2_connection_window_size = Some(STREAMS * WINDOW);
        // While an engine takes nothing of a body, Pingora 0.9.1 polls neither the client nor our clock.
        let Limits { first_byte, idle, .. } = settings.limits;
        let longest = first_byte.zip(idle).map(|(first_byte, idle)| first_byte.max(idle));
        options.read_timeout = longest.map(|limit| limit + AFTER_OUR_CLOCK);
    }
    if fresh {
        options.idle_timeout = Some(Duration::from_millis(1));
        peer.group_key = FRESH.fetch_add(1, Relaxed);
    }
    Ok(peer)
}
