"""Size and loss of every codec on SmolLM2: a table, the bars, and build/quality.json.

The KV of a prefix of 1,024 tokens is encoded and decoded, and the next 256 tokens are scored against what
the model says with the KV as it was (bfloat16). KL in nats; dNLL relative to the NLL with the KV as it
was, its interval (95%, paired, Student's t over texts) too. All bytes of a container are counted; the
profile, made once a model, is not: its size is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
import time

import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]
os.environ.setdefault("TERRACE_BUILD_DIR", str(ROOT / "build" / "release"))
sys.path[:0] = [str(ROOT / "client" / "python"), str(ROOT / "examples"), str(ROOT / "tests/quality")]

import bars  # noqa: E402
import lossless  # noqa: E402
import rivals  # noqa: E402
import smollm2  # noqa: E402
import texts  # noqa: E402
import variants  # noqa: E402
from terrace_kv.calibration import collect, fit, measure  # noqa: E402
from terrace_kv.calibration.progress import Bar  # noqa: E402
from terrace_kv.codec import Codec, DefaultRope, Shape, default_profile  # noqa: E402

NEW_KIND = "licence"
DEFAULT_TOKENS = 256  # one chunk, of which the calibration-free profile is made
# 16 log2 of the step, to sit at the KL that people compare at.
STEPS = {"near": (-192, -184), "archive": (-161, -153, -144, -121), "balanced": (-155, -124),
         "fast": (-161, -150), "fastest": (-164, -150), "default": (-18, -12)}

REFINED = -128  # of the base; what both are worth is about that of -153


def say(what: str) -> None:
    print(f"quality: {what}", flush=True)


class Table:
    """Rows as they are measured, printed at once."""

    def __init__(self, model, tests: list[measure.Text]) -> None:
        self.model, self.tests, self.rows = model, tests, []
        print(f"{'codec':30} {'profile':24} {'b/v':>6} {'KL':>8} {'p99':>7} {'top-1':>6} "
              "dNLL (95%)  KL of each kind", flush=True)

    def add(self, codec: str, profile: str, apply) -> None:
        row = {"codec": codec, "profile": profile, **measure.row(self.model, self.tests, apply)}
        print(f"{codec:30} {profile:24} {row['bits_per_value']:6.3f} {row['mean_kl']:8.4f} "
              f"{row['p99_kl']:7.3f} {row['top1']:6.3f} {100 * row['dnll']:+.2f}% "
              f"({100 * row['dnll_low']:+.2f} .. {100 * row['dnll_high']:+.2f})  "
              + "  ".join(f"{k} {v:.4f}" for k, v in row["kl_by_kind"].items()), flush=True)
        self.rows.append(row)

    def add_profile(self, name: str, profile: bytes) -> None:
        codec = Codec(profile)
        for step in STEPS[name]:
            self.add("terrace", f"{name}, step 2^({step}/16)", measure.through(codec, step))


def _as_stored(function):
    """A rival's float32 back in bfloat16."""
    def apply(kv):
        sections, bits = function([x.float() for x in kv])
        return [x.bfloat16() for x in sections], bits
    return apply


def _samples(model, calibration) -> list[fit.Sample]:
    ids = [ids for lists in calibration.values() for ids in lists]
    bar, samples = Bar("gradients", len(ids)), []
    for text in ids:
        samples.append(collect.gradient_sample(model, text[:-1], texts.PREFIX, draws=2))
        bar(len(samples))
    return samples


def _default(sample: fit.Sample, rope: DefaultRope) -> bytes:
    """Made of one chunk of one text."""
    kv = [x[:, :DEFAULT_TOKENS] for x in sample.kv]
    heads, tokens, k_dim = kv[0].shape
    data = torch.cat([x.reshape(-1) for x in kv]).view(torch.uint8).numpy()
    return default_profile(data, Shape(len(kv) // 2, heads, k_dim, kv[1].shape[-1], tokens), rope)


def _print_variants(rows: list[dict]) -> None:
    """Each against the first, at its own KL."""
    first = [row for row in rows if row["codec"] == rows[0]["codec"]]
    for row in rows[len(first):]:
        least = bars.bits_at(first, row["mean_kl"])
        print(f"{row['codec']:30} {100 * (row['bits_per_value'] / least - 1):+.0f}% of the bits of "
              f"{first[0]['codec']} at KL {row['mean_kl']:.4f}", flush=True)


def _print_bars(found: list[dict]) -> None:
    for bar in found:
        print(f"{'met   ' if bar['met'] else 'MISSED'} {bar['what']:44} {bar['bar']:12} {bar['found']}")
    say(f"{sum(bar['met'] for bar in found)} of {len(found)} bars met")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=pathlib.Path, default=ROOT / "build" / "quality.json")
    options = parser.parse_args()
    torch.manual_seed(0)
    start = time.monotonic()
    say("loading SmolLM2-135M-Instruct")
    model, tokenizer = smollm2.load()
    calibration, test = texts.load(lambda text: tokenizer(text, add_special_tokens=False)["input_ids"])
    say("calibration texts: " + ", ".join(f"{len(v)} {k}" for k, v in calibration.items())
        + "; test texts: " + ", ".join(f"{len(v)} {k}" for k, v in test.items()))
    samples = _samples(model, calibration)
    forms = list(fit.FORMS.values())
    bar = Bar("layers", model.config.num_hidden_layers)
    rope = collect.rope_of(model)
    fitted = fit.fit(forms, samples, rope, "SmolLM2-135M", progress=bar)
    profiles = {form.name: profile.to_bytes() for form, profile in zip(forms, fitted)}
    weights = 2 * sum(p.numel() for p in model.parameters())
    tests = [measure.text_of(model, kind, ids, texts.PREFIX)
             for kind, lists in test.items() for ids in lists]
    table = Table(model, tests)
    for name, function in rivals.RIVALS.items():
        table.add(name, "", _as_stored(function))
    table.add_profile("near", profiles["archive"])
    for name, profile in profiles.items():
        table.add_profile(name, profile)
    table.add("terrace", f"refined archive, from 2^({REFINED}/16)",
              measure.through(Codec(profiles["archive"]), REFINED, refined=True))
    theta = model.config.rope_parameters["rope_theta"]
    table.add_profile("default", _default(samples[0], DefaultRope("half", 2 * len(rope.radians), theta)))
    some = [text for kind in test for text in [t for t in tests if t.kind == kind][:2]]
    table.rows += lossless.rows([t.kv for t in some], rope)
    say(f"emulated variants, on {len(some)} of the texts, with an ideal entropy coder")
    tried = Table(model, some)
    fast = next(p for form, p in zip(forms, fitted) if form.name == "fast")
    for name, function, step in variants.of(fast, rope, model, some):
        tried.add(name, f"emulated, step 2^({step}/16)", _as_stored(function))
    table.rows += tried.rows
    _print_variants(tried.rows)
    found = bars.check(table.rows, {n: len(p) / weights for n, p in profiles.items()}, NEW_KIND)
    _print_bars(found)
    options.json.write_text(json.dumps({"rows": table.rows, "bars": found}, indent=1))
    say(f"wrote {options.json} after {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
