//! May this request in: which route it takes, whose key it carries, which model it may ask.
//!
//! Everything here is compiled once from the configuration and only looked up per request.

pub mod key;
pub mod model;
pub mod route;

pub use key::{Key, Keys};
pub use model::{Model, Models};
pub use route::{Route, Routes};
