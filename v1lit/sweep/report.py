"""Makes the report of a sweep: tables, figures and pages, from the files of its trials alone."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from v1lit.errors import explain_unknown
from v1lit.files import aside
from v1lit.sweep.report_figures import KINDS, draw
from v1lit.sweep.report_pages import latex, markdown, web_page
from v1lit.sweep.report_tables import Tables, make_tables
from v1lit.sweep.report_text import make_parts
from v1lit.sweep.results import SweepResults, read_sweep_results

NEEDED = ("pandas", "matplotlib", "jinja2")
TABLES = (
    "values",
    "settings",
    "differences",
    "pooled",
    "equal_settings",
    "equal_differences",
    "equal_pooled",
    "trials",
    "curves",
    "versions",
)
"""Those of `Tables` that become CSV files."""


class ExtraMissingError(ImportError):
    """What a report is made with is not installed."""


def make_report(
    folder: Path,
    output: Path,
    baseline: Mapping[str, str] | None = None,
    metrics: Sequence[str] = (),
    level: float = 0.95,
) -> Tables:
    """Write the report of the sweep in `folder` to the folder `output`, in place of an earlier one.

    Args:
        folder: of the sweep.
        output: gets `report.md`, `report.html`, `report.tex`, `tables/`, `figures/` and `recipes/`.
        baseline: by axis the label to compare with, instead of the sweep's own.
        metrics: to compare, instead of the sweep's own.
        level: of all intervals of one table together.

    Returns the tables. The same files give the same bytes. Raises ExtraMissingError where a library is
    missing, SweepFolderError where the folder is none of a sweep, and ValueError for a baseline that is not
    there and an `output` that holds something else.
    """
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise ExtraMissingError(
            f"a report needs {' and '.join(missing)}, which is not installed\n"
            "install it with: pip install 'v1lit[report]'"
        )
    sweep = read_sweep_results(folder)
    if baseline:
        sweep = replace(sweep, baseline=dict(baseline))
    if metrics:
        sweep = replace(sweep, metrics=list(metrics))
    _check_baseline(sweep)
    if output.exists() and any(output.iterdir()) and not (output / "report.md").is_file():
        raise ValueError(f"{output} holds something else than a report\ngive another folder with --output")
    tables = make_tables(sweep, level)
    output.parent.mkdir(parents=True, exist_ok=True)
    with aside(output) as unfinished:
        _write(unfinished, sweep, tables)
        if output.exists():
            shutil.rmtree(output)
    return tables


def _check_baseline(sweep: SweepResults) -> None:
    for axis, label in (sweep.baseline or {}).items():
        if axis not in sweep.axes:
            raise ValueError(f"baseline: {explain_unknown('axis', axis, sweep.axes)}")
        if label not in sweep.axes[axis]:
            raise ValueError(f"baseline: {explain_unknown(f'label of {axis}', label, sweep.axes[axis])}")


def _write(folder: Path, sweep: SweepResults, tables: Tables) -> None:
    drawings = list(draw(sweep, tables))
    drawn = {kind: [one.name for one in drawings if one.kind == kind] for kind in KINDS}
    parts = make_parts(sweep, tables, drawn)
    recipes = {trial.name: trial.recipe for trial in sweep.trials if trial.recipe}
    files: dict[str, str | bytes] = {
        "report.md": markdown(parts),
        "report.html": web_page(parts, drawings, recipes),
        "report.tex": latex(parts),
        **{f"tables/{name}.csv": getattr(tables, name).to_csv(index=False) for name in TABLES},
        **{f"figures/{drawing.name}.png": drawing.png for drawing in drawings},
        **{f"figures/{drawing.name}.pdf": drawing.pdf for drawing in drawings},
        **{f"recipes/{name}.yaml": text for name, text in recipes.items()},
    }
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
