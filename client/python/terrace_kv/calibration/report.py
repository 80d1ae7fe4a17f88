"""What a calibration or an evaluation found: a table, JSON, and a plot of bits against KL."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence

HEAD = f"{'profile':12} {'lambda16':>8} {'b/v':>6} {'mean KL':>9} {'p99 KL':>8} {'top-1':>6}  dNLL (95%)"


def line(row: dict) -> str:
    return (f"{row['profile']:12} {row['lambda16']:8d} {row['bits_per_value']:6.3f} "
            f"{row['mean_kl']:9.5f} {row['p99_kl']:8.4f} {row['top1']:6.3f}  "
            f"{100 * row['dnll']:+.2f}% ({100 * row['dnll_low']:+.2f} - "
            f"{100 * row['dnll_high']:+.2f})")


def write(folder: pathlib.Path, about: dict, rows: Sequence[dict]) -> None:
    """report.json and report.png."""
    (folder / "report.json").write_text(json.dumps({**about, "rows": list(rows)}, indent=1))
    plot(folder / "report.png", about["model"], rows)


def plot(path: pathlib.Path, title: str, rows: Sequence[dict]) -> None:
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for name in dict.fromkeys(row["profile"] for row in rows):
        of = [row for row in rows if row["profile"] == name]
        axes.errorbar([row["bits_per_value"] for row in of], [row["mean_kl"] for row in of],
                      yerr=[row["kl_standard_error"] for row in of], marker="o", capsize=3,
                      label=name)
    axes.set(xlabel="bits a value", ylabel="mean KL divergence, nats a token", yscale="log",
             title=f"{title}: size against loss on held-out texts")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
