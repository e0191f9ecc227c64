"""Golden values for quantised folders: what GPTQ's, AWQ's and fp8's own formulas make of random tensors.

    python make_quantized_goldens.py

writes `goldens/quantized.json`: the SHA-256 of each expanded matrix (f32, row by row). The parts are made here and in
the tests by the same generator (`random_bytes` of make_gguf_goldens.py). It needs `numpy` and `torch`.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch

from make_gguf_goldens import random_bytes

HERE = Path(__file__).parent
N, K, GROUP = 24, 96, 32
SHIFTS = np.arange(0, 32, 4)


def words(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return random_bytes(name, 4 * int(np.prod(shape))).view("<i4").reshape(shape)


def half_scales(name: str) -> np.ndarray:
    bits = random_bytes(name, 2 * (K // GROUP) * N).view("<u2")
    return ((bits & 0x03FF) | 9 << 10).astype("<u2").view(np.float16).reshape(K // GROUP, N).astype(np.float32)


def float_scales(name: str, shape: tuple[int, ...]) -> np.ndarray:
    bits = random_bytes(name, 4 * int(np.prod(shape))).view("<u4")
    return ((bits & 0x7FFFFF) | 120 << 23).astype("<u4").view(np.float32).reshape(shape)


def gptq(name: str, order: bool, zero_offset: int) -> np.ndarray:
    """As AutoGPTQ's linear layers unpack themselves."""
    q = (words(f"{name}.qweight", (K // 8, N))[:, None, :] >> SHIFTS[None, :, None]) & 15
    zeros = ((words(f"{name}.qzeros", (K // GROUP, N // 8))[:, :, None] >> SHIFTS) & 15).reshape(K // GROUP, N) + zero_offset
    group = np.array([(7 * i % K if order else i) // GROUP for i in range(K)])
    w = half_scales(f"{name}.scales")[group] * (q.reshape(K, N) - zeros[group]).astype(np.float32)
    return w.T


def awq(name: str) -> np.ndarray:
    """As AutoAWQ unpacks: nibbles in a row, then put in order."""
    reverse = [0, 4, 1, 5, 2, 6, 3, 7]

    def unpacked(values: np.ndarray) -> np.ndarray:
        return ((values[:, :, None] >> SHIFTS) & 15)[:, :, reverse].reshape(len(values), N)

    q, zeros = unpacked(words(f"{name}.qweight", (K, N // 8))), unpacked(words(f"{name}.qzeros", (K // GROUP, N // 8)))
    group = np.arange(K) // GROUP
    return (half_scales(f"{name}.scales")[group] * (q - zeros[group]).astype(np.float32)).T


def fp8(name: str, scales: np.ndarray) -> np.ndarray:
    data = random_bytes(f"{name}.weight", N * K)
    data[(data & 0x7F) == 0x7F] ^= 1  # all ones are no number
    return torch.from_numpy(data).view(torch.float8_e4m3fn).float().numpy().reshape(N, K) * scales


def main() -> None:
    tile = float_scales("tiles.weight_scale_inv", (2, 3))
    matrices = {
        "gptq": gptq("gptq", False, 1),
        "gptq-order": gptq("gptq-order", True, 1),
        "gptq-v2": gptq("gptq-v2", False, 0),
        "awq": awq("awq"),
        "one": fp8("one", float_scales("one.weight_scale", ())),
        "outputs": fp8("outputs", float_scales("outputs.weight_scale", (N, 1))),
        "tiles": fp8("tiles", np.kron(tile, np.ones((16, 40), np.float32))[:N, :K]),
    }
    digests = {name: hashlib.sha256(np.ascontiguousarray(m, dtype="<f4").tobytes()).hexdigest() for name, m in matrices.items()}
    about = "Written by make_quantized_goldens.py: SHA-256 of the expanded matrices [24, 96], f32, row by row."
    (HERE / "goldens" / "quantized.json").write_text(json.dumps({"about": about, "sha256": digests}, indent=1) + "\n")


if __name__ == "__main__":
    main()
