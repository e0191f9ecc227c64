//! What random tests of several modules share: a chain in memory ([`bed`]), and an exact model of stake and rewards
//! ([`book`]) in whole numbers of its own ([`number`]).

pub mod bed;
pub mod book;
pub mod number;
