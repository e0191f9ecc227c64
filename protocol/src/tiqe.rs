//! The audit's arithmetic: VRF beacon, seats, sample points, score commitments and medians.
//!
//! Pure functions that the ledger (which decides) and the judges (which act) share, so that both see the same round.
//! A round is named by (audited epoch, profile).

use std::collections::BTreeMap;

use vrf_rfc9381::ec::edwards25519::EdVrfProof;
use vrf_rfc9381::ec::edwards25519::tai::{EdVrfEdwards25519TaiPublicKey, EdVrfEdwards25519TaiSecretKey};
use vrf_rfc9381::{Proof as _, Prover as _, Verifier as _};

use crate::digest::{Digest, Hasher, tag};
use crate::tiqe_v1::Scores;
use crate::{Address, Amount, Message};

/// Bytes of a VRF proof (RFC 9381 §5.5, ECVRF-EDWARDS25519-SHA512-TAI).
pub const VRF_PROOF_BYTES: usize = 80;
/// Bytes of a VRF output.
pub const VRF_OUTPUT_BYTES: usize = 64;

/// Why a proof or key is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum VrfError {
    /// The key is no point of the curve.
    #[error("not an ECVRF-EDWARDS25519-SHA512-TAI public key of 32 bytes")]
    Key,
    /// Not 80 bytes, or not the one encoding of its values.
    #[error("the VRF proof is malformed: 80 bytes in the canonical encoding are expected")]
    Encoding,
    /// It is not this key's proof of this input.
    #[error("the VRF proof does not verify for this key, epoch, profile and beacon")]
    Proof,
}

/// A judge's VRF key.
pub struct VrfKey {
    secret: [u8; 32],
    public: [u8; 32],
}

impl VrfKey {
    /// From 32 secret bytes.
    pub fn from_bytes(secret: &[u8; 32]) -> Self {
        // RFC 9381 §5.5 derives the key pair as RFC 8032 does, so the public key is the ed25519 one.
        let public = ed25519_dalek::SigningKey::from_bytes(secret).verifying_key().to_bytes();
        Self { secret: *secret, public }
    }
    /// The public key.
    pub fn public_key(&self) -> [u8; 32] {
        self.public
    }
    /// The proof over [`vrf_input`], 80 bytes.
    pub fn prove(&self, input: &Digest) -> Result<Vec<u8>, VrfError> {
        let key = EdVrfEdwards25519TaiSecretKey::from_slice(&self.secret).map_err(|_| VrfError::Key)?;
        Ok(key.prove(&input.0).map_err(|_| VrfError::Proof)?.encode_to_pi())
    }
}

/// Verifies a proof and returns the output β (64 bytes). A proof in another than its one encoding is refused, else its
/// sender could send several for one input.
pub fn vrf_verify(public_key: &[u8], input: &Digest, proof: &[u8]) -> Result<[u8; VRF_OUTPUT_BYTES], VrfError> {
    if !crate::keys::is_ed25519_key(public_key) {
        return Err(VrfError::Key);
    }
    let key = EdVrfEdwards25519TaiPublicKey::from_slice(public_key).map_err(|_| VrfError::Key)?;
    if proof.len() != VRF_PROOF_BYTES {
        return Err(VrfError::Encoding);
    }
    let parsed = EdVrfProof::decode_pi(proof).map_err(|_| VrfError::Encoding)?;
    if parsed.encode_to_pi() != proof {
        return Err(VrfError::Encoding);
    }
    let beta = key.verify(&input.0, parsed).map_err(|_| VrfError::Proof)?;
    let mut out = [0; VRF_OUTPUT_BYTES];
    out.copy_from_slice(&beta);
    Ok(out)
}

/// The VRF's input: (chain id, previous beacon of the profile, audited epoch, profile).
pub fn vrf_input(chain_id: &str, previous_beacon: &Digest, epoch: u64, profile: &Digest) -> Digest {
    Hasher::new(tag::VRF_INPUT)
        .bytes(chain_id.as_bytes())
        .fixed(&previous_beacon.0)
        .u64(epoch)
        .fixed(&profile.0)
        .finish()
}

/// The beacon before a profile's first round.
pub fn genesis_beacon(chain_id: &str, profile: &Digest) -> Digest {
    Hasher::new(tag::BEACON_GENESIS).bytes(chain_id.as_bytes()).fixed(&profile.0).finish()
}

/// `B(e) = H(B(e−1) ‖ n ‖ outputs sorted as bytes)`.
pub fn next_beacon(previous: &Digest, outputs: &[[u8; VRF_OUTPUT_BYTES]]) -> Digest {
    let mut sorted = outputs.to_vec();
    sorted.sort_unstable();
    let hasher = Hasher::new(tag::BEACON).fixed(&previous.0).u32(sorted.len() as u32);
    sorted.iter().fold(hasher, |h, output| h.fixed(output)).finish()
}

/// A judge's part in the drawing of seats.
pub struct Candidate {
    /// The judge's account.
    pub judge: Address,
    /// Its VRF output of the round.
    pub beta: [u8; VRF_OUTPUT_BYTES],
    /// Equal units of bond.
    pub tickets: u32,
}

/// The n tickets with the lowest `H(β ‖ ticket)` have a seat; returns how many each judge holds. Ties (which would
/// take a SHA-256 collision) go to the lower address.
pub fn draw_seats(candidates: &[Candidate], n: u32) -> BTreeMap<Address, u32> {
    let mut tickets: Vec<(Digest, Address)> = candidates
        .iter()
        .flat_map(|c| (0..c.tickets).map(|t| (Hasher::new(tag::SEAT).fixed(&c.beta).u32(t).finish(), c.judge)))
        .collect();
    tickets.sort_unstable();
    tickets.iter().take(n as usize).fold(BTreeMap::new(), |mut seats, (_, judge)| {
        *seats.entry(*judge).or_default() += 1;
        seats
    })
}

/// The amount at which sample `number` of a pot is drawn: uniform in [0, total), with a bias below 2^-128.
/// None for a pot without an amount.
pub fn sample_point(beacon: &Digest, worker: &Address, profile: &Digest, number: u32, total: Amount) -> Option<Amount> {
    if total.is_zero() {
        return None;
    }
    let hash = Hasher::new(tag::SAMPLE).fixed(&beacon.0).fixed(&worker.0).fixed(&profile.0).u32(number).finish();
    let wide = hash.0.iter().fold(bnum::types::U256::ZERO, |v, b| (v << 8) | bnum::types::U256::from(*b));
    let point = u128::try_from(wide % bnum::types::U256::from(total.0));
    Some(Amount(point.expect("a remainder is below its 128-bit divisor")))
}

/// Where an answer falls, 0 to 9,999, in the drawing of those that the language-model judge sees: it sees what lies below
/// its fraction in basis points. Uniform up to 2^-18. The beacon comes after the receipt, so that no worker can look for
/// a receipt that is not drawn; every judge of the round draws the same.
pub fn llm_draw_bps(beacon: &Digest, receipt: &Digest) -> u32 {
    let hash = Hasher::new(tag::LLM_DRAW).fixed(&beacon.0).fixed(&receipt.0).finish().0;
    let first = u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]);
    ((u64::from(first) * 10_000) >> 32) as u32
}

/// What a judge commits to before anyone reveals:
/// `H(chain id ‖ epoch ‖ profile ‖ judge ‖ salt ‖ scores)` with the scores in their canonical bytes.
pub fn score_commitment(
    chain_id: &str,
    epoch: u64,
    profile: &Digest,
    judge: &Address,
    salt: &[u8; 32],
    scores: &Scores,
) -> Digest {
    Hasher::new(tag::SCORES)
        .bytes(chain_id.as_bytes())
        .u64(epoch)
        .fixed(&profile.0)
        .fixed(&judge.0)
        .fixed(salt)
        .bytes(&scores.encode_to_vec())
        .finish()
}

/// The lower weighted median: the smallest value at which at least half of the weight has been counted.
/// None without weight.
pub fn lower_weighted_median<T: Ord + Copy>(values: &[(T, u64)]) -> Option<T> {
    let mut sorted: Vec<_> = values.iter().filter(|(_, weight)| *weight > 0).copied().collect();
    sorted.sort_unstable_by_key(|(value, _)| *value);
    let total: u128 = sorted.iter().map(|(_, w)| u128::from(*w)).sum();
    let mut counted = 0_u128;
    sorted.iter().find_map(|(value, weight)| {
        counted += u128::from(*weight);
        (counted * 2 >= total).then_some(*value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_verifies_for_its_input_only() {
        let key = VrfKey::from_bytes(&[3; 32]);
        let profile = Digest([1; 32]);
        let input = vrf_input("c", &genesis_beacon("c", &profile), 5, &profile);
        let proof = key.prove(&input).unwrap();
        assert_eq!(proof.len(), VRF_PROOF_BYTES);
        let beta = vrf_verify(&key.public_key(), &input, &proof).unwrap();
        assert_eq!(vrf_verify(&key.public_key(), &input, &key.prove(&input).unwrap()), Ok(beta));
        let other = vrf_input("c", &genesis_beacon("c", &profile), 6, &profile);
        assert_eq!(vrf_verify(&key.public_key(), &other, &proof), Err(VrfError::Proof));
        assert_eq!(vrf_verify(&key.public_key(), &input, &proof[..79]), Err(VrfError::Encoding));
        assert_eq!(vrf_verify(&[0; 32], &input, &proof), Err(VrfError::Key));
        for bit in [0, 200, 300, 639] {
            let mut altered = proof.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            assert!(vrf_verify(&key.public_key(), &input, &altered).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_proof_in_a_second_encoding_is_refused() {
        // s + q encodes the same scalar modulo the group's order q.
        let key = VrfKey::from_bytes(&[8; 32]);
        let input = Digest([2; 32]);
        let mut proof = key.prove(&input).unwrap();
        let q = hex::decode("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010").unwrap();
        let mut carry = 0_u16;
        for (byte, add) in proof[48..].iter_mut().zip(q) {
            carry += u16::from(*byte) + u16::from(add);
            *byte = carry as u8;
            carry >>= 8;
        }
        assert_eq!(carry, 0);
        assert_eq!(vrf_verify(&key.public_key(), &input, &proof), Err(VrfError::Encoding));
    }

    #[test]
    fn seats_follow_tickets() {
        let candidates: Vec<_> = (0_u8..3)
            .map(|i| Candidate { judge: Address([i; 20]), beta: [i; 64], tickets: 1 + 9 * u32::from(i) })
            .collect();
        let seats = draw_seats(&candidates, 5);
        assert_eq!(seats.values().sum::<u32>(), 5);
        assert_eq!(draw_seats(&candidates, 1_000).values().sum::<u32>(), 30);
        assert!(draw_seats(&[], 5).is_empty());
    }

    #[test]
    fn beacons_do_not_depend_on_the_order_of_arrival() {
        let previous = Digest([7; 32]);
        assert_eq!(next_beacon(&previous, &[[1; 64], [2; 64]]), next_beacon(&previous, &[[2; 64], [1; 64]]));
        assert_ne!(next_beacon(&previous, &[[1; 64]]), next_beacon(&previous, &[[1; 64], [2; 64]]));
    }

    #[test]
    fn the_lower_median_is_taken() {
        assert_eq!(lower_weighted_median(&[(1, 1), (2, 1)]), Some(1));
        assert_eq!(lower_weighted_median(&[(9, 1), (2, 1), (5, 1)]), Some(5));
        assert_eq!(lower_weighted_median(&[(9, 3), (2, 1), (5, 1)]), Some(9));
        assert_eq!(lower_weighted_median(&[(9, 0)]), None);
        assert_eq!(lower_weighted_median::<u32>(&[]), None);
    }

    #[test]
    fn sample_points_stay_in_the_pot() {
        let (beacon, worker, profile) = (Digest([1; 32]), Address([2; 20]), Digest([3; 32]));
        assert_eq!(sample_point(&beacon, &worker, &profile, 0, Amount(0)), None);
        assert_eq!(sample_point(&beacon, &worker, &profile, 0, Amount(1)), Some(Amount(0)));
        for n in 0..100 {
            assert!(sample_point(&beacon, &worker, &profile, n, Amount(10)).unwrap() < Amount(10));
        }
    }
}
