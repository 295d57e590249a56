//! The prompt cache: the same question is computed once.
//!
//! Which prompts may be answered from the cache, and under which key, is decided by rules that touch nothing. Then there are the
//! answers that are kept, and the flights: prompts that are being answered, and who shares the answers. What wires them into a
//! request's way is [`crate::proxy::caching`].

pub mod admission;
pub mod canonical;
pub mod flight;
pub mod store;

use std::time::Duration;

/// How a model's answers are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// For how long.
    pub ttl: Duration,
    /// Whether everybody who may ask the model gets them, or only who asks with the same key.
    pub shared: bool,
    /// Whether those are kept that the engine drew at random.
    pub sampled: bool,
}
