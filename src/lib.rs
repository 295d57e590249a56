//! forebay: an edge reverse proxy for inference engines.
//!
//! One daemon stands in front of the model servers that a company runs: it checks keys, finds the model in the request,
//! picks a server, streams the answer, and keeps working when engines die.
//!
//! A request's way, in the order of the code:
//! 1. [`daemon::door`] accepts the connection and watches it until a header is complete;
//! 2. [`proxy`] pins what is in force ([`live`]) and refuses what is malformed;
//! 3. [`access`] finds its route and its key;
//! 4. [`prompt`] finds the model in its body, which was read once, whole;
//! 5. [`cache`] may have the answer, or somebody who is asking the same;
//! 6. [`pool`] leases a server;
//! 7. [`proxy::client`] gives the body to the engine, again on each attempt, and watches both sides;
//! 8. the answer streams back as it comes, and [`prompt::sse`] watches for its last event;
//! 9. whatever goes wrong becomes a [`proxy::rejection`], written in one place;
//! 10. [`observe`] counts and logs the one record that it leaves.
//!
//! The rooms in reading order: [`config`] (the file, and the plan made of it), [`access`], [`prompt`], [`pool`], [`cache`], [`live`],
//! [`proxy`], [`observe`], [`daemon`], [`admin`], [`engine`] (a stand-in for the real ones), [`cli`].

pub mod access;
pub mod admin;
pub mod cache;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod engine;
pub mod live;
pub mod observe;
pub mod pool;
pub mod prompt;
pub mod proxy;

/// This build's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The git revision this was built from, or `unknown`.
pub const REVISION: &str = env!("FOREBAY_REVISION");
