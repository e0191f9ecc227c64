//! What Keplr's `experimentalSuggestChain` takes: how a wallet comes to know a chain.

use serde_json::{Value, json};

use polylink_protocol::DENOM;
use polylink_protocol::address::{PREFIX, PREFIX_VALCONS, PREFIX_VALOPER};

/// What a wallet calls 1,000,000 uplk.
const COIN: &str = "PLK";
/// Digits after the point of one.
const DECIMALS: u32 = 6;
/// The coin type of Cosmos chains (SLIP-44), under which wallets derive keys.
const COIN_TYPE: u32 = 118;

/// The chain info of a chain, its addresses, and the least gas price in uplk.
pub fn chain_info(chain_id: &str, rpc: &str, rest: &str, gas_price: f64) -> Value {
    let currency = json!({"coinDenom": COIN, "coinMinimalDenom": DENOM, "coinDecimals": DECIMALS});
    let mut of_fees = currency.clone();
    // The least is always enough today; the others leave room for a rise while a wallet waits for its user.
    of_fees["gasPriceStep"] = json!({"low": gas_price, "average": gas_price * 1.2, "high": gas_price * 2.0});
    json!({
        "chainId": chain_id,
        "chainName": format!("PolyLink {chain_id}"),
        "rpc": rpc,
        "rest": rest,
        "bip44": {"coinType": COIN_TYPE},
        "bech32Config": {
            "bech32PrefixAccAddr": PREFIX,
            "bech32PrefixAccPub": format!("{PREFIX}pub"),
            "bech32PrefixValAddr": PREFIX_VALOPER,
            "bech32PrefixValPub": format!("{PREFIX_VALOPER}pub"),
            "bech32PrefixConsAddr": PREFIX_VALCONS,
            "bech32PrefixConsPub": format!("{PREFIX_VALCONS}pub"),
        },
        "currencies": [currency],
        "feeCurrencies": [of_fees],
        "stakeCurrency": currency,
        "features": [],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wallet_finds_what_it_needs() {
        let info = chain_info("c-1", "http://r", "http://l", 0.025);
        assert_eq!(
            (&info["chainId"], &info["rpc"], &info["rest"]),
            (&json!("c-1"), &json!("http://r"), &json!("http://l"))
        );
        assert_eq!(info["bech32Config"]["bech32PrefixValAddr"], "polyvaloper");
        assert_eq!(info["stakeCurrency"], json!({"coinDenom": "PLK", "coinMinimalDenom": "uplk", "coinDecimals": 6}));
        let steps = &info["feeCurrencies"][0]["gasPriceStep"];
        let step = |name: &str| steps[name].as_f64().unwrap();
        assert!(step("low") == 0.025 && step("low") < step("average") && step("average") < step("high"), "{steps}");
    }
}
