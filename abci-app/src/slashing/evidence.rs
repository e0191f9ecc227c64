//! Evidence that CometBFT has verified: `x/evidence/keeper/infraction.go`.
//!
//! CometBFT takes none that is older than its consensus parameters allow, and each only once; a second proof against a
//! tombstoned validator changes nothing.

use polylink_protocol::cosmos::Timestamp;
use polylink_protocol::cosmos::cosmos::evidence::v1beta1::{
    Equivocation, QueryAllEvidenceRequest, QueryAllEvidenceResponse, QueryEvidenceRequest, QueryEvidenceResponse,
};
use polylink_protocol::cosmos::cosmos::slashing::v1beta1::{Params, ValidatorSigningInfo};
use polylink_protocol::cosmos::cosmos::staking::v1beta1::BondStatus;
use polylink_protocol::{Message, tx};
use sha2::{Digest as _, Sha256};

use super::{EVIDENCE, dec, emit_slash, set_signing_info, signing_info};
use crate::context::{Context, Misbehavior};
use crate::error::{QueryError, TxError};
use crate::modules::{Answer, QueryContext};
use crate::store::{KeyBuilder, StateRead, StateWrite};
use crate::{paging, staking};

/// From a change of the set to the first block that it signs.
const POWER_DELAY: i64 = 1;

/// The end of a tombstoned validator's time in jail: the last second of the year 9999.
pub const NEVER: Timestamp = Timestamp { seconds: 253_402_300_799, nanos: 0 };

/// Slashes, jails and tombstones. Evidence against a validator that is unbonded, gone or already tombstoned is ignored.
pub(super) fn punish(
    ctx: &mut Context,
    state: &mut dyn StateWrite,
    params: &Params,
    misbehavior: &Misbehavior,
) -> Result<(), TxError> {
    let consensus = misbehavior.validator;
    let Some(operator) = staking::operator_of(state, &consensus) else { return Ok(()) };
    let known = (staking::validator(state, &operator), signing_info(state, &consensus));
    let (Some(validator), Some(info)) = known else { return Ok(()) };
    if validator.status() == BondStatus::Unbonded || info.tombstoned {
        return Ok(());
    }
    let height = i64::try_from(misbehavior.height).unwrap_or(i64::MAX);
    let (fraction, power) = (dec(&params.slash_fraction_double_sign), misbehavior.power);
    let burned = staking::slash(ctx, state, &operator, height - POWER_DELAY, power, fraction)?;
    emit_slash(ctx, &consensus, power, "double_sign", !validator.jailed, burned);
    staking::jail(state, &operator);
    let info = ValidatorSigningInfo { jailed_until: Some(NEVER), tombstoned: true, ..info };
    set_signing_info(state, &consensus, &info);
    let record = Equivocation {
        height,
        time: Some(Timestamp { seconds: misbehavior.time.seconds, nanos: misbehavior.time.nanos }),
        power: i64::try_from(power).unwrap_or(i64::MAX),
        consensus_address: consensus.valcons(),
    };
    let value = record.encode_to_vec();
    state.put(KeyBuilder::new(EVIDENCE).bytes(&Sha256::digest(&value)).finish(), value);
    Ok(())
}

fn equivocation(value: &[u8]) -> Option<polylink_protocol::cosmos::Any> {
    Equivocation::decode(value).ok().map(|record| tx::any(&record))
}

impl Answer for QueryEvidenceRequest {
    type Response = QueryEvidenceResponse;

    /// By the hash as hexadecimal text, or as bytes where old clients give it so.
    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QueryEvidenceResponse, QueryError> {
        #[allow(deprecated, reason = "old clients still send bytes")]
        let bytes = self.evidence_hash.clone();
        let hash = if self.hash.is_empty() { Some(bytes) } else { from_hex(&self.hash) };
        let hash = hash.filter(|hash| hash.len() == 32);
        let hash = hash.ok_or_else(|| QueryError::InvalidArgument("invalid evidence hash".into()))?;
        let found = state.get(&KeyBuilder::new(EVIDENCE).bytes(&hash).finish());
        let found = found.and_then(|value| equivocation(&value));
        let missing = || QueryError::NotFound(format!("evidence {} not found", self.hash.escape_debug()));
        found.map(|evidence| QueryEvidenceResponse { evidence: Some(evidence) }).ok_or_else(missing)
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect();
    Some(digits?.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte * 16 + digit)).collect())
}

impl Answer for QueryAllEvidenceRequest {
    type Response = QueryAllEvidenceResponse;

    fn answer(&self, _: &QueryContext, state: &dyn StateRead) -> Result<QueryAllEvidenceResponse, QueryError> {
        let (evidence, page) =
            paging::cosmos(state, &[EVIDENCE], self.pagination.clone(), |_, value| equivocation(value))?;
        Ok(QueryAllEvidenceResponse { evidence, pagination: Some(page) })
    }
}
