"""terrace calibrate on a tiny random model: seconds, and every profile must decode with libterrace_codec."""

from __future__ import annotations

import json
import pathlib
import string

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers import PreTrainedTokenizerFast

from terrace_kv.calibration import collect, command, corpus, fallbacks, loading
from terrace_kv.calibration.profile_file import read_header
from terrace_kv.codec import Codec
from terrace_kv.connectors.transformers import weights_identity

LENGTHS = ["--prefix", "64", "--scored", "16"]


def _tokenizer() -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The model is too small for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> pathlib.Path:
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("llama")
    config = LlamaConfig(vocab_size=256, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, head_dim=16,
                         max_position_embeddings=256, initializer_range=0.2)
    LlamaForCausalLM(config).save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(" ".join(string.ascii_letters[i % 47:i % 47 + i % 9] for i in range(400)))
    return path


def run(model, text, out, *more) -> int:
    return command.main([str(model), "--text", str(text), "-o", str(out), "--texts", "6", *LENGTHS,
                         *more])


def test_every_form_becomes_a_profile_with_points_and_a_report(model, text, tmp_path, capsys):
    assert run(model, text, tmp_path) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["weights"] == "fisher" and (tmp_path / "report.png").stat().st_size > 1000
    for form in ("archive", "balanced", "fast", "fastest"):
        content = (tmp_path / f"{form}.tkvp").read_bytes()
        Codec(content)
        header = read_header(content)
        assert header.model_id == weights_identity(loading.load(str(model))[0])
        rows = [row for row in report["rows"] if row["profile"] == form]
        assert [p.lambda16 for p in header.points] == [row["lambda16"] for row in rows]
        assert len(header.points) >= 2
        assert header.points[0].bits_per_value > header.points[-1].bits_per_value
        assert header.points[0].mean_kl <= header.points[-1].mean_kl
    assert "calibrating on 4 txt; measuring on 2 txt" in capsys.readouterr().out


def test_a_second_run_goes_on_and_gives_the_same_bytes(model, text, tmp_path, capsys):
    assert run(model, text, tmp_path, "--forms", "balanced") == 0
    first = (tmp_path / "balanced.tkvp").read_bytes()
    samples = sorted((tmp_path / "work").glob("*.pt"))
    samples[0].unlink()
    (tmp_path / "work" / f"{samples[0].stem}.123").write_bytes(b"half of it")
    capsys.readouterr()
    assert run(model, text, tmp_path, "--forms", "balanced") == 0
    assert "going on with 3 of 4 texts" in capsys.readouterr().out
    assert (tmp_path / "balanced.tkvp").read_bytes() == first


def test_work_of_another_model_or_method_is_refused(model, text, tmp_path, capsys):
    assert run(model, text, tmp_path, "--forms", "fast") == 0
    assert run(model, text, tmp_path, "--forms", "fast", "--weights", "energies") == 2
    message = capsys.readouterr().err
    assert "--work" in message and "method 'gradient_sample', this run has 'energy_sample'" in message
    assert run(model, text, tmp_path, "--forms", "fast", "--model-id", "another") == 2
    assert "made with model_id" in capsys.readouterr().err


@pytest.mark.parametrize("weights", ["diagonal", "energies", "noise"])
def test_cheaper_weights_make_profiles_too(model, text, tmp_path, weights):
    assert run(model, text, tmp_path, "--forms", "balanced", "--weights", weights,
               "--model-id", "") == 0
    header = read_header((tmp_path / "balanced.tkvp").read_bytes())
    assert header.model_id == "" and len(header.points) >= 2


def test_energies_are_gradients_through_one_attention(model):
    """Of a single layer they are what back-propagation of the same projections would give."""
    torch.manual_seed(3)
    config = LlamaConfig(vocab_size=256, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                         num_attention_heads=4, num_key_value_heads=2, head_dim=16)
    one = LlamaForCausalLM(config).eval()
    ids = torch.randint(0, 256, (48,)).tolist()
    by_hand = [torch.stack([s.gradients[0][part].float() for s in (
        fallbacks.energy_sample(one, ids, 32, 1) for _ in range(60))]) for part in (0, 1)]
    leaves = [x.float().requires_grad_(True) for x in collect.prefix_kv(one, ids[:32])]
    seen = []
    one.model.layers[0].self_attn.register_forward_hook(lambda m, i, o: seen.append(o[0]))
    states = one(torch.tensor([ids[32:]]), past_key_values=collect.cache_of(one, leaves),
                 use_cache=True, output_hidden_states=True).hidden_states
    scale = float(states[1].detach().pow(2).sum(-1).mean())
    exact = []
    for _ in range(60):
        wanted = (seen[0] * torch.randn_like(seen[0])).sum()
        exact.append(torch.autograd.grad(wanted, leaves, retain_graph=True))
    for part in (0, 1):
        energy = by_hand[part].pow(2).mean((0, 2, 3))
        wanted = torch.stack([e[part] for e in exact]).pow(2).mean((0, 2, 3)) / scale
        torch.testing.assert_close(energy, wanted, rtol=0.4, atol=0)


def test_evaluation_measures_profiles_at_their_own_steps(model, text, tmp_path, capsys):
    assert run(model, text, tmp_path, "--forms", "fast") == 0
    profile, out = tmp_path / "fast.tkvp", tmp_path / "again"
    assert run(model, text, out, "--evaluate", str(profile)) == 0
    rows = json.loads((out / "report.json").read_text())["rows"]
    assert [row["lambda16"] for row in rows] == [
        p.lambda16 for p in read_header(profile.read_bytes()).points]
    assert all(row["texts"] == 6 for row in rows) and not list(out.glob("*.tkvp"))


def test_bad_input_names_the_option_and_what_it_may_be(model, text, tmp_path, capsys):
    def refusal(*arguments) -> str:
        try:
            assert command.main([*arguments, "-o", str(tmp_path)]) == 2
        except SystemExit as stopped:  # argparse's own
            assert stopped.code == 2
        return capsys.readouterr().err

    there = [str(model), *LENGTHS]
    assert "MODEL /nowhere/at-all: cannot be loaded" in refusal("/nowhere/at-all")
    assert "MODEL /none.gguf: cannot be loaded (no such file)" in refusal("/none.gguf")
    assert "--text /no/file: No such file" in refusal(*there, "--text", "/no/file")
    short = tmp_path / "short.txt"
    short.write_text("too short " * 9)
    assert "at least 4 are needed" in refusal(*there, "--text", str(short))
    assert "--forms: 'fast,slow': must be different names of archive, balanced" in refusal(
        *there, "--forms", "fast,slow")
    assert "--prefix: '7': must be a whole number, 32 .. 4096" in refusal(*there, "--prefix", "7")
    assert "--prefix and --scored and one are 1281 tokens; the model has positions for 256" in refusal(
        str(model), "--text", str(text))
    assert "--evaluate /no/profile: No such file" in refusal(*there, "--evaluate", "/no/profile")
    assert f"--evaluate {short}: profile: not a terrace profile" in refusal(
        *there, "--evaluate", str(short))


def test_a_model_without_rope_is_told_which_form_it_may_have(text, tmp_path, capsys):
    folder = tmp_path / "gpt2"
    GPT2LMHeadModel(GPT2Config(vocab_size=256, n_positions=128, n_embd=32, n_layer=1,
                               n_head=2)).save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    assert run(folder, text, tmp_path / "out") == 2
    assert "--forms fastest" in capsys.readouterr().err
    assert run(folder, text, tmp_path / "out", "--forms", "fastest") == 0


def test_this_machine_has_texts_of_several_kinds_and_they_are_split_by_kind():
    texts = corpus.texts([], lambda text: [ord(c) for c in text], 300, 20)
    kinds = {text.kind for text in texts}
    assert len(texts) == 20 and {"reference", "python", "description"} <= kinds
    assert len({text.ids for text in texts}) == 20
    training, held = corpus.split(texts)
    assert {text.kind for text in held} == kinds == {text.kind for text in training}
    assert not {text.ids for text in held} & {text.ids for text in training}
