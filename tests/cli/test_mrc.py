"""`terrace mrc` against a real daemon that has served a load."""

import pathlib
import shutil
import sys
import tempfile

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))

from terraced import BUILD_DIR, MIB, Terraced, run_stress  # noqa: E402

GIB = 1 << 30


@pytest.fixture(scope="module")
def directory():
    made = pathlib.Path(tempfile.mkdtemp(prefix="mrc-", dir=BUILD_DIR))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="module")
def daemon(directory):
    with Terraced(directory, host_bytes=64 * MIB, nvme_bytes=256 * MIB) as running:
        stored = run_stress(running, "--keys", 200, "--seconds", 2)
        assert stored.returncode == 0, stored.stdout
        yield running


def test_json_says_what_each_size_hits(daemon):
    tiers = daemon.json("mrc")["tiers"]
    assert [tier["tier"] for tier in tiers] == ["host", "nvme"]
    for tier in tiers:
        assert tier["enough_samples"] and tier["sampled"] >= 300
        assert tier["accesses"] >= tier["sampled"] and tier["accesses_per_hour"] > 0
        sizes = [point["bytes"] for point in tier["points"]]
        rates = [point["hit_rate"] for point in tier["points"]]
        assert sizes == sorted(sizes) and tier["capacity_bytes"] in sizes
        assert rates[0] == 0
        assert all(b >= a - 1e-6 for a, b in zip(rates, rates[1:]))
        assert 0.5 < rates[-1] <= 1  # 200 keys, asked for over and over
        assert rates[sizes.index(tier["capacity_bytes"])] == pytest.approx(tier["hit_rate"])
        assert tier["plus_1_gib"]["hit_rate"] == pytest.approx(rates[-1] - tier["hit_rate"],
                                                               abs=1e-3)
        assert tier["minus_1_gib"] is None  # it has no GiB to lose
    assert tiers[0]["capacity_bytes"] == 64 * MIB
    assert tiers[0]["hit_saves_us"] > 0  # a read from NVMe


def test_people_see_a_curve_a_table_and_what_a_gib_is_worth(daemon):
    text = daemon.terrace("mrc").stdout
    assert "HOST  64.0 MiB" in text and "NVME" in text and "256.0 MiB" in text
    assert "#" in text and "^" in text and "hits  +" in text
    assert "<- now" in text and "HIT RATE" in text
    assert "+1 GiB: +" in text and "points of hit rate" in text
    assert "-1 GiB: it has no more than 64.0 MiB" in text
    assert "of waiting an hour" in text
    assert max(map(len, text.splitlines())) <= 100


def test_too_few_samples_are_said_to_be_too_few():
    fresh = pathlib.Path(tempfile.mkdtemp(prefix="mrc-", dir=BUILD_DIR))
    try:
        with Terraced(fresh, host_bytes=64 * MIB, nvme_bytes=0) as running:
            result = running.terrace("mrc")
            assert result.returncode == 0
            assert "Too few samples: 0 accesses" in result.stdout
            (host,) = running.json("mrc")["tiers"]
            assert not host["enough_samples"]
            assert host["plus_1_gib"] is None and host["hit_saves_us"] is None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def test_a_tenant_of_others_is_refused(daemon):
    refused = daemon.terrace("--tenant", "nobody", "mrc")
    assert refused.returncode == 1 and "nobody" in refused.stderr
