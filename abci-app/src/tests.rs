//! What random tests of several modules share: a chain in memory ([`bed`]), an exact model of stake and rewards
//! ([`book`]) in whole numbers of its own ([`number`]), and whether sequences do some of everything ([`drawn`]).

pub mod bed;
pub mod book;
pub mod drawn;
pub mod number;
