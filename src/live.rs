//! What is in force: the plan, and the pools that live by it.
//!
//! A request pins one of these from its first byte to its last; a reload puts the next one in its place.

pub mod clients;

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, Weak};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use crate::cache::flight::UnderWay;
use crate::cache::store::{Figures, Store};
use crate::config::plan::Plan;
use crate::observe::{Meters, Metrics, Names};
use crate::pool::{Pool, PoolId};
use clients::Clients;

/// A plan with its pools.
#[derive(Debug)]
pub struct Live {
    /// What the configuration says.
    pub plan: Plan,
    /// In the plan's order.
    pools: Vec<Arc<Pool>>,
    /// The metrics of its routes, models and servers.
    pub meters: Meters,
}

/// What is in force now, who is connected, and how far the daemon is in its life.
#[derive(Debug)]
pub struct Current {
    live: ArcSwap<Live>,
    /// Those that were in force before, while requests have them pinned.
    former: Mutex<Vec<Weak<Live>>>,
    /// The clients of all traffic listeners.
    pub clients: Clients,
    /// The answers that are kept. It is there as soon as a plan has a model whose answers are: even empty it takes some memory.
    store: OnceLock<Arc<Store>>,
    /// The answers that are being computed for all who ask, once there is a proxy.
    flights: OnceLock<Arc<dyn UnderWay>>,
    stage: AtomicU8,
}

/// How far a daemon is in its life. It never goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// It serves.
    Serving,
    /// It is about to stop, and serves on until those who send requests here have noticed.
    Leaving,
    /// It accepts nobody any more, and finishes what is in flight.
    Closing,
    /// The same, while another process serves.
    HandedOver,
    /// What is still in flight is cut off.
    Cut,
}

/// Whether requests should be sent here, and if not, why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    /// What stands in the way; empty: nothing.
    pub reasons: Vec<&'static str>,
    /// The pools without a usable server.
    pub unusable: Vec<Arc<str>>,
}

// === impl Current ===

impl Current {
    /// With this in force.
    #[must_use]
    pub fn new(live: Live) -> Self {
        let current = Self {
            live: ArcSwap::from_pointee(live),
            former: Mutex::default(),
            clients: Clients::default(),
            store: OnceLock::new(),
            flights: OnceLock::new(),
            stage: AtomicU8::new(Stage::Serving as u8),
        };
        current.make_room(&current.live().plan);
        current
    }

    /// What is in force, pinned.
    #[must_use]
    pub fn live(&self) -> Arc<Live> {
        self.live.load_full()
    }

    /// Puts another one in force for all requests from now on.
    pub fn replace(&self, live: Live) {
        self.make_room(&live.plan);
        let mut former = self.former.lock();
        former.push(Arc::downgrade(&self.live.swap(Arc::new(live))));
    }

    /// Has the metrics forget what is gone: what neither the plan in force has, nor one under which a request still is.
    pub fn forget(&self, metrics: &Metrics) {
        let mut former = self.former.lock(); // until it is done, no other plan comes with a name that is about to be forgotten
        let known = former.len();
        former.retain(|live| live.strong_count() > 0);
        if former.len() < known {
            let mut names = Names::default();
            let used = former.iter().filter_map(Weak::upgrade).chain([self.live()]);
            used.for_each(|live| live.name(&mut names));
            metrics.forget(&names);
        }
    }

    /// Has the cache take what a plan gives it, if any of its models has one.
    fn make_room(&self, plan: &Plan) {
        let (kept, max_body) = (plan.cache.kept(), plan.cache.max_body);
        match self.store.get() {
            Some(store) if self.live.load().plan.cache != plan.cache => store.resize(kept, max_body),
            None if plan.models.iter().any(|model| model.cache.is_some()) => {
                self.store.get_or_init(|| Arc::new(Store::new(kept, max_body)));
            }
            _ => {}
        }
    }

    /// The answers that are kept; none while no model's ever were.
    #[must_use]
    pub fn store(&self) -> Option<&Arc<Store>> {
        self.store.get()
    }

    /// Names the flights, which take of the cache's memory and hear of its purges. The first ones count.
    pub fn attach(&self, flights: Arc<dyn UnderWay>) {
        self.flights.get_or_init(|| flights);
    }

    /// How the cache stands; what is being computed counts among its bytes.
    #[must_use]
    pub fn cached(&self) -> Figures {
        let figures = self.store().map_or(Figures::default(), |store| store.figures());
        let under_way = self.flights.get().map_or(0, |flights| flights.held());
        Figures { bytes: figures.bytes + under_way, ..figures }
    }

    /// Throws out all kept answers of this model, or all there are; says how many. None whose computation has begun is kept
    /// after this, or given to who asks later.
    pub fn purge(&self, model: Option<&str>) -> usize {
        if let Some(flights) = self.flights.get() {
            flights.purge(model); // first: what has landed by then is in the store
        }
        self.store().map_or(0, |store| store.purge(model))
    }

    /// The daemon has come this far.
    pub fn enter(&self, stage: Stage) {
        self.stage.store(stage as u8, Relaxed);
    }

    /// How far the daemon is.
    #[must_use]
    pub fn stage(&self) -> Stage {
        let stages = [Stage::Serving, Stage::Leaving, Stage::Closing, Stage::HandedOver, Stage::Cut];
        stages.get(usize::from(self.stage.load(Relaxed))).copied().unwrap_or(Stage::Cut)
    }

    /// Whether a client's connection is to end with the answer that it gets.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.stage() >= Stage::Closing
    }

    /// Whether requests should be sent here.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        let live = self.live.load();
        let stands = [
            (self.stage() > Stage::Serving, "draining"),
            (!live.is_probed(), "the first round of health checks is not over"),
            (!live.is_usable(), "no pool has a usable server"),
        ];
        let reasons = stands.into_iter().filter_map(|(holds, why)| holds.then_some(why)).collect();
        let unusable = live.pools.iter().filter(|pool| !pool.is_usable());
        Readiness { reasons, unusable: unusable.map(|pool| pool.settings.name.clone()).collect() }
    }
}

// === impl Readiness ===

impl Readiness {
    /// Whether nothing stands in the way.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.reasons.is_empty()
    }
}

// === impl Live ===

impl Live {
    /// Puts a plan in force. Servers that `former` has go on with their state and counts.
    #[must_use]
    pub fn new(plan: Plan, former: Option<&Live>) -> Self {
        let known = |name: &str| former.and_then(|live| live.pools.iter().find(|pool| &*pool.settings.name == name));
        let pools: Vec<Arc<Pool>> = plan
            .pools
            .iter()
            .enumerate()
            .map(|(place, settings)| {
                let former = known(&settings.name).map(Arc::as_ref);
                Arc::new(Pool::new(PoolId(place), settings.clone(), former))
            })
            .collect();
        let servers: Vec<usize> = plan.pools.iter().map(|pool| pool.servers.len()).collect();
        let meters = Meters::new(plan.routes.iter().count(), plan.models.iter().count(), &servers);
        Self { plan, pools, meters }
    }

    /// Adds what its metrics may be called by.
    fn name(&self, names: &mut Names) {
        let Plan { routes, models, pools, key_names, .. } = &self.plan;
        names.routes.extend(routes.iter().map(|route| route.name.clone()));
        names.models.extend(models.iter().map(|model| model.name.clone()));
        names.keys.extend(key_names.iter().cloned());
        for pool in pools {
            let servers = pool.servers.iter().map(|server| server.name.clone());
            names.pools.entry(pool.name.clone()).or_default().extend(servers);
        }
    }

    /// The pool of this place in the plan.
    #[must_use]
    pub fn pool(&self, id: PoolId) -> &Arc<Pool> {
        &self.pools[id.0]
    }

    /// Every pool, in the plan's order.
    pub fn pools(&self) -> impl Iterator<Item = &Arc<Pool>> {
        self.pools.iter()
    }

    /// Whether the first round of probes is over.
    #[must_use]
    pub fn is_probed(&self) -> bool {
        self.pools.iter().all(|pool| pool.is_probed())
    }

    /// Whether any request could be served now.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.pools.iter().any(|pool| pool.is_usable())
    }
}
