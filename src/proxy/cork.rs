//! A request's header and body, sent to the engine together.
//!
//! Pingora 0.9.1 writes the header to the socket before it asks for the body. Each write is a packet, and a wake-up of the
//! engine, so a socket is corked before the header and uncorked when the body was written. Its connections keep a second
//! handle of the socket for that: the first is Pingora's alone, and cannot be had from its number without `unsafe`.

use std::sync::{Arc, LazyLock};

use async_trait::async_trait;
use bytes::Bytes;
use pingora::connectors::L4Connect;
use pingora::http::ResponseHeader;
use pingora::protocols::l4::ext;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::{Digest, GetProxyDigest};
use pingora::{Error, ErrorType, OrErr, Result};
use socket2::{SockRef, Socket};

/// Makes connections that can be corked.
#[derive(Debug)]
pub struct Connector;

/// A socket that holds back what is written to it, until this is dropped.
#[derive(Debug)]
pub struct Cork(Arc<ProxyDigest>);

/// A body at whose end the cork comes out.
struct Corked {
    body: Bytes,
    _cork: Cork,
}

// === impl Connector ===

impl Connector {
    /// The one of all peers.
    #[must_use]
    pub fn shared() -> Arc<Self> {
        static SHARED: LazyLock<Arc<Connector>> = LazyLock::new(|| Arc::new(Connector));
        SHARED.clone()
    }
}

#[async_trait]
impl L4Connect for Connector {
    async fn connect(&self, address: &SocketAddr) -> Result<Stream> {
        let Some(address) = address.as_inet() else { return Error::e_explain(ErrorType::InternalError, "no TCP") };
        let tcp = ext::connect(address, None).await?;
        let handle = SockRef::from(&tcp).try_clone().or_err(ErrorType::SocketError, "no second handle")?;
        let mut stream = Stream::from(tcp);
        // What Pingora keeps of a CONNECT proxy is the only place for something of ours.
        let no_proxy = Box::new(ResponseHeader::build(200, Some(0))?);
        stream.set_proxy_digest(ProxyDigest::new(no_proxy, Some(Box::new(handle))));
        Ok(stream)
    }
}

// === impl Cork ===

impl Cork {
    /// Corks the connection of this digest, if one of ours made it.
    #[must_use]
    pub fn put(digest: &Digest) -> Option<Self> {
        let cork = Self(digest.proxy_digest.clone()?);
        cork.socket()?.set_tcp_cork(true).ok()?;
        Some(cork)
    }

    /// A body that takes the cork out when it was written, or could not be.
    #[must_use]
    pub fn before(self, body: Bytes) -> Bytes {
        Bytes::from_owner(Corked { body, _cork: self })
    }

    fn socket(&self) -> Option<&Socket> {
        self.0.user_data.as_ref()?.downcast_ref()
    }
}

impl Drop for Cork {
    fn drop(&mut self) {
        if let Some(socket) = self.socket() {
            let _ = socket.set_tcp_cork(false); // fails when the connection has gone
        }
    }
}

impl AsRef<[u8]> for Corked {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}
