//! Whether everything is as promised, and the evidence for it.
//!
//! Reading order: the state of every object that this node reports for ([`survey`]), the upkeep of its own log ([`upkeep`]),
//! what else an operator must know ([`checks`]), and what only a measurement tells ([`doctor`]).
pub mod survey;

pub mod upkeep;

pub mod checks;

pub mod doctor;
