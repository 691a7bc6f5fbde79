"""The model card of an exported folder: what a model was made of and how, as far as its run says so."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from v1lit.backbones.adapters.folder import OURS as ADAPTER
from v1lit.backbones.folder import CONFIG, PUBLISHED
from v1lit.backbones.hub import looks_local
from v1lit.backbones.registry import get_backbone
from v1lit.backbones.weight_files import read_json
from v1lit.files import write_atomically

CARD = "README.md"
MEASURED = "metrics.json"
PACKAGES = ("v1lit", "torch", "transformers", "lightning", "peft", "timm")
LICENCE = ("license", "license_name", "license_link")
"""Keys of a card's metadata that say under which terms a model may be used."""
TINY = "tiny"
PAPER = "https://arxiv.org/abs/2505.18842"
SHOWN = ("val/", "chance/", "train/steps", "train/seconds")
"""What the names of the measures begin with that a card has."""


@dataclass(frozen=True)
class Origin:
    """Where an exported model comes from."""

    base: str
    """Weights of its backbone, as in `BackboneConfig`."""
    run: Path | None = None
    """The folder of the run that trained it."""

    @classmethod
    def of(cls, base: str, checkpoint: Path) -> Origin:
        """That of a checkpoint, or of an adapter, which may lie in the folder of a run."""
        places = [checkpoint, *checkpoint.absolute().parents[:2]]
        return cls(base, next((place for place in places if recipes_of(place)), None))

    @property
    def recipe(self) -> list[str]:
        """The lines of the recipe that the run was resumed with last; empty where none is known."""
        return recipes_of(self.run)[-1].read_text(encoding="utf-8").splitlines() if self.run else []


def recipes_of(run: Path) -> list[Path]:
    """The resolved recipes of a run, oldest first: `recipe.yaml`, `recipe-2.yaml` and so on."""
    names = {path: re.fullmatch(r"recipe(?:-(\d+))?\.yaml", path.name) for path in run.glob("recipe*.yaml")}
    return [path for _, path in sorted((int(match[1] or 1), path) for path, match in names.items() if match)]


def write_card(folder: Path, origin: Origin, check: str, remote: str | None = None) -> None:
    """Write `README.md` into an exported folder, with metadata that the hub reads.

    Args:
        folder: has a model of ours, an adapter, or a model in the published layout.
        origin: of it.
        check: what of it was compared with what it was made of, in words.
        remote: its file of code, if it has one.
    """
    from huggingface_hub import ModelCard

    config = _config(folder)
    data = _metadata(folder, config, origin, remote)
    text = "\n".join(_text(folder, config, origin, check, remote))
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")
    write_atomically(folder / CARD, f"{card.content.rstrip()}\n")


def licence_of(base: str) -> dict[str, str]:
    """What the card of a backbone says of its licence; empty where it is not at hand. Nothing is fetched."""
    from huggingface_hub import metadata_load, try_to_load_from_cache

    path: Any = Path(base, CARD) if Path(base).is_dir() else None
    if path is None and base != TINY and not looks_local(base):
        path = try_to_load_from_cache(base, CARD)
    if not isinstance(path, str | Path) or not Path(path).is_file():
        return {}
    try:
        found = metadata_load(path) or {}
    except (ValueError, yaml.YAMLError):  # a card that others have written
        return {}
    return {name: str(found[name]) for name in LICENCE if found.get(name)}


def _metadata(folder: Path, config: Mapping[str, Any], origin: Origin, remote: str | None) -> Any:
    from huggingface_hub import EvalResult, ModelCardData

    made_of: dict[str, Any] = {}
    on_the_hub = origin.base != TINY and not looks_local(origin.base) and not Path(origin.base).exists()
    if on_the_hub:
        kind = "adapter" if _is_adapter(folder) else "finetune"
        made_of = {"base_model": origin.base, "base_model_relation": kind}
    name = origin.run.name if origin.run is not None else folder.name.lstrip(".").partition(".")[0]
    data = _data(origin)
    results = [
        EvalResult("image-text-to-text", data or "held out", data or "held out", measure, value)
        for measure, value in _measures(origin).items()
        if measure.startswith("val/")
    ]
    strategy = str(config["revisit"]["name"])
    licence: dict[str, Any] = {**licence_of(origin.base)}
    return ModelCardData(
        **made_of,
        **licence,
        library_name="v1lit" if remote is None else "transformers",
        pipeline_tag="image-text-to-text",
        tags=["v1lit", config["family"], strategy, *(["custom_code"] if remote else [])],
        model_name=name if results else None,
        eval_results=results or None,
    )


def _text(
    folder: Path, config: Mapping[str, Any], origin: Origin, check: str, remote: str | None
) -> Iterator[str]:
    family, strategy = config["family"], config["revisit"]["name"]
    yield from (f"# {origin.run.name if origin.run else 'A model of v1lit'}", "")
    yield f"A {family} vision-language model that looks at its image again while it reasons (`{strategy}`,"
    yield from (f"[arXiv 2505.18842]({PAPER})), made with v1lit.", "")
    yield from _usage(config, remote)
    yield from ("## Base", "", *_base(origin, family), "")
    yield from ("## Data", "", _data_words(origin), "")
    yield from ("## Measured", "", *_measured(origin), "")
    yield from ("## Compared when it was exported", "", check, "")
    yield from ("## Versions", "", *_versions(origin), "")
    recipe = _recipe(origin)
    if recipe:
        yield from ("## Recipe", "", "```yaml", recipe.rstrip(), "```", "")


def _usage(config: Mapping[str, Any], remote: str | None) -> Iterator[str]:
    yield from ("```python", "import v1lit", "")
    if config.get("model_type") == PUBLISHED:
        yield from ('model = v1lit.PointAndCopyModel.from_published("FOLDER")', "```", "")
        return
    yield from ('predictor = v1lit.load("FOLDER_OR_HUB_ID")', 'print(predictor("photo.jpg", "What is it?"))')
    yield from ("```", "")
    if remote is not None:
        yield f"Without v1lit, `trust_remote_code=True` opens it with transformers: `{remote}` is all of its"
        yield from ("code.", "")


def _base(origin: Origin, family: str) -> Iterator[str]:
    if origin.base == TINY:
        yield f"The tiny version of {family}: random weights, which nobody has licensed."
        return
    yield f"`{origin.base}`, of the family {family}."
    licence = licence_of(origin.base)
    if licence:
        yield f"Its licence, as its own card says: {', '.join(licence.values())}."
    else:
        yield f"Its licence is not known here; look at its own page, such as that of `{_hub_id(family)}`,"
        yield "before you pass this model on."


def _hub_id(family: str) -> str:
    return get_backbone(family).hub_id


def _recipe(origin: Origin) -> str:
    return "\n".join(line for line in origin.recipe if not line.startswith("#"))


def _source(origin: Origin) -> Mapping[str, Any]:
    content = yaml.safe_load(_recipe(origin))
    found = ((content or {}).get("data") or {}).get("source")
    return found if isinstance(found, Mapping) else {}


def _data(origin: Origin) -> str:
    source = _source(origin)
    parts = [part for part in source.get("mixture") or [] if isinstance(part, Mapping)]
    names = [str(part.get("name") or part.get("folder")) for part in parts]
    return " + ".join(names) or str(source.get("path") or source.get("name") or "")


def _data_words(origin: Origin) -> str:
    source = _source(origin)
    if not source:
        return "Not known: the checkpoint was not in the folder of its run."
    stated = {key: value for key, value in source.items() if value not in (None, [], {})}
    return "\n".join(f"- {key}: `{json.dumps(value)}`" for key, value in stated.items())


def _measures(origin: Origin) -> dict[str, float]:
    path = None if origin.run is None else origin.run / MEASURED
    if path is None or not path.is_file():
        return {}
    found = {name: value for name, value in read_json(path).items() if name.startswith(SHOWN)}
    return {
        name: float(value)
        for name, value in found.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def _measured(origin: Origin) -> Iterator[str]:
    measures = _measures(origin)
    if not measures:
        yield "Nothing yet."
        return
    yield "On the examples that its run held out, generated by the model alone:"
    yield from ("", "| measure | value |", "| --- | --- |")
    yield from (f"| `{name}` | {value:.4g} |" for name, value in measures.items())


def _versions(origin: Origin) -> Iterator[str]:
    header = [line.lstrip("# ") for line in origin.recipe if line.startswith("# ") and ": " in line]
    trained = [line for line in header if not line.startswith("command:")]
    yield f"Exported with {', '.join(_installed())}."
    if trained:
        yield from ("Trained with:", "", *(f"- {line}" for line in trained))


def _installed() -> Iterator[str]:
    for package in PACKAGES:
        try:
            yield f"{package} {version(package)}"
        except PackageNotFoundError:
            continue


def _is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER).is_file()


def _config(folder: Path) -> dict[str, Any]:
    """What the folder says of its model; the published layout has one family and one strategy."""
    if _is_adapter(folder):
        return dict(read_json(folder / ADAPTER)["config"])
    content = read_json(folder / CONFIG)
    if content.get("model_type") == PUBLISHED:
        content = {**content, "family": "qwen2_5_vl", "revisit": {"name": "point_and_copy"}}
    return content
