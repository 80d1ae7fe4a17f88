#!/usr/bin/env python3
"""The smallest program that keeps a model's KV cache in terrace.

    python3 examples/python_prefix_cache.py DIRECTORY

A private daemon keeps its state under DIRECTORY and ends with this program; run it twice and the
second run starts warm. In your own program, load any transformers causal language model instead.
"""

from __future__ import annotations

import pathlib
import sys
import time

# In a checkout; not needed when the wheel is installed.
sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1] / "client" / "python")]

import smollm2  # noqa: E402
import terrace_kv  # noqa: E402
from terrace_kv.connectors.transformers import TerracePrefixCache  # noqa: E402

DOCUMENT = ("The lighthouse at Cape Verity was built in 1871 and lit with whale oil. " * 20 +
            "Its first keeper was Ada Thorne. ")

QUESTIONS = ("Who was the first keeper?", "When was it built?")


def main(directory: str) -> None:
    model, tokenizer = smollm2.load()
    with terrace_kv.open(directory) as client:
        cache = TerracePrefixCache(client, model)
        prompts = [tokenizer.apply_chat_template(
            [{"role": "user", "content": f"{DOCUMENT}\n{question}"}],
            add_generation_prompt=True, return_tensors="pt", return_dict=False)
            for question in QUESTIONS]
        cache.announce(prompts)  # what is stored of them comes to memory meanwhile
        for question, ids in zip(QUESTIONS, prompts, strict=True):
            before, started = cache.stats.restored_tokens, time.monotonic()
            output = cache.generate(ids, max_new_tokens=16, do_sample=False)
            answer = tokenizer.decode(output[0, ids.shape[1]:], skip_special_tokens=True)
            print(f"{question} {' '.join(answer.split())}")
            print(f"  {cache.stats.restored_tokens - before} of {ids.shape[1]} tokens restored, "
                  f"{time.monotonic() - started:.2f} s")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "/var/tmp/terrace-example")
