"""A causal language model from a transformers directory, a name, or a GGUF file."""

from __future__ import annotations

import pathlib

import torch
from transformers import (
    AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase,
)
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
from transformers.utils import logging


def read_gguf(path: pathlib.Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """In float32. ValueError when tensors are missing or unknown."""
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    # from_pretrained(gguf_file=...) would want the package accelerate; its own reader does not.
    model = AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(path.parent, gguf_file=path.name), dtype=torch.float32)
    weights = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)
    missing, unknown = model.load_state_dict(weights["tensors"], strict=False)
    if unknown or set(missing) - set(model.all_tied_weights_keys):
        raise ValueError(f"{path}: tensors missing {missing}, unknown {unknown}")
    return model.eval(), tokenizer


def load(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """In the dtype it is stored in, in evaluation mode. ValueError naming MODEL when there is none."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    path = pathlib.Path(name)
    try:
        if path.suffix == ".gguf":
            if not path.is_file():
                raise OSError("no such file")
            return read_gguf(path)
        tokenizer = AutoTokenizer.from_pretrained(name)
        return AutoModelForCausalLM.from_pretrained(name, dtype="auto").eval(), tokenizer
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"MODEL {name}: cannot be loaded ({reason}); it must be a transformers "
                         "directory, the name of a cached or downloadable model, or a .gguf file"
                         ) from error
