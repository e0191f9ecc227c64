//! Tests of the market.
