"""Drawing a whole data set: scenes, questions and traces, written as shards."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from v1lit.data.example import Example, Message
from v1lit.data.images import EncodedImage
from v1lit.data.shards import ShardWriter, list_shards, read_index, write_index
from v1lit.data.synthetic.looks import LOOKS
from v1lit.data.synthetic.questions import QUESTION_KINDS, NoQuestionError, Turn, write_turn
from v1lit.data.synthetic.scene import Scene
from v1lit.data.synthetic.settings import check_setting, complete
from v1lit.data.synthetic.tasks import IMAGE_SIZE, make_task, ranges_of
from v1lit.files import aside
from v1lit.grounding.region import Region
from v1lit.paths import expand_path
from v1lit.processes import count_workers, ordered, progress_bar

DRAWING_VERSION = 2
"""Raised whenever the same settings make other examples than before."""
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
    return _assemble(id, scene, turns, f"synthetic/{look}/{'+'.join(wanted)}")


def _assemble(id: str, scene: Scene, turns: Sequence[Turn], source: str) -> Example:
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
        source=source,
    )


def make_task_example(
    rng: random.Random,
    *,
    id: str,
    task: str,
    size: tuple[int, int] = IMAGE_SIZE,
    difficulty: Mapping[str, Any] | None = None,
) -> Example:
    """One scene of a task with its question, as a validated `Example`.

    What it was made with and the smallest number of looks stand in its `source`, which `read_source` reads.

    Args:
        rng: decides everything.
        id: of the example.
        task: a key of `TASKS`.
        size: width and height in pixels.
        difficulty: `steps`, `objects`, `distance`, `look_again`; a number each, or lowest and highest.
    """
    scene, turn, source = make_task(rng, task, size, ranges_of(task, difficulty or {}))
    return _assemble(id, scene, [turn], source)


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
    names = settings["task"] if "task" in settings else settings["look"]
    name = names[index % len(names)]
    # A string seed is hashed with SHA-512: the same on every machine and unrelated for neighbours.
    rng = random.Random(f"v1lit synthetic {settings['seed']} {index}")
    id, size = f"{name}-s{settings['seed']}-{index:07d}", tuple(settings["image_size"])
    if "task" in settings:
        return make_task_example(rng, id=id, task=name, size=size, difficulty=settings["difficulty"][name])
    return make_example(
        rng,
        id=id,
        look=name,
        kinds=settings["kinds"],
        size=size,
        questions=settings["questions_per_scene"],
    )


def synthesize(
    out: str | os.PathLike[str],
    *,
    examples: int,
    seed: int = 0,
    look: Sequence[str] | None = None,
    image_size: Sequence[int] | None = None,
    kinds: Sequence[str] | None = None,
    questions_per_scene: int | None = None,
    task: Sequence[str] | None = None,
    steps: int | Sequence[int] | None = None,
    objects: int | Sequence[int] | None = None,
    distance: int | Sequence[int] | None = None,
    look_again: bool | None = None,
    workers: int | None = None,
    shard_examples: int = 1000,
    progress: bool = True,
) -> Path:
    """Write drawn scenes as shards with their `index.json` to the folder `out`; returns its path.

    Args:
        out: a folder that does not exist, is empty, or holds exactly this data set; then nothing is done.
        examples: how many scenes.
        seed: same settings and seed, same bytes; other seeds share no scene, so they serve as held-out data.
        look: `shapes` (by default), `bars`, `diagrams`; several take turns.
        image_size: width and height in pixels; by default 168 x 168, of tasks 224 x 224.
        kinds: of questions, equally frequent: `find`, `count`, `compare`, `relate`; all by default.
        questions_per_scene: user turns of a conversation about one scene; one by default.
        task: in place of a look: `trail`, `pair`, `total`, `recall`; several take turns.
        steps: arrows of `trail`, bars that `total` reads; a number, or the lowest and the highest.
        objects: nodes, small objects or bars in the picture; a number, or the lowest and the highest.
        distance: sentences of `recall` between look and attribute; a number, or the lowest and the highest.
        look_again: whether `recall` looks a second time before it answers, as it does by default.
        workers: processes that draw; by default one per core, and one only for small sets.
        shard_examples: examples per shard.
        progress: whether to show a progress bar.

    Raises ValueError for settings that are out of range or do not go together, or where `out` holds
    something else.
    """
    check_setting("workers", 1 if workers is None else workers)
    of_looks = {"look": look, "kinds": kinds, "questions_per_scene": questions_per_scene}
    of_tasks = {"task": task, "steps": steps, "objects": objects, "distance": distance}
    of_all = {"examples": examples, "seed": seed, "image_size": image_size, "shard_examples": shard_examples}
    settings = complete({**of_all, **of_looks, **of_tasks, "look_again": look_again})
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
