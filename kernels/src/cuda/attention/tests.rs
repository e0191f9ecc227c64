//! Attention and append on the device, against f64 and against the exact rules; over a cache of e4m3, and the kernels of all
//! devices, under the emulator too; and the planner, which needs no device.

mod append;
mod bench_case;
mod bits;
mod chain;
mod fp8;
mod orders;
mod plan;
mod timing;
mod values;
