//! The names of the configuration that are labels of metrics.

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::sync::Arc;

use prometheus::core::{Collector, MetricVec, MetricVecBuilder};
use prometheus::proto::LabelPair;

/// All names that are in use. What has another one is gone.
#[derive(Debug, Default)]
pub struct Names {
    /// Of routes.
    pub routes: HashSet<Arc<str>>,
    /// Of models.
    pub models: HashSet<Arc<str>>,
    /// Of pools, each with those of its servers.
    pub pools: HashMap<Arc<str>, HashSet<Arc<str>>>,
    /// Of keys.
    pub keys: HashSet<Arc<str>>,
}

/// A metric with labels.
pub(super) trait Labelled: Debug + Send + Sync {
    /// Forgets the series of all that is gone.
    fn forget(&self, names: &Names);
}

// === impl Names ===

impl Names {
    /// Whether all is in use that these labels name; what has none has an empty one.
    fn know(&self, labels: &[LabelPair]) -> bool {
        let named = |label| {
            let value = labels.iter().find(|pair| pair.name() == label).map(LabelPair::value);
            value.filter(|value| !value.is_empty())
        };
        let servers = named("pool").map(|pool| self.pools.get(pool));
        let has_server = |server| servers.flatten().is_some_and(|servers| servers.contains(server));
        named("route").is_none_or(|route| self.routes.contains(route))
            && named("model").is_none_or(|model| self.models.contains(model))
            && named("key").is_none_or(|key| self.keys.contains(key))
            && servers.is_none_or(|servers| servers.is_some())
            && named("server").is_none_or(has_server)
    }
}

// === impl MetricVec ===

impl<T: MetricVecBuilder> Labelled for MetricVec<T> {
    fn forget(&self, names: &Names) {
        for family in self.collect() {
            for series in family.get_metric() {
                let labels = series.get_label();
                if !names.know(labels) {
                    let _ =
                        self.remove(&labels.iter().map(|pair| (pair.name(), pair.value())).collect::<HashMap<_, _>>()); // it is there
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::{IntCounterVec, Opts};

    #[test]
    fn a_series_goes_with_anything_that_its_labels_name() {
        let set = |names: &[&str]| names.iter().map(|name| Arc::from(*name)).collect::<HashSet<Arc<str>>>();
        let names = Names {
            routes: set(&["r"]),
            models: set(&["m"]),
            pools: [("p".into(), set(&["a"])), ("q".into(), set(&["b"]))].into(),
            keys: set(&["k"]),
        };
        let cases: &[(&[(&str, &str)], bool)] = &[
            (&[("route", "r"), ("model", "m"), ("pool", "p"), ("code", "200")], true),
            (&[("route", "r"), ("model", ""), ("pool", ""), ("code", "404")], true),
            (&[("route", "gone"), ("model", ""), ("pool", ""), ("code", "404")], false),
            (&[("route", "r"), ("model", "gone"), ("pool", "p"), ("code", "200")], false),
            (&[("route", "r"), ("model", "m"), ("pool", "gone"), ("code", "200")], false),
            (&[("pool", "p"), ("server", "a")], true),
            (&[("pool", "p"), ("server", "b")], false),
            (&[("pool", "gone"), ("server", "a")], false),
            (&[("key", "k"), ("limit", "rpm")], true),
            (&[("key", "gone"), ("limit", "rpm")], false),
            (&[("reason", "gone")], true),
        ];
        for (labels, stays) in cases {
            let (labels, values): (Vec<&str>, Vec<&str>) = labels.iter().copied().unzip();
            let counters = IntCounterVec::new(Opts::new("x", "x"), &labels).unwrap();
            counters.with_label_values(&values).inc();
            counters.forget(&names);
            let left = counters.collect()[0].get_metric().len();
            assert_eq!(left, usize::from(*stays), "{labels:?} {values:?}");
        }
    }
}
