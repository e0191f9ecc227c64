//! An exported state is the whole of it: a chain that has lived goes on from its export as it would have without
//! ([`lived`]), and what does not add up is not taken.

mod lived;
mod messages;

use super::export;
use crate::genesis::Genesis;
use crate::testing::TestChain;
use lived::start;

#[test]
fn a_state_that_does_not_add_up_is_not_taken() {
    let mut chain = TestChain::start(&start());
    chain.advance(2);
    let good = export(&chain.state()).unwrap();
    let refused = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut state = good.clone();
        change(&mut state);
        let parsed = Genesis::from_json(state.to_string().as_bytes());
        let imported = parsed.and_then(|genesis| crate::chain::genesis("c-1", Default::default(), &genesis));
        imported.map(|_| ()).expect_err("it was taken").to_string()
    };
    let balance = {
        let entries = good["exported"]["entries"].as_array().unwrap();
        // A key that begins with the byte 0x10.
        let is_balance = |entry: &serde_json::Value| {
            let key = entry[0].as_str().unwrap().as_bytes();
            key[0] == b'E' && (b'A'..=b'P').contains(&key[1])
        };
        entries.iter().position(is_balance).expect("somebody has coins")
    };
    for (said, text) in [
        (refused(&|state| drop(state["exported"]["entries"].as_array_mut().unwrap().remove(balance))), "conservation"),
        (refused(&|state| state["exported"]["entries"] = serde_json::json!([])), "no state of a chain"),
        (refused(&|state| state["exported"]["entries"][0][0] = "?".into()), "entries[0]"),
        (refused(&|state| state["exported"]["schema"] = 3.into()), "another version"),
        (refused(&|state| state["min_gas_price_milli"] = 7.into()), "nothing else"),
    ] {
        assert!(said.contains(text), "{said}");
    }
    let genesis = Genesis::from_json(good.to_string().as_bytes()).unwrap();
    assert_eq!(genesis.first_height(), chain.height() + 1);
}
