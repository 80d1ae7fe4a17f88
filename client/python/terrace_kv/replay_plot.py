"""python -m terrace_kv replay-plot OUT.png: draws the JSON of `terrace replay` on standard input."""

from __future__ import annotations

import json
import sys

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

# The bounds are drawn apart from what lies between them.
BOUNDS = {"lru": {"color": "black", "linestyle": "--"}, "min": {"color": "black", "linestyle": ":"}}
MARKERS = "osD^v<>PX*"


def points(table: dict) -> dict[str, list[tuple[int, float]]]:
    """Of each policy, (size, hit rate in %) by size."""
    by_policy: dict[str, list[tuple[int, float]]] = {}
    rate = "token_hit_rate" if table["capacity_unit"] == "tokens" else "hit_rate"
    for row in table.get("rows", [table]):
        by_policy.setdefault(row["policy"], []).append((row["capacity"], 100 * row[rate]))
    return {policy: sorted(line) for policy, line in by_policy.items()}


def draw(table: dict, path: str) -> None:
    figure, axes = pyplot.subplots(figsize=(9, 6), layout="constrained")
    colors = pyplot.get_cmap("tab20").colors
    between = 0
    for policy, line in points(table).items():
        style = BOUNDS.get(policy)
        if style is None:
            style = {"color": colors[between % len(colors)],
                     "linewidth": 3 if policy == "default" else 1.5}
            between += 1
        axes.plot(*zip(*line), label=policy, marker=MARKERS[between % len(MARKERS)], **style)
    sizes = sorted({size for line in points(table).values() for size, _ in line})
    if sizes[-1] >= 8 * sizes[0]:
        axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel(f"size of the tier, {table['capacity_unit']}")
    axes.set_ylabel(f"hits, % of {'tokens' if table['capacity_unit'] == 'tokens' else 'accesses'}")
    window = f", {table['window']} requests known ahead" if table["window"] else ""
    axes.set_title(f"{table['trace']}\n{table['format']}, {table['semantics']} hits{window}")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path, format="png", dpi=120)


def main(path: str) -> int:
    try:
        draw(json.load(sys.stdin), path)
    except OSError as error:
        print(f"terrace replay --plot: {error}", file=sys.stderr)
        return 1
    return 0
