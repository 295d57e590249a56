//! `forebay check`: everything that `run` would find wrong, and what it would run.

use std::fmt::Display;

use clap::Args;

use super::{Failure, Source};
use crate::access::Route;
use crate::access::route::Target;
use crate::config::plan::Plan;
use crate::pool::settings::Check as Probe;

/// Check a configuration as `run` would, and summarise it
///
/// Exits with 0, or with 2 and each fault as `file:line:column: what is wrong, and what would be right`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  forebay check -c forebay.toml")]
pub(super) struct Check {
    #[command(flatten)]
    source: Source,
}

// === impl Check ===

impl Check {
    pub(super) fn run(self) -> Result<(), Failure> {
        let plan = Plan::load(&self.source.config, &self.source.environment());
        let plan = plan.map_err(|faults| Failure::Usage(faults.to_string()))?;
        super::print(&summary(&plan))
    }
}

fn summary(plan: &Plan) -> String {
    let mut said = String::from("The configuration is good.\n");
    let mut line = |what: &str, value: String| said.push_str(&format!("  {what:<8} {value}\n"));
    line("files", joined(plan.files.iter().map(|file| file.display().to_string())));
    line("listen", joined(&plan.server.listen));
    line("admin", joined(&plan.admin.listen));
    let pools = plan.pools.iter().map(|pool| {
        let probe = match &pool.health.check {
            Probe::Http(path) => format!("GET {path}"),
            Probe::Tcp => "TCP connect".to_owned(),
        };
        let servers = joined(pool.servers.iter().map(|server| match server {
            server if server.backup => format!("{} (backup)", server.name),
            server if server.weight == 1 => server.name.to_string(),
            server => format!("{} (weight {})", server.name, server.weight),
        }));
        format!("{}: {servers}; probed by {probe}", pool.name)
    });
    let models = plan.models.iter().map(|model| format!("{} by pool {}", model.name, plan.pools[model.pool.0].name));
    let routes = plan.routes.iter().map(|found| route(plan, found));
    for (what, all) in [("pool", some(pools)), ("model", some(models)), ("route", some(routes))] {
        all.into_iter().for_each(|one| line(what, one));
    }
    let keys = if plan.key_names.is_empty() {
        "none: every route that asks for a key refuses all".into()
    } else {
        joined(&plan.key_names)
    };
    line("keys", keys);
    said
}

/// What a route serves, and where it goes.
pub(super) fn route(plan: &Plan, route: &Route) -> String {
    let to = match route.target {
        Target::Model => "by model".to_owned(),
        Target::Pool(pool) => format!("to pool {}", plan.pools[pool.0].name),
    };
    let host = route.host.as_ref().map_or(String::new(), ToString::to_string);
    let methods = if route.methods.is_empty() { String::new() } else { format!("{} ", joined(&route.methods)) };
    format!("{}: {methods}{host}{} {to}", route.name, route.path)
}

/// As many lines as fit the screen beside the others.
pub(super) fn some(all: impl Iterator<Item = String>) -> Vec<String> {
    const SHOWN: usize = 8;
    let mut all: Vec<String> = all.collect();
    let rest = all.split_off(all.len().min(SHOWN)).len();
    all.extend((rest > 0).then(|| format!("and {rest} more")));
    all
}

/// A list that fits the screen.
pub(super) fn joined<T: Display>(all: impl IntoIterator<Item = T>) -> String {
    const SHOWN: usize = 6;
    let all: Vec<String> = all.into_iter().map(|one| one.to_string()).collect();
    let rest = all.len().saturating_sub(SHOWN);
    let shown = all.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if rest > 0 { format!("{shown} and {rest} more") } else { shown }
}
