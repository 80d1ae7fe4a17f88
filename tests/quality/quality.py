"""Size and loss of every codec on SmolLM2: a table, and build/quality.json.

The KV of a prefix of 1,024 tokens is encoded and decoded, and the next 256 tokens are scored against what
the model says with the KV as it was (bfloat16). KL in nats; dNLL relative to the NLL with the KV as it
was, its interval (95%, paired, Student's t over texts) too. All bytes of a container are counted; the
profile, made once a model, is not: its size is printed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pathlib
import sys
import time

import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "client" / "python"), str(ROOT / "examples"), str(ROOT / "tests/quality")]

import rivals  # noqa: E402
import smollm2  # noqa: E402
import texts  # noqa: E402
from terrace_kv.calibration import collect, fit  # noqa: E402
from terrace_kv.codec import Codec, Shape  # noqa: E402

# 16 log2 of the step; chosen on the kinds calibrated on, to sit at the KL that people compare at.
STEPS = {"archive": (-200, -162, -154, -146, -126), "balanced": (-200, -157, -130),
         "fast": (-200, -161), "fastest": (-200, -163)}
STUDENT_95 = 2.201  # 11 degrees of freedom: 12 texts


@dataclasses.dataclass
class Text:
    kind: str
    kv: list[torch.Tensor]
    continuation: list[int]
    reference: torch.Tensor  # log-probabilities


def say(what: str) -> None:
    print(f"quality: {what}", flush=True)


def load_tests(model, by_kind) -> list[Text]:
    tests = []
    for kind, lists in by_kind.items():
        for ids in lists:
            kv = collect.prefix_kv(model, ids[:texts.PREFIX])
            continuation = ids[texts.PREFIX:]
            with torch.no_grad():
                reference = collect.log_probabilities(model, kv, continuation[:-1])
            tests.append(Text(kind, kv, continuation, reference))
    return tests


def score(model, text: Text, kv: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        given = collect.log_probabilities(model, kv, text.continuation[:-1])
    kl = (text.reference.exp() * (text.reference - given)).sum(-1)
    truth = torch.tensor(text.continuation[1:])[:, None]
    return {"kl": kl, "top1": (given.argmax(-1) == text.reference.argmax(-1)).float(),
            "nll": -given.gather(1, truth)[:, 0], "nll0": -text.reference.gather(1, truth)[:, 0]}


def row_of(codec: str, profile: str, model, tests: list[Text], apply) -> dict:
    bits, scores = [], []
    for text in tests:
        kv, b = apply(text.kv)
        bits.append(b)
        scores.append(score(model, text, kv))
    relative = torch.stack([s["nll"].mean() / s["nll0"].mean() - 1 for s in scores])
    mean = float(relative.mean())
    margin = STUDENT_95 * float(relative.std()) / math.sqrt(len(tests))
    kl = torch.cat([s["kl"] for s in scores])
    kinds = {kind: float(torch.cat([s["kl"] for s, t in zip(scores, tests) if t.kind == kind]).mean())
             for kind in dict.fromkeys(t.kind for t in tests)}
    row = {"codec": codec, "profile": profile, "bits_per_value": sum(bits) / len(bits),
           "mean_kl": float(kl.mean()), "p99_kl": float(kl.quantile(0.99)),
           "top1": float(torch.cat([s["top1"] for s in scores]).mean()), "dnll": mean,
           "dnll_low": mean - margin, "dnll_high": mean + margin, "texts": len(tests),
           "kl_by_kind": kinds, "worst_kind_ratio": max(kinds.values()) / float(kl.mean())}
    print(f"{codec:22} {profile:30} {row['bits_per_value']:6.3f} {row['mean_kl']:8.4f} "
          f"{row['p99_kl']:7.3f} {row['top1']:6.3f} {100 * mean:+7.2f}% "
          f"({100 * row['dnll_low']:+.2f} - {100 * row['dnll_high']:+.2f})  "
          + "  ".join(f"{k} {v:.4f}" for k, v in kinds.items()), flush=True)
    return row


def apply_profile(codec: Codec, lambda16: int):
    def apply(kv):
        heads, tokens, k_dim = kv[0].shape
        shape = Shape(len(kv) // 2, heads, k_dim, kv[1].shape[-1], tokens)
        data = torch.cat([x.reshape(-1) for x in kv]).view(torch.uint8).numpy()
        container = codec.encode(data, shape, lambda16)
        decoded = torch.from_numpy(codec.decode(container, data.nbytes)).view(torch.bfloat16)
        sizes = [x.numel() for x in kv]
        sections = [part.view(x.shape) for part, x in zip(decoded.split(sizes), kv)]
        return sections, 8 * len(container) / sum(sizes)
    return apply


def apply_rival(function):
    def apply(kv):
        sections, bits = function([x.float() for x in kv])
        return [x.bfloat16() for x in sections], bits
    return apply


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
    tests = load_tests(model, test)
    samples = collect.collect(
        model, [ids[:-1] for lists in calibration.values() for ids in lists], texts.PREFIX,
        progress=lambda done, total: say(f"gradients of text {done} of {total}"))
    rope, rows = collect.rope_of(model), []
    weights = 2 * sum(p.numel() for p in model.parameters())
    print(f"{'codec':22} {'profile':30} {'b/v':>6} {'KL':>8} {'p99':>7} {'top-1':>6} dNLL (95%)  KL of each kind")
    for name, function in rivals.RIVALS.items():
        rows.append(row_of(name, "", model, tests, apply_rival(function)))
    for name, steps in STEPS.items():
        profile = fit.fit(fit.FORMS[name], samples, rope, "SmolLM2-135M")
        say(f"{name}: a profile of {len(profile) / 2**20:.2f} MiB, "
            f"{100 * len(profile) / weights:.2f}% of the model's weights in bfloat16")
        codec = Codec(profile)
        rows += [row_of("terrace", f"{name}, step 2^({step}/16)", model, tests,
                        apply_profile(codec, step)) for step in steps]
    options.json.write_text(json.dumps({"rows": rows}, indent=1))
    say(f"wrote {options.json} after {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
