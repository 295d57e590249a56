//! The prompt cache: the same question is computed once.
//!
//! Here is what decides and touches nothing: which prompts may be answered from the cache, and under which key.

pub mod admission;
pub mod canonical;
