#!/usr/bin/env python3
"""A language model answers questions about long documents: cold, from terrace's host memory, from
NVMe after the daemon was killed, and from a second process that shares the cache.

    make demo        writes build/demo.json too

What is compared is the time to the first token, the 64 greedy tokens of every answer, and every byte
of the restored KV.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "client" / "python"), str(ROOT / "examples")]

import torch  # noqa: E402
from transformers import DynamicCache  # noqa: E402

import smollm2  # noqa: E402
import terrace_kv  # noqa: E402
from terrace_kv.connectors.transformers import TerracePrefixCache  # noqa: E402

BUILD = pathlib.Path(os.environ.get("TERRACE_BUILD_DIR", ROOT / "build" / "release"))
NEW_TOKENS = 64
CONFIG = """\
[server]
socket_path = "{directory}/terraced.sock"
state_dir = "{directory}/state"

[host]
capacity = "1GiB"

[nvme]
capacity = "2GiB"
"""


def say(text: str = "") -> None:
    print(text, flush=True)


class Daemon:
    """terraced over one directory; start() after kill() finds what was durable."""

    def __init__(self, directory: pathlib.Path) -> None:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        self.socket = directory / "terraced.sock"
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        (directory / "terrace.toml").write_text(CONFIG.format(directory=directory))

    def start(self) -> terrace_kv.Client:
        command = [BUILD / "terraced", "--config", self._directory / "terrace.toml"]
        with open(self._directory / "terraced.log", "ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while True:
            try:
                return terrace_kv.open(socket=self.socket, client_name="demo")
            except (terrace_kv.errors.NotFound, terrace_kv.errors.Unavailable) as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"terraced did not start ({error}); its log is "
                                     f"{self._directory}/terraced.log") from error
                time.sleep(0.005)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(timeout=60)


@dataclasses.dataclass
class Run:
    ttft_s: float
    tokens: list[int]
    restored: int
    cache: DynamicCache | None = None


class Engine:
    """Greedy decoding with SmolLM2, on prompts that start with the same documents."""

    def __init__(self) -> None:
        fixture = json.loads((ROOT / "examples/data/musique_demo.json").read_text())
        self.model, self.tokenizer = smollm2.load()
        self.questions = fixture["questions"]
        documents = "\n\n".join(fixture["documents"])
        self.prompts = [self._prompt(documents, q["question"]) for q in self.questions]
        self.prefix = self._common_prefix()
        self.run(self.prompts[0][:, -32:], DynamicCache(), new_tokens=2)  # warms torch up

    def _prompt(self, documents: str, question: str) -> torch.Tensor:
        system = "Answer the question from the passages, in a few words."
        user = f"Passages: {documents}\n\nQuestion: {question}"
        return self.tokenizer.apply_chat_template(
            [{"role": "system", "content": system}, {"role": "user", "content": user}],
            add_generation_prompt=True, return_tensors="pt", return_dict=False)

    def _common_prefix(self) -> int:
        shortest = min(prompt.shape[1] for prompt in self.prompts)
        rows = torch.cat([prompt[:, :shortest] for prompt in self.prompts])
        differs = (rows != rows[0]).any(dim=0).nonzero()
        return int(differs[0]) if len(differs) else shortest

    @torch.inference_mode()
    def run(self, ids: torch.Tensor, cache: DynamicCache, new_tokens: int = NEW_TOKENS,
            started: float | None = None) -> Run:
        """Computes what `cache` does not hold; `started` is when the request came in."""
        started = time.perf_counter() if started is None else started
        restored = cache.get_seq_length()
        step, tokens, ttft = ids[:, restored:], [], 0.0
        while len(tokens) < new_tokens:
            logits = self.model(step, past_key_values=cache, logits_to_keep=1).logits
            step = logits[:, -1].argmax(dim=-1, keepdim=True)
            tokens.append(int(step))
            if len(tokens) == 1:
                ttft = time.perf_counter() - started
        return Run(ttft, tokens, restored, cache)

    def run_with(self, terrace: TerracePrefixCache, question: int) -> Run:
        started = time.perf_counter()
        cache, _ = terrace.restore(self.prompts[question])
        return self.run(self.prompts[question], cache, started=started)

    def text(self, run: Run) -> str:
        tokens = run.tokens
        if self.tokenizer.eos_token_id in tokens:
            tokens = tokens[: tokens.index(self.tokenizer.eos_token_id)]
        return " ".join(self.tokenizer.decode(tokens, skip_special_tokens=True).split())


def same_bytes(a: DynamicCache, b: DynamicCache, tokens: int) -> bool:
    """Whether K and V of the leading tokens are the same bits in every layer."""
    return all(
        torch.equal(x[:, :, :tokens].contiguous().view(torch.int32),
                    y[:, :, :tokens].contiguous().view(torch.int32))
        for one, other in zip(a.layers, b.layers, strict=True)
        for x, y in ((one.keys, other.keys), (one.values, other.values)))


def machine() -> dict[str, object]:
    cpu = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo")
                if line.startswith("model name")), platform.machine())
    return {"cpu": cpu, "cores": os.cpu_count(), "kernel": platform.release(),
            "torch": torch.__version__}


def second_process(socket: str) -> None:
    """What the demo starts once more: another engine on the same daemon asks the first question.
    Prints one JSON line."""
    engine = Engine()
    terrace = TerracePrefixCache(terrace_kv.open(socket=socket, client_name="demo-2"), engine.model)
    run = engine.run_with(terrace, 0)
    print(json.dumps([run.ttft_s, run.tokens, run.restored]))


def run_second_process(socket: pathlib.Path) -> Run:
    command = [sys.executable, __file__, "--second-process", str(socket)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise SystemExit(f"the second process failed:\n{result.stderr}")
    return Run(*json.loads(result.stdout.splitlines()[-1]))


def tier_bytes(client: terrace_kv.Client) -> str:
    return ", ".join(f"{tier['name']} {tier['used_bytes'] / 2**20:.1f} MiB"
                     for tier in client.status()["tiers"])


class Demo:
    def __init__(self, directory: pathlib.Path) -> None:
        self.daemon = Daemon(directory)
        self.engine: Engine
        self.cold: list[Run] = []
        self.rows: list[tuple[str, list[Run], str]] = []
        self.identical_kv = True

    def main(self) -> int:
        say("demo: the daemon's configuration")
        say("".join(f"  {line}\n" for line in CONFIG.format(
            directory=self.daemon.socket.parent).splitlines()))
        client = self.daemon.start()
        say("demo: loading SmolLM2-135M-Instruct, fp32")
        self.engine = Engine()
        say(f"demo: {len(self.engine.prompts)} questions about the same documents: a prefix of "
            f"{self.engine.prefix} tokens")
        self.ask_cold(client)
        self.ask_again(client)
        say("demo: a second process asks")
        self.rows.append(("second process", [run_second_process(self.daemon.socket)],
                          tier_bytes(client)))
        client = self.ask_after_kill(client)
        self.print_table()
        say("demo: terrace status")
        subprocess.run([BUILD / "terrace", "--socket", self.daemon.socket, "status"], check=True)
        return self.report()

    def ask_cold(self, client: terrace_kv.Client) -> None:
        engine = self.engine
        for i, prompt in enumerate(engine.prompts):
            say(f"demo: question {i + 1}, cold: computing {prompt.shape[1]} tokens")
            self.cold.append(engine.run(prompt, DynamicCache()))
            say(f"    {engine.questions[i]['question']}")
            say(f"    {engine.text(self.cold[-1])}  (expected: {engine.questions[i]['answers'][0]})")
        self.rows.append(("cold", self.cold, tier_bytes(client)))
        terrace = TerracePrefixCache(client, engine.model)
        written = terrace.store(engine.prompts[0][:, : engine.prefix], self.cold[0].cache)
        client.flush()
        say(f"demo: stored the documents' KV once: {written / 2**20:.1f} MiB, durable on NVMe")

    def restored_run(self, client: terrace_kv.Client, question: int) -> Run:
        run = self.engine.run_with(TerracePrefixCache(client, self.engine.model), question)
        self.identical_kv &= same_bytes(run.cache, self.cold[0].cache, run.restored)
        return run

    def ask_again(self, client: terrace_kv.Client) -> None:
        say("demo: asking again, KV restored from host memory")
        runs = [self.restored_run(client, i) for i in range(len(self.cold))]
        self.rows.append(("host memory", runs, tier_bytes(client)))

    def ask_after_kill(self, client: terrace_kv.Client) -> terrace_kv.Client:
        """Each question right after the daemon was killed and started again."""
        runs = []
        for i in range(len(self.cold)):
            say(f"demo: SIGKILL to terraced, start again, question {i + 1} from NVMe")
            client.close()
            self.daemon.kill()
            client = self.daemon.start()
            before = tier_bytes(client)
            runs.append(self.restored_run(client, i))
        self.rows.append(("NVMe after SIGKILL", runs, before))
        return client

    def identical_tokens(self) -> bool:
        return all(run.tokens == cold.tokens for _, runs, _ in self.rows
                   for run, cold in zip(runs, self.cold))

    def print_table(self) -> None:
        cold = statistics.median(run.ttft_s for run in self.cold)
        say(f"\n{'':20} {'first token':>12} {'speed-up':>9} {'restored':>9}   answers   bytes in tiers")
        for name, runs, tiers in self.rows:
            ttft = statistics.median(run.ttft_s for run in runs)
            same = all(run.tokens == ref.tokens for run, ref in zip(runs, self.cold))
            say(f"{name:20} {ttft * 1000:9.0f} ms {cold / ttft:8.1f}x {runs[0].restored:9}   "
                f"{'the same' if same else 'DIFFER':9} {tiers}")
        say(f"(medians over {len(self.cold)} questions, one in the second process; {NEW_TOKENS} greedy tokens compared; restored "
            f"KV bytes {'identical' if self.identical_kv else 'DIFFER'})\n")

    def report(self) -> int:
        ttft = {name: statistics.median(run.ttft_s for run in runs) for name, runs, _ in self.rows}
        identical = self.identical_tokens()
        result = {
            "prefix_tokens": self.rows[1][1][0].restored,
            "ttft_cold_s": ttft["cold"],
            "ttft_host_s": ttft["host memory"],
            "ttft_nvme_s": ttft["NVMe after SIGKILL"],
            "ttft_second_process_s": ttft["second process"],
            "identical_tokens": identical,
            "identical_kv_bytes": self.identical_kv,
            "machine": machine(),
        }
        path = ROOT / "build" / "demo.json"
        path.write_text(json.dumps(result, indent=2) + "\n")
        say(f"demo: wrote {path.relative_to(ROOT)}")
        if not (identical and self.identical_kv):
            say("demo: FAILED: what was restored is not what was computed")
            return 1
        return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--second-process", metavar="SOCKET", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.second_process:
        second_process(arguments.second_process)
        return 0
    demo = Demo(ROOT / "build" / "demo")
    try:
        return demo.main()
    finally:
        demo.daemon.stop()


if __name__ == "__main__":
    sys.exit(main())
