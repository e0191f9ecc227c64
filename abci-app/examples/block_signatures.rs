//! How many transfers a second a block executes whose signatures the node has not seen before.
//!
//!     cargo run --release -p polylink-abci-app --example block_signatures
//!     RAYON_NUM_THREADS=1 cargo run --release -p polylink-abci-app --example block_signatures
#![allow(clippy::unwrap_used)]

use std::time::Instant;

use polylink_abci_app::testing::{TestChain, genesis, key};
use polylink_protocol::cosmos::cosmos::bank::v1beta1::MsgSend;
use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
use polylink_protocol::tx::any;

const ACCOUNTS: u8 = 100;
const EACH: u64 = 20;
const BLOCKS: usize = 5;

fn main() {
    let mut chain = TestChain::start(&genesis(ACCOUNTS));
    chain.advance(1);
    let mut rates: Vec<f64> = (0..BLOCKS)
        .map(|_| {
            let txs: Vec<Vec<u8>> = (1..=ACCOUNTS)
                .flat_map(|n| (0..EACH).map(move |ahead| (n, ahead)))
                .map(|(n, ahead)| {
                    let amount = vec![Coin { denom: "uplk".into(), amount: "1".into() }];
                    let (from_address, to_address) = (key(n).address().account(), key(200).address().account());
                    chain.sign_after(n, ahead, vec![any(&MsgSend { from_address, to_address, amount })])
                })
                .collect();
            let count = txs.len();
            let begun = Instant::now();
            let results = chain.deliver(txs);
            let seconds = begun.elapsed().as_secs_f64();
            assert!(results.iter().all(|result| result.code == 0), "every transfer succeeds");
            count as f64 / seconds
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    println!(
        "{} threads: median of {BLOCKS} blocks of {} transfers: {:.0} tx/s (least {:.0}, most {:.0})",
        rayon::current_num_threads(),
        u64::from(ACCOUNTS) * EACH,
        rates[BLOCKS / 2],
        rates[0],
        rates[BLOCKS - 1]
    );
}
