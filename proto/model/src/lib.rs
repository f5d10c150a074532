//! afar's nouns and decisions, pure: no I/O, no clock, no chance, no tokio, tonic, prost or sled.
//!
//! Everything that afar promises is decided here, from arguments alone, so that it can be tested without a socket or a
//! disk and so that the writer, the repairer, the status and the demo cannot disagree about what "far" means.
//!
//! Reading order: what things are called ([`id`], [`hlc`], [`units`]), what is stored ([`record`]), where it may be
//! ([`geo`], [`layout`], [`policy`], [`placement`]), where it is ([`assignment`], [`plan`]), and what may be claimed ([`coverage`], [`state`]).
pub mod id;

pub mod units;

pub mod hlc;

pub mod record;

pub mod geo;

pub mod policy;

pub mod layout;

pub mod document;

pub mod placement;

pub mod countries;

pub mod assignment;

pub mod plan;

pub mod coverage;

pub mod state;

pub mod limits;
