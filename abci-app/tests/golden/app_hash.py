"""Writes app_hash.json: the root of a few fixed states, computed independently of the crate.

The tree is a sparse binary Merkle tree over SHA-256(key), in which a subtree with one leaf is that
leaf and one without any is the placeholder. Run: python3 app_hash.py > app_hash.json
"""

import hashlib
import json

PLACEHOLDER = b"SPARSE_MERKLE_PLACEHOLDER_HASH__"


def sha(data):
    return hashlib.sha256(data).digest()


def root(leaves, bit=0):
    if not leaves:
        return PLACEHOLDER
    if len(leaves) == 1:
        ((key, value),) = leaves
        return sha(b"JMT::LeafNode" + key + value)
    side = lambda key: key[bit // 8] >> (7 - bit % 8) & 1
    left = [leaf for leaf in leaves if side(leaf[0]) == 0]
    right = [leaf for leaf in leaves if side(leaf[0]) == 1]
    return sha(b"JMT::IntrnalNode" + root(left, bit + 1) + root(right, bit + 1))


def case(name, pairs):
    leaves = [(sha(key), sha(value)) for key, value in pairs]
    return {
        "name": name,
        "pairs": [[key.hex(), value.hex()] for key, value in pairs],
        "root": root(leaves).hex(),
    }


cases = [
    case("empty", []),
    case("one key", [(b"\x01a", b"1")]),
    case("two keys", [(b"\x01a", b"1"), (b"\x01b", b"2")]),
    case("fifty keys", [(b"\x02" + i.to_bytes(8, "big"), b"value %d" % i) for i in range(50)]),
    case("long key and value", [(b"\x03" * 1024, b"v" * 5000), (b"\x00", b"\x00")]),
]
print(json.dumps({"made_by": "tests/golden/app_hash.py", "cases": cases}, indent=1))
