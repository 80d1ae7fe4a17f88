"""Samples on disk, so that a calibration that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import struct
from collections.abc import Sequence

import torch

from terrace_kv.calibration.fit import Sample


class WorkspaceMismatch(ValueError):
    """The folder holds samples of another model or of other parameters."""


class Workspace:
    """A folder of samples made with one set of `parameters` (plain JSON: the model's identity, the
    lengths, the method). Files of an interrupted save are never read."""

    def __init__(self, folder: pathlib.Path, parameters: dict) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        stamp = folder / "parameters.json"
        if stamp.exists():
            self._check(json.loads(stamp.read_text()), parameters)
        else:
            stamp.write_text(json.dumps(parameters, indent=1))

    def _check(self, stored: dict, parameters: dict) -> None:
        for name, value in parameters.items():
            if stored.get(name) != value:
                raise WorkspaceMismatch(
                    f"--work {self.folder}: its samples were made with {name} "
                    f"{stored.get(name)!r}, this run has {value!r}; give another folder, or delete it")

    def _path(self, ids: Sequence[int]) -> pathlib.Path:
        content = struct.pack(f"<{len(ids)}I", *ids)
        return self.folder / f"{hashlib.blake2b(content, digest_size=16).hexdigest()}.pt"

    def has(self, ids: Sequence[int]) -> bool:
        return self._path(ids).exists()

    def load(self, ids: Sequence[int]) -> Sample:
        stored = torch.load(self._path(ids), weights_only=True)
        return Sample(stored["kv"], stored["gradients"])

    def save(self, ids: Sequence[int], sample: Sample) -> None:
        path = self._path(ids)
        draft = path.with_suffix(f".{os.getpid()}")
        torch.save({"kv": sample.kv, "gradients": sample.gradients}, draft)
        os.replace(draft, path)
