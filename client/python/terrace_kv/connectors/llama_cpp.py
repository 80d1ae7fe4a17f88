"""A prompt cache for llama.cpp, through llama-cpp-python: KV outlives the process and is shared by
all processes of a node that run the same model.

    llm = CachedLlama(model_path="model.gguf", n_ctx=4096,
                      open_client=lambda: terrace_kv.open("/var/tmp/cache"))
    llm("Once upon a time", max_tokens=64)   # and everything else a Llama does

The longest stored prefix of a prompt is restored and the rest computed; what was computed is stored
when the answer ends. An answer never depends on the store: without it, it takes longer.

KV is kept in blocks of tokens, each the state that llama.cpp itself writes of a range of a sequence
(llama_state_seq_get_data), straight to and from memory shared with the daemon. Prompts share the
blocks they have in common, and a prompt that grows stores what it grew by.
"""

from __future__ import annotations

import ctypes as c
import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence

import llama_cpp
import numpy as np

from terrace_kv import Client, errors
from terrace_kv.blocks import BlockLease, chain, leading_run
from terrace_kv.connectors.session import BlockSession, SpaceLayout

logger = logging.getLogger(__name__)

BLOCK_TOKENS = 64
LOAD_TIMEOUT_S = 10.0
SAMPLE_BYTES = 1 << 16
SAMPLES = 64
EDGE_BYTES = 1 << 20

SEQUENCE = 0  # the one that Llama uses
ASIDE = 1  # cells that SEQUENCE must not show for a moment; a mark on cells, no memory of its own


@dataclasses.dataclass
class Stats:
    """What was done since the cache was made."""

    prompts: int = 0
    prompt_tokens: int = 0
    restored_tokens: int = 0  # of prompt_tokens, read from the store
    stored_bytes: int = 0
    errors: int = 0  # calls to the daemon, or reads of stored blocks, that failed


def file_identity(path: str | os.PathLike[str]) -> str:
    """A digest of a file's size, its first and last MiB, and 64 samples of 64 KiB between them:
    models that were trained differently differ in every tensor, and hashing all of one takes as
    long as loading it."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        digest.update(size.to_bytes(8, "little"))
        places = [(0, EDGE_BYTES), (max(0, size - EDGE_BYTES), EDGE_BYTES)]
        places += [(size * i // SAMPLES, SAMPLE_BYTES) for i in range(SAMPLES)]
        for offset, length in places:
            file.seek(offset)
            digest.update(file.read(length))
    return digest.hexdigest()


def model_identity(llm: llama_cpp.Llama) -> str:
    """file_identity of the GGUF file and its metadata. Raises InvalidArgument for a model in
    several files, which needs a name."""
    files = int(llm.metadata.get("split.count", "1") or 1)
    if files > 1:
        raise errors.InvalidArgument(
            f"model_id: the model is in {files} files; give a text that names it and its revision")
    metadata = hashlib.sha256(json.dumps(llm.metadata, sort_keys=True).encode()).hexdigest()
    return f"{file_identity(llm.model_path)} {metadata}"


def space_of(llm: llama_cpp.Llama, model_id: str, block_tokens: int) -> str:
    """All that decides what the bytes of a block mean, and what KV of equal tokens is equal."""
    params = llm.context_params
    parts: dict[str, object] = {
        "engine": "llama.cpp",
        "version": llama_cpp.__version__,
        "state": llama_cpp.LLAMA_STATE_SEQ_VERSION,
        "model": model_id,
        "overrides": sorted((llm.kv_overrides or {}).items()),
        "block_tokens": block_tokens,
        "flash_attention": params.flash_attn_type,  # decides whether V is transposed
        # Of two sets of RoPE factors, some models take one for contexts longer than in training.
        "long_context": llm.n_ctx() > llama_cpp.llama_model_n_ctx_train(llm.model),
        "lora": [file_identity(llm.lora_path), llm.lora_scale] if llm.lora_path else None,
    }
    for name in ("type_k", "type_v", "rope_scaling_type", "rope_freq_base", "rope_freq_scale",
                 "yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow",
                 "yarn_orig_ctx"):
        parts[name] = getattr(params, name)
    return json.dumps(parts, sort_keys=True, default=str)


def _refuse_unless_ranges_stand_alone(llm: llama_cpp.Llama) -> None:
    """KV of a range of tokens can be kept apart where every token has cells of its own, and nothing
    else of it is remembered."""
    model, refusal = llm.model, None
    if llama_cpp.llama_model_is_recurrent(model) or llama_cpp.llama_model_is_hybrid(model):
        refusal = "recurrent models keep one state, not KV of each token"
    elif llama_cpp.llama_model_n_swa(model) > 0:
        refusal = "models with sliding-window attention drop KV of tokens"
    elif llama_cpp.llama_model_has_encoder(model):
        refusal = "models with an encoder are not supported"
    elif llm.context_params.embeddings:
        refusal = "a context for embeddings is not supported"
    elif llama_cpp.llama_n_seq_max(llm.ctx) != 1:
        refusal = f"its context is for {llama_cpp.llama_n_seq_max(llm.ctx)} sequences; expected 1"
    if refusal:
        raise errors.InvalidArgument(f"llm: {refusal}")
    _refuse_images(llm)


def _refuse_images(llm: llama_cpp.Llama) -> None:
    if hasattr(llm.chat_handler, "clip_model_path"):
        raise errors.InvalidArgument("llm: with a chat_handler for images, KV is not of tokens")


class _Cells:
    """The KV of a Llama's sequence, taken apart and put together by blocks of tokens. Only marks on
    cells change; the bytes of a block move once.

    llama.cpp reads and writes whole sequences. So what is not to be written, and what is there when
    a block is read, is marked as another sequence meanwhile."""

    def __init__(self, llm: llama_cpp.Llama, block_tokens: int) -> None:
        """Computes two tokens to learn the size of blocks, and whether this model's state can be
        taken apart: InvalidArgument if it cannot. What the context held is dropped."""
        self._llm = llm
        self._memory = llama_cpp.llama_get_memory(llm.ctx)
        self._tokens = 1
        llm.reset()
        llm.eval([0, 0])
        both = np.empty(self._state_bytes(), np.uint8)
        self._get(both)
        # Sizes are those of a header and of the tokens.
        each = both.nbytes - self._bytes_of(0)
        halves = {i: np.empty(both.nbytes - each, np.uint8) for i in range(2)}
        again = np.empty_like(both)
        try:
            self.save(halves)
            self._remove(SEQUENCE)
            self.load(0, halves.values())
            self._get(again)
        except errors.Internal as error:
            raise errors.InvalidArgument(f"llm: its state cannot be cut: {error}") from error
        if not np.array_equal(both, again):
            raise errors.InvalidArgument("llm: its state differs when it was taken apart")
        self._remove(SEQUENCE)
        llm.reset()
        llama_cpp.llama_perf_context_reset(llm.ctx)  # two tokens take longer each than many
        self._tokens = block_tokens
        self.block_bytes = halves[0].nbytes + (block_tokens - 1) * each

    def save(self, parts: Mapping[int, np.ndarray]) -> None:
        """Writes the state of blocks, by index, to where their bytes go, uint8 [block_bytes] each.
        Raises Internal if one has another size."""
        self._copy(SEQUENCE, ASIDE)
        try:
            for index, part in parts.items():
                self._remove(SEQUENCE)
                self._copy(ASIDE, SEQUENCE, index * self._tokens, (index + 1) * self._tokens)
                self._get(part)
        finally:
            self._put_back()

    def load(self, first: int, parts: Iterable[np.ndarray]) -> int:
        """Puts blocks behind the `first` ones that are there, and drops what else was behind them.
        Returns how many it put: less than all when llama.cpp refuses one, or has no cells left."""
        self._remove(SEQUENCE, first * self._tokens)
        self._copy(SEQUENCE, ASIDE)
        loaded = 0
        try:
            for part in parts:
                read = llama_cpp.llama_state_seq_set_data(self._llm.ctx, _bytes_at(part),
                                                          part.nbytes, SEQUENCE)
                if read != part.nbytes:
                    self._remove(SEQUENCE)
                    break
                self._copy(SEQUENCE, ASIDE)
                loaded += 1
        finally:
            self._put_back()
        return loaded

    def drop(self, first: int) -> None:
        """Drops the blocks from the `first` on."""
        self._remove(SEQUENCE, first * self._tokens)

    def _bytes_of(self, index: int) -> int:
        """The size of one block's state."""
        self._copy(SEQUENCE, ASIDE)
        self._remove(SEQUENCE)
        self._copy(ASIDE, SEQUENCE, index * self._tokens, (index + 1) * self._tokens)
        size = self._state_bytes()
        self._put_back()
        return size

    def _state_bytes(self) -> int:
        return llama_cpp.llama_state_seq_get_size(self._llm.ctx, SEQUENCE)

    def _get(self, out: np.ndarray) -> None:
        size = self._state_bytes()
        if size != out.nbytes:
            raise errors.Internal(f"state of {size} bytes; expected {out.nbytes}")
        written = llama_cpp.llama_state_seq_get_data(self._llm.ctx, _bytes_at(out), size, SEQUENCE)
        if written != size:
            raise errors.Internal(f"llama.cpp wrote {written} bytes of a state of {size}")

    def _put_back(self) -> None:
        # A cell that is marked twice as of one sequence would be counted twice.
        self._remove(SEQUENCE)
        self._copy(ASIDE, SEQUENCE)
        self._remove(ASIDE)

    def _copy(self, source: int, target: int, begin: int = -1, end: int = -1) -> None:
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, begin, end)

    def _remove(self, sequence: int, begin: int = -1) -> None:
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, begin, -1)


def _bytes_at(array: np.ndarray) -> c.POINTER(c.c_uint8):
    return c.cast(c.c_void_p(array.ctypes.data), c.POINTER(c.c_uint8))


class PromptCache:
    """Restores and stores the KV of a Llama. One a Llama; not thread-safe, as a Llama is not.
    Weights and adapter are identified when it is made.

    Whoever evaluates tokens with a Llama calls restore() before and store() after, as CachedLlama
    does."""

    def __init__(self, llm: llama_cpp.Llama, open_client: Callable[[], Client], *,
                 model_id: str | None = None, block_tokens: int = BLOCK_TOKENS,
                 salt: bytes = b"") -> None:
        """Made before the first prompt: what the context held is dropped. `open_client` is called
        now, and again when the daemon is lost. `model_id` names weights and revision where reading
        samples of the file is not wanted. `block_tokens` is the grain at which prompts share; other
        sizes share nothing. `salt` separates users that must not know what others asked.

        Raises InvalidArgument naming what is not supported about the model or its context, and what
        the daemon answers.
        """
        if not 1 <= block_tokens <= llm.n_ctx():
            raise errors.InvalidArgument(
                f"block_tokens: {block_tokens}; expected 1 .. {llm.n_ctx()}, the context's size")
        _refuse_unless_ranges_stand_alone(llm)
        self.stats = Stats()
        self._llm = llm
        self._salt = salt
        self._block_tokens = block_tokens
        self._cells = _Cells(llm, block_tokens)
        text = space_of(llm, model_id or model_identity(llm), block_tokens)
        self._session = BlockSession(open_client,
                                     [SpaceLayout(text, (self._cells.block_bytes,))])

    def restore(self, tokens: Sequence[int] | np.ndarray) -> int:
        """Makes the context hold the longest prefix of a prompt that it holds already or that is
        stored; returns its tokens, at least one less than the prompt has. What it held of another
        prompt is dropped. A failure of the store is counted and logged, never raised.

        Raises InvalidArgument: a prompt that is longer than the context, or ids that are none.
        """
        prompt = np.asarray(tokens) if len(tokens) else np.empty(0, np.intc)
        if prompt.ndim != 1 or prompt.dtype.kind not in "iu" or (prompt < 0).any():
            raise errors.InvalidArgument("tokens: expected ids, a sequence of integers from 0 on")
        if len(prompt) > self._llm.n_ctx():
            raise errors.InvalidArgument(
                f"tokens: {len(prompt)}; the context holds n_ctx = {self._llm.n_ctx()}")
        held = min(self._held(prompt), max(len(prompt) - 1, 0))
        self.stats.prompts += 1
        self.stats.prompt_tokens += len(prompt)
        return self._now_holds(prompt[: self._restore_blocks(prompt, held)])

    def store(self) -> int:
        """Stores the whole blocks of what the context holds that are not stored yet; returns the
        bytes written. A failure is counted and logged, never raised."""
        llm = self._llm
        blocks = llm.n_tokens // self._block_tokens
        spaces = self._session.spaces
        if blocks == 0 or spaces is None:
            return 0
        try:
            _refuse_images(llm)
            space = spaces[0]
            keys = space.keys(self._names(llm.input_ids, blocks), self._salt)
            with space.begin(keys, cost_us=self._cost_us(blocks * self._block_tokens),
                             parents=chain(keys), positions=range(blocks)) as store:
                needed = np.flatnonzero(store.needed).tolist()
                if not needed:
                    return 0
                self._cells.save({i: store.part(i, 1) for i in needed})
                written = store.commit().stored_bytes
        except errors.TerraceError as error:
            self._note(error, "store")
            self._session.lost(error, spaces)
            return 0
        self.stats.stored_bytes += written
        return written

    def close(self) -> None:
        """Ends the session with the daemon: nothing is restored or stored from now on."""
        self._session.close()

    def _restore_blocks(self, prompt: np.ndarray, held: int) -> int:
        """Tokens that the context holds once it has what is stored behind the `held` ones."""
        first, wanted = held // self._block_tokens, (len(prompt) - 1) // self._block_tokens
        if first >= wanted:
            return held
        spaces = self._session.spaces
        if spaces is None:
            return held
        try:
            _refuse_images(self._llm)
            space = spaces[0]
            keys = space.keys(self._names(prompt, wanted)[first:], self._salt)
            _, load = leading_run(space.find(keys))
            if load == 0:
                return held
            with space.acquire(keys[:load]) as lease:
                self._wait(lease)
                if (first + lease.usable) * self._block_tokens <= held:
                    return held
                return self._load(lease, first)
        except errors.NotFound:
            pass
        except errors.TerraceError as error:
            self._note(error, "restore")
            self._session.lost(error, spaces)
        return held

    def _wait(self, lease: BlockLease) -> None:
        while lease.usable > 0:
            try:
                lease.wait(LOAD_TIMEOUT_S)
                return
            except errors.DataLoss as error:  # fewer are usable now
                self._note(error, "restore")

    def _load(self, lease: BlockLease, first: int) -> int:
        """Puts the blocks of a lease behind the `first` ones; returns the tokens there are then."""
        parts = [lease.part(i, 1) for i in range(lease.usable)]
        loaded = self._cells.load(first, parts)
        if lease.expired:  # what was read may have been overwritten
            self._cells.drop(first)
            loaded = 0
        self.stats.restored_tokens += loaded * self._block_tokens
        return (first + loaded) * self._block_tokens

    def _held(self, prompt: np.ndarray) -> int:
        """Leading tokens of the prompt that the context holds."""
        length = min(len(prompt), self._llm.n_tokens)
        other = np.flatnonzero(self._llm.input_ids[:length] != prompt[:length])
        return int(other[0]) if len(other) else length

    def _now_holds(self, tokens: np.ndarray) -> int:
        self._llm.reset()  # its logits are of what it held before
        self._llm.input_ids[: len(tokens)] = tokens
        self._llm.n_tokens = len(tokens)
        return len(tokens)

    def _names(self, tokens: np.ndarray, blocks: int) -> list[bytes]:
        """Of each block: a hash of its tokens and all before them."""
        names, name = [], b""
        for block in np.asarray(tokens[: blocks * self._block_tokens], "<u4").reshape(blocks, -1):
            name = hashlib.blake2b(name + block.tobytes(), digest_size=32).digest()
            names.append(name)
        return names

    def _cost_us(self, tokens: int) -> int:
        """What computing tokens takes here, as llama.cpp has measured; 0: unknown."""
        perf = llama_cpp.llama_perf_context(self._llm.ctx)
        return int(1000 * perf.t_p_eval_ms / perf.n_p_eval * tokens) if perf.n_p_eval > 0 else 0

    def _note(self, error: errors.TerraceError, what: str) -> None:
        self.stats.errors += 1
        logger.warning("terrace: %s failed, generation goes on without it: %s", what, error)


class CachedLlama(llama_cpp.Llama):
    """A Llama whose prompts are restored from the store, and stored with their answers."""

    def __init__(self, *args: object, open_client: Callable[[], Client],
                 model_id: str | None = None, block_tokens: int = BLOCK_TOKENS, salt: bytes = b"",
                 **kwargs: object) -> None:
        """As Llama, and `open_client` and the rest as PromptCache."""
        super().__init__(*args, **kwargs)
        self.prompt_cache = PromptCache(self, open_client, model_id=model_id,
                                        block_tokens=block_tokens, salt=salt)

    def generate(self, tokens: Sequence[int], *args: object, **kwargs: object):
        """As Llama.generate."""
        tokens = list(tokens)
        if kwargs.get("reset", True):
            self.prompt_cache.restore(tokens)
        try:
            yield from super().generate(tokens, *args, **kwargs)
        finally:
            self.prompt_cache.store()
