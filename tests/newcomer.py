"""A newcomer's path: `make up` from another directory and with another home, the printed snippets run as they are printed,
Ctrl-C ends everything in order, a second `make up` continues the same chain, `make clean-net` forgets it.

Usage: newcomer.py REPOSITORY PYTHON_WITH_OPENAI
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# A whole network starts within this, also on a busy machine; cargo has built it before.
UP_SECONDS = 300
STOP_SECONDS = 60
STOP_ORDER = ["gateway", "judge-3", "judge-2", "judge-1", "worker", "rest", "node", "ledger"]


class Up:
    """`make up` as in a terminal of its own, its output read line by line."""

    def __init__(self, root, home, elsewhere, flags):
        environment = dict(os.environ, POLYLINK_HOME=str(home), UP_FLAGS=flags)
        # A session of its own: Ctrl-C goes to make and to all that it started in the foreground.
        self.process = subprocess.Popen(
            ["make", "-C", root, "up"], cwd=elsewhere, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )
        self.said = ""

    def until(self, words):
        """Reads until a line has the words; returns that line."""
        deadline = time.time() + UP_SECONDS
        for line in self.process.stdout:
            self.said += line
            if words in line:
                return line
            assert time.time() < deadline, f"`{words}` did not come in time:\n{self.said}"
        raise AssertionError(f"`make up` ended before it said `{words}`:\n{self.said}")

    def interrupt(self):
        """Ctrl-C; returns what was said from then on."""
        before = len(self.said)
        os.killpg(self.process.pid, signal.SIGINT)
        rest, _ = self.process.communicate(timeout=STOP_SECONDS)
        self.said += rest
        return self.said[before:]

    def give_up(self):
        """However the test ended, nothing is left running."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)


def snippet(said, first, last):
    """The printed lines from one that begins with `first` to the next one for which `last` holds."""
    lines = said.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(first))
    end = next(number for number in range(start, len(lines)) if last(lines[number]))
    return "\n".join(lines[start : end + 1])


def output(command, **more):
    """Standard output of a command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, **more)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def is_gone(pid):
    """Whether a process has ended (who was orphaned may stay a zombie where nobody reaps)."""
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True


def is_closed(port):
    """Whether nobody listens on a port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def main():
    """Runs all steps; an AssertionError is a failure."""
    root, python = sys.argv[1:3]
    with tempfile.TemporaryDirectory(prefix="pl") as elsewhere:
        home = Path(elsewhere) / "net"
        ups = []

        def up(flags):
            ups.append(Up(root, home, elsewhere, flags))
            return ups[-1]

        try:
            walk(root, python, home, elsewhere, up)
        finally:
            for started in ups:
                started.give_up()


def walk(root, python, home, elsewhere, up):
    """The path itself."""
    first = up("--question 'What is 6 plus 7?' --block-time-ms 400")
    first.until("the receipt is fully verified")
    said = first.said
    assert re.search(r"^  question +What is 6 plus 7\?$", said, re.M), said
    assert re.search(r"^  answer .*13", said, re.M), said
    assert "signatures verified" in said and "NOT verified" not in said, said
    chain_id = re.search(r"new chain (\S+)", said)[1]

    curl = snippet(said, "curl ", lambda line: not line.endswith("\\"))
    answer = json.loads(output(curl, shell=True, cwd=elsewhere))
    assert "5" in answer["choices"][0]["message"]["content"], answer
    source = snippet(said, "from openai", lambda line: line.startswith("print("))
    assert "5" in output([python, "-c", source], cwd=elsewhere)
    look = said.split("Look at it:")[1].split("waiting until")[0].splitlines()
    look = [line for line in look if " --home " in line]
    assert len(look) == 2 and all(output(command, shell=True, cwd=elsewhere) for command in look), look
    polylink = look[0].split(" --home ")[0]
    print("newcomer: answer, full verification, curl, Python and the printed commands work as printed")

    def query(*what):
        return json.loads(output([polylink, *what, "--json", "--home", str(home)]))

    status, balance = query("status"), query("query", "balance", "user")
    assert (status["health"], status["chain_id"]) == ("ok", chain_id), status
    ports = [int(status[name].rsplit(":", 1)[1].split("/")[0]) for name in ("endpoint", "rpc", "worker")]
    pids = [role["pid"] for role in status["roles"]] + [status["pid"]]
    assert len(ports) == 3 and len(pids) == len(STOP_ORDER) + 1 and all(pids), status
    begun = time.time()
    rest = first.interrupt()
    order = re.findall(r"^(\S+) +stopped in", rest, re.M)
    assert "SIGINT" in rest and order == STOP_ORDER, f"stopped in the order {order}:\n{rest}"
    assert all(map(is_gone, pids)), f"still alive: {[pid for pid in pids if not is_gone(pid)]}"
    assert all(map(is_closed, ports)), f"still open: {[port for port in ports if not is_closed(port)]}"
    print(f"newcomer: Ctrl-C ended everything in order in {time.time() - begun:.1f} s")

    second = up("--no-ask --block-time-ms 400")
    second.until("Ctrl-C stops everything")
    assert f"continuing chain {chain_id}" in second.said, second.said
    again = query("status")
    assert (again["chain_id"], again["api_key"]) == (chain_id, status["api_key"])
    assert again["height"] > status["height"], f"height {again['height']} after {status['height']}"
    assert query("query", "balance", "user") == balance
    assert query("query", "validators")["validators"], "the validator is gone"
    assert "5" in output([python, "-c", source], cwd=elsewhere), "the printed snippet holds after a restart"
    print(f"newcomer: the second `make up` continues {chain_id} from height {status['height']}")

    pid = again["pid"]
    forgot = output(["make", "-C", root, "clean-net"], env=dict(os.environ, POLYLINK_HOME=str(home)))
    assert str(home) in forgot and not home.exists(), forgot
    assert is_gone(pid) and all(map(is_closed, ports)), "`make clean-net` left something running"
    second.process.wait(STOP_SECONDS)
    print("newcomer: `make clean-net` stops it and forgets it")


if __name__ == "__main__":
    main()
