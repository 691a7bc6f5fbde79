"""Another library that reads the benchmark's examples, run by its own interpreter; data.py starts it.

Usage: PYTHON data_rival.py energon|streaming FOLDER

Makes what the library needs of the shards in FOLDER, in a folder of its own; prints versions as a JSON
object; then answers every line of its input with one: `open` begins an epoch, `take N` reads N examples to
RGB, and both tell the processor time that was used so far.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

Begin = Callable[[], Iterator[Any]]


def finish(sample: Mapping[str, Any]) -> Image.Image:
    """The same for all contenders: JSON parsed, Pillow decodes to RGB."""
    json.loads(sample["json"])
    return Image.open(io.BytesIO(sample["jpg"])).convert("RGB")


def energon(shards: list[Path], place: Path) -> Begin:
    """megatron-energon: reads the same tar files behind an index that its own tool makes."""
    from megatron.energon import WorkerConfig, get_loader, get_train_dataset
    from megatron.energon.task_encoder import Cooker, DefaultTaskEncoder, stateless

    for shard in shards:
        os.link(shard, place / shard.name)
    tool = str(Path(sys.executable).with_name("energon"))
    options = ["--non-interactive", "--split-ratio", "1,0,0", "--sample-type", "CrudeWebdataset"]
    subprocess.run([tool, "prepare", *options, str(place)], check=True, stdout=subprocess.DEVNULL)

    @stateless
    def cook(sample: dict[str, Any]) -> dict[str, Any]:
        return {"__key__": sample["__key__"], "rgb": finish(sample)}

    class Encoder(DefaultTaskEncoder):
        cookers = (Cooker(cook),)
        decoder = None

    def begin() -> Iterator[Any]:
        here = WorkerConfig(rank=0, world_size=1, num_workers=0)
        dataset = get_train_dataset(
            str(place),
            worker_config=here,
            batch_size=None,
            shuffle_buffer_size=None,
            max_samples_per_sequence=None,
            task_encoder=Encoder(),
        )
        return iter(get_loader(dataset))

    return begin


def streaming(shards: list[Path], place: Path) -> Begin:
    """mosaicml-streaming: reads shards in its own format, into which the tar files are turned first."""
    from streaming import MDSWriter, StreamingDataset

    columns = {"key": "str", "json": "bytes", "jpg": "bytes"}
    with MDSWriter(out=str(place), columns=columns) as writer:
        for shard in shards:
            with tarfile.open(shard, "r:") as tar:
                sample: dict[str, Any] = {}
                for member in tar:
                    key, _, kind = member.name.partition(".")
                    file = tar.extractfile(member)
                    assert file is not None
                    sample |= {"key": key, kind: file.read()}
                    if len(sample) == len(columns):
                        writer.write(sample)
                        sample = {}

    def begin() -> Iterator[Any]:
        return map(finish, StreamingDataset(local=str(place), shuffle=False, batch_size=1))

    return begin


RIVALS = {"energon": ("megatron-energon", energon), "streaming": ("mosaicml-streaming", streaming)}


def answer(begin: Begin) -> None:
    """Until the input ends."""
    rest: Iterator[Any] = iter(())
    for line in sys.stdin:
        question, _, count = line.strip().partition(" ")
        if question == "open":
            rest = iter(())  # one epoch at a time
            rest = begin()
            say({"cpu": time.process_time()})
        else:
            examples = sum(1 for _ in islice(rest, int(count)))
            say({"examples": examples, "cpu": time.process_time()})


def say(what: dict[str, Any]) -> None:
    """One line to whoever asks."""
    ANSWERS.write(json.dumps(what) + "\n")
    ANSWERS.flush()


def main() -> None:
    package, make = RIVALS[sys.argv[1]]
    shards = sorted(Path(sys.argv[2]).glob("*.tar"))
    # Beside the shards, so that they can be linked instead of copied.
    with tempfile.TemporaryDirectory(dir=Path(sys.argv[2]).parent) as place:
        begin = make(shards, Path(place))
        say({package: version(package), "Pillow": version("pillow"), "Python": sys.version.split()[0]})
        answer(begin)


if __name__ == "__main__":
    # Libraries print; their words go where errors go.
    ANSWERS = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    main()
