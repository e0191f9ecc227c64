//! Tests of the audit: rounds, penalties, trials, refusals, and judges that leave.

mod leaving;
mod refusals;
mod rounds;
mod trials;
