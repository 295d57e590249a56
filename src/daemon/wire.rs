//! The client's stream as Pingora sees it: it tells when bytes come, gathers small writes, and looks ahead: for the HTTP/2
//! preface without hanging on a shorter request, and for the next request.
//!
//! Pingora 0.9.1 peeks by reading 24 bytes, however many come; and the buffer of its own stream cannot be set from outside.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::SslDigest;
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, Stream, TimingDigest,
    UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufWriter, ReadBuf};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::connection::Connection;

/// Small writes are gathered up to this many bytes.
const WRITE_BUFFER: usize = 4096;
/// The room for what is read ahead: most requests whole.
const READ_AHEAD: usize = 4096;
/// For how long what a client of HTTP/2 still sends is read when its connection has ended.
const LINGER: Duration = Duration::from_secs(2);
/// What an HTTP/2 client sends first (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A client's stream.
#[derive(Debug)]
pub struct Wire {
    /// Only `drop` takes it.
    io: Option<BufWriter<Stream>>,
    /// Read for the look-ahead, not yet given out.
    ahead: BytesMut,
    connection: Arc<Connection>,
    http2: bool,
    /// Held as long as it is open.
    open: mpsc::Sender<()>,
}

// === impl Wire ===

impl Wire {
    /// Around a stream of this connection, which holds `open` to its end.
    #[must_use]
    pub fn new(io: Stream, connection: Arc<Connection>, open: mpsc::Sender<()>) -> Self {
        let io = Some(BufWriter::with_capacity(WRITE_BUFFER, io));
        Self { io, ahead: BytesMut::new(), connection, http2: false, open }
    }

    fn io(&self) -> &BufWriter<Stream> {
        self.io.as_ref().expect("it is there until the drop")
    }

    fn io_mut(&mut self) -> &mut BufWriter<Stream> {
        self.io.as_mut().expect("it is there until the drop")
    }
}

impl Drop for Wire {
    /// A client of HTTP/2 may have sent a request before it has read that we go. With that unread, the system would reset the
    /// connection, and the client would never read that its request was not begun (RFC 9113 §9.1, §6.8).
    fn drop(&mut self) {
        if let (true, Some(io), Ok(runtime)) = (self.http2, self.io.take(), Handle::try_current()) {
            runtime.spawn(linger(io, self.open.clone()));
        }
    }
}

async fn linger(mut io: BufWriter<Stream>, _open: mpsc::Sender<()>) {
    let rest = async {
        io.shutdown().await?;
        while io.read(&mut [0; 1024]).await? > 0 {}
        io::Result::Ok(())
    };
    let _ = timeout(LINGER, rest).await; // it may be gone already
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let length = self.ahead.len().min(buffer.remaining());
            buffer.put_slice(&self.ahead[..length]);
            self.ahead.advance(length);
            self.connection.bytes_came();
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let read = Pin::new(self.io_mut().get_mut()).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.connection.bytes_came();
        }
        read
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(self.io_mut()).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(self.io_mut()).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io().is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.io_mut()).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.io_mut()).poll_shutdown(cx)
    }
}

#[async_trait]
impl Peek for Wire {
    /// Stops at the first byte that is not the preface's. What was read is read again from `ahead`.
    async fn try_peek(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        while self.ahead.len() < buffer.len() && PREFACE.starts_with(&self.ahead) {
            self.ahead.reserve(READ_AHEAD);
            let Self { io, ahead, .. } = self;
            let io = io.as_mut().expect("it is there until the drop");
            if io.get_mut().read_buf(ahead).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.connection.bytes_came();
        }
        self.http2 |= self.ahead.starts_with(PREFACE);
        let length = self.ahead.len().min(buffer.len());
        buffer[..length].copy_from_slice(&self.ahead[..length]);
        Ok(true)
    }
}

#[async_trait]
impl Shutdown for Wire {
    async fn shutdown(&mut self) {
        let _ = AsyncWriteExt::shutdown(self).await; // the other side may be gone already
    }
}

// --- the rest only passes on ---

impl UniqueID for Wire {
    fn id(&self) -> UniqueIDType {
        self.io().get_ref().id()
    }
}

impl Ssl for Wire {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.io().get_ref().get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.io().get_ref().selected_alpn_proto()
    }
}

impl GetTimingDigest for Wire {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.io().get_ref().get_timing_digest()
    }

    fn get_read_pending_time(&self) -> Duration {
        self.io().get_ref().get_read_pending_time()
    }

    fn get_write_pending_time(&self) -> Duration {
        self.io().get_ref().get_write_pending_time()
    }
}

impl GetProxyDigest for Wire {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.io().get_ref().get_proxy_digest()
    }
}

impl GetSocketDigest for Wire {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.io().get_ref().get_socket_digest()
    }
}
