//! A configuration under way, which reads as a sentence.

use std::fmt;

use sha2::{Digest, Sha256};

/// The secret of the key that a configuration has unless it says otherwise.
pub(crate) const SECRET: &str = "fb-the-secret-of-the-tests";

/// A configuration, listening on ports that the system picks, whose health checks are quick.
#[derive(Clone, Default)]
pub(crate) struct Configuration {
    listen: Vec<String>,
    admin_listen: Vec<String>,
    server: String,
    admin: String,
    rest: String,
}

/// The digest of a secret as the configuration has it.
pub(crate) fn digest(secret: &str) -> String {
    Sha256::digest(secret).iter().map(|byte| format!("{byte:02x}")).collect()
}

// === impl Configuration ===

impl Configuration {
    /// With nothing but listeners.
    pub(crate) fn empty() -> Self {
        Self::default()
    }

    /// One pool `p` of these engines, the model family `m*` on it, and one key for all.
    pub(crate) fn of(engines: &[&str]) -> Self {
        Self::empty().pool("p", engines, "").model("m*", "p").key("tester", SECRET, "[\"*\"]")
    }

    /// Listens here too, or instead.
    pub(crate) fn listen(mut self, address: &str) -> Self {
        self.listen.push(address.to_owned());
        self
    }

    /// The admin listener is here too, or instead.
    pub(crate) fn admin_listen(mut self, address: &str) -> Self {
        self.admin_listen.push(address.to_owned());
        self
    }

    /// A line for `[server]`.
    pub(crate) fn server(mut self, line: &str) -> Self {
        self.server += &format!("{line}\n");
        self
    }

    /// A line for `[admin]`.
    pub(crate) fn admin(mut self, line: &str) -> Self {
        self.admin += &format!("{line}\n");
        self
    }

    /// A pool, and lines for its health.
    pub(crate) fn pool(self, name: &str, servers: &[&str], health: &str) -> Self {
        let quick = if health.contains("interval") { "" } else { "interval = \"100ms\"\n" };
        self.more(&format!("[pool.{name}]\nservers = {servers:?}\n[pool.{name}.health]\n{quick}{health}"))
    }

    /// A model.
    pub(crate) fn model(self, name: &str, pool: &str) -> Self {
        self.more(&format!("[model.{name:?}]\npool = {pool:?}"))
    }

    /// A key for these models.
    pub(crate) fn key(self, name: &str, secret: &str, models: &str) -> Self {
        let digest = digest(secret);
        self.more(&format!("[[key]]\nname = {name:?}\nsha256 = {digest:?}\nmodels = {models}"))
    }

    /// Any further lines, which begin with a table.
    pub(crate) fn more(mut self, lines: &str) -> Self {
        self.rest += &format!("{lines}\n");
        self
    }
}

impl fmt::Display for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let chosen = ["127.0.0.1:0".to_owned()];
        let or_chosen = |listen: &'_ [String]| if listen.is_empty() { chosen.to_vec() } else { listen.to_vec() };
        writeln!(f, "[server]\nlisten = {:?}\nthreads = 2\n{}", or_chosen(&self.listen), self.server)?;
        writeln!(f, "[admin]\nlisten = {:?}\n{}\n{}", or_chosen(&self.admin_listen), self.admin, self.rest)
    }
}
