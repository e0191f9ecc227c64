"""What the machine has that the CUDA backend needs, and what the measurements need besides.

    python machine.py BUNDLE_ABOUT OUT.json

Exit status 1 if the backend cannot run here; the reason is printed.
"""

import ctypes
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

# The kernels are compiled by CUDA 13.0: an older driver refuses them.
DRIVER_CUDA_LEAST = 13_000


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def driver_cuda() -> tuple[int | None, str]:
    """CUDA version that the driver runs (13000 is 13.0), and what is wrong."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return None, f"no driver: {error}"
    found = ctypes.c_int()
    if library.cuDriverGetVersion(ctypes.byref(found)) != 0:
        return None, "the driver does not answer"
    if library.cuInit(0) != 0:
        return found.value, "the driver shows no device"
    return found.value, ""


def gpus() -> list[str]:
    fields = "name,driver_version,memory.total,clocks.sm,clocks.mem,power.draw"
    try:
        command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip().splitlines()
    except (OSError, subprocess.TimeoutExpired):
        return []


def main() -> int:
    about, out = Path(sys.argv[1]), Path(sys.argv[2])
    bundle = dict(line.split(" ", 1) for line in about.read_text().splitlines())
    cuda, wrong = driver_cuda()
    found = {
        "commit": bundle.get("commit"),
        "nvcc": bundle.get("nvcc"),
        "gpus": gpus(),
        "driver_cuda": cuda,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "shared_memory_free": shutil.disk_usage("/dev/shm").free,
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "sanitizer": shutil.which("compute-sanitizer") is not None,
    }
    out.write_text(json.dumps(found, indent=1))
    for name, value in found.items():
        print(f"  {name}: {value}", flush=True)
    if not wrong and cuda is not None and cuda < DRIVER_CUDA_LEAST:
        wrong = f"the driver runs CUDA {cuda // 1000}.{cuda % 1000 // 10}, the kernels need 13.0: a driver of 580 or newer"
    if wrong:
        print(f"  no GPU can be used: {wrong}", flush=True)
    return 1 if wrong else 0


sys.exit(main())
