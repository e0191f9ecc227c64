//! Tests of the market: refusals, the life of sessions, pots and bonds, private ones, and the books after random messages.

mod agreement;
mod epochs;
mod models;
mod places;
mod prices;
mod private;
mod random;
mod refusals;
mod reports;
mod revoke;
mod terms;
