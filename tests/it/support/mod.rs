//! What tests stand on: the real servers where they are there, the real service in this process, a
//! network that can fail.

pub mod app;
pub mod backends;
pub mod cluster;
pub mod events;
pub mod kafka;
pub mod process;
pub mod proxy;

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

/// Below those that the kernel hands out, and below those of the shared servers.
const PORTS: std::ops::Range<u16> = 10_000..20_000;
/// A Redis of a cluster takes a second port, so far above its own.
const BUS: u16 = 10_000;

/// A port for a server that is started later, or again. One that the kernel picks is given to the next connection of
/// any test as soon as it is let go; from here nobody else gets it, in this run.
pub fn free_port() -> u16 {
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    let count = PORTS.end - PORTS.start;
    // Another run beside this one begins elsewhere.
    let first = std::process::id() * 101 % u32::from(count);
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    for _ in PORTS {
        let offset = (first + u32::from(TAKEN.fetch_add(1, Ordering::Relaxed))) % u32::from(count);
        let port = PORTS.start + u16::try_from(offset).expect("less than the count");
        if is_free(port) && is_free(port + BUS) {
            return port;
        }
    }
    panic!("no port between {} and {} is free", PORTS.start, PORTS.end)
}
