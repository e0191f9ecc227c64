//! The requirements 1 to 13 that CometBFT has of an application (`spec/abci/abci++_app_requirements.md`, v0.38), each as a
//! check of any application. The ledger passes all of them; for each there is a broken ledger, which breaks that one on
//! purpose, and which its check must find out.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bytes::Bytes;
use tendermint_abci::Application;
use tendermint_proto::google::protobuf::Timestamp;
use tendermint_proto::v0_38::abci as pb;
use tendermint_proto::v0_38::abci::response_verify_vote_extension::VerifyStatus;

use polylink_protocol::DENOM;
use polylink_protocol::cosmos::cosmos::bank::v1beta1::MsgSend;
use polylink_protocol::cosmos::cosmos::base::v1beta1::Coin;
use polylink_protocol::tx::any;

use crate::app::App;
use crate::testing::{GENESIS_SECONDS, TestChain, genesis, key};

/// What a ledger does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// Executes what it proposes.
    SlowProposal,
    OversizedProposal,
    ProposesWhatItRejects,
    /// Its judgement of a proposal changes from call to call.
    FickleProposal,
    /// Its judgement of a proposal is its own.
    PersonalProposal,
    RefusesExtensions,
    FickleExtension,
    PersonalExtension,
    ProposalLeavesTraces,
    ExecutesExtensions,
    PersonalState,
    PersonalResults,
    OscillatingCheck,
}

/// The ledger, with a fault.
#[derive(Clone)]
struct Faulty {
    app: App,
    fault: Fault,
    /// Which process this is: what no result may depend on.
    process: i64,
    calls: Arc<AtomicI64>,
}

impl Faulty {
    fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    fn called(&self) -> i64 {
        self.calls.fetch_add(1, Ordering::SeqCst)
    }
}

impl Application for Faulty {
    fn check_tx(&self, request: pb::RequestCheckTx) -> pb::ResponseCheckTx {
        let mut answer = self.app.check_tx(request);
        if self.is(Fault::OscillatingCheck) && self.app.store().height().is_multiple_of(2) {
            answer.code = 1;
        }
        answer
    }
    fn prepare_proposal(&self, mut request: pb::RequestPrepareProposal) -> pb::ResponsePrepareProposal {
        if self.is(Fault::SlowProposal) {
            let block = block(self, request.txs.clone());
            let results = self.app.finalize_block(block).tx_results;
            request.txs = request.txs.into_iter().zip(results).filter(|(_, r)| r.code == 0).map(|(tx, _)| tx).collect();
        }
        if self.is(Fault::OversizedProposal) {
            request.max_tx_bytes += 100;
        }
        if self.is(Fault::ProposesWhatItRejects) {
            return pb::ResponsePrepareProposal { txs: request.txs };
        }
        self.app.prepare_proposal(request)
    }
    fn process_proposal(&self, request: pb::RequestProcessProposal) -> pb::ResponseProcessProposal {
        let wrong = self.is(Fault::FickleProposal) && self.called() % 2 == 1
            || self.is(Fault::PersonalProposal) && self.process == 1;
        if self.is(Fault::ProposalLeavesTraces) {
            self.app.finalize_block(block(self, request.txs.clone()));
            self.app.commit();
        }
        let answer = self.app.process_proposal(request);
        if wrong { pb::ResponseProcessProposal { status: 3 - answer.status } } else { answer }
    }
    fn extend_vote(&self, request: pb::RequestExtendVote) -> pb::ResponseExtendVote {
        match self.is(Fault::RefusesExtensions) {
            true => pb::ResponseExtendVote { vote_extension: b"mine".as_slice().into() },
            false => self.app.extend_vote(request),
        }
    }
    fn verify_vote_extension(&self, request: pb::RequestVerifyVoteExtension) -> pb::ResponseVerifyVoteExtension {
        let wrong = self.is(Fault::FickleExtension) && self.called() % 2 == 1
            || self.is(Fault::PersonalExtension) && self.process == 1;
        if self.is(Fault::ExecutesExtensions) {
            self.calls.fetch_add(request.vote_extension.len() as i64, Ordering::SeqCst);
        }
        let answer = self.app.verify_vote_extension(request);
        if wrong { pb::ResponseVerifyVoteExtension { status: 3 - answer.status } } else { answer }
    }
    fn finalize_block(&self, mut request: pb::RequestFinalizeBlock) -> pb::ResponseFinalizeBlock {
        let personal = if self.is(Fault::PersonalState) { self.process } else { 0 };
        let extensions = if self.is(Fault::ExecutesExtensions) { self.calls.load(Ordering::SeqCst) } else { 0 };
        if let Some(time) = &mut request.time {
            time.seconds += personal + extensions;
        }
        let mut answer = self.app.finalize_block(request);
        if self.is(Fault::PersonalResults) {
            answer.tx_results.iter_mut().for_each(|result| result.gas_used += self.process);
        }
        answer
    }
    fn commit(&self) -> pb::ResponseCommit {
        self.app.commit()
    }
}

/// The next block with these transactions.
fn block(ledger: &Faulty, txs: Vec<Bytes>) -> pb::RequestFinalizeBlock {
    let height = ledger.app.store().height() as i64 + 1;
    let time = Some(Timestamp { seconds: GENESIS_SECONDS + height, nanos: 0 });
    pb::RequestFinalizeBlock { height, txs, time, ..Default::default() }
}

/// Two processes of one chain, at the same height.
struct Network {
    chains: [TestChain; 2],
    ledgers: [Faulty; 2],
}

fn network(fault: Fault) -> Network {
    let chains = [0, 1].map(|_| {
        let mut chain = TestChain::start(&genesis(4));
        chain.advance(2);
        chain
    });
    let ledger = |process: usize| Faulty {
        app: chains[process].app().clone(),
        fault,
        process: process as i64,
        calls: Arc::default(),
    };
    let ledgers = [ledger(0), ledger(1)];
    Network { chains, ledgers }
}

impl Network {
    fn pay(&self, from: u8, ahead: u64, amount: u128) -> Bytes {
        let message = MsgSend {
            from_address: key(from).address().account(),
            to_address: key(4).address().account(),
            amount: vec![Coin { denom: DENOM.into(), amount: amount.to_string() }],
        };
        self.chains[0].sign_after(from, ahead, vec![any(&message)]).into()
    }

    /// A mempool with everything in it: good, underfunded, out of sequence, no transaction at all.
    fn mempool(&self) -> Vec<Bytes> {
        let mut txs: Vec<Bytes> = (0..6).map(|ahead| self.pay(1, ahead, 5)).collect();
        txs.insert(2, self.pay(2, 0, u128::from(u64::MAX)));
        txs.insert(4, self.pay(3, 9, 5));
        txs.insert(5, b"no transaction".as_slice().into());
        txs
    }

    /// Blocks of any proposer, byzantine ones among them.
    fn proposals(&self) -> Vec<Vec<Bytes>> {
        let txs = self.mempool();
        let good = self.ledgers[0].app.prepare_proposal(proposal(&txs, 1 << 20)).txs;
        let gas =
            (0..=crate::tx::BLOCK_GAS_MAX / crate::testing::GAS_LIMIT).map(|ahead| self.pay(1, ahead, 5)).collect();
        let reversed = good.iter().rev().cloned().collect();
        vec![vec![], good.clone(), reversed, vec![good[0].clone(); 2], txs, vec![vec![0xff; 300].into()], gas]
    }
}

fn proposal(txs: &[Bytes], max_tx_bytes: i64) -> pb::RequestPrepareProposal {
    pb::RequestPrepareProposal { txs: txs.to_vec(), max_tx_bytes, ..Default::default() }
}

fn process(ledger: &Faulty, txs: &[Bytes]) -> i32 {
    ledger.process_proposal(pb::RequestProcessProposal { txs: txs.to_vec(), ..Default::default() }).status
}

fn verify(ledger: &Faulty, extension: &[u8]) -> i32 {
    let vote_extension = extension.to_vec().into();
    ledger.verify_vote_extension(pb::RequestVerifyVoteExtension { vote_extension, ..Default::default() }).status
}

const EXTENSIONS: [&[u8]; 3] = [b"", b"something", &[0xff; 1_000]];

type Check = fn(&Network) -> Result<(), String>;

fn hold(holds: bool, what: impl Into<String>) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what.into()) }
}

/// 1: a proposal is not executed while others wait for it. What execution would refuse is in it, then.
fn proposals_are_not_executed(net: &Network) -> Result<(), String> {
    let txs = net.mempool();
    let proposed = net.ledgers[0].prepare_proposal(proposal(&txs, 1 << 20)).txs;
    hold(proposed.contains(&txs[2]) && proposed.contains(&txs[4]), "it knows what execution would refuse")
}

/// 2: the proposal's bytes are within the limit.
fn proposals_fit(net: &Network) -> Result<(), String> {
    let txs = net.mempool();
    let whole: i64 = txs.iter().map(|tx| tx.len() as i64).sum();
    for limit in (0..whole + 200).step_by(37) {
        let proposed = net.ledgers[0].prepare_proposal(proposal(&txs, limit)).txs;
        let size: i64 = proposed.iter().map(|tx| tx.len() as i64).sum();
        hold(size <= limit, format!("{size} bytes for {limit}"))?;
    }
    Ok(())
}

/// 3: what one proposes, the other accepts.
fn proposals_are_accepted(net: &Network) -> Result<(), String> {
    for limit in [0, 700, 1 << 20] {
        let proposed = net.ledgers[0].prepare_proposal(proposal(&net.mempool(), limit)).txs;
        hold(process(&net.ledgers[1], &proposed) == 1, "rejected")?;
    }
    Ok(())
}

/// 4: the judgement of a block depends on it and on the last state alone: not on the calls between.
fn judgements_stand(net: &Network) -> Result<(), String> {
    let ledger = &net.ledgers[0];
    for txs in net.proposals() {
        let first = process(ledger, &txs);
        for tx in net.mempool() {
            ledger.check_tx(pb::RequestCheckTx { tx, r#type: 0 });
        }
        hold(process(ledger, &txs) == first, "another judgement the second time")?;
    }
    Ok(())
}

/// 5: all judge a block alike.
fn judgements_agree(net: &Network) -> Result<(), String> {
    let [one, other] = &net.ledgers;
    let judged: Vec<_> = net.proposals().iter().map(|txs| (process(one, txs), process(other, txs))).collect();
    hold(judged.iter().all(|(one, other)| one == other), format!("{judged:?}"))?;
    hold(judged.iter().any(|(one, _)| *one == 1) && judged.iter().any(|(one, _)| *one == 2), "nothing to tell apart")
}

/// 6: what one extends its vote with, the other accepts.
fn extensions_are_accepted(net: &Network) -> Result<(), String> {
    let extension = net.ledgers[0].extend_vote(pb::RequestExtendVote::default()).vote_extension;
    hold(verify(&net.ledgers[1], &extension) == VerifyStatus::Accept as i32, "rejected")
}

/// 7: the judgement of an extension stands.
fn extension_judgements_stand(net: &Network) -> Result<(), String> {
    let ledger = &net.ledgers[0];
    let judged = EXTENSIONS.map(|extension| (verify(ledger, extension), verify(ledger, extension)));
    hold(judged.iter().all(|(first, second)| first == second), format!("{judged:?}"))
}

/// 8: all judge an extension alike.
fn extension_judgements_agree(net: &Network) -> Result<(), String> {
    let [one, other] = &net.ledgers;
    let judged = EXTENSIONS.map(|extension| (verify(one, extension), verify(other, extension)));
    hold(judged.iter().all(|(one, other)| one == other), format!("{judged:?}"))
}

/// 9: proposals and extensions leave the state as it is, and the block after them what it would have been.
fn proposals_leave_no_trace(net: &Network) -> Result<(), String> {
    let [asked, other] = &net.ledgers;
    let before = asked.app.info(pb::RequestInfo::default());
    for txs in net.proposals() {
        asked.prepare_proposal(proposal(&txs, 1 << 20));
        process(asked, &txs);
    }
    asked.extend_vote(pb::RequestExtendVote::default());
    for extension in EXTENSIONS {
        verify(asked, extension);
    }
    hold(asked.app.info(pb::RequestInfo::default()) == before, "the committed state is another")?;
    let txs = net.mempool();
    hold(
        asked.finalize_block(block(asked, txs.clone())) == other.finalize_block(block(other, txs)),
        "the block is another",
    )
}

/// 10: a block's result does not depend on the extensions that were received.
fn extensions_are_not_executed(net: &Network) -> Result<(), String> {
    let [asked, other] = &net.ledgers;
    for extension in EXTENSIONS {
        verify(asked, extension);
    }
    let txs = net.mempool();
    let hashes = [asked, other].map(|ledger| ledger.finalize_block(block(ledger, txs.clone())).app_hash);
    hold(hashes[0] == hashes[1], "the state is another")
}

/// Executes and commits on both; what came before differs: other transactions in the mempool, proposals, queries.
fn both(net: &Network) -> [pb::ResponseFinalizeBlock; 2] {
    let [one, other] = &net.ledgers;
    let txs = net.mempool();
    for tx in &txs {
        one.check_tx(pb::RequestCheckTx { tx: tx.clone(), r#type: 0 });
    }
    process(one, &txs[..2]);
    other.app.query(pb::RequestQuery { path: "/store/key".into(), data: vec![1].into(), ..Default::default() });
    [one, other].map(|ledger| {
        let answer = ledger.finalize_block(block(ledger, txs.clone()));
        ledger.commit();
        answer
    })
}

/// 11: the next state depends on the last one and the block alone.
fn states_agree(net: &Network) -> Result<(), String> {
    let [one, other] = both(net);
    hold(one.app_hash == other.app_hash, "another hash")?;
    hold(net.chains[0].state().app_hash() == net.chains[1].state().app_hash(), "another state")
}

/// 12: so do the results.
fn results_agree(net: &Network) -> Result<(), String> {
    let [one, other] = both(net);
    hold(one.tx_results.iter().any(|result| result.code == 0), "nothing was executed")?;
    hold(one.tx_results == other.tx_results && one.events == other.events, "other results")
}

/// 13: what CheckTx says of a transaction that waits, asked once a height as the mempool does, becomes one answer for
/// good, the same everywhere. (Asked twice at a height, the second is out of sequence behind the first.)
fn checks_settle(net: &Network) -> Result<(), String> {
    let kinds = [net.pay(1, 0, 5), net.pay(1, 3, 5), net.pay(2, 0, u128::from(u64::MAX)), b"none".as_slice().into()];
    let mut seen = Vec::new();
    for _ in 0..8 {
        let codes = net
            .ledgers
            .each_ref()
            .map(|ledger| kinds.clone().map(|tx| ledger.check_tx(pb::RequestCheckTx { tx, r#type: 1 }).code == 0));
        hold(codes[0] == codes[1], "two processes say different things")?;
        seen.push(codes[0]);
        for ledger in &net.ledgers {
            ledger.finalize_block(block(ledger, vec![]));
            ledger.commit();
        }
    }
    hold(seen[2..].iter().all(|codes| *codes == seen[2]), format!("it oscillates: {seen:?}"))
}

#[test]
fn the_ledger_meets_each_requirement_and_a_broken_one_is_found_out() {
    let requirements: [(u8, Check, Fault); 13] = [
        (1, proposals_are_not_executed, Fault::SlowProposal),
        (2, proposals_fit, Fault::OversizedProposal),
        (3, proposals_are_accepted, Fault::ProposesWhatItRejects),
        (4, judgements_stand, Fault::FickleProposal),
        (5, judgements_agree, Fault::PersonalProposal),
        (6, extensions_are_accepted, Fault::RefusesExtensions),
        (7, extension_judgements_stand, Fault::FickleExtension),
        (8, extension_judgements_agree, Fault::PersonalExtension),
        (9, proposals_leave_no_trace, Fault::ProposalLeavesTraces),
        (10, extensions_are_not_executed, Fault::ExecutesExtensions),
        (11, states_agree, Fault::PersonalState),
        (12, results_agree, Fault::PersonalResults),
        (13, checks_settle, Fault::OscillatingCheck),
    ];
    for (number, check, fault) in requirements {
        assert_eq!(check(&network(Fault::None)), Ok(()), "requirement {number}");
        let found = check(&network(fault));
        assert!(found.is_err(), "requirement {number}: a ledger with {fault:?} passes");
        println!("requirement {number}: {fault:?} is found out: {}", found.unwrap_err());
    }
}
