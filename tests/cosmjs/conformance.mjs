// Unmodified CosmJS against a running network: connects, reads a balance, simulates, sends, finds its transaction.
// Usage: node conformance.mjs RPC_URL USER_SECRET_HEX   (from the folder where its packages are installed)
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { Secp256k1Wallet } from "@cosmjs/amino";
import { DirectSecp256k1Wallet } from "@cosmjs/proto-signing";
import {
  GasPrice,
  QueryClient,
  SigningStargateClient,
  StargateClient,
  coin,
  coins,
  setupDistributionExtension,
  setupMintExtension,
  setupSlashingExtension,
  setupStakingExtension,
} from "@cosmjs/stargate";
import { Comet38Client } from "@cosmjs/tendermint-rpc";

const [rpc, secret] = process.argv.slice(2);
assert.ok(rpc && secret, "usage: node conformance.mjs RPC_URL USER_SECRET_HEX");

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

const client = await SigningStargateClient.connectWithSigner(rpc, wallet, { gasPrice: GasPrice.fromString("0.025uplk") });
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
const poor = await SigningStargateClient.connectWithSigner(rpc, other, { gasPrice: GasPrice.fromString("0.025uplk") });
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
  { gasPrice: GasPrice.fromString("0.025uplk") },
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

console.log(`CosmJS: chain ${chainId}, simulated ${gas} gas, sent ${sent.transactionHash} in block ${sent.height}`);
console.log(`CosmJS: staked with ${validator}, directly and by amino JSON`);
client.disconnect();
amino.disconnect();
comet.disconnect();
reader.disconnect();
poor.disconnect();
process.exit(0); // idle connections would hold the process for a minute
