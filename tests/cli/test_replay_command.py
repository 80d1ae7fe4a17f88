"""`terrace replay` on excerpts of public traces (tests/replay/data)."""

import json
import os
import pathlib
import subprocess
import sys
import threading

import pytest

TESTS = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS / "support"))

from terraced import program, terrace  # noqa: E402

DATA = TESTS / "replay" / "data"
MOONCAKE = DATA / "mooncake.jsonl"
OK, ERROR, USAGE = range(3)
EVERY_TIME = {"trace", "format", "semantics", "window", "capacity_unit", "policy", "capacity",
              "requests", "accesses", "hits", "hit_rate", "evictions", "bypassed", "seconds",
              "accesses_per_s"}
OF_TOKENS = {"tokens", "token_hits", "token_hit_rate"}
OF_GAPS = {"lru_hit_rate", "min_hit_rate", "gap_closed"}


def replay(*arguments) -> subprocess.CompletedProcess[str]:
    return terrace("replay", *map(str, arguments))


def shown(*arguments) -> dict:
    result = replay("--json", *arguments)
    assert result.returncode == OK, result.stderr + result.stdout
    return json.loads(result.stdout)


def policies() -> list[str]:
    rows = shown("--trace", MOONCAKE, "--policy", "all", "--capacity-objects", 10)["rows"]
    return [row["policy"] for row in rows]


def test_one_policy_is_one_object():
    row = shown("--trace", MOONCAKE, "--policy", "lru", "--capacity-objects", 1000)
    assert set(row) == EVERY_TIME | OF_TOKENS
    assert (row["policy"], row["capacity"], row["capacity_unit"]) == ("lru", 1000, "objects")
    # The first block of all tokens, and nothing else, comes back.
    lines = [json.loads(line) for line in MOONCAKE.read_text().splitlines()]
    assert row["accesses"] == sum(len(line["hash_ids"]) for line in lines)
    assert (row["requests"], row["hits"], row["format"]) == (8, 7, "mooncake")
    assert row["hit_rate"] == row["token_hit_rate"] == pytest.approx(7 / row["accesses"])


def test_experts_have_no_tokens():
    row = shown("--trace", DATA / "olmoe.jsonl", "--policy", "lru", "--capacity-objects", 150)
    assert set(row) == EVERY_TIME and row["accesses"] == 3 * 16 * 8
    result = replay("--trace", DATA / "olmoe.jsonl", "--policy", "lru", "--capacity-tokens", 9)
    assert result.returncode == ERROR and "use --capacity-objects" in result.stderr


def test_the_gap_between_lru_and_min():
    row = shown("--trace", DATA / "olmoe.jsonl", "--policy", "min", "--capacity-objects", 150, "--gap")
    assert set(row) == EVERY_TIME | OF_GAPS
    assert row["gap_closed"] == 1 and row["hit_rate"] == row["min_hit_rate"] > row["lru_hit_rate"]
    lru = shown("--trace", DATA / "olmoe.jsonl", "--policy", "lru", "--capacity-objects", 150, "--gap")
    assert lru["gap_closed"] == 0 and lru["hit_rate"] == row["lru_hit_rate"]
    # Where both are the same there is none.
    wide = shown("--trace", MOONCAKE, "--policy", "lru", "--capacity-objects", 1000, "--gap")
    assert wide["gap_closed"] is None


def test_all_policies_at_several_sizes_are_rows():
    table = shown("--trace", DATA / "ragpulse", "--policy", "all", "--capacity-tokens",
                  "2000,600,2000,20000")
    assert set(table) == {"trace", "format", "semantics", "window", "capacity_unit", "rows"}
    assert table["capacity_unit"] == "tokens"
    names = policies()
    assert {"lru", "arc", "min"} <= set(names)
    assert [(row["policy"], row["capacity"]) for row in table["rows"]] == [
        (name, size) for size in (600, 2000, 20000) for name in names]
    assert all(row["hits"] == 1 for row in table["rows"] if row["capacity"] == 20000)
    text = replay("--trace", DATA / "ragpulse", "--policy", "all", "--capacity-tokens", "600,2000")
    assert text.returncode == OK
    for name in names:
        assert f"\n{name} " in text.stdout
    assert "2,000" in text.stdout and "GAP" in text.stdout


def test_options_reach_the_replay():
    prefix = shown("--trace", MOONCAKE, "--policy", "lru", "--capacity-objects", 20, "--semantics",
                   "prefix", "--window", 3)
    assert (prefix["semantics"], prefix["window"]) == ("prefix", 3)
    # Root last: it is there for the next request even when most of the prefix did not fit.
    assert prefix["hits"] == 7 and prefix["bypassed"] > 0
    block = shown("--trace", MOONCAKE, "--policy", "lru", "--capacity-objects", 20)
    assert block["hits"] < 7 and block["bypassed"] == 0
    prompt = shown("--trace", DATA / "ragpulse", "--policy", "lru", "--capacity-tokens", 100000,
                   "--component", "prompt")
    some = shown("--trace", DATA / "ragpulse", "--policy", "lru", "--capacity-tokens", 100000,
                 "--component", "sys_prompt,history")
    assert prompt["accesses"] > some["accesses"] == 24


def test_a_pipe_is_read_once(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=lambda: fifo.write_bytes(MOONCAKE.read_bytes()))
    writer.start()
    try:
        assert shown("--trace", fifo, "--policy", "lru", "--capacity-objects", 9)["requests"] == 8
    finally:
        writer.join()
    for arguments in (["--policy", "min"], ["--policy", "lru,arc"], ["--policy", "lru", "--gap"]):
        result = replay("--trace", fifo, "--capacity-objects", 9, *arguments)
        assert result.returncode == USAGE and "which a pipe cannot be" in result.stderr


@pytest.mark.parametrize("arguments, code, message", [
    (["--policy", "lru"], USAGE, "one of --capacity-objects and --capacity-tokens"),
    (["--policy", "lru", "--capacity-objects", 5, "--capacity-tokens", 5], USAGE,
     "one of --capacity-objects and --capacity-tokens"),
    (["--policy", "lru", "--capacity-objects", 0], USAGE, "from 1 to 2^48"),
    (["--policy", "lru", "--capacity-objects", "5,x"], USAGE, "--capacity-objects 'x'"),
    (["--policy", "lru", "--capacity-objects", -5], USAGE, "-5"),
    (["--policy", "nobody", "--capacity-objects", 5], USAGE, "policy 'nobody': none of default, lru"),
    (["--policy", "lru,", "--capacity-objects", 5], USAGE, "policy ''"),
    (["--policy", "lru", "--capacity-objects", 5, "--semantics", "odd"], USAGE, "odd"),
    (["--policy", "lru", "--capacity-objects", 5, "--flip", 1.5], USAGE, "1.5"),
    (["--policy", "lru", "--capacity-objects", 5, "--component", "odd"], OK, ""),
])
def test_a_wrong_command_line_says_what_is_wrong(arguments, code, message):
    result = replay("--trace", MOONCAKE, *arguments)
    assert result.returncode == code and message in result.stderr, result.stderr
    assert "Traceback" not in result.stderr


def test_wrong_traces_say_where(tmp_path):
    good = MOONCAKE.read_text()
    (tmp_path / "cut").write_text(good + good[:100])
    (tmp_path / "empty").write_text("")
    (tmp_path / "other").write_text('{"a": 1}\n')
    for name, message in [("cut", "cut:9: column "), ("empty", "no request in it"),
                          ("other", "other:1: not a trace"), ("nothing", "No such file"),
                          ("", "without 0_trace.jsonl")]:
        result = replay("--trace", tmp_path / name, "--policy", "lru", "--capacity-objects", 5,
                        "--json")
        assert result.returncode == ERROR and message in result.stderr
        assert json.loads(result.stdout)["exit_code"] == ERROR
    result = replay("--trace", DATA / "ragpulse", "--policy", "lru", "--capacity-objects", 5,
                    "--component", "odd")
    assert result.returncode == ERROR and "component 'odd': expected one or more of" in result.stderr


def test_help_teaches():
    result = replay("--help")
    assert result.returncode == OK
    for word in ["Examples:", "--capacity-objects", "--semantics", "Policies:", "lru  ", "min  "]:
        assert word in result.stdout


def test_the_plot_is_a_png(tmp_path):
    library = pathlib.Path(program("terrace")).parent / "libterrace.so"
    environment = os.environ | {
        "TERRACE_PYTHON": sys.executable,
        "PYTHONPATH": str(TESTS.parent / "client" / "python"),
        "TERRACE_LIBRARY": os.environ.get("TERRACE_LIBRARY") or str(library)}
    for policy, sizes in (("lru", "9"), ("all", "9,30,100")):
        plot = tmp_path / f"{policy}.png"
        result = subprocess.run(
            [program("terrace"), "replay", "--trace", MOONCAKE, "--policy", policy,
             "--capacity-objects", sizes, "--plot", plot],
            env=environment, capture_output=True, text=True)
        assert result.returncode == OK, result.stderr
        assert plot.read_bytes().startswith(b"\x89PNG") and plot.stat().st_size > 5000
        assert "lru" in result.stdout
    result = subprocess.run(
        [program("terrace"), "replay", "--trace", MOONCAKE, "--policy", "lru", "--capacity-objects",
         "9", "--plot", tmp_path / "no" / "where.png"], env=environment, capture_output=True,
        text=True)
    assert result.returncode == ERROR and "where.png" in result.stderr
    assert "Traceback" not in result.stderr and "lru" in result.stdout


def test_three_tiers_beside_lru():
    trace = DATA / "mooncake_400.jsonl"
    table = shown("--trace", trace, "--policy", "lru", "--tiers", "hbm=10%,host=20%")
    lru, known = table["rows"]
    assert (lru["hints"], known["hints"], lru["stall_vs_lru"]) == ("off", "queue", 1)
    assert known["stall_vs_lru"] <= 0.6 and known["to_hbm"]["queue"]["timely"] > 0
    for row in (lru, known):
        found = sum(row[place] for place in ("hbm", "joined", "host", "nvme", "created"))
        assert found == row["accesses"]
    for wrong, said in (("hbm=0", "--tiers hbm"), ("foo=1", "accepted: hbm, host"),
                        ("pcie=x", "expected a number")):
        result = replay("--trace", trace, "--tiers", wrong)
        assert result.returncode == USAGE and said in result.stderr
    result = replay("--trace", trace, "--tiers", "", "--capacity-objects", 9)
    assert result.returncode == USAGE and "sizes of its own" in result.stderr
