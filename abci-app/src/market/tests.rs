//! Tests of the market: refusals, the life of sessions, pots and bonds, and the books after random messages.

mod epochs;
mod places;
mod random;
mod refusals;
mod terms;
