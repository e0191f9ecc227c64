//! Attention and append on the device, against f64 and against the exact rules; and the planner, which needs no device.

mod append;
mod bench_case;
mod bits;
mod chain;
mod orders;
mod plan;
mod timing;
mod values;
