#!/bin/sh
# Everything there is to test, from nothing: `make test` calls it. Prints what each suite cost, and fails if one fails.
# Packages of Python and npm go into the cache, outside of this tree.
set -u
cd "$(dirname "$0")/.."
root=$(pwd)
export POLYLINK_CACHE="${POLYLINK_CACHE:-$HOME/.cache/polylink}"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$POLYLINK_CACHE/target}"
export POLYLINK_MODELS="$root/models"
polylink=$CARGO_TARGET_DIR/debug/polylink
costs=
details=
failed=

suite() {
    name=$1
    shift
    begun=$(date +%s)
    echo "== $name"
    if "$@"; then result=passed; else result=FAILED; failed="$failed $name"; fi
    costs="$costs$(printf '%-28s %-7s %5d s' "$name" "$result" $(($(date +%s) - begun)))
"
}

# field NAME: a text field of the running network's status.
field() { "$polylink" status --home "$home" --json | python3 -c "import json, sys; print(json.load(sys.stdin)['$1'])"; }

# All tests of the workspace; what each binary of them cost is added to the closing table.
cargo_tests() {
    log=$(mktemp /tmp/polylink-cargo-test.XXXXXX)
    { cargo test --locked --workspace --no-fail-fast -- --nocapture 2>&1; echo "exit status $?"; } | tee "$log" | grep -v '^test .* ok$'
    details=$(awk '
        /^ *Running / { name = $2 == "unittests" ? $4 : $3; sub(/.*deps./, "", name); sub(/-[0-9a-f]*\)$/, "", name) }
        /^ *Doc-tests / { name = "doc " $2 }
        /^test result: / { time = $NF; sub(/s$/, "", time); printf "    %-26s %4d passed %2d failed %8.1f s\n", name, $4, $6, time }
    ' "$log")
    tail -n 1 "$log" | grep -q '^exit status 0$'
    passed=$?
    rm -f "$log"
    return $passed
}

python_packages() {
    venv=$POLYLINK_CACHE/venv-tests
    [ -x "$venv/bin/python" ] || python3 -m venv "$venv" || return 1
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --requirement tests/requirements.txt
}

npm_packages() {
    mkdir -p "$POLYLINK_CACHE/cosmjs" || return 1
    cp tests/cosmjs/package.json tests/cosmjs/package-lock.json tests/cosmjs/*.mjs "$POLYLINK_CACHE/cosmjs/" || return 1
    (cd "$POLYLINK_CACHE/cosmjs" && npm ci --silent --no-audit --no-fund)
}

start_network() {
    home=$(mktemp -d /tmp/polylink-test.XXXXXX)
    trap '"$polylink" down --home "$home" >/dev/null 2>&1; rm -rf "$home"' EXIT
    "$polylink" up --home "$home" --detach --no-ask --block-time-ms 500
}

openai_client() {
    "$POLYLINK_CACHE/venv-tests/bin/python" tests/openai_client.py "$(field endpoint)" "$(field api_key)" "$(field model)" \
        models/eval/heldout.jsonl
}

# secret NAME: the secret of an account of the running network.
secret() { "$polylink" keys show "$1" --secret --home "$home" --json | python3 -c "import json, sys; print(json.load(sys.stdin)['secret'])"; }

cosmjs() {
    (cd "$POLYLINK_CACHE/cosmjs" && node conformance.mjs "$(field rpc)" "$(secret provider)" "$(secret validator)") &&
        (cd "$POLYLINK_CACHE/cosmjs" && node rest.mjs "$(field rest)" "$(secret provider)")
}

grpc_client() {
    "$POLYLINK_CACHE/venv-tests/bin/python" tests/grpc_client.py "$(field grpc)" "$(secret provider)"
}

newcomer() { python3 tests/newcomer.py "$root" "$POLYLINK_CACHE/venv-tests/bin/python"; }

load() { "$polylink" bench serve --quick --home "$home"; }

stop_network() { "$polylink" down --home "$home"; }

suite "cometbft" ./cometbft-config/build.sh
suite "abci-cli" ./cometbft-config/build.sh abci-cli
# One selection of packages for building and running, so that nothing is compiled twice with other features.
suite "build" cargo test --locked --workspace --no-run
suite "cargo tests, end to end too" cargo_tests
suite "golden digests, by hashlib" python3 protocol/tests/golden/check.py
suite "models' corpus" python3 -m unittest discover --quiet models/tests
suite "python packages" python_packages
suite "npm packages" npm_packages
suite "network for clients" start_network
suite "openai client" openai_client
suite "CosmJS" cosmjs
suite "gRPC client" grpc_client
suite "bench serve --quick" load
suite "network stops" stop_network
suite "newcomer's path" newcomer

printf '\n%s\n%s' "$details" "$costs"
if [ -n "$failed" ]; then
    echo "FAILED:$failed" >&2
    exit 1
fi
echo "all suites passed"
