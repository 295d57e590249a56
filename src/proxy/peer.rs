//! Server → the peer that Pingora connects to.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use pingora::protocols::TcpKeepalive;
use pingora::upstreams::peer::{HttpPeer, HttpUpstreamRequestPolicy};

use crate::pool::Settings;

/// Groups of connections that nothing else shares: Pingora 0.9.1 cannot be told to leave its pool aside.
static FRESH: AtomicU64 = AtomicU64::new(1 << 63);

/// An engine's host that has lost its power is noticed after a minute, in the middle of a stream too.
const KEEPALIVE: TcpKeepalive = TcpKeepalive {
    idle: Duration::from_secs(30),
    interval: Duration::from_secs(10),
    count: 3,
    user_timeout: Duration::ZERO,
};

/// The peer at `address`. A `fresh` one is reached over a connection that no request used before and none will after.
#[must_use]
pub fn of(settings: &Settings, address: SocketAddr, fresh: bool) -> Box<HttpPeer> {
    let mut peer = Box::new(HttpPeer::new(address, false, String::new()));
    let options = &mut peer.options;
    options.connection_timeout = settings.connect;
    options.idle_timeout = Some(settings.idle_timeout);
    options.tcp_keepalive = Some(KEEPALIVE);
    options.http_upstream_request_policy = HttpUpstreamRequestPolicy::deny_upgrades();
    if fresh {
        options.idle_timeout = Some(Duration::from_millis(1));
        peer.group_key = FRESH.fetch_add(1, Relaxed);
    }
    peer
}
