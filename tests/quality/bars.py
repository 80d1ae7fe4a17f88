"""What the figures must be, and whether they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Row = dict


def _of(rows: Sequence[Row], codec: str, profile: str = "") -> list[Row]:
    return [r for r in rows if r["codec"] == codec and r["profile"].split(",")[0] == profile]


def bits_at(rows: Sequence[Row], kl: float, kind: str | None = None) -> float:
    """Bits a value at a mean KL (of one kind of text): between rows, by the logarithm of KL; beyond
    them, on the line of the nearest two."""
    def place(row: Row) -> tuple[float, float]:
        if kind is None:
            return math.log(row["mean_kl"]), row["bits_per_value"]
        return math.log(row["kl_by_kind"][kind]), row["bits_by_kind"][kind]
    points = sorted(place(row) for row in rows)
    x = math.log(kl)
    right = next((i for i, point in enumerate(points) if point[0] >= x), len(points) - 1)
    right = max(right, 1)
    (x0, y0), (x1, y1) = points[right - 1], points[right]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def _size_at_loss(rows: Sequence[Row], form: str, kl: float, bits: float):
    """The smallest row that loses no more."""
    good = [r for r in _of(rows, "terrace", form) if r["mean_kl"] <= kl]
    if not good:
        return f"no row of {form} at KL <= {kl}", False
    best = min(good, key=lambda r: r["bits_per_value"])
    return (f"{best['bits_per_value']:.3f} b/v at {best['mean_kl']:.4f} "
            f"+- {best['kl_standard_error']:.4f}", best["bits_per_value"] <= bits)


def _near(rows: Sequence[Row]):
    good = [r for r in _of(rows, "terrace", "near") if r["dnll"] <= 0.001]
    if not good:
        return "no row of near at dNLL <= .1%", False
    best = min(good, key=lambda r: r["bits_per_value"])
    return (f"{best['bits_per_value']:.3f} b/v at {100 * best['dnll']:+.3f}% "
            f"({100 * best['dnll_low']:+.3f} .. {100 * best['dnll_high']:+.3f})",
            best["bits_per_value"] <= 2.8)


def _smaller(rows: Sequence[Row], ours: str, rival: str, times: float, kind: str | None = None):
    """At the rival's own KL."""
    theirs = _of(rows, rival)[0]
    kl = theirs["mean_kl"] if kind is None else theirs["kl_by_kind"][kind]
    mine = bits_at(_of(rows, "terrace", ours), kl, kind)
    ratio = theirs["bits_per_value"] / mine
    return f"{ratio:.2f}x: {theirs['bits_per_value']:.3f} / {mine:.3f} b/v at {kl:.4f}", ratio >= times


def _worst_kind(rows: Sequence[Row], form: str):
    worst = max(_of(rows, "terrace", form), key=lambda r: r["worst_kind_ratio"])
    kind = max(worst["kl_by_kind"], key=worst["kl_by_kind"].get)
    return (f"{worst['worst_kind_ratio']:.2f} ({kind}, {worst['profile']})",
            worst["worst_kind_ratio"] <= 2.5)


def _lossless(rows: Sequence[Row], what: str, times: float):
    row = next(r for r in _of(rows, "terrace", "lossless") if r["profile"].endswith(what))
    return f"{row['ratio']:.3f}x ({row['ratio_low']:.3f} on the worst)", row["ratio_low"] >= times


def _profiles(shares: dict[str, float]):
    return ", ".join(f"{form} {100 * share:.2f}%" for form, share in shares.items()), all(
        share <= 0.025 for share in shares.values())


def check(rows: Sequence[Row], shares: dict[str, float], new_kind: str) -> list[dict]:
    """`shares`: bytes of each profile over those of the model's weights; `new_kind`: the kind of text
    never calibrated on."""
    bars: list[tuple[str, str, Callable]] = [
        (f"{form}: KL <= {kl}", f"<= {bits} b/v",
         lambda f=form, k=kl, b=bits: _size_at_loss(rows, f, k, b))
        for form, kl, bits in (
            ("archive", .005, 1.50), ("archive", .010, 1.15), ("archive", .02, .85),
            ("balanced", .0085, 1.42), ("balanced", .085, .55), ("fast", .006, 1.90),
            ("fastest", .007, 2.20))]
    bars += [
        ("near: dNLL <= .1%", "<= 2.8 b/v", lambda: _near(rows)),
        ("archive against LMCache as shipped", ">= 10x",
         lambda: _smaller(rows, "archive", "LMCache cachegen", 10)),
        ("the same, its tables free", ">= 5x",
         lambda: _smaller(rows, "archive", "LMCache cachegen, tables free", 5)),
        (f"archive against KIVI int4 on {new_kind}", ">= 2.5x",
         lambda: _smaller(rows, "archive", "KIVI int4", 2.5, new_kind)),
        ("default against KIVI int4", ">= 1.5x",
         lambda: _smaller(rows, "default", "KIVI int4", 1.5)),
        *[(f"{form}: KL of the worst kind / mean", "<= 2.5", lambda f=form: _worst_kind(rows, f))
          for form in ("archive", "balanced", "fast", "fastest")],
        *[(f"lossless: {what}, the worst of the texts", f">= {times}x",
           lambda w=what, t=times: _lossless(rows, w, t))
          for what, times in (("whole KV", 1.53), ("K before rotation", 1.60))],
        ("profile / weights", "<= 2.5%", lambda: _profiles(shares))]
    found = []
    for what, wanted, judge in bars:
        figure, met = judge()
        found.append({"what": what, "bar": wanted, "found": figure, "met": met})
    return found
