//! Tokens by their raw logits, the largest first, ties by id.

use crate::step::TOP_LOGPROBS_MAX;

/// A token's place among all by their logits, from 1, ties by id.
pub(super) fn rank_of(logits: &[f32], token: u32) -> u32 {
    let (before, rest) = logits.split_at(token as usize);
    let own = rest[0];
    let larger = |count: u32, logit: &f32| count + u32::from(*logit > own);
    let as_large = |count: u32, logit: &f32| count + u32::from(*logit >= own);
    1 + before.iter().fold(0, as_large) + rest.iter().fold(0, larger)
}

/// The `count` ≤ 20 largest logits, largest first, ties by id: insertion into a small sorted list.
pub(super) fn top_tokens(logits: &[f32], count: usize) -> [u32; TOP_LOGPROBS_MAX] {
    let mut top = [0u32; TOP_LOGPROBS_MAX];
    let mut filled = 0;
    if count == 0 {
        return top;
    }
    for (token, &logit) in logits.iter().enumerate() {
        if filled == count && logit <= logits[top[count - 1] as usize] {
            continue;
        }
        let mut place = if filled < count { filled } else { count - 1 };
        while place > 0 && logits[top[place - 1] as usize] < logit {
            top[place] = top[place - 1];
            place -= 1;
        }
        top[place] = token as u32;
        filled = (filled + 1).min(count);
    }
    top
}
