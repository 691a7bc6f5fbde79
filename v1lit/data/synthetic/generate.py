"""Drawing a whole data set: scenes, questions and traces, written as shards."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from v1lit.data.example import Example, Message
from v1lit.data.images import EncodedImage
from v1lit.data.shards import ShardWriter, list_shards, read_index, write_index
from v1lit.data.synthetic import charts, diagrams, shapes
from v1lit.data.synthetic.questions import QUESTION_KINDS, NoQuestionError, Turn, write_turn
from v1lit.data.synthetic.scene import Scene
from v1lit.errors import OptionError, name_allowed
from v1lit.files import aside
from v1lit.grounding.region import Region
from v1lit.paths import expand_path
from v1lit.processes import count_workers, ordered, progress_bar

LOOKS: Mapping[str, ModuleType] = {"shapes": shapes, "bars": charts, "diagrams": diagrams}
"""A look is a module with `draw(rng, size) -> Scene` and a function `(rng, scene) -> Turn` for every kind of
question, which raises NoQuestionError where the scene allows none without ambiguity."""

DRAWING_VERSION = 1
"""Raised whenever the same settings make other examples than before."""
MIN_SIDE = 112
MAX_SIDE = 2048
TRIES = 1000
PARALLEL_FROM = 2000
"""Below this many examples, starting processes takes longer than drawing."""
CHUNK = 64
"""Examples that a process draws before it hands them over."""


def make_scene(rng: random.Random, look: str = "shapes", size: tuple[int, int] = (168, 168)) -> Scene:
    """One scene of `size` (width, height) pixels; the look is a key of `LOOKS`."""
    check_setting("look", look)
    scene: Scene = LOOKS[look].draw(rng, size)
    return scene


def make_example(
    rng: random.Random,
    *,
    id: str,
    look: str = "shapes",
    kinds: Sequence[str] = QUESTION_KINDS,
    size: tuple[int, int] = (168, 168),
    questions: int = 1,
) -> Example:
    """One scene with `questions` turns about it, as a validated `Example`.

    The kinds are drawn first, and then scenes until one allows them all: so the kinds are equally frequent.
    They stand in the example's `source`, such as `synthetic/shapes/find` or `synthetic/bars/count+relate`.
    """
    wanted = [rng.choice(list(kinds)) for _ in range(questions)]
    scene, turns = _scene_with_turns(rng, look, wanted, size)
    messages: list[Message] = []
    regions: dict[str, Region] = {}
    for index, turn in enumerate(turns):
        text, boxes = write_turn(turn, first=len(regions) + 1)
        regions.update({name: Region.from_box(box) for name, box in boxes.items()})
        messages.append(Message("user", ("<image>\n" if index == 0 else "") + turn.question))
        messages.append(Message("assistant", text))
    png = io.BytesIO()
    scene.image.save(png, "PNG", compress_level=3)
    return Example(
        id=id,
        images=(EncodedImage(data=png.getvalue(), format="png", size=scene.image.size),),
        messages=tuple(messages),
        regions=regions,
        answer=turns[-1].answer,
        source=f"synthetic/{look}/{'+'.join(wanted)}",
    )


def _scene_with_turns(
    rng: random.Random, look: str, kinds: Sequence[str], size: tuple[int, int]
) -> tuple[Scene, list[Turn]]:
    for _ in range(TRIES):
        scene = make_scene(rng, look, size)
        turns: list[Turn] = []
        with suppress(NoQuestionError):
            for kind in kinds:
                turns.append(_new_turn(rng, scene, kind, {turn.question for turn in turns}))
            return scene, turns
    raise ValueError(
        f"found no {look} scene of {size[0]}x{size[1]} pixels with {len(kinds)} different questions of the "
        f"kinds {', '.join(kinds)} in {TRIES} tries; ask for fewer questions per scene or more kinds"
    )


def _new_turn(rng: random.Random, scene: Scene, kind: str, asked: set[str]) -> Turn:
    for _ in range(4 if asked else 1):
        with suppress(NoQuestionError):
            turn: Turn = getattr(LOOKS[scene.look], kind)(rng, scene)
            if turn.question not in asked:
                return turn
    raise NoQuestionError


def _numbered_example(index: int, settings: Mapping[str, Any]) -> Example:
    """Example `index` of a data set: a function of the settings and the index, whatever process makes it."""
    look = settings["look"][index % len(settings["look"])]
    return make_example(
        # A string seed is hashed with SHA-512: the same on every machine and unrelated for neighbours.
        random.Random(f"v1lit synthetic {settings['seed']} {index}"),
        id=f"{look}-s{settings['seed']}-{index:07d}",
        look=look,
        kinds=settings["kinds"],
        size=tuple(settings["image_size"]),
        questions=settings["questions_per_scene"],
    )


def synthesize(
    out: str | os.PathLike[str],
    *,
    examples: int,
    seed: int = 0,
    look: Sequence[str] = ("shapes",),
    image_size: Sequence[int] = (168, 168),
    kinds: Sequence[str] = QUESTION_KINDS,
    questions_per_scene: int = 1,
    workers: int | None = None,
    shard_examples: int = 1000,
    progress: bool = True,
) -> Path:
    """Write drawn scenes as shards with their `index.json` to the folder `out`; returns its path.

    Args:
        out: a folder that does not exist, is empty, or holds exactly this data set; then nothing is done.
        examples: how many scenes.
        seed: same settings and seed, same bytes; other seeds share no scene, so they serve as held-out data.
        look: `shapes`, `bars`, `diagrams`; several take turns.
        image_size: width and height in pixels.
        kinds: of questions, equally frequent: `find`, `count`, `compare`, `relate`.
        questions_per_scene: user turns of a conversation about one scene.
        workers: processes that draw; by default one per core, and one only for small sets.
        shard_examples: examples per shard.
        progress: whether to show a progress bar.

    Raises ValueError for settings out of range, or where `out` holds something else.
    """
    settings = {
        "examples": examples,
        "seed": seed,
        "look": [look] if isinstance(look, str) else list(look),
        "image_size": list(image_size),
        "kinds": [kinds] if isinstance(kinds, str) else list(kinds),
        "questions_per_scene": questions_per_scene,
        "shard_examples": shard_examples,
    }
    for name, value in {**settings, "workers": 1 if workers is None else workers}.items():
        check_setting(name, value)
    out = Path(expand_path(out))
    if _holds(out, settings):
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with aside(out) as unfinished:
            _write(unfinished, settings, workers, progress)
    except OSError:
        if not _holds(out, settings):  # Else another process was faster with the same data.
            raise
    return out


def _write(folder: Path, settings: Mapping[str, Any], workers: int | None, progress: bool) -> None:
    count = settings["examples"]
    chunks = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    workers = count_workers(1 if workers is None and count < PARALLEL_FROM else workers, len(chunks))
    with (
        closing(ordered(_draw_chunk, chunks, workers, settings)) as drawn,
        progress_bar("drawing", count, progress, "scenes") as advance,
        ShardWriter(folder, max_examples=settings["shard_examples"]) as writer,
    ):
        for examples in drawn:
            for example in examples:
                writer.write(example)
            advance(len(examples))
    write_index(folder, writer.shards, synthetic={"version": DRAWING_VERSION, **settings})


def _draw_chunk(chunk: range, settings: Mapping[str, Any]) -> list[Example]:
    return [_numbered_example(index, settings) for index in chunk]


def _holds(out: Path, settings: Mapping[str, Any]) -> bool:
    """Whether `out` holds exactly this data set; False where there is nothing yet.

    Raises ValueError where it holds something else, or a part of it is missing.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not out.is_dir():
        raise ValueError(f"{out} is a file; give a folder that does not exist yet")
    way_out = "give another folder, or remove this one"
    try:
        made_with = read_index(out).get("synthetic")
        shards = list_shards(out)
    except ValueError as error:
        raise ValueError(
            f"no data set can be written to {out}, which is not empty ({error}); {way_out}"
        ) from None
    if not isinstance(made_with, dict):
        raise ValueError(f"{out} holds shards of another origin; {way_out}")
    differing = [
        f"{key} is {made_with.get(key)!r} there, not {value!r}"
        for key, value in {"version": DRAWING_VERSION, **settings}.items()
        if made_with.get(key) != value
    ]
    if differing:
        raise ValueError(f"{out} holds another synthetic data set ({'; '.join(differing)}); {way_out}")
    for shard in shards:
        if (out / shard.file).stat().st_size != shard.bytes:
            raise ValueError(f"{out} is damaged: {shard.file} is not {shard.bytes} bytes long; {way_out}")
    return True


def check_setting(name: str, value: Any) -> None:
    """Raise OptionError for a value that the setting `name` of `synthesize` cannot have."""
    if name == "image_size":
        pair = isinstance(value, Sequence) and len(value) == 2
        if not pair or not all(_is_int(side) and MIN_SIDE <= side <= MAX_SIDE for side in value):
            why = f"allowed: width and height, each {MIN_SIDE} to {MAX_SIDE} pixels"
            raise OptionError(name, value, why)
    elif name in ("look", "kinds"):
        allowed = LOOKS if name == "look" else QUESTION_KINDS
        wrong = [item for item in ([value] if isinstance(value, str) else value) if item not in allowed]
        if wrong or not value:
            unknown = f"no {wrong[0]!r}; " if wrong else ""
            raise OptionError(name, value, unknown + name_allowed("".join(wrong[:1]), allowed))
    elif not _is_int(value):
        raise OptionError(name, value, "a whole number is needed")
    elif name != "seed" and value < 1:
        raise OptionError(name, value, "a whole number of at least 1 is needed")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
