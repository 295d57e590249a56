//! The prompt cache: the same question is computed once.
//!
//! Here is what decides and touches nothing: which prompts may be answered from the cache, and under which key.

pub mod admission;
pub mod canonical;

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
