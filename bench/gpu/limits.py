"""What the GPU does at most, by torch: the figures that ours are shares of.

    python limits.py OUT.json
"""

import json
import statistics
import sys
from pathlib import Path

try:
    import torch
except ImportError:
    print("  no torch here: limits are not measured")
    sys.exit(77)

GIB = 1 << 30
RUNS = 20


def seconds(body) -> float:
    """Median of runs, by events, after three that warm up."""
    for _ in range(3):
        body()
    times = []
    for _ in range(RUNS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        body()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def product(size: int, dtype: torch.dtype) -> float:
    """Operations per second of a product of random values."""
    if dtype is torch.int8:
        a, b = (torch.randint(-127, 128, (size, size), dtype=dtype, device="cuda") for _ in range(2))
        return 2 * size**3 / seconds(lambda: torch._int_mm(a, b.t()))
    a, b = (torch.randn(size, size, dtype=dtype, device="cuda") for _ in range(2))
    out = torch.empty(size, size, dtype=dtype, device="cuda")
    return 2 * size**3 / seconds(lambda: torch.matmul(a, b.t(), out=out))


def main() -> int:
    if not torch.cuda.is_available():
        print("  torch sees no GPU: limits are not measured")
        return 77
    source = torch.randint(0, 255, (4 * GIB,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    values = source.view(torch.float32)
    found = {
        "device": torch.cuda.get_device_name(),
        # Bytes read and bytes written.
        "copy_bytes_per_second": 2 * source.numel() / seconds(lambda: target.copy_(source)),
        # The largest value of 4 GiB: nothing is written.
        "read_bytes_per_second": source.numel() / seconds(lambda: torch.amax(values.view(torch.int32))),
    }
    del source, target, values
    found["bf16_flops"] = product(8192, torch.bfloat16)
    found["int8_ops"] = product(8192, torch.int8)
    Path(sys.argv[1]).write_text(json.dumps(found, indent=1))
    for name, value in found.items():
        print(f"  {name}: {value if isinstance(value, str) else f'{value:.4g}'}", flush=True)
    return 0


sys.exit(main())
