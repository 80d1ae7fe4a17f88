"""A vLLM engine in processes of its own, for tests."""

from __future__ import annotations

import inspect
import json
import os
import pathlib
import select
import subprocess
import sys
import time
from types import ModuleType

from process_group import kill_group

START_TIMEOUT_S = 240
ANSWER_TIMEOUT_S = 120


def terrace_transfer(socket: str, **options: object) -> dict:
    """KVTransferConfig of terrace's connector."""
    return {"kv_connector": "TerraceConnector", "kv_role": "kv_both",
            "kv_connector_module_path": "terrace_kv.connectors.vllm",
            "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": {"socket": socket, **options}}


def tier_transfer(socket: str) -> dict:
    """KVTransferConfig of vLLM's own offloading with terrace below it."""
    return {"kv_connector": "OffloadingConnector", "kv_role": "kv_both",
            "kv_connector_extra_config": {
                "spec_name": "CpuTieringSpec", "spec_module_path": "cpu_offloading_spec",
                "cpu_bytes_to_use": 256 << 20,
                "secondary_tiers": [{"type": "TerraceSecondaryTier",
                                     "module_path": "terrace_kv.connectors.vllm_tier",
                                     "socket": socket}]}}


class VllmEngine:
    """Starts when made and serves after ready(). Ended with all its processes by kill()."""

    def __init__(self, directory: pathlib.Path, model: pathlib.Path, name: str, *,
                 dtype: str = "bfloat16", **settings: object) -> None:
        answers, write = os.pipe()
        self.log_path = directory / f"{name}.log"
        self._answers = os.fdopen(answers)
        settings = {"model": str(model), "dtype": dtype, **settings}
        environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1",
                       "VLLM_CPU_OMP_THREADS_BIND": "0-1", "VLLM_NO_USAGE_STATS": "1",
                       "PYTHONPATH": os.pathsep.join([str(pathlib.Path(__file__).parent),
                                                      os.environ["PYTHONPATH"]])}
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(pathlib.Path(__file__).with_name("vllm_driver.py")),
                 "--answers", str(write), json.dumps(settings)],
                stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, text=True,
                pass_fds=(write,), start_new_session=True)
        os.close(write)

    def __enter__(self) -> VllmEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def ready(self) -> VllmEngine:
        assert self._take(START_TIMEOUT_S) == {"ready": True}
        return self

    def send(self, op: str, **arguments: object) -> None:
        self.process.stdin.write(json.dumps({"op": op, **arguments}) + "\n")
        self.process.stdin.flush()

    def take(self) -> dict:
        """The answer to what was sent."""
        return self._take(ANSWER_TIMEOUT_S)

    def ask(self, op: str, **arguments: object) -> dict:
        self.send(op, **arguments)
        return self.take()

    def generate(self, ids: list[int], max_tokens: int = 32, logprobs: int | None = 5) -> dict:
        return self.ask("generate", ids=ids, max_tokens=max_tokens, logprobs=logprobs)

    def together(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        """Answers to prompts that run at the same time."""
        return self.ask("together", prompts=prompts, max_tokens=max_tokens)["ids"]

    def reset(self) -> None:
        """Empties vLLM's own prefix cache. Blocks of a request that just ended may be held for a
        moment."""
        for _ in range(50):
            if self.ask("reset")["reset"]:
                return
            time.sleep(0.05)
        raise AssertionError("vLLM's prefix cache could not be emptied")

    def counter(self, name: str) -> float:
        return self.metrics().get(f"vllm:terrace_{name}", 0)

    def metrics(self) -> dict[str, float]:
        """vLLM's counters and gauges, as Prometheus reads them."""
        return self.ask("metrics")

    def tokens(self, module: ModuleType, count: int) -> list[int]:
        """Real text: the source of a module of Python."""
        return self.ask("tokens", text=inspect.getsource(module), count=count)["ids"]

    def kill(self) -> None:
        """SIGKILL to every process of this engine."""
        kill_group(self.process)

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def _take(self, timeout_s: float) -> dict:
        assert select.select([self._answers], [], [], timeout_s)[0], self.log()[-4000:]
        line = self._answers.readline()
        assert line, f"the engine ended:\n{self.log()[-4000:]}"
        return json.loads(line)
