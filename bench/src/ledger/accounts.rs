//! Whose coins move: senders with keys, and any number of accounts beside them that only receive.
//!
//! All of it follows from numbers, so that a state that was filled once can be gone on with by another process. Addresses
//! are hashes: sends touch keys all over the state.

use polylink_protocol::cosmos::Any;
use polylink_protocol::cosmos::cosmos::bank::v1beta1::{Input, MsgMultiSend, MsgSend, Output};
use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
use polylink_protocol::keys::AccountKey;
use polylink_protocol::tx::{SignContext, any, sign_direct};
use polylink_protocol::{Address, Amount, DENOM};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

/// The most accounts that send.
pub const SENDERS_MAX: u64 = 20_000;
/// What a sender has at genesis, in uplk.
pub const SENDER_BALANCE: Amount = Amount(1_000_000_000_000);
/// What the account has that makes the others, in uplk.
pub const FILLER_BALANCE: Amount = Amount(1_000_000_000_000_000);
/// Gas limit of a send, which uses about 70,000.
pub const SEND_GAS: u64 = 100_000;
/// What an account gets that is made to receive, in uplk.
const FILL: u64 = 1_000;
/// The ledger's gas price, in uplk per 1,000 gas.
const GAS_PRICE_MILLI: u64 = 25;

fn digest(kind: &str, number: u64) -> [u8; 32] {
    Sha256::new()
        .chain_update("polylink bench ")
        .chain_update(kind)
        .chain_update(number.to_be_bytes())
        .finalize()
        .into()
}

/// The key of a sender.
pub fn sender_key(number: u64) -> AccountKey {
    AccountKey::from_bytes(&digest("sender", number)).expect("a digest is a secp256k1 key but for one in 2^127")
}

/// The key of the account that makes the others.
pub fn filler_key() -> AccountKey {
    AccountKey::from_bytes(&digest("filler", 0)).expect("a digest is a secp256k1 key but for one in 2^127")
}

/// An account without a key.
fn receiver(number: u64) -> Address {
    let mut address = [0; 20];
    address.copy_from_slice(&digest("receiver", number)[..20]);
    Address(address)
}

/// What accounts a state shall have: the senders and the filler at genesis, with what they hold.
pub fn at_genesis(accounts: u64) -> Vec<(Address, Amount)> {
    let senders = (0..senders(accounts)).map(|number| (sender_key(number).address(), SENDER_BALANCE));
    std::iter::once((filler_key().address(), FILLER_BALANCE)).chain(senders).collect()
}

/// How many of so many accounts send.
pub fn senders(accounts: u64) -> u64 {
    accounts.min(SENDERS_MAX)
}

fn coin(amount: u64) -> Vec<Coin> {
    vec![Coin { denom: DENOM.into(), amount: amount.to_string() }]
}

/// The chain that signatures are for, and the account that signs.
pub struct Signer {
    key: AccountKey,
    address: String,
    chain_id: String,
    /// The account's number.
    pub number: u64,
    /// Of its next transaction.
    pub sequence: u64,
}

impl Signer {
    /// Of an account with its number and sequence on the chain.
    pub fn new(key: AccountKey, chain_id: &str, number: u64, sequence: u64) -> Self {
        let address = key.address().account();
        Self { key, address, chain_id: chain_id.to_owned(), number, sequence }
    }

    /// `poly1…`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Signs with the next sequence.
    fn sign(&mut self, message: Any, gas_limit: u64) -> Vec<u8> {
        let context = SignContext {
            chain_id: self.chain_id.clone(),
            account_number: self.number,
            sequence: self.sequence,
            gas_limit,
            fee: Amount(u128::from(gas_limit * GAS_PRICE_MILLI).div_ceil(1_000)),
            memo: String::new(),
        };
        self.sequence += 1;
        sign_direct(vec![message], &context, &self.key)
    }

    /// A transaction that makes the receivers of these numbers.
    pub fn fill(&mut self, numbers: std::ops::Range<u64>) -> Vec<u8> {
        let count = numbers.end - numbers.start;
        let outputs = numbers.map(|number| Output { address: receiver(number).account(), coins: coin(FILL) });
        let inputs = vec![Input { address: self.address.clone(), coins: coin(count * FILL) }];
        let message = any(&MsgMultiSend { inputs, outputs: outputs.collect() });
        self.sign(message, 100_000_000)
    }
}

/// Sends, from each sender in turn to accounts drawn at random.
pub struct Sends {
    senders: Vec<Signer>,
    accounts: u64,
    turn: usize,
    draw: ChaCha8Rng,
}

impl Sends {
    /// Between so many accounts.
    pub fn new(senders: Vec<Signer>, accounts: u64, seed: u64) -> Self {
        Self { senders, accounts, turn: 0, draw: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// The next transaction.
    pub fn sign_next(&mut self) -> Vec<u8> {
        let senders = self.senders.len();
        let to = match self.draw.random_range(0..self.accounts) {
            number if number < senders as u64 => self.senders[number as usize].address.clone(),
            number => receiver(number).account(),
        };
        let signer = &mut self.senders[self.turn];
        self.turn = (self.turn + 1) % senders;
        let message = any(&MsgSend { from_address: signer.address.clone(), to_address: to, amount: coin(1) });
        signer.sign(message, SEND_GAS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sender_has_its_turn_and_its_sequences_follow_each_other() {
        use polylink_protocol::Message;
        use polylink_protocol::cosmos::cosmos::tx::v1beta1::{AuthInfo, TxRaw};
        let signers = (0..3).map(|n| Signer::new(sender_key(n), "c-1", n, 7)).collect();
        let mut sends = Sends::new(signers, 10, 1);
        let sequences: Vec<u64> = (0..7)
            .map(|_| {
                let raw = TxRaw::decode(sends.sign_next().as_slice()).unwrap();
                AuthInfo::decode(raw.auth_info_bytes.as_slice()).unwrap().signer_infos[0].sequence
            })
            .collect();
        assert_eq!(sequences, [7, 7, 7, 8, 8, 8, 9]);
        assert_eq!(at_genesis(3).len(), 4);
        assert_eq!(senders(1 << 30), SENDERS_MAX);
    }
}
