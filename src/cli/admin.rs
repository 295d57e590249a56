//! Calls to the admin listener of a running daemon.
//!
//! Where that is says `--admin`, else the configuration. The file may have faults, as it does while somebody mends it:
//! only the listener is read from it. A call that changes something carries the token from the environment.

use std::env;
use std::fmt::Display;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, StatusCode};
use pingora::Result as PingoraResult;
use pingora::connectors::http::Connector;
use pingora::http::RequestHeader;
use pingora::upstreams::peer::HttpPeer;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;

use super::{Failure, Source};
use crate::config::{self, Listen};
use crate::daemon::probe::connector;
use crate::proxy::ending::in_words;

/// The longest a call may take in all, unless it says otherwise.
const DEADLINE: Duration = Duration::from_secs(5);
/// The longest answer that is read, in bytes.
const LONGEST: usize = 64 << 20;

/// The variable with the token for calls that change something.
const TOKEN: &str = "FOREBAY_ADMIN_TOKEN";

/// Which daemon to call.
#[derive(Debug, Args)]
pub(super) struct Whom {
    /// The daemon's admin listener, ip:port or unix:/path; without it, the one that the configuration names
    #[arg(long, value_name = "ADDR")]
    admin: Option<Listen>,
    #[command(flatten)]
    source: Source,
}

/// Calls a daemon. To be used inside a runtime.
pub(super) struct Caller {
    connector: Connector,
    /// Where it may listen; the first that answers counts.
    listens: Vec<Listen>,
}

/// What is asked.
struct Call {
    method: Method,
    path: String,
    body: Bytes,
    /// The value of `Authorization`.
    token: Option<HeaderValue>,
    /// How long it may take.
    deadline: Duration,
}

/// What the daemon answered.
struct Answer {
    status: StatusCode,
    body: Vec<u8>,
}

/// Runs what a command does with a daemon, in a runtime of its own.
pub(super) fn block_on(act: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| Failure::Runtime(e.to_string()))?.block_on(act)
}

// === impl Whom ===

impl Whom {
    /// What calls it.
    ///
    /// # Errors
    /// [`Failure::Usage`] where no address can be told.
    pub(super) fn caller(&self) -> Result<Caller, Failure> {
        let listens = match &self.admin {
            Some(listen) => vec![listen.clone()],
            None => self.configured()?,
        };
        Ok(Caller { connector: connector(), listens })
    }

    fn configured(&self) -> Result<Vec<Listen>, Failure> {
        let usage = |why: String| Failure::Usage(format!("forebay: {why}; name the admin listener with --admin ADDR"));
        let loaded = config::load(&self.source.config, &self.source.environment());
        if loaded.sources.files().next().is_none() {
            let faults: Vec<String> = loaded.faults.iter().map(ToString::to_string).collect();
            return Err(usage(faults.join("; ")));
        }
        let mut listens: Vec<Listen> =
            loaded.config.admin.listen.into_iter().map(config::Spanned::into_inner).collect();
        listens.retain(|listen| !matches!(listen, Listen::Tcp(address) if address.port() == 0));
        listens.sort_by_key(|listen| !matches!(listen, Listen::Unix(_))); // there no token is asked for
        if listens.is_empty() {
            let file = self.source.config.display();
            return Err(usage(format!("{file} lets the system choose the admin listener's port")));
        }
        Ok(listens)
    }
}

// === impl Caller ===

impl Caller {
    /// Reads what is at a path.
    ///
    /// # Errors
    /// A line that says why there is no such answer, and what to do.
    pub(super) async fn read<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let (path, body) = (path.to_owned(), Bytes::new());
        let call = Call { method: Method::GET, path, body, token: None, deadline: DEADLINE };
        let answer = self.call(&call).await?;
        if answer.status == StatusCode::OK { answer.read(&call) } else { Err(answer.strange(&call)) }
    }

    /// Changes something, with the token of the environment if there is one.
    ///
    /// # Errors
    /// A line that says why nothing has changed, or that it may have, and what to do; [`Failure::Usage`] where what is named is not there.
    pub(super) async fn change<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T, Failure> {
        self.change_in(DEADLINE, path, body).await
    }

    /// The same with a time of its own.
    ///
    /// # Errors
    /// As [`Caller::change`]; besides [`Failure::Usage`] with the faults, where the configuration has some.
    pub(super) async fn change_in<T>(&self, deadline: Duration, path: &str, body: &Value) -> Result<T, Failure>
    where
        T: DeserializeOwned,
    {
        let (path, body, token) = (path.to_owned(), body.to_string().into(), token()?);
        let call = Call { method: Method::POST, path, body, token, deadline };
        let answer = self.call(&call).await?;
        if answer.status == StatusCode::OK {
            return answer.read(&call);
        }
        if let Some(faults) = answer.faults() {
            return Err(Failure::Usage(faults));
        }
        let Some(why) = answer.error() else { return Err(answer.strange(&call)) };
        Err(match answer.status {
            StatusCode::UNAUTHORIZED => {
                let cause = match &call.token {
                    Some(_) => format!("the daemon does not take the token in {TOKEN}: correct it"),
                    None => format!("the daemon asks for its token: set {TOKEN}"),
                };
                Failure::Runtime(format!("{cause}, or use its unix socket with --admin unix:/path"))
            }
            StatusCode::FORBIDDEN => Failure::Runtime(format!("the daemon refused: {why} with --admin unix:/path")),
            StatusCode::NOT_FOUND => Failure::Usage(format!("forebay: {why}")),
            status => Failure::Runtime(format!("the daemon refused with {}: {why}", status.as_u16())),
        })
    }

    async fn call(&self, call: &Call) -> Result<Answer, Failure> {
        let mut failed = Vec::new();
        for listen in &self.listens {
            let mut connected = false;
            let why = match timeout(call.deadline, self.ask(listen, call, &mut connected)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(e)) => in_words(&e).to_owned(),
                Err(_) => format!("no answer in {} s", call.deadline.as_secs()),
            };
            if connected && call.method != Method::GET {
                return Err(call.unanswered(listen, &why)); // another address may well be the same daemon's
            }
            failed.push(format!("{listen}: {why}"));
        }
        let failed = failed.join("; ");
        Err(Failure::Runtime(format!(
            "no admin listener answers ({failed}): is forebay running? \
             `[admin] listen` in its configuration is the address for --admin"
        )))
    }

    /// Sends a call to an address and reads the answer. `connected` tells whether the call may have come there.
    async fn ask(&self, listen: &Listen, call: &Call, connected: &mut bool) -> PingoraResult<Answer> {
        let peer = peer(listen)?;
        let mut request = RequestHeader::build(call.method.clone(), call.path.as_bytes(), Some(4))?;
        request.insert_header(HOST, "forebay")?;
        if !call.body.is_empty() {
            request.insert_header(CONTENT_TYPE, "application/json")?;
            request.insert_header(CONTENT_LENGTH, call.body.len())?;
        }
        if let Some(token) = &call.token {
            request.insert_header(AUTHORIZATION, token)?;
        }
        let (mut session, _) = self.connector.get_http_session(&peer).await?;
        *connected = true;
        session.write_request_header(Box::new(request)).await?;
        if !call.body.is_empty() {
            session.write_request_body(call.body.clone(), true).await?;
        }
        session.finish_request_body().await?;
        session.read_response_header().await?;
        let status = session.response_header().map_or(StatusCode::BAD_GATEWAY, |header| header.status);
        let mut body = Vec::new();
        while let Some(piece) = session.read_response_body().await?
            && body.len() < LONGEST
        {
            body.extend_from_slice(&piece);
        }
        Ok(Answer { status, body })
    }
}

// === impl Answer ===

impl Answer {
    fn read<T: DeserializeOwned>(&self, call: &Call) -> Result<T, Failure> {
        serde_json::from_slice(&self.body).map_err(|e| call.strange(format_args!("something else ({e})")))
    }

    /// What an admin listener says that something is wrong; nothing else looks so.
    fn error(&self) -> Option<String> {
        let said: Value = serde_json::from_slice(&self.body).ok()?;
        Some(said["error"].as_str()?.replace(char::is_control, " "))
    }

    /// What is wrong with the configuration, a line each.
    fn faults(&self) -> Option<String> {
        let said: Value = serde_json::from_slice(&self.body).ok()?;
        let faults = said["faults"].as_array()?.iter().filter_map(Value::as_str);
        Some(faults.map(|fault| fault.replace(char::is_control, " ")).collect::<Vec<_>>().join("\n"))
    }

    fn strange(&self, call: &Call) -> Failure {
        call.strange(self.status.as_u16())
    }
}

// === impl Call ===

impl Call {
    /// That it was answered as no admin listener would.
    fn strange(&self, answered: impl Display) -> Failure {
        let Self { method, path, .. } = self;
        Failure::Runtime(format!(
            "{method} {path} was answered with {answered}: is it forebay's admin listener? \
             `[admin] listen` in its configuration is the address for --admin"
        ))
    }

    /// That it may have been done.
    fn unanswered(&self, listen: &Listen, why: &str) -> Failure {
        let Self { method, path, .. } = self;
        Failure::Runtime(format!(
            "{method} {path} went to {listen}, but no answer came ({why}): whether it was done is unknown; see `forebay status`"
        ))
    }
}

/// The token of the environment as the value of `Authorization`. What is wrong with it does not show it.
fn token() -> Result<Option<HeaderValue>, Failure> {
    let Some(token) = env::var_os(TOKEN).filter(|token| !token.is_empty()) else { return Ok(None) };
    let value = token.to_str().and_then(|token| HeaderValue::from_str(&format!("Bearer {}", token.trim())).ok());
    let mut value = value.filter(|value| value.to_str().is_ok()).ok_or_else(|| {
        Failure::Usage(format!("forebay: the token in {TOKEN} is more than one line of visible ASCII characters"))
    })?;
    value.set_sensitive(true);
    Ok(Some(value))
}

fn peer(listen: &Listen) -> PingoraResult<HttpPeer> {
    match listen {
        Listen::Tcp(address) => Ok(HttpPeer::new(*address, false, String::new())),
        Listen::Unix(path) => HttpPeer::new_uds(&path.to_string_lossy(), false, String::new()),
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpSocket;

    use super::*;

    /// What becomes of a call at an address.
    #[derive(Debug, Clone, Copy)]
    enum Fate {
        Refused,
        BrokenOff,
        Unanswered,
        Answered,
    }

    /// Listens where calls have this fate.
    fn listen(fate: Fate) -> Listen {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            if let Fate::Refused = fate {
                pending::<()>().await; // nobody else gets the port meanwhile
            }
            let listener = socket.listen(9).unwrap();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = [0; 1024];
                assert!(stream.read(&mut buffer).await.unwrap() > 0);
                if let Fate::Answered = fate {
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await.unwrap();
                }
                while !matches!(fate, Fate::BrokenOff) && stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
            }
        });
        Listen::Tcp(address)
    }

    #[tokio::test]
    async fn what_may_have_changed_something_is_not_asked_for_again_elsewhere() {
        for (fate, reads_on, changes_on) in [
            (Fate::Refused, true, true),
            (Fate::BrokenOff, true, false),
            (Fate::Unanswered, true, false),
            (Fate::Answered, true, true),
        ] {
            let listens = vec![listen(fate), listen(Fate::Answered)];
            let first = listens[0].to_string();
            let caller = Caller { connector: connector(), listens };
            let deadline = Duration::from_secs(if let Fate::Unanswered = fate { 2 } else { 20 });
            let call = |method| Call { method, path: "/x".to_owned(), body: Bytes::new(), token: None, deadline };
            assert_eq!(caller.call(&call(Method::GET)).await.is_ok(), reads_on, "{fate:?}");
            let changed = caller.call(&call(Method::POST)).await.map(|answer| answer.status);
            match changed.as_ref().map_err(|failure| failure.said().unwrap_or_default()) {
                Ok(status) => assert_eq!((*status, changes_on), (StatusCode::OK, true), "{fate:?}"),
                Err(said) => {
                    assert!(!changes_on, "{fate:?}: {said}");
                    assert!(said.starts_with(&format!("POST /x went to {first}, but no answer came (")), "{said}");
                    assert!(said.ends_with("whether it was done is unknown; see `forebay status`"), "{said}");
                }
            }
        }
    }
}
