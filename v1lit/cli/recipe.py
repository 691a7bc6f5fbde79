"""Recipes: YAML files made of parts, composed into one mapping before anything is parsed.

- A value that ends in `.yaml` is a part: the file's content stands there instead. The path is relative to the
  file that names it; on the command line, to the current directory. Parts may name parts.
- `{part: ../configs/x.yaml, key: value}` takes a part and changes single keys of it in place.
- `base: other.yaml` at the top of a recipe takes another recipe, or a shipped one by its bare name; the other
  keys change it.
- `{}` replaces a mapping by an empty one, where any other mapping changes single keys of it.
- `--a.b=value` changes one key, `--a.b=part.yaml` a whole part, in the order given.
- `${a.b}` takes another key's value, once parts and changes are merged. That is left to the parser.
- `stages: {NAME: {...}, ...}` are changes for each stage of the recipe, in their order, merged after all else
  in files. `--stages.NAME.a.b=value` changes one stage, `--a.b=value` every one.

Paths that are values (`data.source.folder`, `run.folder`, ...) are relative to the current directory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from v1lit.cli.errors import UserError
from v1lit.cli.stage_entries import BEGIN_FROM, STAGE, STAGES, Pairs, Stage, StageEntries
from v1lit.errors import OptionError, did_you_mean
from v1lit.paths import expand_path

COMMAND_LINE = "command line"
SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Typed:
    """The value of a key as it was typed on the command line, and why it is no YAML, if it is none."""

    text: str
    problem: str = ""


@dataclass(frozen=True)
class Recipe:
    """A composed recipe: one mapping, for every key the file that it comes from, and what was typed."""

    name: str
    path: Path
    config: dict[str, Any]
    origins: dict[str, str]
    typed: dict[str, Typed] = field(default_factory=dict)
    stage: Stage | None = None
    """Which of the recipe's stages it is, where that has stages."""

    def origin(self, key: str) -> str:
        """Where `key`, or the group around it, was written: a file or `command line`."""
        while key:
            if key in self.origins:
                return self.origins[key]
            key = key.rpartition(".")[0]
        return shown(self.path)

    @contextmanager
    def options(self, group: str = "") -> Iterator[None]:
        """Make a UserError of an OptionError, with the file that has its key; `group` is where it stands."""
        try:
            yield
        except OptionError as error:
            error.group = group or error.group
            raise UserError(error.told(self.origin(error.key))) from error


def compose(recipe: str, changes: Sequence[str] = ()) -> Recipe:
    """Read `recipe` (path or bare name) and its parts, then apply `changes` (`--key=value`).

    Of a recipe with stages it is the one that `run.stage` names. Raises UserError naming the file and key:
    unknown recipe, missing part, parts in a circle, bad YAML, no stage or an unknown one.
    """
    path, composer = find_recipe(recipe), _Composer()
    config = composer.recipe(path)
    common = composer.stages.take_typed(read_changes(changes), _read)
    stage = composer.stages.stage(_stage_named(config, common), shown(path))
    if stage is not None:
        composer.enter(stage, config)
    for key, text in composer.stages.typed_of(stage, common):
        composer.change(config, key, text)
    return Recipe(path.stem, path, config, composer.origins, composer.typed, stage)


def stages_of(recipe: str, changes: Sequence[str] = ()) -> tuple[str, ...]:
    """The stages of a recipe, in order; none where it has none, and where `run.stage` names one of them.

    Raises UserError as `compose`.
    """
    composer = _Composer()
    config = composer.recipe(find_recipe(recipe))
    common = composer.stages.take_typed(read_changes(changes), _read)
    return () if _stage_named(config, common) else tuple(composer.stages.changes)


def compose_all(recipe: str, changes: Sequence[str] = ()) -> list[Recipe]:
    """As `compose`: every stage of a recipe that has stages, in order, and else the recipe alone."""
    chosen = [[f"--{STAGE}={name}"] for name in stages_of(recipe, changes)] or [[]]
    return [compose(recipe, [*changes, *words]) for words in chosen]


def _stage_named(config: dict[str, Any], common: Pairs) -> str | None:
    """The value of `run.stage`, which is taken out of `config`."""
    run = config.get("run")
    own = run.pop("stage", None) if isinstance(run, dict) else None
    name = dict(common).get(STAGE, own)
    return None if name == "null" else name


def shipped(kind: str) -> Path:
    """Folder `recipes` or `configs`: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    return next((root / kind for root in (package, package.parent) if (root / kind).is_dir()), package / kind)


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with v1lit, by bare name."""
    return {path.stem: path for path in sorted(shipped("recipes").glob("*.yaml"))}


def find_recipe(text: str) -> Path:
    """The file meant by `text`: a path, or the bare name of a shipped recipe."""
    recipes = shipped_recipes()
    if text in recipes:
        return recipes[text]
    path = find_file(text, Path())
    if path is None:
        hint = did_you_mean(Path(text).stem, recipes)
        raise UserError(
            f"no recipe {text!r}: neither a file nor a shipped recipe{hint}\nshipped: {', '.join(recipes)}"
        )
    return path


def find_file(text: str, folder: Path) -> Path | None:
    """`text` below `folder`; `configs/...` and `recipes/...` are found among the shipped files as well."""
    return next((place for place in _places(text, folder) if place.is_file()), None)


def parts_beside(text: str, folder: Path) -> list[str]:
    """What `text` could have been: the same path with the name of a part that is there."""
    names = {other.name for place in _places(text, folder) for other in place.parent.glob("*.yaml")}
    return [str(Path(text).with_name(name)) for name in sorted(names)]


def _places(text: str, folder: Path) -> list[Path]:
    kind, _, rest = text.removeprefix("./").partition("/")
    packaged = [shipped(kind) / rest] if rest and kind in ("configs", "recipes") else []
    return [folder / expand_path(text), *packaged]


def read_changes(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """`--key=value` and `--key value` arguments as pairs."""
    pairs: list[tuple[str, str]] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        key, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not key or not all(key.split(".")):
            raise UserError(
                f"unexpected argument {argument!r}; a change to the recipe is written --key=value"
            )
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UserError(f"--{key} has no value; write --{key}=value")
            value = rest.pop(0)
        pairs.append((key, value))
    _refuse_expanded(pairs)
    return pairs


def _refuse_expanded(pairs: Sequence[tuple[str, str]]) -> None:
    """A location given several times is a pattern in braces that the shell has expanded."""
    for key in dict.fromkeys(key for key, _ in pairs):
        values = [value for other, value in pairs if other == key]
        if len(values) > 1 and all(value.partition("?")[0].endswith(".tar") for value in values):
            raise UserError(
                f"--{key} is given {len(values)} times ({values[0]}, ..., {values[-1]}), and only one can be "
                "meant\nput a pattern with braces into quotes, or the shell expands it: "
                f"'--{key}=shard-{{000..099}}.tar'"
            )


def shown(path: Path) -> str:
    """`path` relative to the current directory where that is shorter."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path.resolve())


def group_of(config: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """The mapping in which a key stands, and its name there."""
    *groups, last = key.split(".")
    for group in groups:
        config = config[group]
    return config, last


def read_typed(text: str) -> Any:
    """What a text on the command line is as YAML; raises YAMLError or an exception of OmegaConf."""
    return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]  # type: ignore[index,call-overload]


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """The values of a recipe as JSON, by key."""
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flattened(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = json.dumps(value, default=str)
    return found


def _read(text: str) -> Any:
    """As `read_typed`; a text that is no YAML as it is."""
    try:
        return read_typed(text)
    except (yaml.YAMLError, OmegaConfBaseException):
        return text


def is_part(value: object) -> bool:
    """Whether a value names a part."""
    return isinstance(value, str) and value.endswith(SUFFIXES) and "${" not in value


class _Composer:
    """Composes files into one mapping and remembers where every key was written.

    A `trail` is the file that is being read, behind those that led to it; the command line has none.
    """

    def __init__(self) -> None:
        self.origins: dict[str, str] = {}
        self.typed: dict[str, Typed] = {}
        self.stages = StageEntries()

    def recipe(self, path: Path, trail: tuple[Path, ...] = ()) -> dict[str, Any]:
        """A whole recipe, its `base` included."""
        raw = self._open(path, "base", trail)
        trail = (*trail, path)
        if not isinstance(raw, dict):
            raise UserError(
                f"{shown(path)}: a recipe is a mapping of trainer, model, data, ...; this is not one"
            )
        base = raw.pop("base", None)
        config: dict[str, Any] = {}
        if base is not None:
            below = shipped_recipes().get(str(base)) or find_file(str(base), path.parent)
            if below is None:
                raise UserError(
                    f"{shown(path)}: base: there is no recipe {base!r}{did_you_mean(base, shipped_recipes())}"
                )
            config = self.recipe(below, trail)
        if STAGES in raw:
            self.stages.take(raw.pop(STAGES), f"{shown(path)}: ", trail)
        self._merge(config, raw, "", trail)
        return config

    def enter(self, stage: Stage, config: dict[str, Any]) -> None:
        """Merge the changes of a stage into `config`; all but the first begin from another's weights."""
        model = config.get("model")
        if stage.number > 1 and isinstance(model, dict) and model.pop("begin_from", None):
            self._forget(BEGIN_FROM)
        for changes, trail in self.stages.changes[stage.name]:
            self._merge(config, changes, "", trail)

    def change(self, config: dict[str, Any], key: str, text: str) -> None:
        """Apply `--key=text` to `config`, as YAML; only the key's type tells if the text itself is meant."""
        value: Any = text
        full, problem = key, ""
        if not is_part(text):
            try:
                value = read_typed(text)
            except (yaml.YAMLError, OmegaConfBaseException) as error:
                problem = f"--{key}={text}: {_yaml_problem(error)}"
        *groups, last = key.split(".")
        for depth, group in enumerate(groups):
            if isinstance(config.get(group), list):
                raise UserError(f"--{key}: {'.'.join(groups[: depth + 1])} is a list; give it whole")
            if not isinstance(config.get(group), dict):
                config[group] = {}
                self.origins[".".join(groups[: depth + 1])] = COMMAND_LINE
            config = config[group]
        self._merge(config, {last: value}, ".".join(groups), ())
        self.typed[full] = Typed(text, problem)

    def _merge(
        self, below: dict[str, Any], changes: dict[Any, Any], key: str, trail: tuple[Path, ...]
    ) -> None:
        """Write `changes` into `below`: mappings key by key, all else, and the empty mapping, whole."""
        for name, value in changes.items():
            full = f"{key}.{name}" if key else str(name)
            whole = not isinstance(value, dict) or not value or "part" in value or "class_path" in value
            if whole or not isinstance(below.get(name), dict):
                self._forget(full)
                below[name] = self._value(value, full, trail)
            else:
                self._merge(below[name], value, full, trail)

    def _value(self, value: Any, key: str, trail: tuple[Path, ...]) -> Any:
        """A value with the parts in it put in place."""
        self.origins[key] = shown(trail[-1]) if trail else COMMAND_LINE
        if is_part(value):
            return self._part(value, key, trail)
        if isinstance(value, list):
            return [self._value(item, f"{key}.{index}", trail) for index, item in enumerate(value)]
        if not isinstance(value, dict):
            return value
        config: Any = {}
        if "part" in value:
            config = self._part(value["part"], key, trail)
            if not isinstance(config, dict):
                where = f"{self.origins[key]}: {key}"
                raise UserError(f"{where}: {value['part']} is no mapping, so no key of it can be changed")
        self._merge(config, {name: item for name, item in value.items() if name != "part"}, key, trail)
        return config

    def _part(self, text: object, key: str, trail: tuple[Path, ...]) -> Any:
        where = self.origins[key]
        folder = trail[-1].parent if trail else Path()
        part = find_file(text, folder) if isinstance(text, str) else None
        if part is None:
            others = parts_beside(str(text), folder)
            raise UserError(
                f"{where}: {key}: there is no part {str(text)!r}{did_you_mean(str(text), others)}"
            )
        return self._value(self._open(part, key, trail), key, (*trail, part))

    def _forget(self, key: str) -> None:
        for of_keys in (self.origins, self.typed):
            for other in [name for name in of_keys if f"{name}.".startswith(f"{key}.")]:
                del of_keys[other]

    @staticmethod
    def _open(path: Path, key: str, trail: tuple[Path, ...]) -> Any:
        """Content of a YAML file that `trail` led to, interpolations left as they are."""
        names = [shown(step) for step in (*trail, path)]
        if names[-1] in names[:-1]:
            circle = " -> ".join(names[names.index(names[-1]) :])
            raise UserError(f"{key}: these files name each other in a circle: {circle}")
        try:
            return OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise UserError(f"{names[-1]}: {_yaml_problem(error)}") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{names[-1]}: not a text file in UTF-8") from error
        except OSError as error:  # OmegaConf.load raises it for a bare scalar as well
            reason = error.strerror or "it holds a single value; a mapping or a list is needed"
            raise UserError(f"{names[-1]}: {reason}") from error


def _yaml_problem(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}: " if mark is not None else ""
    problem = getattr(error, "problem", None) or str(error).strip().splitlines()[0]
    return f"{where}not valid YAML: {problem}"
