//! What a client hears for which there is no seat.
//!
//! It is answered once it has said something, so that the answer meets a request; what it says further is read and dropped, so
//! that it sees the answer and not a reset. A client of HTTP/2 is not answered: its connection is closed.

use std::time::Duration;

use pingora::protocols::l4::stream::Stream as L4Stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::proxy::rejection::{Form, Rejection};

/// How long a refused client may take to say something, and again to go.
const PATIENCE: Duration = Duration::from_secs(1);

/// Refuses one client.
pub(super) async fn tell(mut stream: L4Stream) {
    let mut heard = [0; 4096];
    let said = timeout(PATIENCE, stream.read(&mut heard)).await;
    let Ok(Ok(length)) = said else { return };
    if length == 0 || heard.starts_with(b"PRI ") {
        return;
    }
    let Some(answer) = answer(heard.starts_with(b"HEAD ")) else { return };
    let told = async {
        stream.write_all(&answer).await?;
        stream.shutdown().await?;
        while stream.read(&mut heard).await? > 0 {}
        std::io::Result::Ok(())
    };
    let _ = timeout(PATIENCE, told).await; // it may be gone already
}

/// The whole answer, over HTTP/1.1; to a `HEAD` without its body.
fn answer(head: bool) -> Option<Vec<u8>> {
    let (header, body) = Rejection::TooManyConnections.response(Form::OpenAi).ok()?;
    let mut answer = format!("HTTP/1.1 {}\r\nConnection: close\r\n", header.status).into_bytes();
    for (name, value) in &header.headers {
        answer.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    answer.extend_from_slice(b"\r\n");
    if !head {
        answer.extend_from_slice(&body);
    }
    Some(answer)
}
