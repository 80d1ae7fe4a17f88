"""`terrace store inspect` and the reader in tests/formats, which was written from the pages in
docs/formats alone, look at the same store and must say the same."""

import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import pytest

TESTS = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "support"), str(TESTS / "formats")]

import reader  # noqa: E402
from terraced import BUILD_DIR, MIB, Terraced, run_stress, terrace  # noqa: E402

OK, ERROR, USAGE, NOT_REACHABLE, CORRUPT, NOT_FOUND = range(6)
BLOCK = 4096


@pytest.fixture(scope="module")
def served():
    """A daemon that serves a store in which segments were sealed, used again, and lost records."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="inspect-", dir=BUILD_DIR))
    daemon = Terraced(path, nvme_bytes=48 * MIB, segment=4 * MIB)
    daemon.start()
    for seed in (1, 2):
        assert run_stress(daemon, "--keys", 400, "--seconds", 3, "--remove", "--seed",
                          seed).returncode == 0
        assert daemon.terrace("flush").returncode == OK
    assert daemon.status()["counters"]["nvme_sealed_segments"] > 2
    yield daemon
    daemon.kill()
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def stopped(served):
    """The directory of that store, no longer served."""
    refused = terrace("store", "inspect", str(served.directory / "state" / "nvme"))
    assert refused.returncode == ERROR and "in use by process" in refused.stderr
    assert served.stop() == 0
    return served.directory / "state" / "nvme"


@pytest.fixture
def copy(stopped):
    path = pathlib.Path(tempfile.mkdtemp(prefix="inspect-", dir=BUILD_DIR))
    yield shutil.copytree(stopped, path / "nvme")
    shutil.rmtree(path, ignore_errors=True)


def inspect(directory, expected=OK) -> dict:
    result = terrace("--json", "store", "inspect", str(directory), "--records")
    assert result.returncode == expected, result.stderr + result.stdout[-2000:]
    return json.loads(result.stdout)


def digest(directory: pathlib.Path) -> dict[str, str]:
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in directory.rglob("*") if path.is_file()}


def records_of(report: dict) -> list[tuple]:
    """All that both see of each record; that one was erased, only an index may know."""
    return [(segment["id"], segment["generation"], segment["state"], segment["footer"],
             record["key"], record["offset"], record["header_bytes"], record["payload_bytes"],
             record["sequence"], record["state"] == "damaged", record["state"] == "torn")
            for segment in report["segments"] for record in segment["records"]]


def places(report: dict) -> set[tuple[str, int]]:
    return {(problem["file"], problem["offset"]) for problem in report["problems"]}


def flip(path: pathlib.Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


def a_record(report: dict) -> tuple[str, dict]:
    """One in the middle of a sealed segment, and its file."""
    segment = next(segment for segment in report["segments"]
                   if segment["state"] == "sealed" and segment["live_records"] > 2)
    live = [record for record in segment["records"] if record["state"] == "live"]
    return f"segments/{segment['file']}", live[len(live) // 2]


def test_both_read_the_same_and_change_nothing(stopped):
    before = digest(stopped)
    ours, theirs = inspect(stopped), reader.Store(stopped).as_dict()
    assert digest(stopped) == before
    assert ours["problems"] == theirs["problems"] == []
    assert ours["store_id"] == theirs["store_id"]
    assert len(records_of(ours)) > 100 and records_of(ours) == records_of(theirs)
    assert [(s["id"], s["generation"], s["bytes"]) for s in ours["segments"]] == [
        (s["id"], s["generation"], s["bytes"]) for s in theirs["segments"]]
    states = {segment["state"] for segment in ours["segments"]}
    assert "sealed" in states
    assert max(segment["generation"] for segment in ours["segments"]) > 1
    assert {record["state"] for segment in ours["segments"]
            for record in segment["records"]} >= {"live", "erased"}
    assert ours["index"]["complete"] and ours["index"]["rows"] > 0
    for copy_ours, copy_theirs in zip(ours["superblocks"], theirs["superblocks"], strict=True):
        for field in ("file", "epoch", "closed", "segment_bytes", "budget_bytes"):
            assert copy_ours[field] == copy_theirs[field]
    assert any(copy["closed"] for copy in ours["superblocks"])


def test_live_records_are_what_the_daemon_serves(stopped, served):
    live = {record["key"] for segment in inspect(stopped)["segments"]
            for record in segment["records"] if record["state"] == "live"}
    served.start()
    listed = {entry["key"] for entry in served.json("ls", "--limit", "0")["objects"]}
    assert served.stop() == 0
    assert live == listed


@pytest.mark.parametrize("where", ["payload", "header", "footer", "entries"])
def test_a_flipped_bit_is_found_where_it_is(copy, where):
    report = inspect(copy)
    file, record = a_record(report)
    size = (copy / file).stat().st_size
    at, found = {
        "payload": (record["offset"] + record["header_bytes"] + 40, record["offset"]),
        "header": (record["offset"] + 60, record["offset"]),
        "footer": (size - BLOCK + 40, size - BLOCK),
        "entries": (size - BLOCK - BLOCK, size - BLOCK),
    }[where]
    flip(copy / file, at)
    ours, theirs = inspect(copy, CORRUPT), reader.Store(copy).as_dict()
    assert places(ours) == places(theirs) == {(file, found)}
    if where in ("payload", "header"):
        damaged = [entry for segment in ours["segments"] for entry in segment["records"]
                   if entry["state"] == "damaged"]
        assert [entry["key"] for entry in damaged] == [record["key"]]
    text = terrace("store", "inspect", str(copy))
    assert text.returncode == CORRUPT
    assert f"problem {file} at {found}: " in text.stdout


def test_a_damaged_footer_is_found_without_an_index_too(copy):
    file, _ = a_record(inspect(copy))
    shutil.rmtree(copy / "index")
    at = (copy / file).stat().st_size - BLOCK
    flip(copy / file, at + 40)
    assert places(inspect(copy, CORRUPT)) == places(reader.Store(copy).as_dict()) == {(file, at)}


def test_a_header_of_an_earlier_generation_than_its_row_is_named(copy):
    """The write of a header that was lost: what the index says of the file is still served."""
    before = inspect(copy)
    segment = next(segment for segment in before["segments"]
                   if segment["generation"] > 1 and segment["row"] and segment["live_records"])
    path = copy / "segments" / segment["file"]
    with open(path, "r+b") as file:
        block = bytearray(file.read(BLOCK))
        block[40:48] = (segment["generation"] - 1).to_bytes(8, "little")
        block[12:16] = bytes(4)
        block[12:16] = reader.crc32c(bytes(block)).to_bytes(4, "little")
        file.seek(0)
        file.write(block)
    after = inspect(copy, CORRUPT)
    assert places(after) == {(f"segments/{segment['file']}", 0)}
    assert records_of(after) == records_of(before)


def test_a_store_of_more_segments_than_the_process_may_open(stopped):
    command = [str(BUILD_DIR / "terrace"), "store", "inspect", str(stopped)]
    limited = subprocess.run(["bash", "-c", 'ulimit -S -n 12 && exec "$@"', "bash", *command],
                             capture_output=True, text=True, timeout=60)
    assert limited.returncode == OK, limited.stderr


@pytest.mark.parametrize("name", ["superblock", "superblock.copy"])
def test_a_damaged_superblock_is_named(copy, name):
    flip(copy / name, 40)
    assert places(inspect(copy, CORRUPT)) == places(reader.Store(copy).as_dict()) == {(name, 0)}


def test_a_damaged_segment_header_is_named_and_nothing_else_is_wrong(copy):
    before = inspect(copy)
    file, _ = a_record(before)
    flip(copy / file, 44)
    ours, theirs = inspect(copy, CORRUPT), reader.Store(copy).as_dict()
    assert places(ours) == places(theirs) == {(file, 0)}
    assert records_of(ours) == records_of(theirs) == records_of(before)


def test_a_short_segment_is_named_with_what_was_behind_its_end(copy):
    report = inspect(copy)
    file, record = a_record(report)
    with open(copy / file, "r+b") as opened:
        opened.truncate(record["offset"])
    ours = inspect(copy, CORRUPT)
    assert (file, record["offset"]) in places(ours)
    assert record["key"] in "".join(problem["what"] for problem in ours["problems"])
    assert (file, record["offset"]) in places(reader.Store(copy).as_dict())


def test_a_missing_segment_is_named(copy):
    file, _ = a_record(inspect(copy))
    (copy / file).unlink()
    assert places(inspect(copy, CORRUPT)) == {(file, 0)}


def test_without_an_index_the_segments_are_enough(copy):
    before = inspect(copy)
    shutil.rmtree(copy / "index")
    after = inspect(copy)
    assert not after["index"]["complete"]
    assert records_of(after) == records_of(before)


def test_what_is_no_store(copy, tmp_path):
    result = terrace("store", "inspect", str(tmp_path))
    assert result.returncode == NOT_FOUND and f"{tmp_path} is not a store" in result.stderr
    assert terrace("store", "inspect").returncode == USAGE
    assert terrace("store", "inspect", str(tmp_path / "absent")).returncode == NOT_FOUND
    flip(copy / "superblock", 8)
    later = terrace("store", "inspect", str(copy))
    assert later.returncode == ERROR and "format version" in later.stderr
