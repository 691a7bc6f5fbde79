"""Reports of sweeps: the numbers against hand-computed ones, and the pages that are made of them."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from helpers.sweep_folders import HEAD, compared, note, rates, write_sweep, write_trial

from v1lit.cli.main import main
from v1lit.sweep import report
from v1lit.sweep.report import ExtraMissingError, make_report
from v1lit.sweep.report_tables import Tables, make_tables
from v1lit.sweep.results import read_sweep_results

pytest.importorskip("pandas", reason="pandas is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")

NASTY = r"<script>alert(1)</script>&50%_of #1 {$\x^2$} ~a\b | *c*"


def tables_of(folder: Path, **more: Any) -> Tables:
    return make_tables(read_sweep_results(folder), **more)


def rows(frame: Any, *columns: str) -> list[tuple[Any, ...]]:
    return [tuple(line[column] for column in columns) for line in frame.to_dict("records")]


# ---- numbers -----------------------------------------------------------------------------------------------


def test_means_deviations_and_differences_are_those_of_hand(tmp_path: Path) -> None:
    """crop - text: 1, 2, 6 (mean 3, deviation sqrt(7)); blank - text: 0, 0, 3 (mean 1, deviation sqrt(3))."""
    ways = {"text": [1.0, 2.0, 3.0], "crop": [2.0, 4.0, 9.0], "blank": [1.0, 2.0, 6.0]}
    found = tables_of(compared(tmp_path, ways, baseline={"way": "text"}))
    assert rows(found.settings, "way", "mean", "deviation", "seeds", "planned") == [
        ("text", 2.0, 1.0, 3, 3),
        ("crop", 5.0, pytest.approx(13**0.5), 3, 3),
        ("blank", 3.0, pytest.approx(7**0.5), 3, 3),
    ]
    assert rows(found.differences, "way", "baseline", "difference", "deviation", "low", "high", "pairs") == [
        ("crop", "way=text", 3.0, pytest.approx(7**0.5), 1.0, 6.0, 3),
        ("blank", "way=text", 1.0, pytest.approx(3**0.5), 0.0, 3.0, 3),
    ]
    assert found.problems == ["val/loss is measured at the end only, so it cannot be read at equal FLOPs"]


def test_intervals_are_as_wide_as_the_number_of_comparisons_asks_for(tmp_path: Path) -> None:
    """Two comparisons at 95 % together: each at 97.5 %, where Student's t with 2 degrees is 6.2053."""
    ways = {"text": [1.0, 2.0, 3.0], "crop": [2.0, 4.0, 9.0], "blank": [1.0, 2.0, 6.0]}
    found = tables_of(compared(tmp_path, ways, baseline={"way": "text"})).differences
    assert list(found["level"]) == pytest.approx([0.975, 0.975])
    half = 6.205347 * (7 / 3) ** 0.5
    assert rows(found, "t_low", "t_high")[0] == pytest.approx((3 - half, 3 + half), abs=1e-4)


def test_differences_are_of_the_same_seed_also_where_one_is_missing(tmp_path: Path) -> None:
    compared(tmp_path, {"text": [1.0, 5.0, 3.0], "crop": [2.0, 4.0, 9.0]}, baseline={"way": "text"})
    note(tmp_path, "crop-1", "failed", seconds=1.0, why="error: the disk melted")
    found = tables_of(tmp_path)
    assert rows(found.differences, "difference", "low", "high", "pairs") == [(3.5, 1.0, 6.0, 2)]
    assert rows(found.settings, "mean", "seeds", "planned")[1] == (5.5, 2, 3)
    assert (
        "crop-1 is left out of all means; it is failed (attempts: 1): error: the disk melted"
        in found.problems[0]
    )


def test_a_setting_is_compared_with_the_baseline_that_is_the_same_on_the_other_axes(tmp_path: Path) -> None:
    values = {("qwen", "text"): 1.0, ("qwen", "crop"): 2.0, ("llava", "text"): 10.0, ("llava", "crop"): 14.0}
    trials = [
        {"name": f"{family}-{way}-{seed}", "settings": {"family": family, "way": way}, "seed": seed}
        for family, way in values
        for seed in (0, 1)
    ]
    write_sweep(tmp_path, trials, baseline={"way": "text"})
    for trial in trials:
        end = values[trial["settings"]["family"], trial["settings"]["way"]]  # type: ignore[index]
        write_trial(tmp_path, trial["name"], trial["seed"], {"val/loss": end})  # type: ignore[arg-type]
    assert rows(tables_of(tmp_path).differences, "family", "way", "baseline", "difference") == [
        ("qwen", "crop", "family=qwen, way=text", 1.0),
        ("llava", "crop", "family=llava, way=text", 4.0),
    ]


def test_over_all_groups_the_pairs_of_each_are_pooled(tmp_path: Path) -> None:
    """crop - text: 1 and 2 in one family, 3 and 6 in the other; together 3, with deviation sqrt(14 / 3)."""
    values = {"qwen": ([1.0, 1.0], [2.0, 3.0]), "llava": ([0.0, 1.0], [3.0, 7.0])}
    trials = [
        {"name": f"{family}-{way}-{seed}", "settings": {"family": family, "way": way}, "seed": seed}
        for family in values
        for way in ("text", "crop")
        for seed in (0, 1)
    ]
    write_sweep(tmp_path, trials, baseline={"way": "text"})
    for family, ends in values.items():
        for way, both in zip(("text", "crop"), ends, strict=True):
            for seed, end in enumerate(both):
                write_trial(tmp_path, f"{family}-{way}-{seed}", seed, {"val/loss": end})
    found = tables_of(tmp_path)
    columns = ("way", "difference", "deviation", "pairs", "level")
    assert rows(found.pooled, *columns) == [("crop", 3.0, pytest.approx((14 / 3) ** 0.5), 4, 0.95)]
    assert list(found.differences["level"]) == pytest.approx([0.975, 0.975])
    make_report(tmp_path, tmp_path / "report")
    text = (tmp_path / "report/report.md").read_text(encoding="utf-8")
    assert "## Differences from the baseline, over every family" in text


def with_curves(folder: Path, flops: dict[str, float], **more: Any) -> Path:
    """One trial a label: `val/loss` is the label's FLOPs per step x steps / 1e9 after 10 and 20 steps."""
    trials = [{"name": way, "settings": {"way": way}, "seed": 0} for way in flops]
    write_sweep(folder, trials, baseline={"way": "text"}, **more)
    for way, per_step in flops.items():
        logged = [rates(10, flops=per_step), rates(20, flops=per_step)]
        curve = [{"step": step - 1, "val/loss": step * per_step / 1e9} for step in (10, 20)]
        write_trial(folder, way, 0, {"val/loss": 99.0}, [*logged, *curve])
    return folder


def test_values_at_equal_flops_are_read_where_the_smallest_curve_ends(tmp_path: Path) -> None:
    """text ends at 20e9; crop has 15e9 and 30e9, and is read a third of the way between them."""
    found = tables_of(with_curves(tmp_path, {"text": 1e9, "crop": 1.5e9}))
    assert rows(found.equal_settings, "way", "flops", "mean") == [
        ("text", 20e9, pytest.approx(20.0)),
        ("crop", 20e9, pytest.approx(20.0)),
    ]
    assert rows(found.equal_differences, "way", "difference") == [("crop", pytest.approx(0.0))]
    assert rows(found.differences, "difference") == [(0.0,)]
    assert found.problems == []


def test_a_trial_whose_first_validation_comes_too_late_is_named(tmp_path: Path) -> None:
    found = tables_of(with_curves(tmp_path, {"text": 1e9, "crop": 4e9}))
    assert found.problems == [
        "trial crop has its first val/loss only after 2e+10 FLOPs, where the others are compared"
    ]
    assert rows(found.equal_settings, "way", "seeds") == [("text", 1), ("crop", 0)]


def test_costs_are_of_every_trial_the_unfinished_ones_as_well(tmp_path: Path) -> None:
    with_curves(tmp_path, {"text": 1e9, "crop": 1.5e9})
    note(tmp_path, "crop", "started", 2)
    found = tables_of(tmp_path).trials
    columns = ("trial", "state", "attempts", "seconds", "training_seconds", "steps", "tokens", "flops")
    assert rows(found, *columns) == [
        ("text", "done", 1, 10.0, 10.0, 20, 2000.0, 20e9),
        ("crop", "running or broken off", 2, 10.0, 10.0, 20, 2000.0, 30e9),
    ]


def test_metrics_and_baselines_that_are_missing_are_named(tmp_path: Path) -> None:
    trials = [
        {"name": "a", "settings": {"family": "qwen", "way": "text"}, "seed": 0},
        {"name": "b", "settings": {"family": "llava", "way": "crop"}, "seed": 0},
    ]
    write_sweep(tmp_path, trials, baseline={"way": "text"})
    write_trial(tmp_path, "a", 0, {"val/loss": None})
    write_trial(tmp_path, "b", 0, {"val/loss": 1.0})
    problems = tables_of(tmp_path).problems
    assert "trial a is done, but has no val/loss" in problems
    assert "family=llava, way=crop has no baseline: no trial is the same with way=text" in problems


def test_a_setting_with_an_axis_of_its_own_is_compared_with_a_baseline_without_it(
    tmp_path: Path,
) -> None:
    """As a sweep leaves them whose axis `order` is there for crops only; each order is a setting."""
    values = {("qwen", "text", ""): 1.0, ("qwen", "crop", "near"): 2.0, ("qwen", "crop", "far"): 4.0}
    values |= {("llava", way, order): 3 * value for (_, way, order), value in values.items()}
    trials = []
    for family, way, order in values:
        settings = {"family": family, "way": way} | ({"order": order} if order else {})
        trials.append({"name": f"{family}-{way}{order}", "settings": settings, "seed": 0})
    write_sweep(tmp_path, trials, baseline={"way": "text"})
    for trial, value in zip(trials, values.values(), strict=True):
        write_trial(tmp_path, str(trial["name"]), 0, {"val/loss": value})
    found = tables_of(tmp_path)
    assert rows(found.differences, "family", "order", "baseline", "difference") == [
        ("qwen", "near", "family=qwen, way=text", 1.0),
        ("qwen", "far", "family=qwen, way=text", 3.0),
        ("llava", "near", "family=llava, way=text", 3.0),
        ("llava", "far", "family=llava, way=text", 9.0),
    ]
    assert rows(found.pooled, "way", "order", "difference", "pairs") == [
        ("crop", "near", 2.0, 2),
        ("crop", "far", 6.0, 2),
    ]
    assert set(found.settings["order"]) == {"-", "near", "far"}


def test_without_a_baseline_all_settings_are_one_group_and_nothing_is_compared(tmp_path: Path) -> None:
    with_curves(tmp_path, {"text": 1e9, "crop": 1.5e9})
    found = make_tables(replace(read_sweep_results(tmp_path), baseline=None))
    assert len(found.differences) == len(found.pooled) == len(found.equal_differences) == 0
    assert rows(found.equal_settings, "way", "mean") == [
        ("text", pytest.approx(20.0)),
        ("crop", pytest.approx(20.0)),
    ]


# ---- pages -------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Tags, attributes that fetch something, and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.fetched: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert not any(name.startswith("on") for name, _ in attributes)
        self.fetched += [text or "" for name, text in attributes if name in ("src", "href", "srcset", "data")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a sweep with curves, a failed trial and labels that no page may take for its own code."""
    folder = tmp_path_factory.mktemp("sweep")
    trials = [
        {
            "name": f"{name}-{seed}",
            "settings": {"way": way, "seed": "an axis"},
            "seed": seed,
            "changes": {"x": way},
        }
        for name, way in (("text", "text"), ("nasty", NASTY))
        for seed in (0, 1, 2)
    ]
    write_sweep(folder, trials, name=NASTY, baseline={"way": "text"})
    for trial in trials[:-1]:
        end = 1.0 + trial["seed"] + ("nasty" in trial["name"]) / 4  # type: ignore[operator]
        curve = [rates(10), {"step": 9, "val/loss": 2 * end}, rates(20), {"step": 19, "val/loss": end}]
        write_trial(folder, trial["name"], trial["seed"], {"val/loss": end}, curve)  # type: ignore[arg-type]
    with (folder / "trials/nasty-1/recipe.yaml").open("a") as file:
        file.write("name: <script>alert(2)</script>\n")
    note(folder, "nasty-2", "started")
    note(folder, "nasty-2", "failed", seconds=1.0, why="error: <b>the disk melted</b>")
    make_report(folder, folder / "report")
    return folder


def test_all_files_are_there(made: Path) -> None:
    found = {
        str(path.relative_to(made / "report")) for path in (made / "report").rglob("*") if path.is_file()
    }
    assert {name for name in found if "/" not in name} == {"report.md", "report.html", "report.tex"}
    assert {name for name in found if name.startswith("tables/")} == {
        f"tables/{one}.csv" for one in report.TABLES
    }
    figures = ("val_loss", "val_loss_differences_from_way_text")
    assert {name for name in found if name.startswith("figures/")} == {
        f"figures/{name}.{kind}" for name in figures for kind in ("png", "pdf")
    }
    assert "recipes/nasty-1.yaml" in found
    assert (made / "report/recipes/text-2.yaml").read_text() == HEAD.format(seed=2, torch="2.14.1")


def test_the_web_page_fetches_nothing_runs_nothing_and_shows_names_as_they_are(made: Path) -> None:
    page = Page((made / "report/report.html").read_text(encoding="utf-8"))
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "base", "b"}
    assert sum(text.startswith("data:image/png;base64,") for text in page.fetched) == 2
    assert all(text.startswith(("data:image/png;base64,", "#part")) for text in page.fetched)
    assert NASTY in page.text
    assert "seed_everything: 1" in page.text


def test_what_failed_is_named_on_every_page(made: Path) -> None:
    for name in ("report.md", "report.html"):
        text = (made / "report" / name).read_text(encoding="utf-8")
        assert re.search(r"trial nasty-2 is left out of all means; it is failed", text), name
        assert "2 of 3" in text
        assert "<b>" not in text.replace(r"\<b\>", "")


def test_cells_of_markdown_hold_their_text_and_no_markup(made: Path) -> None:
    lines = (made / "report/report.md").read_text(encoding="utf-8").splitlines()
    row = next(line for line in lines if line.startswith("|") and "2 of 3" in line)
    assert len(re.findall(r"(?<!\\)\|", row)) == 4  # two axes and one metric
    assert "axis seed" in "\n".join(lines)


def test_latex_has_its_special_characters_escaped_and_the_rules_of_booktabs(made: Path) -> None:
    text = (made / "report/report.tex").read_text(encoding="utf-8")
    assert text.isascii()
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert text.count(rule) == text.count(r"\begin{tabular}") == 5
    escaped = r"</script>\&50\%\_of \#1 \{\$\textbackslash x\textasciicircum 2\$\} \textasciitilde a"
    assert escaped in text
    assert r"\textbackslash b" in text
    assert r"1.7500 $\pm$ 0.7071 (2 of 3)" in text


def test_the_same_files_give_the_same_bytes(made: Path) -> None:
    again = made / "again"
    make_report(made, again)
    first = {
        path.relative_to(made / "report"): path for path in (made / "report").rglob("*") if path.is_file()
    }
    assert first
    for name, path in first.items():
        assert (again / name).read_bytes() == path.read_bytes(), name


def test_a_few_seeds_are_said_to_cover_little(made: Path) -> None:
    text = (made / "report/report.html").read_text(encoding="utf-8")
    assert "2 pairs cannot carry a bootstrap interval at that level" in text
    assert "in at most 50.0% of sweeps" in text


def test_versions_that_differ_are_said_to(tmp_path: Path) -> None:
    compared(tmp_path, {"text": [1.0, 2.0]})
    (tmp_path / "trials/text-1/recipe.yaml").write_text(HEAD.format(seed=1, torch="2.11"))
    make_report(tmp_path, tmp_path / "report")
    text = (tmp_path / "report/report.md").read_text(encoding="utf-8")
    assert "They differ in torch" in text
    assert "- git: abc" in text
    assert "| text-1 | 2.11 |" in text


# ---- the command -------------------------------------------------------------------------------------------


def test_the_command_writes_the_report_and_names_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compared(tmp_path, {"text": [1.0, 2.0], "crop": [3.0, 5.0]})
    note(tmp_path, "crop-1", "started", 2)
    output = tmp_path / "there"
    words = [
        "--baseline",
        "way=text",
        "--metric",
        "val/loss",
        "--metric",
        "val/other",
        "--output",
        str(output),
    ]
    assert main(["sweep", "report", str(tmp_path), *words]) == 0
    said = capsys.readouterr().out
    assert "missing: trial crop-1 is left out of all means; it is running or broken off (attempts: 2)" in said
    assert "missing: trial text-1 is done, but has no val/other" in said
    assert "crop,way=text,val/loss,2.0," in (output / "tables/differences.csv").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--baseline", "way=txt"], "baseline: unknown label of way 'txt'; did you mean 'text'?"),
        (["--baseline", "why=text"], "baseline: unknown axis 'why'; did you mean 'way'?"),
        (["--baseline", "text"], "'text' names no label: give AXIS=LABEL"),
        (["--level", "95"], "'95' is no level: give a number between 0 and 1, such as 0.95"),
        (["--output", "."], "holds something else than a report"),
    ],
)
def test_mistakes_are_said_in_a_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    said: str,
) -> None:
    compared(tmp_path, {"text": [1.0]})
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", "report", ".", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_folder_that_is_no_sweep_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "report", str(tmp_path)]) == 2
    assert "is no folder of a sweep: it has no sweep.json" in capsys.readouterr().err


def test_a_sweep_in_which_nothing_has_ended_has_a_report(tmp_path: Path) -> None:
    trials = [{"name": way, "settings": {"way": way}, "seed": 0} for way in ("text", "crop")]
    write_sweep(tmp_path, trials, baseline={"way": "text"})
    tables = make_report(tmp_path, tmp_path / "report")
    assert tables.problems == ["left out of all means, since not started, 2 of the trials: text, crop"]
    assert (tmp_path / "report/report.html").is_file()


def test_without_the_extra_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    monkeypatch.setattr(report, "find_spec", lambda name: None if name == "pandas" else object())
    with pytest.raises(ExtraMissingError, match=r"pandas, .*\n.*pip install 'v1lit\[report\]'"):
        make_report(tmp_path, tmp_path / "report")
