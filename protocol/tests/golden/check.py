"""Recomputes the digests of objects.json from docs/wire.md alone, with nothing but hashlib.

    python3 protocol/tests/golden/check.py

A second implementation: it shares no code with the crate, so that a mistake in one of them shows.
"""

import hashlib
import json
from pathlib import Path

V = {name: bytes.fromhex(text) for name, text in json.loads(Path(__file__).with_name("objects.json").read_text()).items()}
CHAIN = b"polylink-golden-1"


def h(tag: str, *parts: bytes) -> bytes:
    return hashlib.sha256(f"polylink/{tag}/v1".encode() + b"\0" + b"".join(parts)).digest()


def u32(x: int) -> bytes:
    return x.to_bytes(4, "big")


def u64(x: int) -> bytes:
    return x.to_bytes(8, "big")


def u128(x: int) -> bytes:
    return x.to_bytes(16, "big")


def var(x: bytes) -> bytes:
    return u32(len(x)) + x


def ids(tokens: list[int]) -> bytes:
    return u32(len(tokens)) + b"".join(map(u32, tokens))


def leaf(i: int) -> tuple[bytes, int, int, int]:
    return h("sum-leaf", u64(3), u64(i), bytes([i]) * 32, u64(1), u64(10 + i), u128(7 * i)), 1, 10 + i, 7 * i


def node(left: tuple, right: tuple) -> tuple[bytes, int, int, int]:
    both = b"".join(n[0] + u64(n[1]) + u64(n[2]) + u128(n[3]) for n in (left, right))
    return h("sum-node", both), *(a + b for a, b in zip(left[1:], right[1:]))


CHARSET = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"


def bech32_payload(text: str) -> bytes:
    values = [CHARSET.index(c) for c in text[text.rindex("1") + 1 : -6]]
    bits = "".join(f"{v:05b}" for v in values)
    return bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits) - len(bits) % 8, 8))


worker = bech32_payload(V["account.address"].decode())
profile = V["profile.digest"]
chain_1 = h("receipt-chain", bytes(32), V["receipt.digest"])
genesis = h("beacon-genesis", var(CHAIN), profile)
beacon = h("beacon", genesis, u32(2), *sorted([V["vrf.output"], bytes([1]) * 64]))
tickets = sorted(
    (h("seat", output, u32(ticket)), judge)
    for judge, output, count in [(1, V["vrf.output"], 16), (2, bytes([1]) * 64, 12), (3, bytes([2]) * 64, 20)]
    for ticket in range(count)
)
point = int.from_bytes(h("sample", beacon, worker, profile, u32(1)), "big") % 1_000_000
l = [leaf(i) for i in range(5)]
root = node(node(node(l[0], l[1]), node(l[2], l[3])), l[4])

EXPECTED = {
    "profile.digest": h("profile", V["profile.bytes"]),
    "request.digest": hashlib.sha256(V["request.sign_bytes"]).digest(),
    "request.prompt_digest": h("prompt", bytes([6]) * 32, ids([1, 300, 70_000])),
    "receipt.digest": hashlib.sha256(V["receipt.sign_bytes"]).digest(),
    "receipt.completion_digest": h("completion", bytes([8]) * 32, u32(2), ids([8, 9]), ids([10])),
    "receipt.sketch_digest": h("sketch", u32(2), u32(2), bytes([1]) * 16 + bytes([2]) * 16, u32(1), bytes([3]) * 16),
    "voucher.chain_1": chain_1,
    "voucher.chain_2": h("receipt-chain", chain_1, bytes([9]) * 32),
    "sum.leaf": l[1][0],
    "sum.node": node(l[0], l[1])[0],
    "sum.root": root[0],
    "sum.empty": h("sum-empty"),
    "vrf.genesis_beacon": genesis,
    "vrf.input": h("vrf-input", var(CHAIN), genesis, u64(7), profile),
    "beacon": beacon,
    "seats": bytes(judge for _, judge in tickets),
    "sample.point": u128(point),
    "llm.draw": u32(int.from_bytes(h("llm-draw", beacon, V["receipt.digest"])[:4], "big") * 10_000 >> 32),
    "scores.commitment": h("scores", var(CHAIN), u64(7), profile, worker, bytes([25]) * 32, var(V["scores.bytes"])),
    "disclosure": h("disclosure", var(CHAIN), worker, var(V["account.address"]), u64(7), var(profile), u128(point)),
}

wrong = [name for name, digest in EXPECTED.items() if V[name] != digest]
for name in ("request", "receipt", "voucher"):
    if not V[f"{name}.sign_bytes"].startswith(f"polylink/{name}/v1\0".encode()):
        wrong.append(f"{name}.sign_bytes")
if wrong:
    raise SystemExit(f"differ from docs/wire.md: {', '.join(wrong)}")
print(f"{len(EXPECTED)} digests agree with docs/wire.md")
