"""Python's own gRPC (C core) against a running network, knowing nothing but what reflection tells: services and messages,
queries and their heights, a payment from its signing to its page, and every kind of wrong call.

Usage: grpc_client.py HOST:PORT ACCOUNT_SECRET_HEX
"""

import hashlib
import sys
import time

import grpc
from ecdsa import SECP256k1, SigningKey
from ecdsa.util import sigencode_string_canonize
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

SERVICES = {
    "cosmos.auth.v1beta1.Query", "cosmos.bank.v1beta1.Query", "cosmos.base.node.v1beta1.Service",
    "cosmos.base.tendermint.v1beta1.Service", "cosmos.gov.v1.Query", "cosmos.staking.v1beta1.Query",
    "cosmos.tx.v1beta1.Service", "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection", "polylink.market.v1.Query", "polylink.tiqe.v1.Query",
}
HEIGHT = "x-cosmos-block-height"
PATIENCE_SECONDS = 60
CODE = grpc.StatusCode


class Chain:
    """Calls methods by their names."""

    def __init__(self, address):
        self.channel = grpc.insecure_channel(address)
        self.files = ProtoReflectionDescriptorDatabase(self.channel)
        self.pool = descriptor_pool.DescriptorPool(self.files)

    def message(self, name, **fields):
        """A message of this name."""
        return message_factory.GetMessageClass(self.pool.FindMessageTypeByName(name))(**fields)

    def stub(self, path):
        """The call and the type of its request."""
        service, method = path.split("/")
        found = self.pool.FindServiceByName(service).FindMethodByName(method)
        request, answer = map(message_factory.GetMessageClass, (found.input_type, found.output_type))
        call = self.channel.unary_unary(f"/{path}", request.SerializeToString, answer.FromString)
        return call, request

    def at(self, path, state=None, **fields):
        """The answer from the state after this height, the newest if none is named; and the height that was read."""
        call, request = self.stub(path)
        metadata = None if state is None else [(HEIGHT, str(state))]
        answer, done = call.with_call(request(**fields), timeout=PATIENCE_SECONDS, metadata=metadata)
        return answer, dict(done.initial_metadata()).get(HEIGHT)

    def ask(self, path, **fields):
        """The answer."""
        return self.at(path, **fields)[0]

    def raw(self, path, request):
        """A call with bytes, right or wrong."""
        return self.channel.unary_unary(path)(request, timeout=PATIENCE_SECONDS)


def refused(code, words, call, *given, **fields):
    """The call fails with this code and words."""
    try:
        call(*given, **fields)
    except grpc.RpcError as error:
        assert error.code() == code and words in error.details(), f"{given} {sorted(fields)}: {error.code()} {error.details()}"
        return
    raise AssertionError(f"{given} {sorted(fields)} was not refused")


def bech32(prefix, data):
    """An address (BIP 173)."""
    letters = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
    bits = "".join(f"{byte:08b}" for byte in data)
    values = [int(bits[at:at + 5], 2) for at in range(0, len(bits), 5)]
    check = 1
    for value in [ord(c) >> 5 for c in prefix] + [0] + [ord(c) & 31 for c in prefix] + values + [0] * 6:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for at, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            check ^= generator if top >> at & 1 else 0
    sums = [(check ^ 1) >> 5 * (5 - at) & 31 for at in range(6)]
    return prefix + "1" + "".join(letters[value] for value in values + sums)


def payment(chain, key, sender, receiver, amount):
    """A signed transfer."""
    found = chain.ask("cosmos.auth.v1beta1.Query/Account", address=sender).account
    assert found.type_url == "/cosmos.auth.v1beta1.BaseAccount", found
    account = chain.message("cosmos.auth.v1beta1.BaseAccount")
    account.ParseFromString(found.value)
    coins = lambda number: [chain.message("cosmos.base.v1beta1.Coin", denom="uplk", amount=str(number))]
    packed = lambda name, inner: chain.message("google.protobuf.Any", type_url="/" + name, value=inner.SerializeToString())
    send = chain.message("cosmos.bank.v1beta1.MsgSend", from_address=sender, to_address=receiver, amount=coins(amount))
    public = chain.message("cosmos.crypto.secp256k1.PubKey", key=key.verifying_key.to_string("compressed"))
    signer = chain.message("cosmos.tx.v1beta1.SignerInfo", public_key=packed("cosmos.crypto.secp256k1.PubKey", public),
                           mode_info={"single": {"mode": 1}}, sequence=account.sequence)
    body = chain.message("cosmos.tx.v1beta1.TxBody", messages=[packed("cosmos.bank.v1beta1.MsgSend", send)], memo="by gRPC")
    auth = chain.message("cosmos.tx.v1beta1.AuthInfo", signer_infos=[signer],
                         fee={"amount": coins(5_000), "gas_limit": 200_000})
    network = chain.ask("cosmos.base.tendermint.v1beta1.Service/GetNodeInfo").default_node_info.network
    parts = {"body_bytes": body.SerializeToString(), "auth_info_bytes": auth.SerializeToString()}
    document = chain.message("cosmos.tx.v1beta1.SignDoc", chain_id=network, account_number=account.account_number, **parts)
    signature = key.sign_deterministic(document.SerializeToString(), hashfunc=hashlib.sha256,
                                       sigencode=sigencode_string_canonize)
    return chain.message("cosmos.tx.v1beta1.TxRaw", signatures=[signature], **parts).SerializeToString()


def reflection(chain):
    """Both versions name the same services, and each method of a query is answered."""
    names = set(chain.files.get_services())
    assert SERVICES <= names, names
    ask = chain.channel.stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString, reflection_pb2.ServerReflectionResponse.FromString,
    )
    [listed] = ask(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=PATIENCE_SECONDS)
    newer = {service.name for service in listed.list_services_response.service}
    assert newer == names, newer
    answered = 0
    for service in sorted(names):
        for method in chain.pool.FindServiceByName(service).methods if service.endswith(".Query") else ():
            try:
                chain.ask(f"{service}/{method.name}")
                answered += 1
            except grpc.RpcError as error:
                # Without its fields a query may be refused, but by the ledger, with a reason.
                assert error.code() in (CODE.INVALID_ARGUMENT, CODE.NOT_FOUND, CODE.UNIMPLEMENTED, CODE.UNKNOWN), error
                assert error.details(), f"{service}/{method.name}: no reason"
                answered += error.code() != CODE.UNIMPLEMENTED
    assert answered > 60, answered
    return len(newer), answered


def chain_state(chain):
    """Node, blocks, validators, health."""
    service = "cosmos.base.tendermint.v1beta1.Service"
    network = chain.ask(f"{service}/GetNodeInfo").default_node_info.network
    latest = chain.ask(f"{service}/GetLatestBlock")
    assert latest.block.header.chain_id == network and len(latest.block.header.app_hash) == 32, latest
    assert latest.sdk_block.header.proposer_address.startswith("polyvalcons1"), latest.sdk_block.header
    first = chain.ask(f"{service}/GetBlockByHeight", height=1)
    assert first.block.header.height == 1 and len(first.block_id.hash) == 32, first
    second = chain.ask(f"{service}/GetBlockByHeight", height=2)
    assert second.block.header.last_block_id == first.block_id, "the second block names the first"
    assert second.block.last_commit.signatures[0].block_id_flag == 2, second.block.last_commit
    newest, height = chain.at(f"{service}/GetLatestValidatorSet")
    assert newest.validators[0].pub_key.type_url == "/cosmos.crypto.ed25519.PubKey" and int(height) > 0, newest
    addresses = [validator.address for validator in newest.validators]
    assert latest.sdk_block.header.proposer_address in addresses, (latest.sdk_block.header, addresses)
    assert newest.pagination.total == len(addresses), newest.pagination
    old = chain.ask(f"{service}/GetValidatorSetByHeight", height=1)
    assert old.block_height == 1 and old.validators[0].address == newest.validators[0].address, old
    assert not chain.ask(f"{service}/GetSyncing").syncing
    config = chain.ask("cosmos.base.node.v1beta1.Service/Config")
    assert config.minimum_gas_price == "0.025000000000000000uplk", config
    assert chain.ask("grpc.health.v1.Health/Check").status == 1
    assert chain.ask("grpc.health.v1.Health/Check", service="cosmos.bank.v1beta1.Query").status == 1
    refused(CODE.NOT_FOUND, "unknown service", chain.ask, "grpc.health.v1.Health/Check", service="no.Such")
    for height in (0, -1, 99_999_999):
        refused(CODE.INVALID_ARGUMENT, "height", chain.ask, f"{service}/GetBlockByHeight", height=height)


def pay(chain, secret):
    """A payment: what it would use, its broadcast, a second one, its page, and the balance before and after."""
    key = SigningKey.from_string(bytes.fromhex(secret), curve=SECP256k1)
    digest = hashlib.new("ripemd160", hashlib.sha256(key.verifying_key.to_string("compressed")).digest()).digest()
    sender, receiver = bech32("poly", digest), bech32("poly", bytes([7] * 20))
    service = "cosmos.tx.v1beta1.Service"
    balance = lambda height=None: chain.at("cosmos.bank.v1beta1.Query/Balance", height, address=receiver, denom="uplk")
    before, height = balance()
    tx = payment(chain, key, sender, receiver, 11)
    used = chain.ask(f"{service}/Simulate", tx_bytes=tx).gas_info.gas_used
    assert 10_000 < used < 200_000, used
    sent = chain.ask(f"{service}/BroadcastTx", tx_bytes=tx, mode=2).tx_response
    assert sent.code == 0 and sent.txhash == hashlib.sha256(tx).hexdigest().upper(), sent
    assert chain.ask(f"{service}/BroadcastTx", tx_bytes=tx, mode=2).tx_response.code != 0, "taken twice"
    for _ in range(10 * PATIENCE_SECONDS):
        try:
            page = chain.ask(f"{service}/GetTx", hash=sent.txhash)
            break
        except grpc.RpcError as error:
            assert error.code() == CODE.NOT_FOUND, error
            time.sleep(0.1)
    else:
        raise AssertionError("the payment is not committed")
    assert page.tx.body.memo == "by gRPC" and page.tx_response.tx.value == tx, page
    assert page.tx_response.code == 0 and page.tx_response.gas_used > 10_000 and page.tx_response.timestamp, page
    fees = [a.value for e in page.tx_response.events if e.type == "tx" for a in e.attributes if a.key == "fee"]
    assert fees == ["5000uplk"], page.tx_response.events
    found = chain.ask(f"{service}/GetTxsEvent", query=f"transfer.recipient='{receiver}'", order_by=2)
    assert found.total >= 1 and found.tx_responses[0].txhash == sent.txhash, found
    decoded = chain.ask(f"{service}/TxDecode", tx_bytes=tx).tx
    assert chain.ask(f"{service}/TxEncode", tx=decoded).tx_bytes == tx
    after, read = balance()
    assert int(after.balance.amount) == int(before.balance.amount) + 11, (before, after)
    assert int(height) < page.tx_response.height <= int(read), (height, page.tx_response.height, read)
    # A height that is named is a height that is asked.
    assert balance(height) == (before, height), balance(height)
    assert balance(0)[0] == after


def wrong(chain):
    """Each wrong call has the code that the SDK gives it."""
    balance, account = "cosmos.bank.v1beta1.Query/Balance", "cosmos.auth.v1beta1.Query/Account"
    nobody = bech32("poly", bytes([9] * 20))
    refused(CODE.NOT_FOUND, f"account {nobody} not found", chain.ask, account, address=nobody)
    refused(CODE.INVALID_ARGUMENT, "poly1x", chain.ask, account, address="poly1x")
    refused(CODE.INVALID_ARGUMENT, "", chain.ask, account, address="x" * 3_000)
    for height in ("999999999", "18446744073709551615", "-1", "x", ""):
        refused(CODE.INVALID_ARGUMENT, "height", chain.at, balance, height, address=nobody, denom="uplk")
    refused(CODE.UNIMPLEMENTED, "unknown method Nothing", chain.raw, "/cosmos.bank.v1beta1.Query/Nothing", b"")
    refused(CODE.UNIMPLEMENTED, "unknown service no.Such", chain.raw, "/no.Such/Method", b"")
    refused(CODE.UNIMPLEMENTED, "unknown method Watch", chain.raw, "/grpc.health.v1.Health/Watch", b"")
    for path in (balance, "cosmos.tx.v1beta1.Service/GetTx", "cosmos.tx.v1beta1.Service/BroadcastTx"):
        refused(CODE.INVALID_ARGUMENT, "", chain.raw, f"/{path}", b"\xff\xff\xff")
    refused(CODE.RESOURCE_EXHAUSTED, "too large", chain.ask, "cosmos.tx.v1beta1.Service/Simulate", tx_bytes=bytes(400_000))
    refused(CODE.INVALID_ARGUMENT, "empty tx", chain.ask, "cosmos.tx.v1beta1.Service/BroadcastTx", mode=2)
    refused(CODE.INVALID_ARGUMENT, "64 hex", chain.ask, "cosmos.tx.v1beta1.Service/GetTx", hash="xyz")
    refused(CODE.NOT_FOUND, "tx not found", chain.ask, "cosmos.tx.v1beta1.Service/GetTx", hash="AB" * 32)
    refused(CODE.INVALID_ARGUMENT, "at least one event", chain.ask, "cosmos.tx.v1beta1.Service/GetTxsEvent")
    garbage = chain.ask("cosmos.tx.v1beta1.Service/BroadcastTx", tx_bytes=b"\0", mode=2).tx_response
    assert garbage.code != 0 and garbage.raw_log, garbage


def many(chain):
    """More calls at once than there are places: a connection's streams wait for one, none is lost."""
    call, request = chain.stub("cosmos.bank.v1beta1.Query/TotalSupply")
    calls = [call.future(request(), timeout=PATIENCE_SECONDS) for _ in range(300)]
    assert all(one.result().supply[0].denom == "uplk" for one in calls)


def main():
    """Runs all checks; an AssertionError is a failure."""
    address, secret = sys.argv[1:3]
    chain = Chain(address)
    services, methods = reflection(chain)
    chain_state(chain)
    pay(chain, secret)
    wrong(chain)
    many(chain)
    print(f"gRPC: {services} services by reflection, {methods} queries answered, a payment, wrong calls refused")


if __name__ == "__main__":
    main()
