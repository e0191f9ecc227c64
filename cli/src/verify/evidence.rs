//! What the chain says of a receipt: signatures by keys that stand in the ledger's state, the path to the committed
//! root, ICS23 proofs of that state, and the header that they end in.

use serde::{Deserialize, Serialize};
use std::time::Duration;
use tendermint::Time;
use tendermint::block::signed_header::SignedHeader;
use tendermint::trust_threshold::TrustThresholdFraction;
use tendermint::validator::{Info, Set};
use tendermint_light_client_verifier::options::Options;
use tendermint_light_client_verifier::types::{TrustedBlockState, UntrustedBlockState};
use tendermint_light_client_verifier::{ProdVerifier, Verdict, Verifier};

use polylink_abci_app::market::{Kind, keys};
use polylink_abci_app::store::{KeyBuilder, PROOF_OP_TYPE, verify_proof};
use polylink_protocol::digest::decode_canonical;
use polylink_protocol::market::{answer_amount, receipt_digest, verify_receipt, verify_request};
use polylink_protocol::market_v1::{Pot, Session};
use polylink_protocol::merkle_sum::{self, Leaf, Sum};
use polylink_protocol::transcript::AnswerRecord;
use polylink_protocol::{Address, Amount, Digest, Message, hex_bytes};

use super::answer::parts;
use super::{Fault, fault};

/// A trusted header is believed for this long: shorter than the unbonding time.
pub const TRUSTING_PERIOD: Duration = Duration::from_secs(14 * 24 * 3600);
/// How far the clock here may be behind the chain's.
const CLOCK_DRIFT: Duration = Duration::from_secs(10);

/// A header with its commit and the validators that signed it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LightBlock {
    /// Header and commit, as the RPC method `commit` gives them.
    pub signed_header: SignedHeader,
    /// The validators of its height, without proposer and priorities.
    pub validators: Vec<Info>,
}

/// A key of the ledger's state with its value and the proof of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateProof {
    /// State key.
    #[serde(with = "hex_bytes")]
    pub key: Vec<u8>,
    /// Its value.
    #[serde(with = "hex_bytes")]
    pub value: Vec<u8>,
    /// `ics23.CommitmentProof`.
    #[serde(with = "hex_bytes")]
    pub proof: Vec<u8>,
}

/// What the chain says, all at one height.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChainEvidence {
    /// Height of the state.
    pub height: u64,
    /// The header after it, whose application hash is the state's root.
    pub block: LightBlock,
    /// The request's session: the spend key.
    pub session: StateProof,
    /// The pot of the receipt's epoch: the committed root, the receipt key and the price.
    pub pot: StateProof,
}

impl LightBlock {
    /// From what the RPC gives, in the form that has nothing unbound in it.
    pub fn new(signed_header: SignedHeader, validators: &[Info]) -> Self {
        Self { signed_header, validators: validators.iter().map(|v| Info::new(v.pub_key, v.power)).collect() }
    }

    fn set(&self) -> Result<Set, Fault> {
        for (at, info) in self.validators.iter().enumerate() {
            if *info != Info::new(info.pub_key, info.power) {
                return Err(fault(
                    format!("chain.block.validators.{at}"),
                    "has an address, name or priority that is not its key's",
                ));
            }
        }
        let set = Set::without_proposer(self.validators.clone());
        match set.validators() == &self.validators {
            true => Ok(set),
            false => Err(fault("chain.block.validators", "are not in their order (power, then address)")),
        }
    }
}

/// Follows a header from a trusted one: more than a third of the trusted validators, and more than two thirds of its
/// own, signed it (CometBFT's light client, skipping verification).
pub fn check_header(block: &LightBlock, trusted: &LightBlock, now: Time) -> Result<(), Fault> {
    let header = &block.signed_header.header;
    let trusted_header = &trusted.signed_header.header;
    let (set, trusted_set) = (block.set()?, trusted.set()?);
    if trusted_set.hash() != trusted_header.validators_hash {
        return Err(fault("trusted header", "its validators do not hash to its validators_hash"));
    }
    if header.chain_id != trusted_header.chain_id {
        return Err(fault(
            "chain.block.signed_header",
            format!("is of {}, the trusted one of {}", header.chain_id, trusted_header.chain_id),
        ));
    }
    if header.height < trusted_header.height {
        let reason = format!(
            "is at height {}, before the trusted one at {}; trust an older one",
            header.height, trusted_header.height
        );
        return Err(fault("chain.block.signed_header", reason));
    }
    if header.height == trusted_header.height && header.hash() != trusted_header.hash() {
        return Err(fault("chain.block.signed_header", "is another one than the trusted header of its height"));
    }
    // The trusted header itself needs no following; its signatures must still be there.
    let same = header.height == trusted_header.height;
    let state = TrustedBlockState {
        chain_id: &trusted_header.chain_id,
        header_time: trusted_header.time,
        height: trusted_header.height,
        next_validators: &trusted_set,
        next_validators_hash: trusted_header.next_validators_hash,
    };
    let untrusted =
        UntrustedBlockState { signed_header: &block.signed_header, validators: &set, next_validators: None };
    let options = Options {
        trust_threshold: TrustThresholdFraction::ONE_THIRD,
        trusting_period: TRUSTING_PERIOD,
        clock_drift: CLOCK_DRIFT,
    };
    let verifier = ProdVerifier::default();
    let verdict = if same {
        match verifier.verify_validator_sets(&untrusted) {
            Verdict::Success => verifier.verify_commit(&untrusted),
            other => other,
        }
    } else {
        verifier.verify_update_header(untrusted, state, &options, now)
    };
    match verdict {
        Verdict::Success => Ok(()),
        Verdict::NotEnoughTrust(tally) => {
            Err(fault("chain.block.signed_header", format!("too few of the trusted validators signed it: {tally}")))
        }
        Verdict::Invalid(detail) => Err(fault("chain.block.signed_header", detail)),
    }
}

fn proved<M: Message + Default>(part: &'static str, proof: &StateProof, key: &[u8], root: &[u8]) -> Result<M, Fault> {
    let name = |field: &str| format!("chain.{part}.{field}");
    if proof.key != key {
        return Err(fault(name("key"), format!("is not the key of the receipt's {part}")));
    }
    let root: [u8; 32] =
        root.try_into().map_err(|_| fault("chain.block.signed_header", "its app_hash is not of 32 bytes"))?;
    decode_canonical::<ics23::CommitmentProof>(PROOF_OP_TYPE, &proof.proof).map_err(|e| fault(name("proof"), e))?;
    if !verify_proof(&root, key, Some(&proof.value), &proof.proof) {
        return Err(fault(name("proof"), "does not lead from key and value to the header's app_hash"));
    }
    decode_canonical(part, &proof.value).map_err(|e| fault(name("value"), e))
}

/// The state key of a record's session, by the ledger's table (`docs/state-keys.md`).
pub fn session_key(record: &AnswerRecord) -> Result<Vec<u8>, Fault> {
    let (_, receipt) = parts(record)?;
    Ok(KeyBuilder::new(keys::SESSION).u64(receipt.session).finish())
}

/// That of the pot that its session's payments go into: private sessions have one of their own.
pub fn pot_key(record: &AnswerRecord, session: &Session) -> Result<Vec<u8>, Fault> {
    let (_, receipt) = parts(record)?;
    let worker: Address = receipt.worker.parse().map_err(|e| fault("receipt.worker", e))?;
    let profile = Digest::from_slice(&receipt.profile_digest)
        .ok_or_else(|| fault("receipt.profile_digest", "32 bytes are expected"))?;
    Ok(keys::pot(Kind::of(session.private), receipt.epoch, &profile, &worker))
}

/// Checks the signatures with the keys of a session and of the worker in the receipt's epoch.
pub fn check_signatures(record: &AnswerRecord, session: &Session, receipt_key: &[u8]) -> Result<(), Fault> {
    let (_, receipt) = parts(record)?;
    if session.payee != receipt.worker {
        return Err(fault("receipt.worker", format!("session {} pays {}", session.id, session.payee)));
    }
    if session.profile_digest != receipt.profile_digest {
        return Err(fault("receipt.profile_digest", format!("session {} is for another profile", session.id)));
    }
    verify_request(&record.request, &session.spend_key).map_err(|e| fault("request.signature", e))?;
    verify_receipt(&record.receipt, receipt_key).map_err(|e| fault("receipt.signature", e))?;
    Ok(())
}

/// Checks that the receipt charges its tokens at the pot's price, exactly.
pub fn check_price(record: &AnswerRecord, pot: &Pot) -> Result<(), Fault> {
    let (_, receipt) = parts(record)?;
    let price = pot.price.as_ref().ok_or_else(|| fault("chain.pot", "the worker committed nothing for this epoch"))?;
    let cost = answer_amount(price, receipt.prompt_tokens, receipt.cached_tokens, receipt.completion_tokens);
    match receipt.amount.parse::<Amount>() {
        Ok(amount) if amount == cost => Ok(()),
        _ => Err(fault("receipt.amount", format!("{} uplk; its tokens cost {cost} uplk in its epoch", receipt.amount))),
    }
}

/// Checks that the receipt is a leaf under the committed root.
pub fn check_path(record: &AnswerRecord, pot: &Pot) -> Result<(), Fault> {
    let (_, receipt) = parts(record)?;
    let path =
        record.path.as_ref().ok_or_else(|| fault("path", "is not there; fetch the receipt again after its epoch"))?;
    let root =
        record.root.as_ref().ok_or_else(|| fault("root", "is not there; fetch the receipt again after its epoch"))?;
    let committed =
        pot.root.as_ref().ok_or_else(|| fault("chain.pot", "the worker committed no root for this epoch"))?;
    if committed != root {
        return Err(fault("root", "is not the root that the worker committed"));
    }
    let amount: Amount = receipt.amount.parse().map_err(|e| fault("receipt.amount", e))?;
    let leaf = Leaf {
        session: receipt.session,
        index: receipt.index,
        receipt: receipt_digest(receipt),
        tokens: receipt.prompt_tokens.saturating_add(receipt.completion_tokens),
        amount,
    };
    let root = Sum::from_proto(root).map_err(|e| fault("root", e))?;
    merkle_sum::verify(&leaf, path, &root).map(|_| ()).map_err(|e| fault("path", e))
}

/// Checks a record against the chain's evidence under a trusted header.
pub fn check_evidence(
    record: &AnswerRecord,
    evidence: &ChainEvidence,
    trusted: &LightBlock,
    now: Time,
) -> Result<(), Fault> {
    let (request, _) = parts(record)?;
    check_header(&evidence.block, trusted, now)?;
    let header = &evidence.block.signed_header.header;
    if evidence.height.checked_add(1) != Some(header.height.value()) {
        return Err(fault(
            "chain.height",
            format!("the header at {} proves the state at the height before it", header.height),
        ));
    }
    if request.chain_id != header.chain_id.as_str() {
        return Err(fault(
            "request.chain_id",
            format!("`{}`, the header is of `{}`", request.chain_id, header.chain_id),
        ));
    }
    let root = header.app_hash.as_bytes();
    let session: Session = proved("session", &evidence.session, &session_key(record)?, root)?;
    let pot: Pot = proved("pot", &evidence.pot, &pot_key(record, &session)?, root)?;
    check_signatures(record, &session, &pot.receipt_key)?;
    check_price(record, &pot)?;
    check_path(record, &pot)
}
