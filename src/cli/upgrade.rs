//! `forebay upgrade`: has the running daemon hand over to the binary that stands at its place now.

use std::time::Duration;

use clap::Args;
use serde::Deserialize;
use serde_json::json;

use super::Failure;
use super::admin::{Whom, block_on};

/// How long the daemon may take to answer: longer than it waits for its successor.
const LONGEST: Duration = Duration::from_secs(45);

/// Hand over to the binary that is installed now, without losing a request
///
/// The running daemon starts its own command line again. The new process takes the listening sockets, reads the configuration, and
/// once it serves, the old one accepts nobody any more and finishes its requests for up to `drain_upgrade`. If the new one fails to
/// start, the old one serves on.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  sudo install -m 755 forebay /usr/bin/forebay && sudo forebay upgrade

Exits with 0 once the new process serves. Over TCP the daemon asks for the token in $FOREBAY_ADMIN_TOKEN.")]
pub(super) struct Upgrade {
    #[command(flatten)]
    whom: Whom,
}

/// Who serves now.
#[derive(Deserialize)]
struct Told {
    pid: u32,
    version: String,
}

// === impl Upgrade ===

impl Upgrade {
    pub(super) fn run(self) -> Result<(), Failure> {
        block_on(async {
            let Told { pid, version } = self.whom.caller()?.change_in(LONGEST, "/upgrade", &json!({})).await?;
            super::print(&format!(
                "upgraded: process {pid} serves, version {version}; the one before finishes its requests\n"
            ))
        })
    }
}
