//! What runs: the configuration checked as a whole and compiled.
//!
//! A [`Plan`] never changes. A request pins the one it began under; a reload puts another in its place.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use log::LevelFilter;

use super::compile::compile;
use super::{Faults, Listen};
use crate::access::{Keys, Models, Routes, key};
use crate::pool::Settings;

/// A configuration, ready to run.
#[derive(Debug)]
pub struct Plan {
    /// The files it came from, the main one first.
    pub files: Vec<PathBuf>,
    /// When it was read, in seconds since the epoch.
    pub loaded_at: u64,
    /// The traffic listeners and what every connection shares.
    pub server: Server,
    /// The admin listener.
    pub admin: Admin,
    /// What is logged.
    pub log: Log,
    /// Host, path, method → route.
    pub routes: Routes,
    /// Credential → key.
    pub keys: Keys,
    /// The keys' names, in the file's order.
    pub key_names: Vec<Arc<str>>,
    /// Name → model.
    pub models: Models,
    /// The pools; a [`PoolId`] is a place here.
    pub pools: Vec<Arc<Settings>>,
}

/// The traffic listeners and what every connection shares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Where clients connect.
    pub listen: Vec<Listen>,
    /// Worker threads, at least one.
    pub threads: usize,
    /// The largest request body, in bytes.
    pub max_body: u64,
    /// Whose forwarding headers are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// In which time a request header must be there.
    pub header_timeout: Duration,
    /// The longest silence while a body arrives.
    pub body_timeout: Duration,
    /// How long an idle client connection is kept.
    pub keepalive: Duration,
    /// How long requests may take once the daemon stops.
    pub drain: Duration,
    /// Idle connections kept to engines, in all.
    pub upstream_idle: usize,
}

/// The admin listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// Where the operator's tools connect.
    pub listen: Vec<Listen>,
    /// The digest of the token for calls that change something; `None`: such calls only over a unix socket.
    pub token: Option<key::Digest>,
}

/// What is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Log {
    /// The least urgent level that is said.
    pub level: LevelFilter,
    /// Whether the access log is written.
    pub access: bool,
}

// === impl Plan ===

impl Plan {
    /// Reads the file and all it includes, and checks it whole.
    ///
    /// # Errors
    /// Every fault there is.
    pub fn load(path: &Path, environment: &dyn Fn(&str) -> Option<String>) -> Result<Self, Faults> {
        let (plan, faults) = compile(super::load(path, environment));
        if faults.is_empty() { Ok(plan) } else { Err(Faults::from(faults)) }
    }
}
