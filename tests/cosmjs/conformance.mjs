// Unmodified CosmJS against a running network: connects, reads a balance, simulates, sends, finds its transaction.
// Usage: node conformance.mjs RPC_URL USER_SECRET_HEX VALIDATOR_SECRET_HEX   (from the folder where its packages are installed)
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { createHash, generateKeyPairSync } from "node:crypto";
import { Secp256k1Wallet, createMultisigThresholdPubkey, pubkeyToAddress } from "@cosmjs/amino";
import { fromBech32, toBase64, toBech32 } from "@cosmjs/encoding";
import { DirectSecp256k1Wallet, Registry, encodePubkey } from "@cosmjs/proto-signing";
import {
  AminoTypes,
  GasPrice,
  QueryClient,
  SigningStargateClient,
  StargateClient,
  coin,
  coins,
  createDefaultAminoConverters,
  defaultRegistryTypes,
  makeMultisignedTxBytes,
  setupDistributionExtension,
  setupFeegrantExtension,
  setupGovExtension,
  setupMintExtension,
  setupSlashingExtension,
  setupStakingExtension,
} from "@cosmjs/stargate";
import { Comet38Client } from "@cosmjs/tendermint-rpc";
import { BinaryReader, BinaryWriter } from "cosmjs-types/binary";
import { BasicAllowance } from "cosmjs-types/cosmos/feegrant/v1beta1/feegrant";
import { ProposalStatus, TextProposal, VoteOption } from "cosmjs-types/cosmos/gov/v1beta1/gov";
import { MsgUpdateParams } from "cosmjs-types/cosmos/staking/v1beta1/tx";

const [rpc, secret, validatorSecret] = process.argv.slice(2);
assert.ok(rpc && secret && validatorSecret, "usage: node conformance.mjs RPC_URL USER_SECRET_HEX VALIDATOR_SECRET_HEX");

const wallet = await DirectSecp256k1Wallet.fromKey(Buffer.from(secret, "hex"), "poly");
const [{ address }] = await wallet.getAccounts();
const other = await DirectSecp256k1Wallet.fromKey(new Uint8Array(32).fill(7), "poly");
const [{ address: to }] = await other.getAccounts();

const reader = await StargateClient.connect(rpc);
const chainId = await reader.getChainId();
assert.match(chainId, /^polylink/);
assert.ok((await reader.getHeight()) > 0);
await assert.rejects(reader.getAccount("poly1" + "q".repeat(38)), /not a bech32 address/);
const nobody = await DirectSecp256k1Wallet.fromKey(new Uint8Array(32).fill(9), "poly");
assert.equal(await reader.getAccount((await nobody.getAccounts())[0].address), null, "an account that never had a coin");
const before = await reader.getBalance(to, "uplk");
assert.equal(before.denom, "uplk");
const mine = await reader.getBalance(address, "uplk");
assert.ok(BigInt(mine.amount) > 10n ** 8n, `balance of ${address}: ${mine.amount}`);
assert.ok((await reader.getAllBalances(address)).some((coin) => coin.denom === "uplk"));

const options = { gasPrice: GasPrice.fromString("0.025uplk"), broadcastPollIntervalMs: 300 };
const client = await SigningStargateClient.connectWithSigner(rpc, wallet, options);
const account = await client.getAccount(address);
assert.equal(account.address, address);
const message = {
  typeUrl: "/cosmos.bank.v1beta1.MsgSend",
  value: { fromAddress: address, toAddress: to, amount: coins(12345, "uplk") },
};
const gas = await client.simulate(address, [message], "simulated");
assert.ok(gas > 0, "gas of the simulation");
const sent = await client.signAndBroadcast(address, [message], 1.5, "sent by CosmJS");
assert.equal(sent.code, 0, sent.rawLog);
assert.ok(sent.height > 0 && sent.gasUsed > 0n);
const after = await reader.getBalance(to, "uplk");
assert.equal(BigInt(after.amount) - BigInt(before.amount), 12345n);

const found = await reader.getTx(sent.transactionHash);
assert.equal(found?.hash, sent.transactionHash);
assert.equal(found.height, sent.height);
const byEvents = await reader.searchTx(`message.sender='${address}' AND tx.height=${sent.height}`);
assert.ok(byEvents.some((tx) => tx.hash === sent.transactionHash), "found by its sender and height");

assert.equal(await reader.getBalanceStaked(address), null, "nothing is delegated");
const poor = await SigningStargateClient.connectWithSigner(rpc, other, options);
const tooMuch = { ...message, value: { fromAddress: to, toAddress: address, amount: coins("999999999999", "uplk") } };
const codeOf = (fee) =>
  poor.signAndBroadcast(to, [tooMuch], { amount: coins(fee, "uplk"), gas: "200000" }).then(
    (result) => result.code,
    (error) => error.code,
  );
assert.equal(await codeOf(100), 13, "a fee under 0.025 uplk per gas");
assert.equal(await codeOf(5000), 5, "more than there is");
// Staking, by the extensions of the query client and the messages that the client knows.
const comet = await Comet38Client.connect(rpc);
const query = QueryClient.withExtensions(
  comet,
  setupStakingExtension,
  setupDistributionExtension,
  setupSlashingExtension,
  setupMintExtension,
  setupGovExtension,
  setupFeegrantExtension,
);
const { validators } = await query.staking.validators("BOND_STATUS_BONDED");
assert.ok(validators.length > 0);
const validator = validators[0].operatorAddress;
const pool = await query.staking.pool();
assert.ok(BigInt(pool.pool.bondedTokens) > 0n);
assert.equal((await query.staking.params()).params.bondDenom, "uplk");
await assert.rejects(query.staking.delegation(address, validator), /key not found/);

const succeed = async (what, sending) => {
  const result = await sending;
  assert.equal(result.code, 0, `${what}: ${result.rawLog}`);
  return result;
};
await succeed("delegate", client.delegateTokens(address, validator, coin(5_000_000, "uplk"), 1.5));
assert.equal((await reader.getDelegation(address, validator))?.amount, "5000000");
assert.equal((await reader.getBalanceStaked(address))?.amount, "5000000");
assert.equal((await query.staking.delegatorDelegations(address)).delegationResponses.length, 1);
// A message of CosmJS without a helper: to the same validator, which the ledger refuses with the SDK's code.
const nowhere = {
  typeUrl: "/cosmos.staking.v1beta1.MsgBeginRedelegate",
  value: {
    delegatorAddress: address,
    validatorSrcAddress: validator,
    validatorDstAddress: validator,
    amount: coin(1_000_000, "uplk"),
  },
};
const refused = await client.signAndBroadcast(address, [nowhere], { amount: coins(25_000, "uplk"), gas: "1000000" });
assert.equal(refused.code, 29, refused.rawLog);
assert.equal((await query.staking.redelegations(address, "", "")).redelegationResponses.length, 0);
const undelegated = await succeed("undelegate", client.undelegateTokens(address, validator, coin(2_000_000, "uplk"), 1.5));
const unbonding = await query.staking.unbondingDelegation(address, validator);
assert.equal(unbonding.unbond.entries[0].balance, "2000000");
const cancel = {
  typeUrl: "/cosmos.staking.v1beta1.MsgCancelUnbondingDelegation",
  value: {
    delegatorAddress: address,
    validatorAddress: validator,
    amount: coin(2_000_000, "uplk"),
    creationHeight: BigInt(undelegated.height),
  },
};
await succeed("cancel", client.signAndBroadcast(address, [cancel], 1.5));
const rewards = await query.distribution.delegationTotalRewards(address);
assert.equal(rewards.rewards[0].validatorAddress, validator);
const withdrawn = await succeed("withdraw", client.withdrawRewards(address, validator, 1.5));
assert.ok(withdrawn.events.some((event) => event.type === "withdraw_rewards"));
// Hardware wallets sign the same messages as amino JSON.
const amino = await SigningStargateClient.connectWithSigner(
  rpc,
  await Secp256k1Wallet.fromKey(Buffer.from(secret, "hex"), "poly"),
  options,
);
await succeed("amino delegate", amino.delegateTokens(address, validator, coin(1_000_000, "uplk"), 1.5));
await succeed("amino withdraw", amino.withdrawRewards(address, validator, 1.5));
assert.equal((await reader.getDelegation(address, validator))?.amount, "6000000");
await query.distribution.communityPool();
const tax = (await query.distribution.params()).params.communityTax;
assert.equal(BigInt(tax), 20_000_000_000_000_000n, "2 %");
const infos = await query.slashing.signingInfos();
assert.ok(infos.info.length > 0 && infos.info[0].address.startsWith("polyvalcons1"));
assert.ok((await query.mint.inflation()).toFloatApproximation() >= 0);
assert.equal((await query.mint.params()).mintDenom, "uplk");

// Stake moves to a second validator, which this account makes. (It never signs; one vote of thousands.)
const valoper = (account) => toBech32("polyvaloper", fromBech32(account).data);
const consensusKey = Buffer.from(generateKeyPairSync("ed25519").publicKey.export({ format: "jwk" }).x, "base64url");
const decimal = (percent) => `${percent}0000000000000000`;
const made = {
  typeUrl: "/cosmos.staking.v1beta1.MsgCreateValidator",
  value: {
    description: { moniker: "by CosmJS", identity: "", website: "", securityContact: "", details: "" },
    commission: { rate: decimal(10), maxRate: decimal(20), maxChangeRate: decimal(1) },
    minSelfDelegation: "1",
    delegatorAddress: "",
    validatorAddress: valoper(address),
    pubkey: encodePubkey({ type: "tendermint/PubKeyEd25519", value: toBase64(consensusKey) }),
    value: coin(2_000_000, "uplk"),
  },
};
await succeed("create validator", client.signAndBroadcast(address, [made], 1.5));
const move = { ...nowhere, value: { ...nowhere.value, validatorDstAddress: valoper(address) } };
await succeed("redelegate", client.signAndBroadcast(address, [move], 1.5));
assert.equal((await reader.getDelegation(address, valoper(address)))?.amount, "3000000");
const moved = await query.staking.redelegations(address, validator, valoper(address));
assert.equal(moved.redelegationResponses[0].entries[0].balance, "1000000");
const height = await reader.getHeight();
const past = await query.staking.historicalInfo(height - 2);
assert.equal(Number(past.hist.header.height), height - 2);
assert.ok(past.hist.valset.some((one) => one.operatorAddress === validator));

// Several receivers.
const receiver = toBech32("poly", new Uint8Array(20).fill(11));
const multi = (each) => ({
  typeUrl: "/cosmos.bank.v1beta1.MsgMultiSend",
  value: {
    inputs: [{ address, coins: coins(2 * each, "uplk") }],
    outputs: [to, receiver].map((one) => ({ address: one, coins: coins(each, "uplk") })),
  },
});
await succeed("multi-send", client.signAndBroadcast(address, [multi(100_000)], 1.5));
assert.equal((await reader.getBalance(receiver, "uplk")).amount, "100000");

// An account whose fees another one pays.
const grant = {
  typeUrl: "/cosmos.feegrant.v1beta1.MsgGrantAllowance",
  value: {
    granter: address,
    grantee: to,
    allowance: {
      typeUrl: "/cosmos.feegrant.v1beta1.BasicAllowance",
      value: BasicAllowance.encode(BasicAllowance.fromPartial({ spendLimit: coins(1_000_000, "uplk") })).finish(),
    },
  },
};
await succeed("grant", client.signAndBroadcast(address, [grant], 1.5));
const had = BigInt((await reader.getBalance(to, "uplk")).amount);
const back = { ...message, value: { fromAddress: to, toAddress: address, amount: coins(1, "uplk") } };
const granted = { amount: coins(10_000, "uplk"), gas: "400000", granter: address };
await succeed("a granted fee", poor.signAndBroadcast(to, [back], granted));
assert.equal(BigInt((await reader.getBalance(to, "uplk")).amount), had - 1n, "the fee was the granter's");
const left = (await query.feegrant.allowance(address, to)).allowance;
assert.equal(BasicAllowance.decode(left.allowance.value).spendLimit[0].amount, "990000");

// An account of three keys, two of which sign, each on its own machine.
const parts = await Promise.all([21, 22, 23].map((n) => Secp256k1Wallet.fromKey(new Uint8Array(32).fill(n), "poly")));
const keys = await Promise.all(parts.map(async (part) => (await part.getAccounts())[0]));
const pubkey = createMultisigThresholdPubkey(
  keys.map((key) => ({ type: "tendermint/PubKeySecp256k1", value: toBase64(key.pubkey) })),
  2,
);
const together = pubkeyToAddress(pubkey, "poly");
await succeed("fund", client.sendTokens(address, together, coins(1_000_000, "uplk"), 1.5));
const spend = { ...message, value: { fromAddress: together, toAddress: to, amount: coins(7, "uplk") } };
const fee = { amount: coins(10_000, "uplk"), gas: "400000" };
const { accountNumber, sequence } = await reader.getAccount(together);
const signatures = new Map();
let bodyBytes;
for (const index of [0, 2]) {
  const signer = await SigningStargateClient.offline(parts[index]);
  const signed = await signer.sign(keys[index].address, [spend], fee, "", { accountNumber, sequence, chainId });
  bodyBytes = signed.bodyBytes;
  signatures.set(keys[index].address, signed.signatures[0]);
}
await succeed("multisig", reader.broadcastTx(makeMultisignedTxBytes(pubkey, sequence, fee, bodyBytes, signatures)));
signatures.delete(keys[2].address);
await assert.rejects(
  reader.broadcastTx(makeMultisignedTxBytes(pubkey, sequence + 1, fee, bodyBytes, signatures)),
  (error) => error.code === 4,
  "one of two is not enough",
);

// An account whose coins vest.
const fresh = (name) => toBech32("poly", createHash("sha256").update(`${name} ${Date.now()}`).digest().subarray(0, 20));
const [vestingAddress, delayedAddress] = [fresh("evenly"), fresh("at the end")];
const vest = {
  typeUrl: "/cosmos.vesting.v1beta1.MsgCreateVestingAccount",
  value: {
    fromAddress: address,
    toAddress: vestingAddress,
    amount: coins(5_000, "uplk"),
    endTime: BigInt(Math.floor(Date.now() / 1000) + 3600),
    delayed: false,
  },
};
await succeed("vesting account", client.signAndBroadcast(address, [vest], 1.5));
assert.equal((await reader.getAccount(vestingAddress))?.address, vestingAddress, "CosmJS reads its kind");
assert.equal((await reader.getBalance(vestingAddress, "uplk")).amount, "5000");
const late = { ...vest, value: { ...vest.value, toAddress: delayedAddress, delayed: true } };
await succeed("delayed by amino JSON", amino.signAndBroadcast(address, [late], 1.5));
assert.equal((await reader.getAccount(delayedAddress))?.address, delayedAddress);

// Governance: a text and a change of a parameter, proposed directly, voted on directly and by amino JSON.
const elector = await Secp256k1Wallet.fromKey(Buffer.from(validatorSecret, "hex"), "poly");
const [{ address: electorAddress }] = await elector.getAccounts();
const electing = await SigningStargateClient.connectWithSigner(rpc, elector, options);
const proposalOf = (result) => {
  const events = result.events.filter((event) => event.type === "submit_proposal").flatMap((event) => event.attributes);
  return BigInt(events.find((attribute) => attribute.key === "proposal_id").value);
};
const text = {
  typeUrl: "/cosmos.gov.v1beta1.MsgSubmitProposal",
  value: {
    content: {
      typeUrl: "/cosmos.gov.v1beta1.TextProposal",
      value: TextProposal.encode(TextProposal.fromPartial({ title: "A text", description: "From CosmJS" })).finish(),
    },
    initialDeposit: coins(1_000_000, "uplk"),
    proposer: electorAddress,
  },
};
const textId = proposalOf(await succeed("propose by amino JSON", electing.signAndBroadcast(electorAddress, [text], 1.5)));
assert.equal((await query.gov.proposal(textId)).proposal.status, ProposalStatus.PROPOSAL_STATUS_DEPOSIT_PERIOD);
const { depositParams } = await query.gov.params("deposit");
assert.equal(depositParams.minDeposit[0].amount, "10000000");
const { tallyParams } = await query.gov.params("tallying");
assert.equal(Buffer.from(tallyParams.quorum).toString(), "334000000000000000");
assert.ok(Number((await query.gov.params("voting")).votingParams.votingPeriod.seconds) > 0);
const put = {
  typeUrl: "/cosmos.gov.v1beta1.MsgDeposit",
  value: { proposalId: textId, depositor: address, amount: coins(9_000_000, "uplk") },
};
await succeed("deposit", client.signAndBroadcast(address, [put], 1.5));
assert.equal((await query.gov.deposit(textId, address)).deposit.amount[0].amount, "9000000");
assert.equal((await query.gov.deposits(textId)).deposits.length, 2);
const govAddress = toBech32("poly", createHash("sha256").update("gov").digest().subarray(0, 20));
const { params: stakingParams } = await query.staking.params();
const change = {
  typeUrl: "/cosmos.gov.v1.MsgSubmitProposal",
  value: {
    messages: [
      {
        typeUrl: "/cosmos.staking.v1beta1.MsgUpdateParams",
        value: MsgUpdateParams.encode({ authority: govAddress, params: { ...stakingParams, maxEntries: 9 } }).finish(),
      },
    ],
    initialDeposit: coins(10_000_000, "uplk"),
    proposer: address,
    metadata: "",
    title: "More entries",
    summary: "Nine at a time",
    expedited: false,
  },
};
const changeId = proposalOf(await succeed("propose a change", client.signAndBroadcast(address, [change], 1.5)));
const votes = [textId, changeId].map((proposalId) => ({
  typeUrl: "/cosmos.gov.v1beta1.MsgVote",
  value: { proposalId, voter: electorAddress, option: VoteOption.VOTE_OPTION_YES },
}));
await succeed("vote by amino JSON", electing.signAndBroadcast(electorAddress, votes, 1.5));
const weighted = {
  typeUrl: "/cosmos.gov.v1beta1.MsgVoteWeighted",
  value: {
    proposalId: textId,
    voter: address,
    options: [
      { option: VoteOption.VOTE_OPTION_ABSTAIN, weight: decimal(40) },
      { option: VoteOption.VOTE_OPTION_NO, weight: decimal(60) },
    ],
  },
};
await succeed("vote with weights", client.signAndBroadcast(address, [weighted], 1.5));
assert.equal((await query.gov.vote(textId, address)).vote.options[1].weight, decimal(60));
assert.equal((await query.gov.votes(textId)).votes.length, 2);
assert.ok(BigInt((await query.gov.tally(changeId)).tally.yes) > 0n);
const voting = await query.gov.proposals(ProposalStatus.PROPOSAL_STATUS_VOTING_PERIOD, "", electorAddress);
assert.ok(voting.proposals.some((proposal) => proposal.proposalId === textId));
for (const id of [textId, changeId]) {
  let status;
  for (const begun = Date.now(); Date.now() - begun < 60_000; await new Promise((done) => setTimeout(done, 500))) {
    ({ status } = (await query.gov.proposal(id)).proposal);
    if (status !== ProposalStatus.PROPOSAL_STATUS_VOTING_PERIOD) break;
  }
  assert.equal(status, ProposalStatus.PROPOSAL_STATUS_PASSED, `proposal ${id}`);
}
assert.equal((await query.staking.params()).params.maxEntries, 9, "what was decided is done");

// Our own messages, registered as those of any chain: a session with a gateway is opened directly and topped up by amino JSON.
const KINDS = { string: 2, bytes: 2, uint32: 0, uint64: 0 };
/** A type of numbered fields, `{number: [name, kind]}`, in the form that CosmJS's registry takes. */
const typeOf = (fields) => ({
  fromPartial: (partial) => ({ ...partial }),
  encode: (message, writer = BinaryWriter.create()) => {
    for (const [number, [name, kind]] of Object.entries(fields)) {
      if (message[name] !== undefined) writer.uint32((Number(number) << 3) | KINDS[kind])[kind](message[name]);
    }
    return writer;
  },
  decode: (bytes) => {
    const [reader, message] = [new BinaryReader(bytes), {}];
    while (reader.pos < reader.len) {
      const tag = reader.uint32();
      const [name, kind] = fields[tag >>> 3] ?? [];
      if (name) message[name] = reader[kind]();
      else reader.skipType(tag & 7);
    }
    return message;
  },
});
const MsgOpenSession = typeOf({
  1: ["payer", "string"],
  2: ["payee", "string"],
  3: ["spendKey", "bytes"],
  4: ["deposit", "string"],
  6: ["window", "uint32"],
  7: ["expiryEpoch", "uint64"],
});
const MsgTopUp = typeOf({ 1: ["payer", "string"], 2: ["session", "uint64"], 3: ["amount", "string"] });
const Session = typeOf({ 1: ["id", "uint64"], 2: ["payer", "string"], 6: ["deposit", "string"], 7: ["cap", "string"] });
const Id = typeOf({ 1: ["session", "uint64"] });
const registry = new Registry([
  ...defaultRegistryTypes,
  ["/polylink.market.v1.MsgOpenSession", MsgOpenSession],
  ["/polylink.market.v1.MsgTopUp", MsgTopUp],
]);
const aminoTypes = new AminoTypes({
  ...createDefaultAminoConverters(),
  "/polylink.market.v1.MsgTopUp": {
    aminoType: "polylink/market/TopUp",
    toAmino: ({ payer, session, amount }) => ({ payer, session: session.toString(), amount }),
    fromAmino: ({ payer, session, amount }) => ({ payer, session: BigInt(session), amount }),
  },
});
const ours = await SigningStargateClient.connectWithSigner(rpc, wallet, { ...options, registry });
const spendKey = Buffer.from(generateKeyPairSync("ed25519").publicKey.export({ format: "jwk" }).x, "base64url");
const open = {
  typeUrl: "/polylink.market.v1.MsgOpenSession",
  value: { payer: address, payee: fresh("a gateway"), spendKey, deposit: "2000000", window: 8, expiryEpoch: 50_000n },
};
const opened = await succeed("open a session", ours.signAndBroadcast(address, [open], 1.5));
assert.equal(opened.msgResponses[0].typeUrl, "/polylink.market.v1.MsgOpenSessionResponse");
const { session } = Id.decode(opened.msgResponses[0].value);
const byAmino = await SigningStargateClient.connectWithSigner(
  rpc,
  await Secp256k1Wallet.fromKey(Buffer.from(secret, "hex"), "poly"),
  { ...options, registry, aminoTypes },
);
const topUp = { typeUrl: "/polylink.market.v1.MsgTopUp", value: { payer: address, session, amount: "1000000" } };
await succeed("top up by amino JSON", byAmino.signAndBroadcast(address, [topUp], 1.5));
const asked = await query.queryAbci("/polylink.market.v1.Query/Session", Id.encode({ session }).finish());
const held = Session.decode(typeOf({ 1: ["session", "bytes"] }).decode(asked.value).session);
assert.deepEqual([held.id, held.payer, held.deposit, held.cap], [session, address, "3000000", "3000000"]);
const unknown = await ours.signAndBroadcast(address, [{ ...topUp, value: { ...topUp.value, session: 999_999n } }], {
  amount: coins(25_000, "uplk"),
  gas: "1000000",
});
assert.ok(unknown.code !== 0 && /session/.test(unknown.rawLog), unknown.rawLog);

console.log(`CosmJS: chain ${chainId}, simulated ${gas} gas, sent ${sent.transactionHash} in block ${sent.height}`);
console.log(`CosmJS: staked with ${validator}, directly and by amino JSON`);
console.log(`CosmJS: opened session ${session} by messages of our own, in direct mode and by amino JSON`);
console.log(`CosmJS: redelegated, several receivers, granted fees, two of three keys, vesting, proposals ${textId} and ${changeId}`);
client.disconnect();
electing.disconnect();
amino.disconnect();
ours.disconnect();
byAmino.disconnect();
comet.disconnect();
reader.disconnect();
poor.disconnect();
process.exit(0); // idle connections would hold the process for a minute
