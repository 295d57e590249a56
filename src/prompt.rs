//! What is asked of an engine, and what it answers: bytes in, facts out.
//!
//! A *prompt* is a request body that an engine answers. forebay never owns its meaning: it learns what it needs while
//! the bytes pass, and hands the bytes on as they came.

pub(crate) mod json;
pub mod scan;
pub mod sse;

pub use scan::{Prompt, Unreadable};
pub use sse::{Dialect, LastEvent};
