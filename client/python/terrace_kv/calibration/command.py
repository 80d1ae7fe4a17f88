"""terrace calibrate: profiles of a model's KV, measured on texts they were not made of."""

from __future__ import annotations

import argparse
import math
import pathlib
import sys
import time
import warnings
from collections.abc import Iterator, Sequence

import torch

from terrace_kv import errors
from terrace_kv.calibration import collect, corpus, fallbacks, fit, loading, measure, report
from terrace_kv.calibration.profile_file import MAX_MODEL_ID_BYTES, Header, read_header
from terrace_kv.calibration.progress import Bar, duration
from terrace_kv.calibration.workspace import Workspace
from terrace_kv.codec import Codec
from terrace_kv.connectors.transformers import geometry_of

TARGETS = (0.001, 0.003, 0.01, 0.03, 0.1)  # mean KL that steps are looked for
FIRST_STEP = -160
FARTHEST_STEP = 400

DESCRIPTION = """\
Makes the codec profiles of a model: what terraced must know of its KV to store a value in 1 to 2 bits
instead of 16. One profile a form, OUT/FORM.tkvp, with the model's identity and measured operating
points inside; OUT/report.json and OUT/report.png show bits against loss. Once a model; minutes on a CPU
for a small one. Stopped? Run it again: it goes on where it was."""

EPILOG = """\
forms, from the smallest KV to the fastest decoding:
  archive   a transform over all heads of a layer
  balanced  a transform a head
  fast      a step a channel, keys un-rotated
  fastest   a step a channel, keys as they are: for models whose rotation is not understood

weights, from the best to the cheapest:
  fisher    gradients of sampled predictions: needs back-propagation through the model
  diagonal  the same, each channel by itself
  energies  queries and attention outputs of two forward passes, no back-propagation
  noise     what noise in each layer's K or V does to predictions: forward passes only, many

examples:
  terrace calibrate ./SmolLM2-135M-Instruct -o profiles
  terrace calibrate model.gguf --text corpus/*.txt --forms balanced,fast -o profiles
  terrace calibrate ./model --evaluate profiles/balanced.tkvp --text contracts/*.txt -o evaluation
"""


def _whole(low: int, high: int):
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number, {low} .. {high}")
        return value
    return parse


def _forms(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in fit.FORMS]
    if unknown or len(set(names)) != len(names):
        raise argparse.ArgumentTypeError(
            f"{text!r}: must be different names of {', '.join(fit.FORMS)}, separated by commas")
    return names


def _model_id(text: str) -> str:
    if len(text.encode()) > MAX_MODEL_ID_BYTES:
        raise argparse.ArgumentTypeError(f"must be at most {MAX_MODEL_ID_BYTES} bytes")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("terrace calibrate", description=DESCRIPTION, epilog=EPILOG,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL",
                        help="transformers directory or name, or a .gguf file")
    parser.add_argument("-o", "--out", metavar="OUT", type=pathlib.Path, required=True,
                        help="folder for profiles and report; made when it is not there")
    parser.add_argument("--text", metavar="FILE", nargs="+", type=pathlib.Path, default=[],
                        help="text like what the model will read, many kinds; default: a mixture of "
                        "what this machine has (reference prose, Python, C headers, descriptions)")
    parser.add_argument("--forms", type=_forms, default=list(fit.FORMS), metavar="FORM,...",
                        help="default: archive,balanced,fast,fastest")
    parser.add_argument("--model-id", type=_model_id, metavar="ID",
                        help="KvGeometry.model_id of the engine whose KV it is; '' for any model of "
                        "this geometry; default: what the transformers connector uses")
    parser.add_argument("--weights", choices=fallbacks.WEIGHTS, default="fisher",
                        help="how it is found out which errors matter; default: fisher")
    parser.add_argument("--texts", type=_whole(4, 1000), default=30, metavar="N",
                        help="texts to use, a fifth of which are held out; default: 30")
    parser.add_argument("--prefix", type=_whole(32, 4096), default=1024, metavar="TOKENS",
                        help="tokens of a text whose KV is looked at, 32 .. 4096; default: 1024")
    parser.add_argument("--scored", type=_whole(8, 4096), default=256, metavar="TOKENS",
                        help="tokens after them that are predicted, 8 .. 4096; default: 256")
    parser.add_argument("--draws", type=_whole(1, 64), default=2, metavar="N",
                        help="sampled predictions a text, 1 .. 64; default: 2")
    parser.add_argument("--work", type=pathlib.Path, metavar="DIR",
                        help="folder for what a stopped run leaves to the next; default: OUT/work")
    parser.add_argument("--evaluate", type=pathlib.Path, nargs="+", metavar="PROFILE", default=[],
                        help="make nothing: measure these profiles, on all of the texts")
    return parser


def _steps(model, codec: Codec, probe: measure.Text) -> list[int]:
    """Steps whose KL should be near TARGETS: KL grows with the square of the step."""
    lambda16, steps = float(FIRST_STEP), []
    middle = TARGETS[len(TARGETS) // 2]
    for target in (middle, middle, *TARGETS):  # the first two only find the place
        decoded, _ = measure.through(codec, round(lambda16))(probe.kv)
        kl = float(measure.loss(model, probe, decoded).kl.mean())
        lambda16 += 8 * math.log2(target / max(kl, 1e-9))
        lambda16 = max(-FARTHEST_STEP, min(FARTHEST_STEP, lambda16))
        steps.append(round(lambda16))
    return sorted(set(steps[2:]))


def _measured(model, name: str, profile: bytes, header: Header,
              texts: Sequence[measure.Text]) -> list[dict]:
    codec, rows = Codec(profile), []
    steps = [point.lambda16 for point in header.points] or _steps(model, codec, texts[0])
    for lambda16 in steps:
        row = {"profile": name, "lambda16": lambda16,
               **measure.row(model, texts, measure.through(codec, lambda16))}
        print(report.line(row), flush=True)
        rows.append(row)
    return rows


def _tests(model, texts: Sequence[corpus.Text], prefix: int) -> list[measure.Text]:
    bar, tests = Bar("held-out texts", len(texts)), []
    for done, text in enumerate(texts, 1):
        tests.append(measure.text_of(model, text.kind, text.ids, prefix))
        bar(done)
    return tests


def _samples(model, texts: Sequence[corpus.Text], options, workspace: Workspace
             ) -> Iterator[fit.Sample]:
    make, _ = fallbacks.WEIGHTS[options.weights]
    there = sum(workspace.has(text.ids) for text in texts)
    if there:
        print(f"going on with {there} of {len(texts)} texts from {workspace.folder}", flush=True)
    bar, done = Bar(f"weights ({options.weights})", len(texts), free=there), there
    for index, text in enumerate(texts):
        if not workspace.has(text.ids):
            torch.manual_seed(index)  # the same draws, wherever the run was stopped
            workspace.save(text.ids, make(model, text.ids[:-1], options.prefix, options.draws))
            done += 1
            bar(done)
        yield workspace.load(text.ids)


def _kinds(texts: Sequence[corpus.Text]) -> str:
    counts: dict[str, int] = {}
    for text in texts:
        counts[text.kind] = counts.get(text.kind, 0) + 1
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))


def _calibrate(model, model_id: str, texts: Sequence[corpus.Text], options) -> list[dict]:
    rope = None
    if any(fit.FORMS[name].unrotate for name in options.forms):
        rope = collect.rope_of(model)
    training, held = corpus.split(texts)
    print(f"calibrating on {_kinds(training)}; measuring on {_kinds(held)}", flush=True)
    method, diagonal = fallbacks.WEIGHTS[options.weights]
    work = options.work or options.out / "work"
    workspace = Workspace(work, {
        "model_id": model_id, "method": method.__name__, "prefix": options.prefix,
        "scored": options.scored, "draws": options.draws})
    samples = list(_samples(model, training, options, workspace))
    tests = _tests(model, held, options.prefix)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    rows = []
    bar = Bar("layers", len(samples[0].kv) // 2)
    profiles = fit.fit([fit.FORMS[name] for name in options.forms], samples, rope,
                       pathlib.Path(options.model).name, model_id, diagonal, bar)
    for name, profile in zip(options.forms, profiles):
        print(report.HEAD, flush=True)
        of = _measured(model, name, profile.to_bytes(), Header(profile.name, model_id, []), tests)
        profile.points = measure.operating_points([row["lambda16"] for row in of], of)
        path = options.out / f"{name}.tkvp"
        path.write_bytes(profile.to_bytes())
        print(f"{path}: {path.stat().st_size / 2**20:.2f} MiB, "
              f"{100 * path.stat().st_size / weights:.2f}% of the model's weights", flush=True)
        rows += of
    return rows


def _evaluate(model, profiles: Sequence[tuple[pathlib.Path, bytes, Header]],
              texts: Sequence[corpus.Text], options) -> list[dict]:
    print(f"measuring on {_kinds(texts)}", flush=True)
    tests = _tests(model, texts, options.prefix)
    print(report.HEAD, flush=True)
    return [row for path, content, header in profiles
            for row in _measured(model, path.stem, content, header, tests)]


def _read_profiles(paths: Sequence[pathlib.Path]) -> list[tuple[pathlib.Path, bytes, Header]]:
    profiles = []
    for path in paths:
        try:
            content = path.read_bytes()
            Codec(content)
        except OSError as error:
            raise ValueError(f"--evaluate {path}: {error.strerror}") from error
        except errors.TerraceError as error:
            raise ValueError(f"--evaluate {path}: {error}") from error
        profiles.append((path, content, read_header(content)))
    return profiles


def _run(options) -> None:
    start = time.monotonic()
    profiles = _read_profiles(options.evaluate)
    options.out.mkdir(parents=True, exist_ok=True)
    model, tokenizer = loading.load(options.model)
    geometry = geometry_of(model)
    model_id = geometry.model_id if options.model_id is None else options.model_id
    model = model.float()
    tokens = options.prefix + options.scored + 1
    longest = model.config.get_text_config(decoder=True).max_position_embeddings
    if tokens > longest:
        raise ValueError(f"--prefix and --scored and one are {tokens} tokens; the model has positions "
                         f"for {longest}")
    texts = corpus.texts(options.text, lambda text: tokenizer(
        text, add_special_tokens=False)["input_ids"], tokens, options.texts)
    about = {"model": pathlib.Path(options.model).name, "model_id": model_id,
             "prefix": options.prefix, "scored": options.scored}
    if profiles:
        rows = _evaluate(model, profiles, texts, options)
    else:
        about["weights"] = options.weights
        rows = _calibrate(model, model_id, texts, options)
    report.write(options.out, about, rows)
    print(f"{options.out}/report.json and report.png; took {duration(time.monotonic() - start)}")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    warnings.simplefilter("ignore", FutureWarning)  # of transformers, about its own later versions
    try:
        _run(options)
    except (ValueError, errors.TerraceError, OSError) as error:
        print(f"terrace calibrate: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nterrace calibrate: stopped; the same command goes on where it was", file=sys.stderr)
        return 130
    return 0
