"""What README and docs say is so: every snippet and command runs, every link leads somewhere."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import page_runner
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from helpers.warm import call_warm
from page_runner import LANGUAGES, SUBSTITUTED, blocks, commands
from PIL import Image, ImageDraw

import v1lit
from v1lit.backbones.registry import list_backbones
from v1lit.cli.recipe import shipped_recipes

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
RUN = ("bash", "python", "yaml")
WITH_SNIPPETS = [
    page for page in PAGES if any(b.language in RUN for b in blocks(page.read_text(encoding="utf-8")))
]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


# ---------------------------------------------------------------- the pages run


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A directory like a checkout, with the photograph and the parquet files that the pages speak of."""
    for folder in ("configs", "recipes"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "Makefile", tmp_path)
    Image.new("RGB", (240, 180), "white").save(tmp_path / "photo.jpg")
    (tmp_path / "my_rows").mkdir()
    for split, rows in (("train", 8), ("val", 3)):
        table = pa.Table.from_pylist([row(f"{split}_{number}", 10 * number) for number in range(rows)])
        pq.write_table(table, tmp_path / "my_rows" / f"{split}-00000-of-00001.parquet")
    return tmp_path


def row(id: str, left: int) -> dict[str, object]:
    """A row in the published format: a red box on white."""
    image, box, data = Image.new("RGB", (140, 84), "white"), [left, 20, left + 40, 60], io.BytesIO()
    ImageDraw.Draw(image).rectangle(box, fill="red")
    image.save(data, "PNG")
    trace = '<think> detect(query="box", objects=["<obj1><|region_1|>"]) </think><answer>one</answer>'
    return {
        "id": id,
        "image": {"bytes": data.getvalue(), "path": f"{id}.png"},
        "conversations": [{"from": "human", "value": "<image>\nHow many?"}, {"from": "gpt", "value": trace}],
        "regions": json.dumps({"<|region_1|>": box}),
        "image_size": [140, 84],
    }


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_SNIPPETS, ids=name)
def test_every_snippet_and_command_of_a_page_runs(page: Path, checkout: Path) -> None:
    done = call_warm(page_runner.run_page, [page], checkout, timeout=600)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    if page.name == "recipes.md":
        check_logged_names(page.read_text(encoding="utf-8"), checkout / "runs" / "first")
    if page.name == "sweeps.md":
        assert "4 of 4 done" in done.stdout
        check_smoke_sweep(checkout / "sweeps" / "smoke")


def check_logged_names(page: str, run: Path) -> None:
    """The tables of measurements name exactly what a run writes."""
    with (run / "csv" / "metrics.csv").open(encoding="utf-8") as file:
        written = {*next(csv.reader(file)), *json.loads((run / "metrics.json").read_text(encoding="utf-8"))}
    written -= {"epoch", "step"}
    named = re.findall(r"`((?:train|val|chance)/\w*\*?)`", page)
    fits = {key: [one for one in written if re.fullmatch(key.replace("*", ".*"), one)] for key in named}
    assert not [key for key, found in fits.items() if not found], "named, but never written"
    assert not written - {one for found in fits.values() for one in found}, "written, but not named"


def check_smoke_sweep(folder: Path) -> None:
    """Every trial of the page's sweep has trained with its settings and measured what is asked."""
    described = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    for trial in described["trials"]:
        own = folder / "trials" / trial["name"]
        measured = json.loads((own / "metrics.json").read_text(encoding="utf-8"))
        assert set(described["metrics"]) <= measured.keys()
        recipe = (own / "recipe.yaml").read_text(encoding="utf-8")
        resolved = yaml.safe_load(re.sub(r"^#.*\n", "", recipe, flags=re.MULTILINE))
        assert resolved["seed_everything"] == trial["seed"]
        assert resolved["model"]["revisit"]["name"] == trial["settings"]["model.revisit.name"]


# ---------------------------------------------------------------- nothing slips through


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_fence_has_a_known_language(page: Path) -> None:
    content = page.read_text(encoding="utf-8")
    found = list(blocks(content))
    assert len(re.findall(r"^\s*```", content, re.MULTILINE)) == 2 * len(found), (
        "a fence that is never closed, or indented"
    )
    for block in found:
        assert block.language in LANGUAGES, f"{page.name}:{block.line}: {block.language!r}"
        if block.language == "json":
            json.loads(block.text)


def test_substitutions_are_still_needed() -> None:
    everything = "\n".join(
        b.text for page in PAGES for b in blocks(page.read_text(encoding="utf-8")) if b.language == "python"
    )
    assert not [written for written in SUBSTITUTED if written not in everything]


def test_a_command_of_unknown_kind_is_an_error() -> None:
    with pytest.raises(AssertionError, match="no rule here"):
        page_runner.run_command(["curl", "somewhere"])


def test_a_claim_that_is_not_printed_is_an_error() -> None:
    with pytest.raises(AssertionError, match="'2' is claimed"):
        page_runner.run_python(page_runner.Block("python", "print(1)  # => 2\n", 1), {})


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not target.startswith("https://"):
            file, _, anchor = target.partition("#")
            path = page.parent / file if file else page
            assert path.exists(), target
            assert not anchor or anchor in anchors(path), target


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Where a link into a page may lead: its headings, as the site and GitHub call them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


# ---------------------------------------------------------------- the pages are complete


def test_the_readme_has_the_two_commands_first() -> None:
    first = [
        words for block in blocks(text("README.md")) if block.language == "bash" for words in commands(block)
    ]
    assert first[:2] == [["make", "quickstart"], ["lightning", "run", "recipes/qwen_v1g.yaml"]]


def test_training_from_python_takes_ten_lines() -> None:
    snippet = next(block.text for block in blocks(text("README.md")) if block.language == "python")
    assert ".fit(" in snippet
    assert ".yaml" not in snippet
    assert len([line for line in snippet.splitlines() if line.strip()]) <= 10


def test_the_readme_lists_every_backbone_and_recipe() -> None:
    readme = text("README.md")
    for one in (*list_backbones(), *shipped_recipes()):
        assert f"`{one}`" in readme, one


def test_the_navigation_has_every_page() -> None:
    listed = list(targets(yaml.safe_load(text("mkdocs.yml"))["nav"]))
    assert sorted(listed) == sorted(
        str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")
    )


def targets(navigation: list[dict[str, Any]]) -> Iterator[str]:
    """The pages of a navigation, those of its sections included."""
    for entry in navigation:
        for target in entry.values():
            yield from targets(target) if isinstance(target, list) else [target]


def test_the_reference_has_every_public_name() -> None:
    listed = re.findall(r"^::: (\S+)$", text("docs/reference.md"), re.MULTILINE)
    for public in set(v1lit.__all__) - {"__version__"}:
        home = v1lit._MODULES[public]
        defined_in = getattr(v1lit, public).__module__
        assert {home, f"{home}.{public}", f"{defined_in}.{public}"} & set(listed), public
    for path in listed:
        module, attribute = ROOT / f"{path.replace('.', '/')}.py", path.rpartition(".")
        home = ROOT / f"{attribute[0].replace('.', '/')}.py"
        defined = home.is_file() and re.search(
            rf"^(def|class) {attribute[2]}\b", home.read_text(encoding="utf-8"), re.MULTILINE
        )
        assert module.is_file() or defined, path
