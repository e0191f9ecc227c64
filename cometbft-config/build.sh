#!/bin/sh
# Makes the pinned CometBFT available and prints the path of its binary as the last line (all else goes to stderr).
#
# A `cometbft` of the 0.38 line on PATH is used as it is. Otherwise the version in go.mod, with the dependencies that
# go.sum fixes, is built into ${POLYLINK_CACHE:-~/.cache/polylink}/bin; once there, this script takes no time.
# Usage: build.sh [cometbft|abci-cli]
set -eu

says=
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
tool=${1:-cometbft}
case $tool in
cometbft) package=github.com/cometbft/cometbft/cmd/cometbft ;;
# It names the version of ABCI, not its own.
abci-cli) package=github.com/cometbft/cometbft/abci/cmd/abci-cli says=2.0.0 ;;
*) echo "build.sh: unknown tool '$tool'; know cometbft and abci-cli" >&2; exit 2 ;;
esac
pinned=$(sed -n 's|^.*github.com/cometbft/cometbft v\([0-9.]*\).*|\1|p' "$here/go.mod")
says=${says:-$pinned}
line=${says%.*}
binary=${POLYLINK_CACHE:-$HOME/.cache/polylink}/bin/$tool

version_of() {
    "$1" version 2>/dev/null | sed -n 's/^v\{0,1\}\([0-9][0-9.]*\).*/\1/p' | head -n 1
}

found=$(command -v "$tool" 2>/dev/null || true)
if [ -n "$found" ]; then
    case $(version_of "$found") in
    "$line".*) echo "$found"; exit 0 ;;
    *) echo "build.sh: $found is not of the line $line, so $pinned is built" >&2 ;;
    esac
fi
if [ -x "$binary" ] && [ "$(version_of "$binary")" = "$says" ]; then
    echo "$binary"
    exit 0
fi
if ! command -v go >/dev/null 2>&1; then
    echo "build.sh: CometBFT $pinned is needed and cannot be built: there is no 'go' on PATH." >&2
    echo "build.sh: install Go 1.24 or newer (https://go.dev/dl/), or put a cometbft $line.x on PATH." >&2
    exit 1
fi

echo "building $tool $pinned (about a minute; the first time it also fetches the sources)" >&2
mkdir -p "$(dirname "$binary")"
partial=$binary.partial.$$
log=$partial.log
trap 'rm -f "$partial" "$log"' EXIT
# `go build -v` names each package as it compiles it: a count of them is the progress. The status of a pipe's left side
# is lost to sh, so that the binary itself tells whether the build succeeded.
(cd "$here" && CGO_ENABLED=0 GOFLAGS="${GOFLAGS:-} -mod=readonly" go build -v -trimpath -o "$partial" "$package" 2>&1) |
    tee "$log" |
    awk '{ lines++ } lines % 50 == 0 { print "  " lines " packages" } END { print "  " lines + 0 " packages: done" }' >&2
if [ ! -x "$partial" ]; then
    grep -v '^[a-z0-9./_-]*$' "$log" >&2 || cat "$log" >&2
    echo "build.sh: $tool $pinned did not build; the reason is above" >&2
    exit 1
fi
mv "$partial" "$binary"
if [ "$(version_of "$binary")" != "$says" ]; then
    echo "build.sh: $binary says version '$(version_of "$binary")' instead of $says" >&2
    exit 1
fi
echo "$binary"
