"""`v1lit data mix`: what a mixture will draw is what training then draws."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_runs import without_index, written

from v1lit.cli.main import main
from v1lit.data.config import MixtureConfig, StreamConfig
from v1lit.data.loading.sequence import open_sequence
from v1lit.data.remote import ShardCache
from v1lit.data.shards import Shard
from v1lit.data.tools.mix import mixture_shares


@pytest.fixture
def mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """12 examples in a, 6 in b, in the working folder."""
    written(tmp_path / "a", 12)
    written(tmp_path / "b", 6, first=100)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object, **options: object) -> None:
        raise AssertionError("a shard was read")

    monkeypatch.setattr(Shard, "__init__", never)
    monkeypatch.setattr(ShardCache, "fetch", never)
    monkeypatch.setattr("v1lit.training.module.V1Module.configure_model", never)


def test_it_says_what_training_draws(mixed: Path, no_reading: None) -> None:
    sources = [MixtureConfig("a", weight=1.0), MixtureConfig("b", weight=2.0)]
    for epoch in (0, 1):
        a, b = mixture_shares(sources, StreamConfig(), seed=5, epoch=epoch)
        assert (a.location, a.shards, a.examples, a.weight, a.per_epoch) == ("a", 3, 12, 1.0, 6)
        assert (b.location, b.shards, b.examples, b.limit, b.per_epoch) == ("b", 2, 6, None, 12)
        assert (a.times, b.times) == (0.5, 2.0)
        assert (a.share, b.share) == pytest.approx((1 / 3, 2 / 3))
        found = open_sequence(sources, StreamConfig(), 5).sequence.find(epoch, np.arange(18))
        assert [a.first, b.first] == np.bincount(found.sources).tolist()


def test_of_a_long_epoch_the_first_thousand_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("v1lit.data.tools.mix.FIRST", 5)
    written(tmp_path / "a", 12)
    (one,) = mixture_shares([MixtureConfig(str(tmp_path / "a"))], StreamConfig(lanes=5))
    assert (one.first, one.per_epoch, one.times, one.share) == (5, 12, 1.0, 1.0)


def test_without_an_index_it_cannot_be_said(mixed: Path) -> None:
    without_index(mixed / "b")
    with pytest.raises(ValueError, match=r"b has no index.*v1lit data index"):
        mixture_shares([MixtureConfig("b")], StreamConfig())
    with pytest.raises(ValueError, match=r"b has no index.*v1lit data index"):
        mixture_shares([MixtureConfig("a"), MixtureConfig("b")], StreamConfig())


# ------------------------------------------------------------------ the command


def mix(mixture: str, *more: str) -> int:
    return main(["data", "mix", "tiny_qwen", f"--data.source.mixture={mixture}", *more])


def test_the_command_shows_a_table(
    mixed: Path, no_reading: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert mix("[{shards: a, weight: 1}, {shards: b, weight: 2, limit: 9}]", "--data.seed=4") == 0
    out = capsys.readouterr().out
    assert "15 examples per epoch, seed 4" in out
    rows = [re.findall(r"[^\s│┃]+", line) for line in out.splitlines() if line.startswith("│")]
    assert rows[0][:6] == ["a", "3", "12", "1", "6", "40.0%"]
    assert rows[1][:7] == ["b", "2", "6", "2", "9", "9", "60.0%"]
    assert "b: every example comes 1.50 times per epoch" in out
    assert "a: an epoch takes 50% of it, the next one takes others" in out


def test_it_shows_single_sources_too(
    mixed: Path, no_reading: None, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data.source.name=shards", "--data.source.options={}", "--data.source.folder=a"]
    assert main(["data", "mix", "tiny_qwen", *arguments]) == 0
    assert "12 examples per epoch" in capsys.readouterr().out
    assert mix("[{shards: '?/*.tar'}]") == 0
    assert "18 examples per epoch" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("mixture", "words"),
    [
        ("[{shards: nowhere}]", ["nothing matches nowhere"]),
        (
            "[{shards: a, weigth: 1}]",
            ["'data.source.mixture.0.weigth'", "command line", "mixture.0.weight'?"],
        ),
        ("[{shards: a}, {weight: 1}]", ["data.source.mixture.1", "lacks 'shards'"]),
        ("[{shards: a, weight: heavy}]", ["mixture.0.weight is 'heavy'", "a number or null"]),
        ("[{shards: a, limit: 1.5}]", ["mixture.0.limit is 1.5", "an integer or null"]),
        ("[{shards: a, limit: 0}]", ["data.source.mixture.0.limit is 0", "1 or more", "command line"]),
        ("[{shards: a, weight: 1}, {shards: b}]", ["1 of 2 sources have a weight", "source 1 has none"]),
        ("[{shards: a, weight: -1}, {shards: b, weight: 2}]", ["weights must be positive"]),
        ("a", ["data.source.mixture is 'a'", "a list, each a mapping with shards, weight, limit"]),
        ("[a, b]", ["data.source.mixture.0 is 'a'", "shards, weight, limit"]),
    ],
)
def test_mistakes_in_a_mixture_are_told_in_two_lines(
    mixed: Path, no_reading: None, capsys: pytest.CaptureFixture[str], mixture: str, words: list[str]
) -> None:
    assert mix(mixture) == 2
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) <= 2, err
    for word in words:
        assert word in err, err


def test_the_recipe_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "mix"]) == 2
    assert "required: RECIPE" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="0"):
        main(["data", "mix", "--help"])
    assert "v1lit data mix RECIPE" in capsys.readouterr().out


def test_a_recipe_may_hold_the_mixture(
    mixed: Path, no_reading: None, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.yaml").write_text(
        "base: tiny_qwen\n"
        "data:\n"
        "  source:\n"
        "    mixture:\n"
        "      - {shards: a, weight: 1}\n"
        "      - shards: b/*.tar\n"
        "        weight: 1.0\n"
    )
    code = main(["data", "mix", "mine.yaml"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert "18 examples per epoch" in captured.out
