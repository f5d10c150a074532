//! The harness of the end-to-end tests and of the benchmarks: real `afard` processes from folders that `afar cluster init`
//! made, on loopback, with a network between the sites that can be slow or cut, and disks that can be damaged.
//!
//! Everything is bounded (see [`limits`]), and whatever a test started is ended when it is dropped, panics included. Nothing
//! here knows how afar works inside: it uses the command line's contract, the `.proto` files, and, where it damages disks,
//! the page on the format (`server/store/FORMAT.md`).
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails, and says where")]

pub mod limits;

pub mod wait;

pub mod data;

pub mod programs;

pub mod cluster;

pub mod command;

pub mod network;

pub mod wire;

pub mod liar;

pub mod disks;

pub mod certificates;

pub mod processes;

pub mod operator;

pub mod witness;

pub mod load;

pub mod http;

pub mod acme;
