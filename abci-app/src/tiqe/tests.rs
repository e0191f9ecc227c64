//! Tests of the audit: rounds, penalties, trials, and refusals.

mod refusals;
mod rounds;
mod trials;
