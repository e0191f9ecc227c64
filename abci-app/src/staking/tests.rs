//! Tests of staking.
