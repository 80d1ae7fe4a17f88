"""Two vLLM engines, one after the other, share a long prefix through terrace: the second one
answers without computing it.

    python examples/vllm_shared_prefix.py [--model DIRECTORY_OR_NAME] [--cache DIRECTORY]

Needs vLLM 0.32 and terrace_kv. Each engine is a process of its own, as it would be on a node.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import subprocess
import sys
import tempfile
import time


def serve(model: str, socket: str) -> None:
    """One engine: two questions about one document."""
    from vllm import LLM, SamplingParams
    from vllm.config import KVTransferConfig

    llm = LLM(model=model, enforce_eager=True, max_model_len=4096, max_num_batched_tokens=4096,
              kv_transfer_config=KVTransferConfig(
                  kv_connector="TerraceConnector", kv_role="kv_both",
                  kv_connector_module_path="terrace_kv.connectors.vllm",
                  kv_load_failure_policy="recompute",
                  kv_connector_extra_config={"socket": socket}))
    document = json.__doc__ + inspect.getsource(json.decoder)[:8000]
    for question in ("What does JSONDecoder do?", "What does scan_once return?"):
        start = time.perf_counter()
        answer, = llm.generate([f"{document}\n\nQuestion: {question}\nAnswer:"],
                               SamplingParams(temperature=0, max_tokens=16), use_tqdm=False)
        print(f"{len(answer.prompt_token_ids)} tokens, {answer.num_cached_tokens} of them cached, "
              f"{time.perf_counter() - start:.2f} s: {answer.outputs[0].text.strip()!r}",
              flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--cache", default=None, help="where the daemon keeps what is stored")
    parser.add_argument("--serve", help=argparse.SUPPRESS)  # the socket, for an engine's process
    arguments = parser.parse_args()
    if arguments.serve is not None:
        serve(arguments.model, arguments.serve)
        return
    import terrace_kv

    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    directory = arguments.cache or tempfile.mkdtemp(prefix="terrace-", dir="/var/tmp")
    with terrace_kv.open(directory, host_capacity_bytes=1 << 30) as client:
        for which in ("first", "second"):
            print(f"--- the {which} engine", flush=True)
            subprocess.run([sys.executable, __file__, "--model", arguments.model,
                            "--serve", str(client.socket_path)], check=True)


if __name__ == "__main__":  # vLLM starts processes that import this file
    main()
