//! The market by the command line: sessions, bonds, models, prices, reports and refunds, and what is refused of them.

use super::common::Net;
use super::uplk;
use polylink_cli::keys::Keyring;
use serde_json::{Value, json};

fn of(net: &Net, from: &str, args: &[&str]) -> Value {
    net.json(&[&["tx", "--from", from], args].concat())
}

fn query(net: &Net, args: &[&str]) -> Value {
    net.json(&[&["query"], args].concat())
}

/// Each of these fails, with a text that says why.
fn refused(net: &Net, cases: &[(&[&str], &str)]) {
    for (args, says) in cases {
        let said = net.fails(args);
        assert!(said.contains(says), "{args:?}: {said}");
    }
}

pub fn all(net: &Net, record: &Value) {
    sessions(net);
    bonds(net);
    models_and_prices(net);
    reports_and_refunds(net, record);
}

fn sessions(net: &Net) {
    let provider = Keyring::new(net.home.path()).account("provider").unwrap().address().account();
    let none = query(net, &["sessions", "--payer", "provider"]);
    assert_eq!(none["sessions"].as_array().map(Vec::len), Some(0), "{none}");
    let balance = || uplk(&query(net, &["balance", "provider"])["amount"]);
    let before = balance();
    let terms = ["--gateway", "--spend-key", "market", "--cap", "2plk", "--window", "3", "--epochs", "9"];
    let opened = of(net, "provider", &[&["open-session", "gateway", "3plk"][..], &terms].concat());
    let id = opened["session"].to_string();
    assert!(before - balance() >= 3_000_000, "in escrow");
    let session = query(net, &["session", &id])["session"].clone();
    for (field, value) in [("payer", provider.as_str()), ("deposit", "3000000"), ("cap", "2000000"), ("redeemed", "0")]
    {
        assert_eq!(session[field], value, "{session:#}");
    }
    assert_eq!(json!([session["window"], session["closed"]]), json!([3, false]), "{session:#}");
    assert_eq!(query(net, &["sessions", "--payer", "provider", "--payee", "gateway"])["sessions"][0], session);
    of(net, "provider", &["top-up", &id, "1plk"]);
    let topped = query(net, &["session", &id])["session"].clone();
    assert_eq!(json!([topped["deposit"], topped["cap"]]), json!(["4000000", "3000000"]), "{topped:#}");
    private_sessions(net, &provider);
    of(net, "provider", &["revoke-spend-key", &id]);
    assert_eq!(query(net, &["session", &id])["session"]["revoked"], true);
    refused(
        net,
        &[
            (&["query", "sessions"], "--payer or --payee"),
            (&["query", "session", "seven"], "seven"),
            (&["tx", "--from", "provider", "top-up", &id, "1plk"], "revoked"),
            (&["tx", "--from", "provider", "close-session", &id], "session"),
            (&["tx", "--from", "user", "top-up", &id, "1plk"], "payer"),
            (&["tx", "--from", "provider", "top-up", "999999", "1plk"], "999999"),
            (&["tx", "--from", "provider", "open-session", "gateway", "0", "--gateway"], "deposit"),
            (&["tx", "--from", "provider", "open-session", "gateway", "1plk", "--gateway", "--window", "0"], "window"),
            (&["tx", "--from", "provider", "open-session", "gateway", "1plk", "--profile", "zz"], "zz"),
            (
                &[
                    "tx",
                    "--from",
                    "provider",
                    "open-session",
                    "gateway",
                    "1plk",
                    "--profile",
                    &"00".repeat(32),
                    "--gateway",
                ],
                "--gateway",
            ),
            (&["tx", "--from", "provider", "revoke-spend-key", "x"], "x"),
        ],
    );
}

fn private_sessions(net: &Net, provider: &str) {
    let opened = of(net, "provider", &["open-session", "worker", "1plk", "--spend-key", "market", "--private"]);
    let id = opened["session"].to_string();
    let session = query(net, &["session", &id])["session"].clone();
    assert_eq!(json!([session["private"], session["payer"]]), json!([true, provider]), "{session:#}");
    let epoch = net.epoch().to_string();
    let pots = query(net, &["pots", &epoch, "--private"]);
    assert_eq!(pots["pots"].as_array().map(Vec::len), Some(0), "nothing was paid in private: {pots}");
    refused(
        net,
        &[
            (&["query", "pot", &epoch, "--private"], "pot"),
            (&["tx", "--from", "provider", "open-session", "gateway", "1plk", "--gateway", "--private"], "--private"),
            (&["tx", "--from", "provider", "open-session", "gateway", "1plk", "--private"], "no worker"),
        ],
    );
}

fn bonds(net: &Net) {
    let bond = || uplk(&query(net, &["worker"])["worker"]["bond"]);
    let before = bond();
    of(net, "worker", &["bond", "2plk"]);
    assert_eq!(bond(), before + 2_000_000);
    let unbonded = of(net, "worker", &["unbond", "2plk"]);
    assert!(unbonded["release_epoch"].as_u64() > Some(net.epoch()), "{unbonded}");
    let worker = query(net, &["worker"])["worker"].clone();
    assert_eq!((uplk(&worker["bond"]), uplk(&worker["unbonding"][0]["amount"])), (before, 2_000_000), "{worker:#}");
    refused(
        net,
        &[
            (&["tx", "--from", "user", "bond", "1plk"], "worker"),
            (&["tx", "--from", "worker", "bond", "0"], "positive"),
            (&["tx", "--from", "worker", "unbond", "99999999plk"], "bond"),
            (&["tx", "--from", "worker", "unbond", "1.5"], "not an amount"),
            (&["tx", "--from", "user", "unbond-judge"], "judge"),
            (&["tx", "--from", "worker", "appeal", "1"], "no trial 1"),
            (&["query", "worker", "user"], "worker"),
            (&["query", "worker", "nobody"], "nobody"),
        ],
    );
}

fn models_and_prices(net: &Net) {
    let model = query(net, &["models"])["models"][0].clone();
    let price = query(net, &["price"]);
    assert!(price["price"]["completion"].as_u64() > Some(0), "{price}");
    let none = query(net, &["price-history", "--limit", "5"]);
    assert!(none["prices"].as_array().is_some_and(|prices| prices.len() <= 5), "{none}");
    let workers = query(net, &["workers"])["workers"].clone();
    assert_eq!(workers.as_array().map(Vec::len), Some(1), "{workers}");
    let royalty = model["royalty_bps"].as_u64().unwrap() + 1;
    let updated = of(net, "provider", &["update-model", &royalty.to_string()]);
    assert!(updated["from_epoch"].as_u64() > Some(net.epoch()), "{updated}");
    let params = query(net, &["params"]);
    assert!(params["market"]["epoch_blocks"].is_number() && params["tiqe"]["seats"].is_number(), "{params}");
    let unknown = "00".repeat(32);
    refused(
        net,
        &[
            (&["tx", "--from", "user", "update-model", "100"], "provider"),
            (&["tx", "--from", "provider", "update-model", "9000"], "royalty"),
            (&["tx", "--from", "provider", "update-model", "100", "--profile", &unknown], "model"),
            (&["query", "price", "--profile", &unknown], "model"),
            (&["query", "price", "--profile", "ab"], "ab"),
            (&["query", "quality", "--worker", "worker", "--profile", &unknown], "no audit yet"),
            (&["query", "pot", "99999999"], "pot"),
        ],
    );
}

/// A receipt that the worker shows is no omission; one that somebody else paid for is not one's to report.
fn reports_and_refunds(net: &Net, record: &Value) {
    let file = |name: &str| net.home.path().join(name).display().to_string();
    let (receipt, broken) = (file("reported.json"), file("broken.json"));
    std::fs::write(&receipt, record.to_string()).unwrap();
    std::fs::write(&broken, "{\"answer\": 5}").unwrap();
    let open = query(net, &["reports", "--worker", "worker"]);
    assert_eq!(open["reports"].as_array().map(Vec::len), Some(0), "{open}");
    let refunds = query(net, &["refunds", "gateway"]);
    assert_eq!(refunds["refunds"].as_array().map(Vec::len), Some(0), "{refunds}");
    refused(
        net,
        &[
            (&["tx", "--from", "user", "report-omitted", &receipt], "only its payer"),
            (&["tx", "--from", "user", "report-omitted", &broken], "receipt file"),
            (&["tx", "--from", "user", "report-omitted", "/no/such/receipt.json"], "/no/such/receipt.json"),
            (&["query", "reports", "--worker", "nobody"], "nobody"),
            (&["query", "refunds", "nobody"], "nobody"),
            (&["query", "trials", "--worker", "nobody"], "nobody"),
        ],
    );
}
