//! The shared vocabulary of PolyLink: protobuf messages, amounts, addresses, keys, signed objects and their
//! digests, Merkle-sum trees, VRF beacons, and the sampling noise.
//!
//! *Invariant*: everything here is a pure function of its arguments. No I/O, no clock, no randomness. (The chain
//! client behind the feature `client` is the one exception: it is the shell through which the other crates reach the
//! chain, and nothing else in this crate uses it.)

pub mod address;
pub mod amount;
#[cfg(feature = "client")]
pub mod client;
pub mod dec;
pub mod digest;
pub mod exact_math;
pub mod hex_bytes;
pub mod keys;
pub mod market;
pub mod merkle_sum;
pub mod noise;
pub mod tiqe;
pub mod transcript;
pub mod tx;

/// Generated from `proto/`: the wire format of messages, queries and signed objects.
#[allow(missing_docs, clippy::all)]
pub mod proto {
    /// Package `polylink`.
    pub mod polylink {
        /// Package `polylink.market`.
        pub mod market {
            /// Package `polylink.market.v1`.
            pub mod v1 {
                include!(concat!(env!("OUT_DIR"), "/polylink.market.v1.rs"));
            }
        }
        /// Package `polylink.tiqe`.
        pub mod tiqe {
            /// Package `polylink.tiqe.v1`.
            pub mod v1 {
                include!(concat!(env!("OUT_DIR"), "/polylink.tiqe.v1.rs"));
            }
        }
    }
}

/// The proto files as an encoded `google.protobuf.FileDescriptorSet`: what reflection, the refusal of unknown fields and
/// amino JSON are derived from.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

pub use address::Address;
pub use amount::{Amount, Bps};
pub use cosmos_sdk_proto as cosmos;
pub use dec::Dec;
pub use digest::Digest;
pub use prost::{Message, Name};
pub use proto::polylink::{market::v1 as market_v1, tiqe::v1 as tiqe_v1};

/// The only denomination: micro-PLK. 1 PLK = 1,000,000 uplk.
pub const DENOM: &str = "uplk";
