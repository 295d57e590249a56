//! What is known of a server, in a form that another process can read: after an upgrade nothing is tried afresh.

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use super::{Order, Reason, Server};
use crate::pool::eject::Kept;
use crate::pool::health::Health;

/// What the operator has said of a server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Orders {
    order: Order,
    ordered: SystemTime,
    weight: Option<u32>,
}

/// What its probes and requests have told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Memory {
    health: Health,
    record: Kept,
    told: Reason,
    joins: bool,
    /// For how long its weight has been climbing, if it does.
    climbs: Option<Duration>,
    resolved: Option<SocketAddr>,
}

// === impl Server ===

impl Server {
    /// What the operator has said of it.
    #[must_use]
    pub fn orders(&self) -> Orders {
        let condition = self.condition.lock();
        Orders { order: condition.order, ordered: condition.ordered, weight: condition.weight }
    }

    /// What is known of it at this moment.
    #[must_use]
    pub fn memory(&self, now: Instant) -> Memory {
        let condition = self.condition.lock();
        Memory {
            health: condition.health.clone(),
            record: condition.record.keep(now),
            told: condition.told.clone(),
            joins: condition.joins,
            climbs: condition.climbs.map(|since| now.saturating_duration_since(since)),
            resolved: condition.resolved,
        }
    }

    /// Goes on with what the operator said to another process.
    pub fn obey(&self, orders: Orders) {
        self.with(|condition| {
            (condition.order, condition.ordered, condition.weight) = (orders.order, orders.ordered, orders.weight);
        });
    }

    /// Goes on with what another process knew of it.
    pub fn recall(&self, memory: Memory, now: Instant) {
        self.with(|condition| {
            condition.health = memory.health;
            condition.record = memory.record.at(now);
            condition.told = memory.told;
            condition.joins = memory.joins;
            condition.climbs = memory.climbs.and_then(|past| now.checked_sub(past));
            condition.resolved = memory.resolved;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::eject::Told;
    use crate::pool::health::{Probed, Rules};
    use crate::pool::server::Heard;
    use crate::pool::server::tests::EJECT;
    use crate::pool::settings::Address;

    type Act = fn(&Server);

    fn server() -> Server {
        Server::new(Address::Unix("/a".into()), false)
    }

    /// What another process knows of this server.
    fn passed_on(server: &Server, now: Instant) -> Server {
        let text =
            [serde_json::to_string(&server.orders()), serde_json::to_string(&server.memory(now))].map(Result::unwrap);
        let other = self::server();
        other.obey(serde_json::from_str(&text[0]).unwrap());
        other.recall(serde_json::from_str(&text[1]).unwrap(), now);
        other
    }

    #[test]
    fn whatever_is_known_of_a_server_another_process_knows_too() {
        let now = Instant::now();
        let seconds = |number| now + Duration::from_secs(number);
        let up = || {
            let server = server();
            server.observe(Probed::Alive, Rules { rise: 1, fall: 1 }, now);
            server
        };
        let fails = |server: &Server| {
            let heard = Heard { told: Told::Failed, trial: None, room: true, why: "reset" };
            server.hear(heard, &EJECT, now);
        };
        let cases: [(&str, Act); 5] = [
            ("drained", |server| server.order(Order::Drain)),
            ("in maintenance", |server| server.order(Order::Maint)),
            ("reweighted", |server| server.order_weight(Some(7))),
            ("resolved", |server| server.resolves_to(([127, 0, 0, 1], 80).into())),
            ("down", |server| {
                server.observe(Probed::Failed("refused".into()), Rules { rise: 1, fall: 1 }, Instant::now());
            }),
        ];
        let mut servers: Vec<(&str, Server)> = cases
            .map(|(what, act)| {
                let server = up();
                act(&server);
                (what, server)
            })
            .into();
        servers.extend([("not probed", server()), ("up", up()), ("ejected", up())]);
        fails(&servers.last().unwrap().1);
        for (what, server) in servers {
            let other = passed_on(&server, now);
            for at in [now, seconds(9), seconds(11)] {
                assert_eq!(other.health(at), server.health(at), "{what}");
                let weight = |server: &Server| server.weight(3, Duration::ZERO, at);
                assert_eq!(weight(&other), weight(&server), "{what}");
                assert_eq!(other.back_at(at), server.back_at(at), "{what}");
            }
            assert_eq!(
                (other.resolved(), other.ordered_weight()),
                (server.resolved(), server.ordered_weight()),
                "{what}"
            );
        }
    }

    #[test]
    fn a_climb_goes_on_where_it_was() {
        let began = Instant::now();
        let joins = Server::new(Address::Unix("/a".into()), true);
        joins.observe(Probed::Alive, Rules { rise: 1, fall: 1 }, began);
        let later = Instant::now() + Duration::from_secs(5);
        let other = passed_on(&joins, later);
        let weight = |server: &Server| server.weight(1, Duration::from_secs(10), later + Duration::from_secs(1));
        assert_eq!(weight(&other), weight(&joins));
        assert!((60..70).contains(&weight(&other)), "{}", weight(&other));
    }
}
