//! What `polylink tx` sends beside coins and stake: proposals, deposits and votes, several receivers, granted fees, a
//! validator's description.

use super::common::Net;
use super::uplk;
use polylink_cli::keys::Keyring;
use serde_json::Value;

fn of(net: &Net, from: &str, args: &[&str]) -> Value {
    net.json(&[&["tx", "--from", from], args].concat())
}

fn proposal(net: &Net, id: &str) -> Value {
    net.json(&["query", "proposals", id])["proposals"][0].clone()
}

pub fn all(net: &Net) {
    let made = of(net, "provider", &["propose", "Longer epochs", "Of sixty blocks", "--deposit", "1plk"]);
    let id = made["proposal"].to_string();
    assert_eq!(proposal(net, &id)["status"], "PROPOSAL_STATUS_DEPOSIT_PERIOD");
    let said = net.fails(&["tx", "--from", "provider", "vote", &id, "yes"]);
    assert!(said.contains("inactive proposal"), "{said}");
    of(net, "validator", &["deposit", &id, "9plk"]);
    assert_eq!(proposal(net, &id)["status"], "PROPOSAL_STATUS_VOTING_PERIOD");
    of(net, "validator", &["vote", &id, "yes=0.75,abstain=0.25"]);
    let tally = &proposal(net, &id)["tally"];
    assert_eq!(uplk(&tally["yes"]), 3 * uplk(&tally["abstain"]), "{tally}");
    let said = net.fails(&["tx", "--from", "validator", "cancel-proposal", &id]);
    assert!(said.contains("invalid proposer"), "{said}");
    of(net, "provider", &["cancel-proposal", &id]);
    assert!(net.fails(&["query", "proposals", &id]).contains("doesn't exist"));

    let ring = Keyring::new(net.home.path());
    let strangers: Vec<String> = ["one", "two"]
        .map(|name| {
            net.json(&["keys", "new", name]);
            ring.account(name).unwrap().address().account()
        })
        .into();
    of(net, "provider", &["multi-send", "7uplk", &strangers[0], "two"]);
    for stranger in &strangers {
        assert_eq!(net.json(&["query", "balance", stranger])["amount"], "7");
    }
    of(net, "provider", &["grant-fees", "one", "--limit", "1plk", "--seconds", "600"]);
    let said = net.fails(&["tx", "--from", "provider", "grant-fees", "one"]);
    assert!(said.contains("already exists"), "{said}");
    of(net, "provider", &["revoke-fees", "one"]);
    of(net, "validator", &["edit-validator", "--moniker", "edited"]);
    assert_eq!(net.json(&["query", "validators"])["validators"][0]["moniker"], "edited");
}
