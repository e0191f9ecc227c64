// Unmodified CosmJS against a running network: connects, reads a balance, simulates, sends, finds its transaction.
// Usage: node conformance.mjs RPC_URL USER_SECRET_HEX   (from the folder where its packages are installed)
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { DirectSecp256k1Wallet } from "@cosmjs/proto-signing";
import { GasPrice, SigningStargateClient, StargateClient, coins } from "@cosmjs/stargate";

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
console.log(`CosmJS: chain ${chainId}, simulated ${gas} gas, sent ${sent.transactionHash} in block ${sent.height}`);
client.disconnect();
reader.disconnect();
poor.disconnect();
process.exit(0); // idle connections would hold the process for a minute
