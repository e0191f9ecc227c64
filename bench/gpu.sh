#!/bin/sh
# Everything that only a machine with a GPU can show: kernels, agreement, limits, figures and peers, in one report.
# Needs this repository and the bundle that `make gpu-bundle` made (target/gpu, or its archive there, or $GPU_BUNDLE), an
# NVIDIA driver and python3; torch and transformers for all but the tests. No Rust, no compiler, no network.
# Usage: gpu.sh [kernels|e2e|sanitize|limits|steps|agree|times|peers|all]…      (all, if none is named)
# Parts have time limits (seconds), and the rest goes on when one has failed; without a GPU that can be used nothing goes on.
# Everything lands in $OUT (target/gpu/out).
set -u
cd "$(dirname "$0")/.." || exit 1
[ $# -gt 0 ] || set -- all
for asked in "$@"; do
    case $asked in
    kernels | e2e | sanitize | limits | steps | agree | times | peers | all) ;;
    *) echo "gpu.sh: $asked: kernels, e2e, sanitize, limits, steps, agree, times, peers or all is expected" >&2; exit 1 ;;
    esac
done
command -v python3 >/dev/null || { echo "gpu.sh: python3 is missing: it runs the tests and measures" >&2; exit 1; }
OUT=${OUT:-target/gpu/out}
bundle=${GPU_BUNDLE:-target/gpu}
work=${GPU_WORK:-/dev/shm/polylink-gpu}
mkdir -p "$OUT" "$work" || exit 1
export OUT PYTHONUNBUFFERED=1
begun=$(date +%s)
failed=""
skipped=""

say() { echo "[$(($(date +%s) - begun)) s] $*"; }

# part NAME SECONDS COMMAND…: runs it within its time, says how it ended, and goes on.
part() {
    name=$1 limit=$2
    shift 2
    say "== $name (at most $limit s)"
    from=$(date +%s)
    timeout -k 5 "$limit" "$@"
    status=$?
    case $status in
    0) say "== $name: done in $(($(date +%s) - from)) s" ;;
    124 | 137) say "== $name: TIMED OUT after $limit s"; failed="$failed $name" ;;
    77) say "== $name: skipped"; skipped="$skipped, $name" ;;
    *) say "== $name: FAILED (status $status)"; failed="$failed $name" ;;
    esac
}

wants() {
    for asked in $asked_for; do
        if [ "$asked" = "$1" ] || [ "$asked" = all ]; then return 0; fi
    done
    return 1
}
asked_for="$*"

if [ ! -x "$bundle/bin/test-polylink_kernels" ] && [ -f "$bundle/polylink-gpu.tar.gz" ]; then
    mkdir -p "$work/bundle"
    tar -C "$work/bundle" -xzf "$bundle/polylink-gpu.tar.gz" && bundle=$work/bundle
fi
if [ ! -f "$bundle/about" ]; then
    echo "gpu.sh: no bundle in $bundle: run 'make gpu-bundle' where there is Rust, and bring target/gpu along" >&2
    exit 1
fi
for program in polylink test-polylink_kernels test-cuda; do
    if [ ! -x "$bundle/bin/$program" ]; then
        echo "gpu.sh: there is no $bundle/bin/$program: bring all of what 'make gpu-bundle' makes" >&2
        exit 1
    fi
done
bin=$(cd "$bundle/bin" && pwd)
"$bin/polylink" --version || { echo "gpu.sh: $bin/polylink does not start here" >&2; exit 1; }
# Tests find their fixtures under the path where they were built.
root=$(sed -n 's/^root //p' "$bundle/about")
[ -e "$root" ] || { mkdir -p "$(dirname "$root")" && ln -s "$PWD" "$root"; } 2>/dev/null || say "$root cannot be made: golden tests will fail"

part machine 60 python3 bench/gpu/machine.py "$bundle/about" "$OUT/machine.json"
[ -z "$failed" ] || { say "== ended: nothing of the rest can be seen on this machine"; exit 1; }
kernel_seconds=${KERNEL_SECONDS:-150}
# Two at a time: the references that tests compute on the CPU take all cores, and more of them starved each other.
wants kernels && part kernels "$kernel_seconds" python3 bench/gpu/tests.py "$bin/test-polylink_kernels" --out "$OUT" \
    --filter cuda --seconds $((kernel_seconds - 8)) --jobs 2
if wants e2e; then
    set --
    for program in "$bin"/test-*; do
        [ "$program" = "$bin/test-polylink_kernels" ] || set -- "$@" "$program"
    done
    part e2e 120 python3 bench/gpu/tests.py "$@" --out "$OUT" --seconds 112 --test-seconds 90 --jobs 2
fi
if wants sanitize; then
    if command -v compute-sanitizer >/dev/null; then
        part sanitize 120 python3 bench/gpu/tests.py "$bin"/test-* --out "$OUT" --filter cuda --seconds 112 \
            --sanitize memcheck,racecheck --jobs 4
    else
        say "== sanitize: skipped, no compute-sanitizer on PATH"
        skipped="$skipped, sanitize"
    fi
fi
if wants limits || wants times; then part limits 40 python3 bench/gpu/limits.py "$OUT/limits.json"; fi

if wants steps; then
    part steps 120 python3 bench/gpu/tests.py "$bin/test-cuda" "$bin/test-polylink_kernels" --out "$OUT" --filter time \
        --times --seconds 112 --test-seconds 100
fi

# make_model SHAPE: a random model under $work, once.
make_model() { part "model $1" 60 python3 bench/gpu/models.py "$1" "$work/$1"; }

# there NAME SHAPE: whether the part has its model.
there() {
    [ -f "$work/$2/config.json" ] && return
    say "== $1: skipped, there is no model of this shape"
    skipped="$skipped, $1"
    return 1
}

# ours NAME SHAPE SECONDS PRECISION FLAGS…: figures of our server over HTTP, in $OUT/ours-NAME.json.
ours() {
    name=$1 shape=$2 limit=$3 precision=$4
    shift 4
    # Tensor cores are a GPU's anyway.
    [ "$precision" = sm90-bf16 ] || set -- "$@" --serve-flag=--backend=cuda
    there "ours $name" "$shape" || return
    part "ours $name" "$limit" "$bin/polylink" bench engine --model "$work/$shape" --precision "$precision" --no-limits \
        --peer none --cache "$work" --runs 3 --figure-seconds 20 --json "$OUT/ours-$name.json" \
        --serve-flag=--token-budget="${TOKEN_BUDGET:-4096}" "$@"
}

# peer SHAPE SECONDS FLAGS…
peer() {
    shape=$1 limit=$2
    shift 2
    there "peer $shape" "$shape" || return
    part "peer $shape" "$limit" env HF_HUB_DISABLE_PROGRESS_BARS=1 TRANSFORMERS_OFFLINE=1 \
        python3 bench/gpu/peers.py "$work/$shape" "$OUT/peer-$shape.json" "$@"
}

if wants agree; then
    make_model 0.5b
    there agree 0.5b && part agree 120 env HF_HUB_DISABLE_PROGRESS_BARS=1 TRANSFORMERS_OFFLINE=1 \
        python3 bench/gpu/agree.py "$bin/polylink" "$work/0.5b" "$OUT/agree.json"
fi
if wants times || wants peers; then
    make_model 8b
    make_model 1b
fi
large="--prompt 8192 --decode 1x128+64 --decode 64x1024+64 --load 128x1000+200"
small="--decode 1x128+64 --load 32x128+256"
# The lists are words.
# shellcheck disable=SC2086
if wants times; then
    ours 8b-bf16 8b 100 sm90-bf16 $large
    ours 1b-bf16 1b 50 sm90-bf16 $small
fi
# shellcheck disable=SC2086
if wants peers; then
    peer 1b 80 $small
    peer 8b 110 $large
fi
if wants times; then ours 8b-q8_0 8b 80 q8_0 --decode 1x128+64 --prompt 8192; fi
python3 bench/gpu/report.py "$OUT"

say "== ended${skipped:+; skipped:${skipped#,}}${failed:+; FAILED:$failed}"
[ -z "$failed" ]
