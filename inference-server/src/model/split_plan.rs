//! How a model is shared out over the devices of a tensor split: heads, MLP columns, experts and vocabulary.
//!
//! Pure. Every cut lies where the numerics' K ranges do (whole KV groups, MLP ranges, experts), so a split changes no bit;
//! proportions are met as nearly as whole pieces allow (largest remainder), and nobody gets nothing.

use std::ops::Range;

use polylink_kernels::KRanges;

use super::architecture::DecoderConfig;
use super::error::ModelError;

/// Tokens are shared out in pieces of so many, so that packed weights have no ragged edges.
const VOCABULARY_PIECE: usize = 16;

/// What one device holds, of every one of its layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelShard {
    /// KV heads, with their query heads.
    pub kv_heads: Range<usize>,
    /// MLP columns.
    pub mlp: Range<usize>,
    /// Experts of a mixture; empty if the model has none.
    pub experts: Range<usize>,
    /// Layers: all of them, as long as models are not split by layers.
    pub layers: Range<usize>,
    /// Tokens of the output head.
    pub vocabulary: Range<usize>,
}

/// What every device holds, by rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitPlan {
    /// One per device.
    pub shards: Vec<ModelShard>,
}

impl SplitPlan {
    /// Everything on one device.
    pub fn whole(config: &DecoderConfig) -> Self {
        Self {
            shards: vec![ModelShard {
                kv_heads: 0..config.num_key_value_heads,
                mlp: 0..config.intermediate_size,
                experts: 0..experts(config),
                layers: 0..config.num_hidden_layers,
                vocabulary: 0..config.vocab_size,
            }],
        }
    }

    /// Shared out in these proportions, such as 2 : 1.
    ///
    /// # Errors
    /// [`ModelError::Split`] if a device would get nothing of something.
    pub fn new(config: &DecoderConfig, shares: &[u32]) -> Result<Self, ModelError> {
        if shares.len() == 1 {
            return Ok(Self::whole(config));
        }
        let refuse = |reason: String| ModelError::Split { shares: shares.to_vec(), reason };
        if shares.is_empty() || shares.len() > 16 || shares.iter().any(|&share| share == 0 || share > 1_000_000) {
            return Err(refuse("1 to 16 proportions of 1 to 1,000,000 are expected".into()));
        }
        let cut = |what: &str, size: usize, piece: usize| {
            let pieces = size.div_ceil(piece);
            if pieces < shares.len() {
                return Err(refuse(format!(
                    "the model has only {pieces} pieces of {what} for {} devices",
                    shares.len()
                )));
            }
            Ok(share_out(pieces, shares).into_iter().map(move |r| r.start * piece..(r.end * piece).min(size)))
        };
        let kv_heads = cut("KV heads", config.num_key_value_heads, 1)?;
        let mlp = cut("MLP columns", config.intermediate_size, KRanges::mlp(config.intermediate_size).length)?;
        let vocabulary = cut("vocabulary", config.vocab_size, VOCABULARY_PIECE)?;
        let experts: Vec<Range<usize>> = match experts(config) {
            0 => vec![0..0; shares.len()],
            experts => cut("experts", experts, 1)?.collect(),
        };
        let layers = 0..config.num_hidden_layers;
        let shards = kv_heads.zip(mlp).zip(vocabulary).zip(experts);
        let shards = shards.map(|(((kv_heads, mlp), vocabulary), experts)| ModelShard {
            kv_heads,
            mlp,
            experts,
            layers: layers.clone(),
            vocabulary,
        });
        Ok(Self { shards: shards.collect() })
    }

    /// Devices.
    pub fn world(&self) -> usize {
        self.shards.len()
    }
}

/// Experts of a layer; 0 if the model has none.
fn experts(config: &DecoderConfig) -> usize {
    config.mixture.as_ref().map_or(0, |mixture| mixture.experts)
}

/// Shares `pieces ≥ shares.len()` out by largest remainder, at least one each; contiguous, in order.
fn share_out(pieces: usize, shares: &[u32]) -> Vec<Range<usize>> {
    let total: u64 = shares.iter().map(|&share| u64::from(share)).sum();
    let exact = |share: u32| pieces as u64 * u64::from(share);
    let mut counts: Vec<usize> = shares.iter().map(|&share| ((exact(share) / total) as usize).max(1)).collect();
    loop {
        let given: usize = counts.iter().sum();
        // Positive: it has less than its due; in units of 1 / total pieces.
        let lacks = |rank: usize, count: usize| exact(shares[rank]) as i64 - (count as u64 * total) as i64;
        let ranks = 0..counts.len();
        let next = match given.cmp(&pieces) {
            std::cmp::Ordering::Equal => break,
            std::cmp::Ordering::Less => ranks.max_by_key(|&r| (lacks(r, counts[r]), std::cmp::Reverse(r))),
            std::cmp::Ordering::Greater => ranks.filter(|&r| counts[r] > 1).min_by_key(|&r| (lacks(r, counts[r]), r)),
        };
        let Some(rank) = next else { break };
        if given < pieces { counts[rank] += 1 } else { counts[rank] -= 1 }
    }
    let mut start = 0;
    let ranges = counts.iter().map(|&count| {
        start += count;
        start - count..start
    });
    ranges.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_shared_out_by_proportion_and_nobody_gets_nothing() {
        for (pieces, shares, expected) in [
            (3, &[2, 1][..], vec![0..2, 2..3]),
            (3, &[1, 2], vec![0..1, 1..3]),
            (21, &[2, 1], vec![0..14, 14..21]),
            (8, &[1, 1, 1], vec![0..3, 3..6, 6..8]),
            (3, &[1000, 1, 1], vec![0..1, 1..2, 2..3]),
            (5, &[1], std::iter::once(0..5).collect()),
        ] {
            let shared = share_out(pieces, shares);
            assert_eq!(shared, expected, "{pieces} {shares:?}");
        }
    }
}
