//! `forebay reload`: has the running daemon read its configuration again.

use std::time::Duration;

use clap::Args;
use serde::Deserialize;
use serde_json::json;

use super::Failure;
use super::admin::{Caller, Whom, block_on};
use super::check::joined;
use crate::config::changes::{Changes, Difference};

/// The longest it may take: servers that are new are probed first, each for as long as its pool says.
const DEADLINE: Duration = Duration::from_secs(300);

/// Have the running daemon read its configuration again
///
/// As SIGHUP does, and it says what has changed; a fault changes nothing. The daemon reads the file that it was started with: --config only
/// tells where its admin listener is.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  forebay check && forebay reload

Exits with 0 when the new configuration is in force, or with 2 and each fault as `check` tells it. Over TCP the daemon asks for the
token in $FOREBAY_ADMIN_TOKEN.")]
pub(super) struct Reload {
    #[command(flatten)]
    whom: Whom,
}

/// What the daemon tells of it.
#[derive(Debug, Deserialize)]
struct Told {
    changes: Changes,
    upgrade_needed: Vec<String>,
}

// === impl Reload ===

impl Reload {
    pub(super) fn run(self) -> Result<(), Failure> {
        block_on(async {
            let caller: Caller = self.whom.caller()?;
            let told: Told = caller.change_in(DEADLINE, "/reload", &json!({})).await?;
            super::print(&told.lines())
        })
    }
}

// === impl Told ===

impl Told {
    fn lines(&self) -> String {
        let mut said = match self.changes == Changes::default() {
            true => "The configuration was reloaded. Nothing has changed.\n".to_owned(),
            false => "The configuration was reloaded.\n".to_owned(),
        };
        let mut line = |what: &str, value: &str| said.push_str(&format!("  {what:<8} {value}\n"));
        for (kind, difference) in self.changes.kinds() {
            let lists = Difference::VERBS.into_iter().zip(difference.lists()).filter(|(_, names)| !names.is_empty());
            let lists: Vec<String> = lists.map(|(verb, names)| format!("{verb} {}", joined(names))).collect();
            if !lists.is_empty() {
                line(&format!("{kind}s"), &lists.join("; "));
            }
        }
        if !self.upgrade_needed.is_empty() {
            line("waiting", &format!("for an upgrade (forebay upgrade): {}", joined(&self.upgrade_needed)));
        }
        said.replace(|c: char| c.is_control() && c != '\n', " ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn lines(told: Value) -> String {
        serde_json::from_value::<Told>(told).unwrap().lines()
    }

    #[test]
    fn each_kind_that_has_changed_has_a_line() {
        let none = json!({"added": [], "removed": [], "changed": []});
        let nothing = json!({"pools": none, "servers": none, "tables": none, "a kind of a later version": none});
        let told = lines(json!({"reloaded": true, "changes": nothing, "upgrade_needed": []}));
        assert_eq!(told, "The configuration was reloaded. Nothing has changed.\n");
        let many: Vec<String> = (0..8).map(|n| format!("q/{n}")).collect();
        let changes = json!({
            "pools": {"added": ["q"], "removed": [], "changed": ["p"]},
            "servers": {"added": many, "removed": ["p/\u{1b}[2J"], "changed": []},
            "keys": {"added": [], "removed": ["a", "b"], "changed": []},
            "tables": {"added": [], "removed": [], "changed": ["server"]},
        });
        let told = lines(json!({"changes": changes, "upgrade_needed": ["[server] listen", "[server] threads"]}));
        let expected = "\
The configuration was reloaded.
  pools    added q; changed p
  servers  added q/0, q/1, q/2, q/3, q/4, q/5 and 2 more; removed p/ [2J
  keys     removed a, b
  tables   changed server
  waiting  for an upgrade (forebay upgrade): [server] listen, [server] threads
";
        assert_eq!(told, expected);
    }
}
