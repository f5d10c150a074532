//! afar's client: what other programs embed, and what the command line is made of.
//!
//! ```no_run
//! # async fn example() -> Result<(), afar::Error> {
//! use afar::{Client, Config, PutOptions, Source};
//! let client = Client::connect(&Config {
//!     endpoints: vec!["https://strasbourg.example.org:7700".into(), "https://warsaw.example.org:7700".into()],
//!     access_key_id: "AFAR…".into(),
//!     secret_access_key: "…".into(),
//!     ca_pem: std::fs::read("ca.crt").unwrap_or_default(),
//!     rounds: afar::limits::ROUNDS,
//! })?;
//! let stored = client.put("backups", "monday.tar", Source::File("monday.tar".into()), PutOptions::default()).await?;
//! println!("at {:?}, {} apart", stored.sites, stored.distance);
//! # Ok(())
//! # }
//! ```
//!
//! What this crate promises: an `Ok` from [`Client::put`] means that the object is on disk, hash-checked, at the level that it
//! says; bytes from a get were verified here; and nothing in this crate decides what "far" means, for that is the model's.
//! It must never depend on the store or the node.
//!
//! Reading order: how an object is named ([`names`]), how a node is reached ([`endpoints`], [`tls`]), the verbs ([`client`],
//! [`put`], [`get`], [`status`]), how a cluster begins ([`cluster`]), and the programs on top ([`cli`], [`demo`]).
pub mod error;

pub mod names;

pub mod answers;

pub mod tls;

pub mod endpoints;

pub mod client;

mod feed;

pub mod put;

pub mod resume;

pub mod get;

pub mod status;

pub mod cluster;

pub mod cli;

pub mod demo;

pub mod limits;

pub use client::{Client, Config, Listing};
pub use error::{Error, Kind};
pub use get::Range;
pub use names::{Named, Place, Wanted};
pub use put::{PutOptions, Source};
