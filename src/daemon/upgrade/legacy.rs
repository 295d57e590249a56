//! What a process leaves to its successor, which may be of another version: what is not understood is tried afresh, one by one.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::live::Live;
use crate::pool::Server;

/// What a process leaves.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Legacy {
    /// The files of unix sockets that are to be removed at the end.
    pub files: Vec<PathBuf>,
    /// The servers, by pool and address.
    pools: BTreeMap<String, BTreeMap<String, Known>>,
}

/// What is known of a server.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Known {
    /// What the operator said.
    orders: Value,
    /// What its probes and requests told.
    memory: Value,
}

// === impl Legacy ===

impl Legacy {
    /// Of a process that serves by `live`.
    pub(super) fn of(live: &Live, files: Vec<PathBuf>) -> Self {
        let now = Instant::now();
        let known = |server: &Server| {
            let (orders, memory) = (serde_json::to_value(server.orders()), serde_json::to_value(server.memory(now)));
            Known { orders: orders.unwrap_or_default(), memory: memory.unwrap_or_default() }
        };
        let pools = live.pools().map(|pool| {
            let servers = pool.servers.iter().map(|server| (server.address.to_string(), known(server)));
            (pool.settings.name.to_string(), servers.collect())
        });
        Self { files, pools: pools.collect() }
    }

    /// Has the servers of `live` go on with what is known of them.
    pub fn pass_on(&mut self, live: &Live) {
        let now = Instant::now();
        for pool in live.pools() {
            let Some(mut known) = self.pools.remove(&*pool.settings.name) else { continue };
            for server in &pool.servers {
                let Some(Known { orders, memory }) = known.remove(&server.address.to_string()) else { continue };
                let name = format!("{}/{}", pool.settings.name, server.address);
                if let Some(orders) = understood(orders, &name) {
                    server.obey(orders);
                }
                if let Some(memory) = understood(memory, &name) {
                    server.recall(memory, now);
                }
            }
        }
    }
}

fn understood<T: DeserializeOwned>(value: Value, server: &str) -> Option<T> {
    let told = serde_json::from_value(value);
    told.inspect_err(|e| log::warn!("what the former process knows of server {server} is not understood: {e}")).ok()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::config::plan::Plan;
    use crate::pool::server::Order;

    fn live() -> Live {
        let plan = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/conf/minimal.toml"));
        Live::new(Plan::load(plan, &|_| None).unwrap_or_else(|faults| panic!("{faults}")), None)
    }

    #[test]
    fn what_another_version_says_otherwise_costs_no_more_than_that() {
        let before = live();
        let pool = before.pools().next().unwrap();
        pool.servers.iter().for_each(|server| server.order(Order::Drain));
        let written = serde_json::to_value(Legacy::of(&before, vec!["/run/a.sock".into()])).unwrap();
        let (name, address) = (&*pool.settings.name, pool.servers[0].address.to_string());
        let change = |pointer: &str, value: Value| {
            let mut written = written.clone();
            *written.pointer_mut(pointer).unwrap() = value;
            written
        };
        let server = format!("/pools/{name}/{address}");
        for (text, order) in [
            (written.clone(), Order::Drain),
            (change(&format!("{server}/memory"), json!({"a later version": 1})), Order::Drain),
            (change(&format!("{server}/orders"), json!("no more orders")), Order::Ready),
            (change("/pools", json!({})), Order::Ready),
        ] {
            let mut legacy: Legacy = serde_json::from_value(text.clone()).unwrap();
            let after = live();
            legacy.pass_on(&after);
            assert_eq!(after.pools().next().unwrap().servers[0].ordered(), order, "{text}");
            assert_eq!(legacy.files, [Path::new("/run/a.sock")], "{text}");
        }
    }
}
