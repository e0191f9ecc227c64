//! Bytes from anybody: whatever comes in is refused or understood, and never stops the process.

use polylink_protocol::cosmos::cosmos::bank::v1beta1::MsgSend;
use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
use polylink_protocol::tx::{SignContext, any as pack, sign_direct};
use polylink_protocol::{Amount, DENOM};
use proptest::prelude::*;

use crate::context::{BlockTime, Context};
use crate::store::{MemoryState, Overlay, StateRead};
use crate::testing::{CHAIN_ID, genesis, key};
use crate::tx::decode::{SignMode, decode, decode_simulated};
use crate::tx::unknown::{self, Policy};
use crate::tx::{Mode, run, schema};

fn valid() -> Vec<u8> {
    let message = MsgSend {
        from_address: key(1).address().account(),
        to_address: key(2).address().account(),
        amount: vec![Coin { denom: DENOM.into(), amount: "5".into() }],
    };
    let context = SignContext {
        chain_id: CHAIN_ID.into(),
        account_number: 12,
        sequence: 0,
        gas_limit: 200_000,
        fee: Amount(5_000),
        memo: "m".into(),
    };
    sign_direct(vec![pack(&message)], &context, &key(1))
}

fn state() -> MemoryState {
    let (changes, _) = crate::chain::genesis(CHAIN_ID, BlockTime::default(), &genesis(2)).unwrap();
    MemoryState(changes.into_iter().filter_map(|(key, value)| Some((key, value?))).collect())
}

/// Runs the bytes in every mode; money must be conserved whatever they are. Returns whether they were delivered.
fn run_all(state: &MemoryState, bytes: &[u8]) -> bool {
    let ctx = Context::new(CHAIN_ID, 1, BlockTime::default(), 20);
    let delivered = [Mode::Check, Mode::Simulate, Mode::Deliver].map(|mode| {
        let mut layer = Overlay::new(state as &dyn StateRead);
        let outcome = run(&ctx, &mut layer, bytes, mode);
        assert_eq!(crate::bank::check_conservation(state, layer.changes()), Ok(()));
        outcome.result.is_ok()
    });
    if let Ok(tx) = decode_simulated(bytes) {
        for signer in &tx.signers {
            // A document or a refusal; never a panic.
            let _ = tx.sign_bytes(signer, SignMode::AminoJson, CHAIN_ID, 0);
        }
    }
    delivered[2]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Any change to a signed transaction makes it one that is not executed.
    #[test]
    fn an_altered_transaction_is_refused(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        truncate in any::<bool>(),
    ) {
        let original = valid();
        let mut bytes = original.clone();
        for (index, byte) in edits {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        if truncate {
            bytes.truncate(cut.index(bytes.len()));
        }
        let state = state();
        prop_assert!(run_all(&state, &original));
        prop_assert!(bytes == original || !run_all(&state, &bytes));
    }

    /// Bytes without any sense, in every message that the ledger knows.
    #[test]
    fn garbage_is_refused_or_understood(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&bytes);
        for name in schema::names() {
            let strict = unknown::check(name, &bytes, Policy::Strict).is_ok();
            let tolerant = unknown::check(name, &bytes, Policy::NonCritical).is_ok();
            prop_assert!(tolerant || !strict, "{name}: what the strict policy takes, the tolerant one does");
        }
    }
}
