//! Calls to the admin listener of a running daemon.
//!
//! Where that is says `--admin`, else the configuration. The file may have faults, as it does while somebody mends it:
//! only the listener is read from it.

use std::time::Duration;

use clap::Args;
use http::header::HOST;
use http::{Method, StatusCode};
use pingora::Result as PingoraResult;
use pingora::connectors::http::Connector;
use pingora::http::RequestHeader;
use pingora::upstreams::peer::HttpPeer;
use tokio::time::timeout;

use super::{Failure, Source};
use crate::config::{self, Listen};
use crate::daemon::probe::connector;
use crate::proxy::ending::in_words;

/// The longest a call may take in all.
const DEADLINE: Duration = Duration::from_secs(5);
/// The longest answer that is read, in bytes.
const LONGEST: usize = 64 << 20;

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

/// What the daemon answered.
pub(super) struct Answer {
    /// How it went.
    pub(super) status: StatusCode,
    /// The whole body.
    pub(super) body: Vec<u8>,
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
        if listens.is_empty() {
            let file = self.source.config.display();
            return Err(usage(format!("{file} lets the system choose the admin listener's port")));
        }
        Ok(listens)
    }
}

// === impl Caller ===

impl Caller {
    /// Asks, and reads the whole answer.
    ///
    /// # Errors
    /// A line that says why no listener answered, and what to do.
    pub(super) async fn call(&self, method: Method, path: &str) -> Result<Answer, String> {
        let mut failed = Vec::new();
        for listen in &self.listens {
            match timeout(DEADLINE, self.ask(listen, &method, path)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(e)) => failed.push(format!("{listen}: {}", in_words(&e))),
                Err(_) => failed.push(format!("{listen}: no answer in {} s", DEADLINE.as_secs())),
            }
        }
        let failed = failed.join("; ");
        Err(format!(
            "no admin listener answers ({failed}): is forebay running? \
             `[admin] listen` in its configuration is the address for --admin"
        ))
    }

    async fn ask(&self, listen: &Listen, method: &Method, path: &str) -> PingoraResult<Answer> {
        let peer = peer(listen)?;
        let mut request = RequestHeader::build(method.clone(), path.as_bytes(), Some(1))?;
        request.insert_header(HOST, "forebay")?;
        let (mut session, _) = self.connector.get_http_session(&peer).await?;
        session.write_request_header(Box::new(request)).await?;
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

fn peer(listen: &Listen) -> PingoraResult<HttpPeer> {
    match listen {
        Listen::Tcp(address) => Ok(HttpPeer::new(*address, false, String::new())),
        Listen::Unix(path) => HttpPeer::new_uds(&path.to_string_lossy(), false, String::new()),
    }
}
