//! Transactions that were decoded before. One is asked for again and again: checked, rechecked after each block, proposed
//! and executed; what it decodes to depends on its bytes alone. With it goes what its signatures have been verified for
//! ([`super::decode::Verified`]).

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use sha2::{Digest as _, Sha256};

use super::TX_BYTES_MAX;
use super::decode::{self, Tx};
use crate::error::TxError;

/// Bytes of the transactions of one generation: some 12,000 transfers. What they decode to takes several times as much.
const GENERATION_BYTES_MAX: usize = 4 << 20;

#[derive(Default)]
struct Generation {
    txs: HashMap<[u8; 32], Arc<Tx>>,
    bytes: usize,
}

/// Two generations, so that their size is bounded and a full one does not forget all at once.
static SEEN: LazyLock<Mutex<[Generation; 2]>> = LazyLock::new(Default::default);

/// As [`decode::decode`].
pub fn decode(bytes: &[u8]) -> Result<Arc<Tx>, TxError> {
    if bytes.len() > TX_BYTES_MAX {
        return decode::decode(bytes).map(Arc::new);
    }
    let digest: [u8; 32] = Sha256::digest(bytes).into();
    let lock = || SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    let found = lock().iter().find_map(|generation| generation.txs.get(&digest).cloned());
    if let Some(tx) = found {
        return Ok(tx);
    }
    let tx = Arc::new(decode::decode(bytes)?);
    let mut generations = lock();
    if generations[0].bytes + bytes.len() > GENERATION_BYTES_MAX {
        generations[1] = std::mem::take(&mut generations[0]);
    }
    generations[0].bytes += bytes.len();
    generations[0].txs.insert(digest, Arc::clone(&tx));
    Ok(tx)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{TestChain, genesis, key};
    use polylink_protocol::cosmos::cosmos::bank::v1beta1::MsgSend;
    use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
    use polylink_protocol::tx::any;

    #[test]
    fn the_same_bytes_are_decoded_once_and_others_apart() {
        let chain = TestChain::start(&genesis(2));
        let send = |amount: &str| {
            let amount = vec![Coin { denom: "uplk".into(), amount: amount.into() }];
            let (from_address, to_address) = (key(1).address().account(), key(2).address().account());
            chain.sign(1, vec![any(&MsgSend { from_address, to_address, amount })])
        };
        let (one, two) = (send("71"), send("72"));
        let first = decode(&one).unwrap();
        assert!(Arc::ptr_eq(&first, &decode(&one).unwrap()));
        assert_ne!(first.messages[0].bytes, decode(&two).unwrap().messages[0].bytes);
        assert!(decode(&one[1..]).is_err());
        assert!(decode(&one[1..]).is_err(), "a refusal is not remembered as anything else");
    }
}
