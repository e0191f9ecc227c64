//! Upgrades of the program: `x/upgrade` of the Cosmos SDK.
//!
//! Governance plans an upgrade: a name and a height. A program that does not know the name stops before the block of that
//! height, on every node alike. The next program has the name in its table of [`MIGRATIONS`]; it rewrites the state at the
//! begin of that block and goes on. It refuses to run before the height, and an older program to run after it.
//!
//! Invariant: a block is executed by the program that was planned for its height, or by none.

mod messages;
mod query;
#[cfg(test)]
mod tests;

use polylink_protocol::Message;
use polylink_protocol::cosmos::cosmos::upgrade::v1beta1::{self as proto, Plan};

use crate::context::Context;
use crate::error::TxError;
use crate::modules::{MessageRoute, Module, QueryRoute, no_hook};
use crate::store::{KeyBuilder, StateRead, StateWrite};

/// The plan: `0x88` → `cosmos.upgrade.v1beta1.Plan`.
pub const PLAN: u8 = 0x88;
/// Upgrades that were done: `0x89 ‖ name` → height u64.
pub const DONE: u8 = 0x89;

/// The tables of upgrades.
pub const MODULE: Module = Module {
    name: "upgrade",
    messages: &[MessageRoute::of::<proto::MsgSoftwareUpgrade>(), MessageRoute::of::<proto::MsgCancelUpgrade>()],
    refused: &[],
    queries: &[
        QueryRoute::of::<proto::QueryCurrentPlanRequest>(),
        QueryRoute::of::<proto::QueryAppliedPlanRequest>(),
        QueryRoute::of::<proto::QueryAuthorityRequest>(),
    ],
    begin_block: no_hook,
    end_block: no_hook,
    genesis: |_, _, _| Ok(()),
};

/// What a program does to the state that the one before it has left.
#[derive(Clone, Copy, Debug)]
pub struct Migration {
    /// The plan's name.
    pub name: &'static str,
    /// Rewrites the state, before anything else of the block.
    pub run: fn(&mut Context, &mut dyn StateWrite) -> Result<(), TxError>,
}

/// The upgrades that this program knows, oldest first. A name stays here for as long as nodes may replay its height.
pub const MIGRATIONS: &[Migration] = &[];

/// What a node knows of upgrades.
#[derive(Clone, Debug)]
pub struct Upgrades {
    /// The migrations of its program.
    pub known: &'static [Migration],
    /// Heights whose plan is passed over, by agreement of the operators outside of the chain.
    pub skipped: Vec<u64>,
}

impl Default for Upgrades {
    /// Those of this program, none passed over.
    fn default() -> Self {
        Upgrades { known: MIGRATIONS, skipped: Vec::new() }
    }
}

/// Why this program must not execute a block.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Halt {
    /// The plan's height is reached, and this program does not know it.
    #[error(
        "UPGRADE \"{name}\" NEEDED at height {height}: {info}; this program ends here, nothing of the block was committed: \
         start the program that knows \"{name}\" on the same data"
    )]
    Needed {
        /// The plan's name.
        name: String,
        /// The plan's height.
        height: u64,
        /// What the plan says of where to find the program.
        info: String,
    },
    /// The plan's height is not reached, and this program is the one for after it.
    #[error(
        "this program is the one for upgrade \"{name}\", which is planned for height {height}: run the one before until \
         then (this is block {now})"
    )]
    Early {
        /// The plan's name.
        name: String,
        /// The plan's height.
        height: u64,
        /// The block.
        now: u64,
    },
    /// An upgrade was done that this program does not know: it is older than the state.
    #[error("upgrade \"{name}\" was done at height {height}, and this program does not know it: run a newer one")]
    Old {
        /// The upgrade's name.
        name: String,
        /// Its height.
        height: u64,
    },
    /// A migration that fails.
    #[error("the migration \"{name}\" failed, which it never may: {error}")]
    Migration {
        /// The upgrade's name.
        name: String,
        /// What it said.
        error: TxError,
    },
}

/// The plan that waits.
pub fn plan(state: &dyn StateRead) -> Option<Plan> {
    Some(Plan::decode(state.get(&[PLAN])?.as_slice()).expect("plans are written encoded"))
}

fn done_key(name: &str) -> Vec<u8> {
    KeyBuilder::new(DONE).bytes(name.as_bytes()).finish()
}

fn height(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes.try_into().expect("heights are written with 8 bytes"))
}

/// The height at which an upgrade was done.
pub fn done(state: &dyn StateRead, name: &str) -> Option<u64> {
    state.get(&done_key(name)).map(|bytes| height(&bytes))
}

/// The upgrade that was done last.
fn newest(state: &dyn StateRead) -> Option<(String, u64)> {
    let rows = state.iter_prefix(&[DONE]);
    rows.map(|(key, value)| (String::from_utf8_lossy(&key[1..]).into_owned(), height(&value))).max_by_key(|row| row.1)
}

/// What stands before a block: the plan is due, or it is not; this program is the right one, or it stops.
///
/// # Errors
/// Why the block must not be executed.
pub fn before_block(ctx: &mut Context, state: &mut dyn StateWrite, upgrades: &Upgrades) -> Result<(), Halt> {
    let known = |name: &str| upgrades.known.iter().find(|migration| migration.name == name);
    if let Some((name, height)) = newest(state)
        && known(&name).is_none()
    {
        return Err(Halt::Old { name, height });
    }
    let Some(plan) = plan(state) else { return Ok(()) };
    let (name, height) = (plan.name, plan.height.max(0).unsigned_abs());
    let skipped = upgrades.skipped.contains(&height);
    match known(&name) {
        None if ctx.height < height => Ok(()),
        Some(_) if ctx.height < height && skipped => Ok(()),
        Some(_) if ctx.height < height => Err(Halt::Early { name, height, now: ctx.height }),
        _ if skipped => {
            tracing::warn!(name, height, "the upgrade is passed over");
            state.delete(vec![PLAN]);
            Ok(())
        }
        None => Err(Halt::Needed { name, height, info: plan.info }),
        Some(migration) => {
            tracing::info!(name, height, "the upgrade begins");
            (migration.run)(ctx, state).map_err(|error| Halt::Migration { name: name.clone(), error })?;
            state.delete(vec![PLAN]);
            state.put(done_key(&name), ctx.height.to_be_bytes().to_vec());
            Ok(())
        }
    }
}
