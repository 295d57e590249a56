//! What a plan has otherwise than the one before it, by name: no value is told, for some are secrets.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::plan::{Admin, Plan, Server};
use crate::access::route::Target;
use crate::access::{Key, Model, Route, key};
use crate::pool::{PoolId, Settings, settings};

/// What is new, gone or other in a plan.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Changes {
    /// Pools, of which only what is not about single servers counts.
    pub pools: Difference,
    /// Servers, as `POOL/NAME`.
    pub servers: Difference,
    /// Models.
    pub models: Difference,
    /// Routes.
    pub routes: Difference,
    /// Keys.
    pub keys: Difference,
    /// Tables that are there once: `server`, `admin`, `log`, `cache`.
    pub tables: Difference,
}

/// The names of one kind of thing.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Difference {
    /// Those that are new.
    pub added: Vec<String>,
    /// Those that are gone.
    pub removed: Vec<String>,
    /// Those that are still there and are not as they were, or not where they were, where the order counts.
    pub changed: Vec<String>,
}

/// Things of one kind and what counts of each, in their order.
type Things<T> = Vec<(String, T)>;

/// Whether it matters which of two things comes first.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Order {
    Counts,
    IsNothing,
}

/// How many names of a kind are told in a line.
const FEW: usize = 3;

/// The settings of `wanted` that a process which was started with these tables cannot take on: only its successor can.
#[must_use]
pub fn upgrade_needed((server, admin): (&Server, &Admin), wanted: &Plan) -> Vec<&'static str> {
    let fixed = [
        ("[server] listen", server.listen == wanted.server.listen),
        ("[server] threads", server.threads == wanted.server.threads),
        ("[server] upstream_idle", server.upstream_idle == wanted.server.upstream_idle),
        ("[admin] listen", admin.listen == wanted.admin.listen),
    ];
    fixed.into_iter().filter(|(_, same)| !same).map(|(setting, _)| setting).collect()
}

// === impl Changes ===

impl Changes {
    /// What is otherwise in `wanted` than in `former`.
    #[must_use]
    pub fn between(former: &Plan, wanted: &Plan) -> Self {
        let same = [
            ("server", former.server == wanted.server),
            ("admin", former.admin == wanted.admin),
            ("log", former.log == wanted.log),
            ("cache", former.cache == wanted.cache),
        ];
        let tables = same.into_iter().filter(|(_, same)| !same).map(|(table, _)| table.to_owned());
        Self {
            pools: Difference::between(&pools(former), &pools(wanted), Order::IsNothing),
            servers: Difference::between(&servers(former), &servers(wanted), Order::Counts), // it breaks ties
            models: Difference::between(&models(former), &models(wanted), Order::IsNothing),
            routes: Difference::between(&routes(former), &routes(wanted), Order::Counts), // it is the order of trying
            keys: Difference::between(&keys(former), &keys(wanted), Order::IsNothing),
            tables: Difference { changed: tables.collect(), ..Difference::default() },
        }
    }

    /// Each kind by its name, and how it differs.
    #[must_use]
    pub fn kinds(&self) -> [(&'static str, &Difference); 6] {
        let Self { pools, servers, models, routes, keys, tables } = self;
        [("pool", pools), ("server", servers), ("model", models), ("route", routes), ("key", keys), ("table", tables)]
    }
}

/// In one line, with the first few names of each kind.
impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = Vec::new();
        for (place, verb) in Difference::VERBS.into_iter().enumerate() {
            let kinds = self.kinds().map(|(kind, difference)| (kind, difference.lists()[place]));
            let things: Vec<String> = kinds.iter().filter_map(|(kind, names)| few(kind, names)).collect();
            said.extend((!things.is_empty()).then(|| format!("{verb} {}", things.join(", "))));
        }
        f.write_str(&if said.is_empty() { "nothing changed".to_owned() } else { said.join("; ") })
    }
}

// === impl Difference ===

impl Difference {
    /// What can have become of a thing, in the order of [`Difference::lists`].
    pub const VERBS: [&'static str; 3] = ["added", "removed", "changed"];

    /// The names by what became of them.
    #[must_use]
    pub fn lists(&self) -> [&[String]; 3] {
        [&self.added, &self.removed, &self.changed]
    }

    fn between<T: PartialEq>(former: &Things<T>, wanted: &Things<T>, order: Order) -> Self {
        let names = |all: &'_ Things<T>| -> BTreeSet<String> { all.iter().map(|(name, _)| name.clone()).collect() };
        let (before, after) = (names(former), names(wanted));
        let only = |all: &Things<T>, other: &BTreeSet<String>| {
            all.iter().filter(|(name, _)| !other.contains(name)).map(|(name, _)| name.clone()).collect()
        };
        let known: BTreeMap<&str, &T> = former.iter().map(|(name, thing)| (&**name, thing)).collect();
        // What stays, in the former order and in the new one.
        let stood = former.iter().filter(|(name, _)| after.contains(name));
        let stands = wanted.iter().filter(|(name, _)| before.contains(name));
        let other = stood.zip(stands).filter(|((there, _), (name, thing))| {
            known.get(&**name) != Some(&thing) || (order == Order::Counts && there != name)
        });
        let changed = other.map(|(_, (name, _))| name.clone()).collect();
        Self { added: only(wanted, &before), removed: only(former, &after), changed }
    }
}

fn pools(plan: &Plan) -> Things<Settings> {
    let without_servers = |pool: &Settings| {
        let queue = pool.queue.filter(|queue| queue.size > 0); // one of no size comes with a server's limit
        Settings { servers: vec![], queue, ..pool.clone() }
    };
    plan.pools.iter().map(|pool| (pool.name.to_string(), without_servers(pool))).collect()
}

fn servers(plan: &Plan) -> Things<&settings::Server> {
    let members = plan.pools.iter().flat_map(|pool| pool.servers.iter().map(move |server| (pool, server)));
    members.map(|(pool, server)| (format!("{}/{}", pool.name, server.name), server)).collect()
}

fn models(plan: &Plan) -> Things<impl PartialEq> {
    let counts = |model: &Arc<Model>| {
        let Model { place: _, name, pool, upstream, owned_by, version, cache } = &**model;
        let pool = pool_name(plan, *pool);
        (name.to_string(), (pool, upstream.clone(), owned_by.clone(), version.clone(), *cache))
    };
    plan.models.iter().map(counts).collect()
}

fn routes(plan: &Plan) -> Things<impl PartialEq> {
    let counts = |route: &Arc<Route>| {
        let Route { place: _, name, host, path, methods, auth, target, strip_prefix } = &**route;
        let pool = match target {
            Target::Model => None,
            Target::Pool(pool) => Some(pool_name(plan, *pool)),
        };
        let rest = (methods.clone(), *auth, strip_prefix.clone());
        (name.to_string(), (host.clone(), path.clone(), pool, rest))
    };
    plan.routes.iter().map(counts).collect()
}

fn keys(plan: &Plan) -> Things<(Arc<Key>, BTreeSet<key::Digest>)> {
    let mut keys: BTreeMap<String, (Arc<Key>, BTreeSet<key::Digest>)> = BTreeMap::new();
    for (digest, key) in plan.keys.iter() {
        let (_, digests) = keys.entry(key.name.to_string()).or_insert_with(|| (key.clone(), BTreeSet::new()));
        digests.insert(*digest);
    }
    keys.into_iter().collect()
}

fn pool_name(plan: &Plan, pool: PoolId) -> Arc<str> {
    plan.pools[pool.0].name.clone()
}

/// The first few names of a kind; none, if there are none.
fn few(kind: &str, names: &[String]) -> Option<String> {
    let shown = names[..names.len().min(FEW)].join(", ");
    match names.len() {
        0 => None,
        1 => Some(format!("{kind} {shown}")),
        2..=FEW => Some(format!("{kind}s {shown}")),
        more => Some(format!("{kind}s {shown} and {} more", more - FEW)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Folder;
    use super::*;

    const A: &str = "0011223344556677001122334455667700112233445566770011223344556677";
    const B: &str = "8899aabbccddeeff8899aabbccddeeff8899aabbccddeeff8899aabbccddeeff";

    /// A configuration with something of each kind, which the cases change.
    const BASE: &str = "
        [server]
        [admin]
        [log]
        [cache]
        [pool.p]
        servers = [\"a:1\", { address = \"b:1\", name = \"b\" }]
        api_key = \"${API_KEY}\"
        [pool.q]
        servers = [\"a:1\"]
        [model.m]
        pool = \"p\"
        [model.n]
        pool = \"q\"
        [[route]]
        name = \"r\"
        path = \"/v1/*\"
        by = \"model\"
        [[route]]
        name = \"s\"
        path = \"/s/*\"
        pool = \"p\"
        [[key]]
        name = \"k\"
        sha256 = \"0011223344556677001122334455667700112233445566770011223344556677\"
        models = [\"*\"]
        [[key]]
        name = \"l\"
        sha256 = \"00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\"
        models = [\"*\"]
    ";

    /// The plan of a text in which each of these was written otherwise.
    fn plan(written: &[(&str, &str)]) -> Plan {
        let change = |text: String, (old, new): &(&str, &str)| {
            assert!(text.contains(old), "{old}");
            text.replace(old, new)
        };
        let folder = Folder::new(&[("main", &written.iter().fold(BASE.to_owned(), change))]);
        let api_key = |_: &str| Some("fb-secret".to_owned());
        Plan::load(&folder.path("main"), &api_key).unwrap_or_else(|faults| panic!("{faults}"))
    }

    #[test]
    fn what_is_otherwise_is_told_by_its_kind_and_name() {
        let without_key =
            format!("[[key]]\n        name = \"k\"\n        sha256 = \"{A}\"\n        models = [\"*\"]\n");
        let at = |text: &str| BASE.find(text).unwrap();
        let (routes, end) = (at("[[route]]"), at("[[key]]"));
        let both_routes = BASE[routes..end].to_owned();
        let (r, s) = both_routes.split_at(both_routes.rfind("[[route]]").unwrap());
        let pool_servers = "servers = [\"a:1\", { address = \"b:1\", name = \"b\" }]";
        let cases: &[(&[(&str, &str)], &str)] = &[
            (&[], "nothing changed"),
            (&[("[log]", "# a comment\n[log]")], "nothing changed"),
            // pools and servers
            (&[("[model.m]", "[pool.new]\nservers = [\"c:1\"]\n[model.m]")], "added pool new, server new/c:1"),
            (
                &[("[pool.q]", "[pool.z]"), ("pool = \"q\"", "pool = \"z\"")],
                "added pool z, server z/a:1; removed pool q, server q/a:1; changed model n",
            ),
            (&[("[pool.q]", "[pool.q]\nbalance = \"ip-hash\"")], "changed pool q"),
            (&[("[pool.q]", "[pool.q]\nset_headers = { x-a = \"fb-secret\" }")], "changed pool q"),
            (&[("${API_KEY}", "")], "changed pool p"),
            (&[("[model.m]", "[pool.q.eject]\nfailures = 9\n[model.m]")], "changed pool q"),
            (&[("[pool.q]", "[pool.q]\nmax_in_flight = 4")], "changed server q/a:1"),
            (&[(pool_servers, "servers = [\"a:1\"]")], "removed server p/b"),
            (&[("name = \"b\"", "name = \"b\", weight = 2")], "changed server p/b"),
            (&[("name = \"b\"", "name = \"c\"")], "added server p/c; removed server p/b"),
            (&[("\"b:1\"", "\"c:1\"")], "changed server p/b"),
            (
                &[(pool_servers, "servers = [{ address = \"b:1\", name = \"b\" }, \"a:1\"]")],
                "changed servers p/b, p/a:1",
            ),
            (
                &[(pool_servers, "servers = [\"z:1\", \"a:1\", { address = \"b:1\", name = \"b\" }]")],
                "added server p/z:1",
            ),
            // models, of which one may move to another place in its list
            (&[("[model.m]", "[model.a]\npool = \"q\"\n[model.m]")], "added model a"),
            (&[("[model.m]", "[model.m]\nupstream = \"x\"")], "changed model m"),
            (&[("[model.m]", "[model.m]\nowned_by = \"x\"")], "changed model m"),
            (&[("[model.m]", "[model.m]\nversion = \"x\"")], "changed model m"),
            (&[("[model.m]", "[model.m.cache]\nsampled = true\n[model.m]")], "changed model m"),
            (&[("[pool.p]", "[pool.a]\nservers = [\"a:1\"]\n[pool.p]")], "added pool a, server a/a:1"),
            // routes
            (&[("name = \"s\"", "name = \"s\"\nauth = \"none\"")], "changed route s"),
            (&[("name = \"s\"", "name = \"s\"\nmethods = [\"GET\"]")], "changed route s"),
            (&[("name = \"s\"", "name = \"s\"\nhost = \"a.example\"")], "changed route s"),
            (&[("name = \"s\"", "name = \"s\"\nstrip_prefix = \"/s\"")], "changed route s"),
            (&[("path = \"/s/*\"\n        pool = \"p\"", "path = \"/s/*\"\npool = \"q\"")], "changed route s"),
            (&[("/s/*", "/t/*")], "changed route s"),
            (&[("name = \"s\"", "name = \"t\"")], "added route t; removed route s"),
            (
                &[(
                    "[[route]]\n        name = \"r\"",
                    "[[route]]\nname = \"new\"\npath = \"/new\"\npool = \"p\"\n[[route]]\nname = \"r\"",
                )],
                "added route new",
            ),
            (&[(&both_routes, &format!("{s}{r}"))], "changed routes s, r"),
            // keys
            (&[(&without_key, "")], "removed key k"),
            (&[(A, B)], "changed key k"),
            (&[(&format!("\"{A}\""), &format!("[\"{A}\", \"{B}\"]"))], "changed key k"),
            (&[("name = \"k\"", "name = \"k\"\ndisabled = true")], "changed key k"),
            (&[("name = \"k\"", "name = \"k\"\nroutes = [\"r\"]")], "changed key k"),
            (&[("name = \"k\"", "name = \"k\"\nexpires = 2027-01-01T00:00:00Z")], "changed key k"),
            (&[("name = \"l\"", "name = \"0\"")], "added key 0; removed key l"),
            // tables
            (
                &[
                    ("[server]", "[server]\nmax_body = \"1MiB\"\nwatch = true"),
                    ("[admin]", &format!("[admin]\ntoken_sha256 = \"{B}\"")),
                    ("[log]", "[log]\nlevel = \"warn\""),
                    ("[cache]", "[cache]\nmax_body = \"2MiB\""),
                ],
                "changed tables server, admin, log and 1 more",
            ),
        ];
        let former = plan(&[]);
        for (written, expected) in cases {
            let wanted = plan(written);
            assert_eq!(Changes::between(&former, &wanted).to_string(), *expected, "{written:?}");
            assert_eq!(Changes::between(&wanted, &wanted), Changes::default());
        }
    }

    #[test]
    fn what_only_a_successor_can_take_on_is_said() {
        let runs = plan(&[]);
        for (written, expected) in [
            (("[server]", "[server]\nmax_connections = 5\ndrain = \"1s\""), vec![]),
            (("[server]", "[server]\nlisten = [\"127.0.0.1:1\"]"), vec!["[server] listen"]),
            (("[server]", "[server]\nthreads = 77"), vec!["[server] threads"]),
            (("[server]", "[server]\nupstream_idle = 5"), vec!["[server] upstream_idle"]),
            (("[admin]", "[admin]\nlisten = \"127.0.0.1:1\""), vec!["[admin] listen"]),
        ] {
            assert_eq!(upgrade_needed((&runs.server, &runs.admin), &plan(&[written])), expected, "{written:?}");
        }
    }
}
