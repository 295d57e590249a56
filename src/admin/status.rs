//! Everything that runs, as JSON. No secret and no digest of one is in it.

use std::time::{Instant, SystemTime};

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::cache::store::Figures;
use crate::config::plan::Plan;
use crate::daemon::reload::LastReload;
use crate::live::{Current, Live};
use crate::observe::Gauged;
use crate::pool::Pool;

/// What is in force, how its servers are, and how the configuration came in. `former`: the process before an upgrade, while it
/// finishes its requests.
#[must_use]
pub fn status(current: &Current, started: SystemTime, last: &LastReload, former: Option<u32>) -> Value {
    let live = &*current.live();
    let plan = &live.plan;
    let pools: Map<String, Value> = live.pools().map(|pool| (pool.settings.name.to_string(), of_pool(pool))).collect();
    let models: Map<String, Value> = plan
        .models
        .iter()
        .map(|model| {
            let pool = &live.pool(model.pool).settings.name;
            let (upstream, version, cache) = (&model.upstream, &*model.version, model.cache.is_some());
            (model.name.to_string(), json!({"pool": **pool, "upstream": upstream, "version": version, "cache": cache}))
        })
        .collect();
    let keys: Vec<Value> = plan.key_names.iter().map(|name| json!({"name": **name})).collect();
    json!({
        "pid": std::process::id(),
        "former_pid": former,
        "version": crate::VERSION,
        "revision": crate::REVISION,
        "started": time(started),
        "config": of_config(plan, last),
        "pools": pools,
        "cache": of_cache(current, plan),
        "models": models,
        "keys": keys,
    })
}

/// How the servers are now, for the metrics.
pub fn gauged(live: &Live) -> impl Iterator<Item = Gauged<'_>> {
    let now = Instant::now();
    live.pools().flat_map(move |pool| {
        pool.members().map(move |(server, settings)| Gauged {
            pool: &pool.settings.name,
            server: &settings.name,
            in_flight: server.in_flight(),
            up: server.weight(1, pool.settings.retry.slow_start, now) > 0,
        })
    })
}

/// How many requests wait in the queue of each pool that has one, for the metrics.
pub fn queued(live: &Live) -> impl Iterator<Item = (&str, usize)> {
    let with_queue = live.pools().filter(|pool| pool.settings.queue.is_some());
    with_queue.map(|pool| (&*pool.settings.name, pool.queued()))
}

fn of_config(plan: &Plan, last: &LastReload) -> Value {
    let files: Vec<String> = plan.files.iter().map(|file| file.display().to_string()).collect();
    json!({
        "files": files,
        "last_reload": time(last.at),
        "faults": last.faults,
        "upgrade_needed": last.upgrade_needed,
    })
}

fn of_cache(current: &Current, plan: &Plan) -> Value {
    let Figures { bytes, entries, evictions } = current.cached();
    json!({"entries": entries, "bytes": bytes, "memory": plan.cache.memory, "evictions": evictions})
}

fn of_pool(pool: &Pool) -> Value {
    let servers: Vec<Value> = (0..pool.servers.len()).map(|place| of_server(pool, place)).collect();
    let queue = pool.settings.queue.map(|queue| {
        let timeout = u64::try_from(queue.timeout.as_millis()).unwrap_or(u64::MAX);
        json!({"waiting": pool.queued(), "size": queue.size, "timeout_ms": timeout})
    });
    json!({"servers": servers, "queue": queue})
}

/// One server of a pool, by its place.
pub(super) fn of_server(pool: &Pool, place: usize) -> Value {
    let (server, settings) = (&pool.servers[place], &pool.settings.servers[place]);
    let health = server.health(Instant::now());
    json!({
        "name": *settings.name,
        "address": server.address.to_string(),
        "state": health.state.as_str(),
        "why": health.why,
        "since": time(health.since),
        "in_flight": server.in_flight(),
        "max_in_flight": settings.max_in_flight,
        "weight": server.ordered_weight().unwrap_or(settings.weight),
        "configured_weight": settings.weight,
        "backup": settings.backup,
        "requests": server.requests(),
        "errors": server.errors(),
        "last_probe": health.probed.map(time),
    })
}

/// RFC 3339, UTC, to the millisecond.
fn time(at: SystemTime) -> String {
    Timestamp::try_from(at).map_or(String::new(), |at| format!("{at:.3}"))
}
