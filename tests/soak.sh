#!/bin/sh
# A soak of the engine over HTTP: `make soak` calls it; not part of `make test`. SOAK_SECONDS: for how long (an hour).
# Four tenants with unequal numbers of clients ask for more than the server can take, on a KV cache that is too small.
set -eu
cd "$(dirname "$0")/.."
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$HOME/.cache/polylink/target}"
export POLYLINK_MODELS="$PWD/models"
polylink=$CARGO_TARGET_DIR/debug/polylink
log=$(mktemp /tmp/polylink-soak.XXXXXX)

"$polylink" serve --local --model "${SOAK_MODEL:-nano}" --listen 127.0.0.1:0 \
    --max-running 8 --max-waiting 48 --kv-cache-mib 4 ${SOAK_FLAGS:-} >"$log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true' EXIT
for _ in $(seq 300); do
    grep -q ' serves ' "$log" && break
    kill -0 "$server" 2>/dev/null || { cat "$log" >&2; exit 1; }
    sleep 0.1
done
endpoint=$(sed -n 's/^\(http[^ ]*\) serves .*/\1/p' "$log")
model=$(sed -n 's/^http[^ ]* serves //p' "$log")

"$polylink" bench soak --endpoint "$endpoint" --model "$model" --pid "$server" \
    --seconds "${SOAK_SECONDS:-3600}" --clients 12,16,28,56
if grep -E 'ERROR|panicked' "$log"; then
    echo "the server's log has errors: $log" >&2
    exit 1
fi
rm -f "$log"
