// A payment as Keplr makes one: CosmJS signs it without a connection, everything else goes by REST.
// Usage: node rest.mjs REST_URL USER_SECRET_HEX   (from the folder where its packages are installed)
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { DirectSecp256k1Wallet } from "@cosmjs/proto-signing";
import { SigningStargateClient, coins } from "@cosmjs/stargate";
import { TxRaw } from "cosmjs-types/cosmos/tx/v1beta1/tx";

const [rest, secret] = process.argv.slice(2);
assert.ok(rest && secret, "usage: node rest.mjs REST_URL USER_SECRET_HEX");
const ask = async (path, body) => {
  const answer = await fetch(rest + path, body && { method: "POST", body: JSON.stringify(body) });
  return [answer.status, await answer.json()];
};

const wallet = await DirectSecp256k1Wallet.fromKey(Buffer.from(secret, "hex"), "poly");
const [{ address }] = await wallet.getAccounts();
const [{ address: to }] = await (await DirectSecp256k1Wallet.fromKey(new Uint8Array(32).fill(8), "poly")).getAccounts();
const [, info] = await ask("/cosmos/base/tendermint/v1beta1/node_info");
const balance = async () => {
  const [, found] = await ask(`/cosmos/bank/v1beta1/balances/${to}/by_denom?denom=uplk`);
  return BigInt(found.balance.amount);
};
const before = await balance();
const [, found] = await ask(`/cosmos/auth/v1beta1/accounts/${address}`);
const offline = await SigningStargateClient.offline(wallet);
const payment = {
  typeUrl: "/cosmos.bank.v1beta1.MsgSend",
  value: { fromAddress: address, toAddress: to, amount: coins(7, "uplk") },
};
const signed = await offline.sign(address, [payment], { amount: coins(5_000, "uplk"), gas: "200000" }, "by REST", {
  accountNumber: Number(found.account.account_number),
  sequence: Number(found.account.sequence),
  chainId: info.default_node_info.network,
});
const txBytes = Buffer.from(TxRaw.encode(signed).finish()).toString("base64");
const [, simulated] = await ask("/cosmos/tx/v1beta1/simulate", { tx_bytes: txBytes });
assert.ok(Number(simulated.gas_info.gas_used) > 10_000, JSON.stringify(simulated));
const [, posted] = await ask("/cosmos/tx/v1beta1/txs", { tx_bytes: txBytes, mode: "BROADCAST_MODE_SYNC" });
assert.equal(posted.tx_response.code, 0, posted.tx_response.raw_log);
for (let tries = 0; ; tries++) {
  const [status, page] = await ask(`/cosmos/tx/v1beta1/txs/${posted.tx_response.txhash}`);
  if (status === 200) {
    assert.equal(page.tx_response.code, 0);
    assert.equal(page.tx.body.messages[0].to_address, to);
    assert.equal(page.tx.body.memo, "by REST");
    break;
  }
  assert.ok(status === 404 && tries < 300, JSON.stringify(page));
  await new Promise((resolve) => setTimeout(resolve, 200));
}
assert.equal(await balance(), before + 7n);
console.log(`CosmJS: signed offline, sent ${posted.tx_response.txhash} by REST`);
process.exit(0);
