//! What tests stand on: the real servers where they are there, the real service in this process, a
//! network that can fail.

pub mod app;
pub mod backends;
pub mod cluster;
pub mod kafka;
pub mod process;
pub mod proxy;
