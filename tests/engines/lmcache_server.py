"""A server of LMCache, and what vLLM must be told to use it: the reference of loading figures."""

from __future__ import annotations

import pathlib
import socket
import subprocess
import sys
import time

from process_group import kill_group
from vllm_engine import VllmEngine

START_TIMEOUT_S = 120


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class LmcacheServer:
    """By default its best setting on a CPU: chunks of vLLM's block size, moved by the server through
    shared memory."""

    def __init__(self, directory: pathlib.Path, chunk_tokens: int = 128,
                 arguments: tuple[str, ...] = ()) -> None:
        self.port, self._http_port = _free_port(), _free_port()
        self._directory = directory
        self._log_path = directory / "lmcache.log"
        with open(self._log_path, "ab") as log:
            self.process = subprocess.Popen(
                [str(pathlib.Path(sys.executable).with_name("lmcache")), "server",
                 "--l1-size-gb", "1", "--l1-init-size-gb", "1", "--no-l1-use-lazy",
                 "--supported-transfer-mode", "auto", "--chunk-size", str(chunk_tokens),
                 "--eviction-policy", "LRU", "--port", str(self.port),
                 "--http-port", str(self._http_port), *arguments],
                stdout=log, stderr=log, start_new_session=True)

    def __enter__(self) -> LmcacheServer:
        return self

    def __exit__(self, *_: object) -> None:
        kill_group(self.process)

    def ready(self) -> LmcacheServer:
        end = time.monotonic() + START_TIMEOUT_S
        while True:
            alive = self.process.poll() is None and time.monotonic() < end
            assert alive, self._log_path.read_text()
            try:
                socket.create_connection(("127.0.0.1", self._http_port), 1).close()
                return self
            except OSError:
                time.sleep(0.2)

    def engine(self, model: pathlib.Path, name: str, mode: str = "lmcache_driven") -> VllmEngine:
        """vLLM on this server, its log in the same directory. Its KV is in /dev/shm, where a
        machine may have little: as few blocks as serve the longest prompts."""
        transfer = {"kv_connector": "LMCacheMPConnector", "kv_role": "kv_both",
                    "kv_connector_extra_config": {"lmcache.mp.port": self.port,
                                                  "lmcache.mp.mp_transfer_mode": mode}}
        return VllmEngine(self._directory, model, name, transfer=transfer,
                          num_gpu_blocks_override=64)
