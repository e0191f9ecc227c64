"""What the parts of bench/gpu.sh have left in a folder, as one JSON file, one table, and one page that needs nothing else.

    python report.py FOLDER

Shares are of the limits that were measured in the same run: a decode step reads all weights that multiply and the keys and
values of its streams; a prompt multiplies all weights but the head.
"""

import html
import json
import math
import sys
from pathlib import Path

# layers, hidden, heads, kv heads, head width, mlp, vocabulary: of bench/gpu/models.py
SIZES = {
    "8b": (32, 4096, 32, 8, 128, 14_336, 128_256),
    "7b": (28, 3584, 28, 4, 128, 18_944, 152_064),
    "1b": (16, 2048, 32, 8, 64, 8192, 128_256),
    "0.5b": (24, 896, 14, 2, 64, 4864, 151_936),
}
# Bytes of a weight, of a number in the cache; which limit its products have.
PROFILES = {"sm90-bf16": (2.0, 2, "bf16_flops"), "q8_0": (34 / 32, 4, "int8_ops")}


def read(path: Path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def share(shape: str, profile: str, figure: str, rate: float, limits: dict) -> str:
    """Of the limit that bounds the figure; empty where none does."""
    layers, hidden, heads, kv_heads, head, mlp, vocabulary = SIZES[shape]
    weight_bytes, kv_bytes, products = PROFILES[profile]
    layer = hidden * head * (2 * heads + 2 * kv_heads) + 3 * hidden * mlp
    kind, _, size = figure.partition("_")
    if kind == "prefill" and limits.get(products):
        tokens = int(size)
        # Scores and values: half of the square, as no token sees later ones.
        attention = 2 * layers * heads * head * tokens
        operations = 2 * layers * layer + attention
        return f"{100 * rate * operations / limits[products]:.1f} % of {limits[products] / 1e12:.0f} T/s"
    if kind == "decode" and limits.get("read_bytes_per_second"):
        streams, context = (int(part) for part in size.split("x"))
        cache = streams * (context + 32) * 2 * layers * kv_heads * head * kv_bytes
        least = (weight_bytes * (layers * layer + hidden * vocabulary) + cache) / limits["read_bytes_per_second"]
        return f"{100 * rate * least / streams:.1f} % of reading at {limits['read_bytes_per_second'] / 1e12:.2f} TB/s"
    return ""


def rows(folder: Path, limits: dict) -> list[dict]:
    found = []
    for path in sorted(folder.glob("ours-*.json")):
        shape = path.stem.removeprefix("ours-").rsplit("-", 1)[0]
        peer = read(folder / f"peer-{shape}.json") or {"rows": []}
        theirs = {row["name"]: row["value"] for row in peer["rows"]}
        for row in read(path) or []:
            parts = row["name"].split(".", 1)
            if parts[0] != "engine" or row["unit"] != "tokens/s" or any(f["name"] == row["name"] and f["shape"] == shape for f in found):
                continue
            profile, figure = next((p, parts[1].removeprefix(p + ".")) for p in PROFILES if parts[1].startswith(p + "."))
            found.append({
                "name": row["name"], "shape": shape, "profile": profile, "figure": figure, "value": row["value"],
                "runs": row.get("runs"), "share": share(shape, profile, figure, row["value"], limits),
                "peer": theirs.get(figure), "ratio": row["value"] / theirs[figure] if theirs.get(figure) else None,
            })  # fmt: skip
    return found


def table(found: list[dict]) -> list[list[str]]:
    lines = [["shape", "profile", "figure", "ours, tokens/s", "share of the limit", "transformers", "ratio"]]
    for row in found:
        peer = f"{row['peer']:.1f}" if row["peer"] else "–"
        ratio = f"{row['ratio']:.2f}" if row["ratio"] else "–"
        lines.append([row["shape"], row["profile"], row["figure"], f"{row['value']:.1f}", row["share"], peer, ratio])
    return lines


def page(all_of_it: dict, lines: list[list[str]]) -> str:
    cell = lambda tag, text: f"<{tag}>{html.escape(str(text))}</{tag}>"
    grid = "".join("<tr>" + "".join(cell("th" if i == 0 else "td", text) for text in line) + "</tr>" for i, line in enumerate(lines))
    best = max([row["value"] for row in all_of_it["figures"]] or [1])
    bars = ""
    for row in all_of_it["figures"]:
        for name, value, colour in (("ours", row["value"], "#2a6"), ("transformers", row["peer"], "#999")):
            if value:
                # Rates differ by orders of magnitude.
                width = 100 * math.log10(max(value, 1) + 1) / math.log10(best + 1)
                label = html.escape(f"{row['shape']} {row['profile']} {row['figure']}, {name}: {value:,.0f}")
                bars += f'<div class="bar" style="width:{width:.1f}%;background:{colour}">{label}</div>'
    tests = all_of_it["tests"]
    bad = [test for test in tests if test["result"] not in ("ok", "skipped")]
    listed = "".join(f"<li>{html.escape(test['result'])}: {html.escape(test['test'])}</li>" for test in bad)
    rest = {name: value for name, value in all_of_it.items() if name not in ("figures", "tests")}
    return (
        "<!doctype html><meta charset=utf-8><title>PolyLink on a GPU</title><style>body{font:14px sans-serif;max-width:70em;"
        "margin:2em auto}td,th{padding:.2em .8em;text-align:left;border-bottom:1px solid #ddd}.bar{color:#fff;margin:1px 0;"
        "padding:1px 4px;white-space:nowrap;overflow:hidden}pre{white-space:pre-wrap}</style><h1>PolyLink on a GPU</h1>"
        f"<h2>Figures</h2><table>{grid}</table><p>Logarithmic:</p>{bars}"
        f"<h2>Tests</h2><p>{sum(test['result'] == 'ok' for test in tests)} passed, {len(bad)} not, of {len(tests)}.</p><ul>{listed}</ul>"
        f"<h2>All of it</h2><pre>{html.escape(json.dumps(rest, indent=1))}</pre>\n"
    )


def main() -> None:
    folder = Path(sys.argv[1])
    limits = read(folder / "limits.json") or {}
    all_of_it = {
        "machine": read(folder / "machine.json"),
        "limits": limits,
        "figures": rows(folder, limits),
        "peers": {path.stem: read(path) for path in sorted(folder.glob("peer-*.json"))},
        "agreement": read(folder / "agree.json"),
        "tests": read(folder / "tests.json") or [],
        "sanitizer": read(folder / "sanitize.json") or [],
    }
    (folder / "gpu.json").write_text(json.dumps(all_of_it, indent=1))
    lines = table(all_of_it["figures"])
    (folder / "gpu.html").write_text(page(all_of_it, lines))
    if len(lines) > 1:
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        for line in lines:
            print("  " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip(), flush=True)
    print(f"  {folder}/gpu.json, {folder}/gpu.html", flush=True)


main()
