"""Runs the test programs of a bundle on a GPU, each test in a process of its own: a fault on the device spoils all that its
process does later, and a kernel that hangs must end with its test alone.

    python tests.py PROGRAM… --out FOLDER [--filter TEXT] [--seconds N] [--jobs N] [--sanitize memcheck,racecheck]

Prints a line per test as it ends, and what a failed one said; everything goes to FOLDER/tests.log, results to
FOLDER/tests.json. Exit status 1 if any failed.
"""

import argparse
import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

# What of a failed test is shown; the log has it all.
LINES_SHOWN = 30
LINE_SHOWN = 400
# Tests that measure: they run apart, one at a time, and are told by POLYLINK_GPU_TIMES to do it.
MEASURING = ("times", "timing", "speed")
# Kernels' code on the CPU: what every machine has tested already.
ELSEWHERE = ("emulated",)


def listed(program: Path, wanted: str) -> list[str]:
    """Names of a program's tests that contain a text."""
    try:
        output = subprocess.run([program, "--list", "--format", "terse"], capture_output=True, text=True, timeout=60)
    except OSError as error:
        sys.exit(f"{program} does not start: {error}")
    if output.returncode != 0:
        sys.exit(f"{program} does not tell its tests: {output.stderr.strip()}")
    names = [line.removesuffix(": test") for line in output.stdout.splitlines() if line.endswith(": test")]
    return [name for name in names if wanted in name and not any(word in name for word in ELSEWHERE)]


def measures(test: str) -> bool:
    return any(word in test for word in MEASURING)


def run(command: list[str], seconds: float) -> tuple[int | None, str]:
    """Exit status (None: it ran too long) and output of a command; its whole process group ends with it."""
    # Of whole steps the models are named.
    timed = "8b,1b" if "test-cuda" in str(command) else "1"
    environment = {**os.environ, "RUST_BACKTRACE": "0", "POLYLINK_GPU_TIMES": timed}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, start_new_session=True, text=True,
        errors="replace",
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=seconds)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        return None, output


def said(output: str, test: str) -> list[str]:
    """A test's own lines, without the harness's."""
    noise = ("running 1 test", "test result:", "failures:", "error: test failed")
    lines = [line.rstrip().removeprefix(f"test {test} ... ") for line in output.splitlines()]
    return [line for line in lines if line and line != "ok" and not line.startswith(noise)]


class Runner:
    """Runs tests, prints and keeps what came of them."""

    def __init__(self, out: Path, deadline: float):
        self.deadline = deadline
        self.results: list[dict] = []
        self.lock = threading.Lock()
        self.log = (out / "tests.log").open("a", errors="replace")

    def one(self, program: Path, test: str, seconds: float, tool: str | None) -> None:
        seconds = min(seconds, self.deadline - time.monotonic())
        name = f"{program.name.removeprefix('test-')} {test}" + (f" [{tool}]" if tool else "")
        if seconds < 2:
            self.tell(name, "not run", 0.0, ["the time for this part is over"])
            return
        command = [str(program), "--exact", test, "--nocapture", "--test-threads=1"]
        if tool:
            command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "86", "--print-limit", "5", *command]
        begun = time.monotonic()
        status, output = run(command, seconds)
        took = time.monotonic() - begun
        lines = said(output, test)
        if status is None:
            result = "TIMED OUT"
        elif status != 0:
            result = "FAILED"
        elif any("skipped" in line for line in lines):
            result = "skipped"
        else:
            result = "ok"
        self.tell(name, result, took, lines)

    def tell(self, name: str, result: str, took: float, lines: list[str]) -> None:
        with self.lock:
            self.results.append({"test": name, "result": result, "seconds": round(took, 3)})
            self.log.write(f"== {result} {took:.2f} s {name}\n" + "".join(f"   {line}\n" for line in lines))
            self.log.flush()
            print(f"{result:9} {took:6.2f} s  {name}", flush=True)
            if result in ("FAILED", "TIMED OUT"):
                for line in lines[-LINES_SHOWN:]:
                    print(f"          | {line[:LINE_SHOWN]}", flush=True)
            else:
                # What a measuring test has to say, and why one was skipped.
                whole = measures(name)
                told = [line for line in lines if whole or "skipped" in line or line.startswith("cuda:")]
                for line in told[: 120 if whole else 6]:
                    print(f"          | {line[:LINE_SHOWN]}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("programs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--filter", default="")
    parser.add_argument("--seconds", type=float, default=120, help="of all tests together")
    parser.add_argument("--test-seconds", type=float, default=60, help="of one test")
    parser.add_argument("--jobs", type=int, default=max(1, min(8, (os.cpu_count() or 2) // 2)))
    parser.add_argument("--times", action="store_true", help="those that measure, one at a time, and no others")
    parser.add_argument("--sanitize", default="", help="tools of compute-sanitizer to run over the quick tests that pass")
    given = parser.parse_args()
    runner = Runner(given.out, time.monotonic() + given.seconds)
    tests = [(program, name) for program in given.programs for name in listed(program, given.filter)]
    tests = [(program, name) for program, name in tests if measures(name) == given.times]
    if given.sanitize:
        quick = quick_tests(given.out)
        tests = [(program, name) for program, name in tests if f"{program.name.removeprefix('test-')} {name}" in quick]
        work = [(program, name, 4 * given.test_seconds, tool) for tool in given.sanitize.split(",") for program, name in tests]
    else:
        work = [(program, name, given.test_seconds, None) for program, name in tests]
    if not work:
        why = "has passed here yet: run the part kernels first" if given.sanitize else f"has '{given.filter}' in its name"
        sys.exit(f"no test {why}")
    with concurrent.futures.ThreadPoolExecutor(1 if given.times else given.jobs) as pool:
        for ended in [pool.submit(runner.one, *item) for item in work]:
            ended.result()
    results = runner.results
    kept = given.out / ("sanitize.json" if given.sanitize else "tests.json")
    before = json.loads(kept.read_text()) if kept.exists() else []
    again = {result["test"] for result in results}
    kept.write_text(json.dumps([old for old in before if old["test"] not in again] + results, indent=1))
    count = {kind: sum(result["result"] == kind for result in results) for kind in ("ok", "FAILED", "TIMED OUT", "skipped", "not run")}
    print("tests: " + ", ".join(f"{number} {kind}" for kind, number in count.items()), flush=True)
    bad = [result for result in results if result["result"] in ("FAILED", "TIMED OUT")]
    for result in bad:
        print(f"  {result['result']}: {result['test']}", flush=True)
    return 1 if bad else 0


def quick_tests(out: Path) -> set[str]:
    """Those that passed in an earlier run within 3 s: under a checker they take many times as long."""
    path = out / "tests.json"
    if not path.exists():
        return set()
    quick = [result for result in json.loads(path.read_text()) if result["result"] == "ok" and result["seconds"] < 3]
    return {result["test"] for result in quick}


sys.exit(main())
