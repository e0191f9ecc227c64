#!/bin/sh
# Says which of the named tools are missing or too old, and how to get them. Usage: toolchain.sh cargo go python3 npm
set -u
bad=0

missing() { echo "missing: $1 - $2" >&2; bad=1; }

# at_least FOUND WANTED: compares dotted versions.
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

for tool in "$@"; do
    case $tool in
    cargo)
        if ! command -v cargo >/dev/null; then
            missing "cargo" "Rust 1.95 or newer, see https://rustup.rs"
        else
            found=$(cargo --version | cut -d ' ' -f 2)
            at_least "$found" 1.95.0 || missing "cargo 1.95" "found $found; run: rustup update stable"
            command -v cc >/dev/null || missing "cc" "a C compiler and linker (Debian: apt install build-essential)"
        fi
        ;;
    go)
        # Go builds the pinned CometBFT; one of its line on PATH does as well.
        if cometbft version 2>/dev/null | grep -q '^v\{0,1\}0\.38\.'; then
            :
        elif ! command -v go >/dev/null; then
            missing "go" "Go 1.24 or newer builds CometBFT, see https://go.dev/dl (or put a cometbft 0.38.x on PATH)"
        else
            found=$(go env GOVERSION | sed 's/^go//; s/[^0-9.].*//')
            at_least "$found" 1.24 || missing "go 1.24" "found $found, see https://go.dev/dl (or put a cometbft 0.38.x on PATH)"
        fi
        ;;
    python3)
        if ! python3 -c 'import ensurepip, venv, sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            missing "python3" "Python 3.10 or newer with venv (Debian: apt install python3-venv); only tests need it"
        fi
        ;;
    npm)
        if ! command -v npm >/dev/null || ! command -v node >/dev/null; then
            missing "npm" "Node.js 18 or newer with npm, see https://nodejs.org; only tests need it"
        fi
        ;;
    *) missing "$tool" "toolchain.sh does not know how to check for it" ;;
    esac
done
[ $bad -eq 0 ] || { echo "install what is missing and run the command again" >&2; exit 1; }
