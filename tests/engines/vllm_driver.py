"""One vLLM engine, driven by lines of JSON: a command a line on standard input, an answer a line on
the descriptor that is given. A program of its own, so that a test may end it at any moment.

    {"op": "generate", "ids": [...], "max_tokens": n, "logprobs": k}
        -> {"ids": [...], "logprobs": [[[token, value], ...], ...], "cached": n, "ms": t}
    {"op": "together", "prompts": [[...], ...], "max_tokens": n}
        -> {"ids": [[...], ...], "scheduled": [t, ...], "first_token": [t, ...]}
    {"op": "reset"}    empties vLLM's own prefix cache
    {"op": "metrics"}  -> {name: value}
    {"op": "tokens", "text": "...", "count": n} -> {"ids": [...]}
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time


def _engine(settings: dict):
    from vllm import LLM
    from vllm.config import KVTransferConfig

    transfer = settings.pop("transfer", None)
    if transfer is not None:
        settings["kv_transfer_config"] = KVTransferConfig(**transfer)
    defaults = {"max_model_len": 4096, "max_num_batched_tokens": 4096, "max_num_seqs": 4}
    return LLM(enforce_eager=True, disable_log_stats=False, **{**defaults, **settings})


def _generate(llm, command: dict) -> dict:
    from vllm import SamplingParams

    wanted = SamplingParams(temperature=0, max_tokens=command["max_tokens"],
                            logprobs=command.get("logprobs"), ignore_eos=True)
    start = time.perf_counter()
    output, = llm.generate([{"prompt_token_ids": command["ids"]}], wanted, use_tqdm=False)
    elapsed = time.perf_counter() - start
    best = output.outputs[0]
    logprobs = [sorted((token, value.logprob) for token, value in step.items())
                for step in best.logprobs or ()]
    return {"ids": list(best.token_ids), "logprobs": logprobs, "cached": output.num_cached_tokens,
            "ms": elapsed * 1e3}


def _together(llm, command: dict) -> dict:
    from vllm import SamplingParams

    wanted = SamplingParams(temperature=0, max_tokens=command["max_tokens"], ignore_eos=True)
    prompts = [{"prompt_token_ids": ids} for ids in command["prompts"]]
    outputs = llm.generate(prompts, wanted, use_tqdm=False)
    return {"ids": [list(each.outputs[0].token_ids) for each in outputs],
            "scheduled": [each.metrics.scheduled_ts for each in outputs],
            "first_token": [each.metrics.first_token_ts for each in outputs]}


def _answer(llm, command: dict) -> dict:
    match command["op"]:
        case "generate":
            return _generate(llm, command)
        case "together":
            return _together(llm, command)
        case "reset":
            return {"reset": llm.reset_prefix_cache()}
        case "metrics":
            return {metric.name: metric.value for metric in llm.get_metrics()
                    if hasattr(metric, "value")}
        case "tokens":
            ids = llm.get_tokenizer().encode(command["text"])
            return {"ids": ids[:command["count"]]}
    raise ValueError(f"op: {command['op']!r}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--answers", type=int, required=True, help="descriptor to answer on")
    parser.add_argument("settings", help="arguments of vllm.LLM, and of KVTransferConfig, as JSON")
    arguments = parser.parse_args()
    with os.fdopen(arguments.answers, "w") as answers:
        llm = _engine(json.loads(arguments.settings))
        print(json.dumps({"ready": True}), file=answers, flush=True)
        for line in sys.stdin:
            print(json.dumps(_answer(llm, json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":  # vLLM starts processes that import this file
    main()
