//! Tests of the audit: rounds, penalties, trials, refusals, and judges that leave.

mod appeals;
mod leaving;
mod random;
mod refusals;
mod rounds;
mod trials;
