"""`terrace codec` on files that libterrace_codec made."""

import json
import pathlib
import sys

import numpy as np
import pytest

TESTS = pathlib.Path(__file__).resolve().parents[1]
CLIENT = TESTS.parent / "client" / "python"
sys.path[:0] = [str(TESTS / "support"), str(CLIENT), str(CLIENT / "tests")]

from terrace_kv.codec import Codec, Shape, encode  # noqa: E402
from terraced import terrace  # noqa: E402
from test_codec import make_kv, make_profile  # noqa: E402

OK, ERROR, USAGE = range(3)
SHAPE = Shape(2, 2, 16, 8, 300, position=7, dtype="bfloat16")


@pytest.fixture
def files(tmp_path):
    profile = make_profile("head", "half")
    kv = make_kv(SHAPE)
    (tmp_path / "profile").write_bytes(profile)
    (tmp_path / "other").write_bytes(make_profile("head", "half", seed=9))
    (tmp_path / "lossy").write_bytes(Codec(profile).encode(kv, SHAPE, -40))
    for codec in ("raw", "lossless-fast", "lossless", "zstd"):
        (tmp_path / codec).write_bytes(encode(codec, kv, SHAPE))
    return tmp_path


def shown(*arguments) -> dict:
    result = terrace("--json", "codec", *map(str, arguments))
    assert result.returncode == OK, result.stderr + result.stdout
    return json.loads(result.stdout)


def test_list_names_every_codec_and_which_needs_a_profile():
    codecs = shown("list")["codecs"]
    assert [(c["id"], c["name"]) for c in codecs] == [
        (0, "raw"), (1, "lossless-fast"), (2, "lossless"), (3, "profile"), (4, "zstd")]
    assert [c["name"] for c in codecs if c["needs_profile"]] == ["profile"]
    text = terrace("codec", "list").stdout
    assert "lossless-fast" in text and "needed" in text


def test_show_says_what_is_in_a_container(files):
    for codec in ("raw", "lossless-fast", "lossless", "zstd"):
        chunk = shown("show", files / codec)
        assert (chunk["kind"], chunk["codec"], chunk["dtype"]) == ("chunk", codec, "bfloat16")
        assert (chunk["layers"], chunk["kv_heads"], chunk["k_dim"], chunk["v_dim"]) == (2, 2, 16, 8)
        assert (chunk["tokens"], chunk["position"], len(chunk["sections"])) == (300, 7, 4)
        assert chunk["bytes"] == (files / codec).stat().st_size
    lossy = shown("show", files / "lossy")
    assert lossy["lambda16"] == -40 and lossy["profile"] == shown("show", files / "profile")["hash"]
    assert "codec lossless:" in terrace("codec", "show", str(files / "lossless")).stdout


def test_show_says_what_a_profile_is_for(files):
    profile = shown("show", files / "profile")
    assert (profile["kind"], profile["name"], profile["layers"]) == ("profile", "test", 2)
    assert profile["bytes"] == (files / "profile").stat().st_size
    assert "2 layers, 2 KV heads, K 16, V 8" in terrace("codec", "show",
                                                        str(files / "profile")).stdout


def test_verify_decodes_every_section(files):
    for codec in ("raw", "lossless-fast", "lossless", "zstd"):
        assert shown("verify", files / codec)["sections"] == 4
    assert shown("verify", files / "lossy", "--profile", files / "profile")["tiles"] == 3


def test_verify_names_the_first_damage(files):
    for codec in ("raw", "lossless-fast", "lossless", "zstd"):
        spoiled = bytearray((files / codec).read_bytes())
        spoiled[-1] ^= 1
        (files / "spoiled").write_bytes(spoiled)
        result = terrace("codec", "verify", str(files / "spoiled"))
        assert result.returncode == ERROR
        assert "section 3: checksum of tile 2 does not match" in result.stderr
        assert not result.stdout


def test_what_cannot_be_read_is_said(files):
    for arguments, message in [
            (["verify", files / "lossy"], "encoded with another profile"),
            (["verify", files / "lossy", "--profile", files / "other"], "another profile"),
            (["verify", files / "lossy", "--profile", files / "raw"], "TKVPROF1"),
            (["verify", files / "profile"], "no TKVCHUNK"),
            (["show", files / "nowhere"], "cannot be read"),
            (["show", TESTS / "cli" / "CMakeLists.txt"], "no TKVCHUNK")]:
        result = terrace("codec", *map(str, arguments))
        assert result.returncode == ERROR and message in result.stderr, result.stderr
    assert terrace("codec").returncode == USAGE


def test_bench_measures_each_codec_without_a_profile():
    codecs = {c["name"]: c for c in shown("bench")["codecs"]}
    assert list(codecs) == ["raw", "lossless-fast", "lossless", "zstd"]
    assert codecs["lossless"]["bits_per_value"] < codecs["lossless-fast"]["bits_per_value"] < 12.1
    assert all(c["decode_gb_s"] > 0 and c["memcpy_gb_s"] > 0 for c in codecs.values())
