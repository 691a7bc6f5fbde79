"""Checkpoint folders: every layout over ranks is read in every other, and what is damaged is refused."""

from __future__ import annotations

import json
import os
import pickle
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.forked import needs_fork
from helpers.gloo_ranks import Small, gather, lay_out, on_ranks
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from v1lit.parallel import folder_writer, shard_files
from v1lit.parallel.boxes import Box, own_part, tile
from v1lit.parallel.checkpoint_folder import CheckpointFolder
from v1lit.parallel.folder_writer import FolderWriter
from v1lit.parallel.shard_files import (
    COMPLETE,
    HEADER,
    STATE,
    clear,
    is_complete,
    newest_of,
    rank_file,
    read_complete,
    stage,
    state_bytes,
    write_complete,
    write_part,
)

LAYOUTS = ["fsdp", "hsdp", "fsdp_tp"]


def write(path: Path, tensors: dict[str, Tensor], **state: Any) -> Path:
    """A checkpoint folder of one rank."""
    writer = FolderWriter(0, lambda own: [own])
    writer.begin(path, tensors, state)
    writer.settle()
    return path


def once(module: Small) -> dict[str, Tensor]:
    """Its tensors, the tied head's under one name."""
    return {name: tensor for name, tensor in module.state_dict().items() if name != "head.weight"}


def use_layouts(rank: int, folder: Path, count: int, layouts: list[str], written: list[str]) -> list[int]:
    """Write a folder in every layout, and read them all, and those already written, in every layout.

    Returns how many tensors this rank has written in each layout.
    """
    modules = {layout: lay_out(Small(), layout, count) for layout in layouts}
    counts: list[int] = []
    for layout, module in modules.items():
        path = folder / f"{layout}-{count}"
        writer = FolderWriter(rank, gather)
        writer.begin(path, once(module), {"rank": rank})
        pending = writer.pending
        writer.settle()
        assert (pending, writer.pending) == (True, False)
        with safe_open(path / rank_file(rank), "pt") as file:
            counts.append(len(file.keys()))
    for name in [*written, *(f"{layout}-{count}" for layout in layouts)]:
        opened = CheckpointFolder(folder / name)
        for module in modules.values():
            for key, tensor in once(module).items():
                part = own_part(key, tensor, rank)
                assert torch.equal(opened.box(key, part.box), part.data), (name, key)
    return counts


# ------------------------------------------------------------------ written and read


@needs_fork
@pytest.mark.slow
def test_every_layout_over_4_2_and_1_ranks_is_read_whole_and_in_every_other(tmp_path: Path) -> None:
    written = [write(tmp_path / "whole-1", once(Small()), rank=0).name]
    first, second, third, fourth = on_ranks(4, tmp_path, use_layouts, tmp_path, 4, LAYOUTS, written)
    assert second[1] > 0
    assert third[1] == fourth[1] == 0, "of copies of a part, one rank writes its own"
    assert second[2] < first[2], "of a part on one of several meshes beside each other, too"
    written += [f"{layout}-4" for layout in LAYOUTS]
    on_ranks(2, tmp_path, use_layouts, tmp_path, 2, ["fsdp"], written)
    on_ranks(4, tmp_path, use_layouts, tmp_path, 4, LAYOUTS, ["fsdp-2"])
    for name in [*written, "fsdp-2"]:
        folder = CheckpointFolder(tmp_path / name)
        folder.check()
        assert folder.state == {"rank": 0}
        for key, tensor in once(Small()).items():
            assert torch.equal(folder.tensor(key), tensor), (name, key)
            assert folder.dtype(key) == tensor.dtype


def test_a_box_is_put_together_from_parts_of_several_files(tmp_path: Path) -> None:
    whole = torch.arange(24.0).view(4, 6)
    for rank, (rows, columns) in enumerate([(0, 0), (0, 3), (2, 0), (2, 3)]):
        staged = stage({"x": whole[rows : rows + 2, columns : columns + 3]}, 0)
        staged.places["x"] = {"shape": (4, 6), "offsets": (rows, columns)}
        write_part(tmp_path, rank, staged, state_bytes({}) if rank == 0 else None)
    write_complete(tmp_path, [(tmp_path / rank_file(rank)).stat().st_size for rank in range(4)])
    folder = CheckpointFolder(tmp_path)
    assert torch.equal(folder.box("x", Box((1, 2), (2, 3))), whole[1:3, 2:5])
    assert torch.equal(folder.box("x", Box((3, 4), (1, 1))), whole[3:, 4:5])
    assert folder.box("x", Box((4, 0), (0, 6))).shape == (0, 6)
    with pytest.raises(ValueError, match="x"):
        folder.box("x", Box((3, 0), (2, 6)))


def test_training_may_change_tensors_and_state_while_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread waits until the main one has changed all."""
    import threading

    changed, real = threading.Event(), folder_writer.write_part

    def late(*arguments: Any) -> int:
        assert changed.wait(30)
        return real(*arguments)

    monkeypatch.setattr(folder_writer, "write_part", late)
    weight, state = torch.ones(3), {"step": [1]}
    writer = FolderWriter(0, lambda own: [own])
    writer.begin(tmp_path / "last.ckpt", {"w": weight}, state)
    assert writer.busy
    weight.fill_(2.0)
    state["step"].append(2)
    changed.set()
    writer.settle()
    folder = CheckpointFolder(tmp_path / "last.ckpt")
    assert folder.tensor("w").tolist() == [1, 1, 1]
    assert folder.state == {"step": [1]}


def test_the_older_one_stays_until_the_newer_one_is_complete(tmp_path: Path) -> None:
    path = write(tmp_path / "last.ckpt", {"w": torch.zeros(2)})
    writer = FolderWriter(0, lambda own: [own])
    writer.begin(path, {"w": torch.ones(2)}, {})
    while writer.busy:
        pass
    assert CheckpointFolder(path).tensor("w").tolist() == [0, 0]
    writer.settle()
    assert CheckpointFolder(path).tensor("w").tolist() == [1, 1]
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]


def test_the_next_one_waits_for_the_one_before(tmp_path: Path) -> None:
    writer = FolderWriter(0, lambda own: [own])
    for number in range(3):
        writer.begin(tmp_path / f"{number}.ckpt", {}, {"number": number})
        assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == [f"{n}.ckpt" for n in range(number)]
    writer.settle()
    assert CheckpointFolder(tmp_path / "2.ckpt").state == {"number": 2}


def test_a_single_file_of_that_name_is_replaced(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "last.ckpt")
    assert is_complete(write(tmp_path / "last.ckpt", {}))


# ------------------------------------------------------------------ crashes


STAGES = ("stage", "write_part", "write_complete", "put_in_place", "between the renames", "never")


def begin_to_save(path: Path, dies_in: str) -> None:
    """Save a second checkpoint over a first one, and die at that point."""
    write(path, {"w": torch.zeros(2)}, number=1)

    def die(*arguments: Any, **options: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if dies_in == "between the renames":
        real = os.replace

        def replace(source: Path, target: Path) -> None:
            return die() if target == path else real(source, target)

        vars(os)["replace"] = replace
    elif dies_in != "never":
        vars(folder_writer)[dies_in] = die
    write(path, {"w": torch.ones(2)}, number=2)
    die()


@needs_fork
@pytest.mark.parametrize("dies_in", STAGES)
def test_wherever_the_process_is_killed_a_whole_checkpoint_is_found_and_the_next_save_tidies_up(
    dies_in: str, tmp_path: Path
) -> None:
    import multiprocessing

    path = tmp_path / "last.ckpt"
    process = multiprocessing.get_context("fork").Process(target=begin_to_save, args=(path, dies_in))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    newest = newest_of(path)
    assert newest is not None
    number = CheckpointFolder(newest).state["number"]
    assert number == (2 if dies_in in STAGES[3:] else 1)
    assert CheckpointFolder(newest).tensor("w").tolist() == [number - 1] * 2
    clear(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]
    assert CheckpointFolder(path).state["number"] == number, "nothing is lost before the next one is written"


def test_what_was_replaced_is_found_where_nothing_took_its_place(tmp_path: Path) -> None:
    write(tmp_path / "last.ckpt", {}).rename(tmp_path / ".last.ckpt.old.tmp")
    (tmp_path / ".last.ckpt.12345678.tmp").mkdir()
    assert newest_of(tmp_path / "last.ckpt") == tmp_path / ".last.ckpt.old.tmp"
    clear(tmp_path / "last.ckpt")
    assert newest_of(tmp_path / "last.ckpt") == tmp_path / "last.ckpt"


def fail_on_one_rank(rank: int, path: Path) -> str:
    def full(*arguments: Any) -> int:
        raise OSError(28, "No space left on device")

    if rank == 1:
        vars(folder_writer)["write_part"] = full
    writer = FolderWriter(rank, gather)
    writer.begin(path, {"w": torch.ones(2)}, {})
    with pytest.raises(OSError, match="could not be written") as caught:
        writer.settle()
    return str(caught.value)


@needs_fork
def test_what_one_rank_cannot_write_all_ranks_say_with_path_and_rank(tmp_path: Path) -> None:
    path = write(tmp_path / "last.ckpt", {}, number=1)
    for said in on_ranks(2, tmp_path, fail_on_one_rank, path):
        assert str(path) in said
        assert "rank 1: OSError: [Errno 28] No space left" in said
    assert CheckpointFolder(path).state == {"number": 1}


def test_files_of_ranks_that_are_not_seen_here_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_files, "SECONDS_TO_APPEAR", 0.0)
    size = write_part(tmp_path, 0, stage({}, 0), state_bytes({}))
    with pytest.raises(ValueError, match=r"does not see rank-00001\.safetensors .*\n.*all nodes share"):
        write_complete(tmp_path, [size, 10])


# ------------------------------------------------------------------ tampered with


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "a.ckpt", {"w": torch.arange(8.0).view(4, 2), "b": torch.ones(3)}, step=1)


def rewrite(folder: Path, tensors: dict[str, Tensor], places: Any) -> None:
    """Another file of rank 0, with its size in `complete.json`."""
    header = {} if places is None else {HEADER: json.dumps(places)}
    save_file(tensors, folder / rank_file(0), metadata=header)
    complete(folder, rank_file(0))


def complete(folder: Path, name: str) -> None:
    content = json.loads((folder / COMPLETE).read_text())
    content["files"][name] = (folder / name).stat().st_size
    (folder / COMPLETE).write_text(json.dumps(content))


def place(shape: list[Any], offsets: list[Any]) -> dict[str, Any]:
    return {"w": {"shape": shape, "offsets": offsets}}


@pytest.mark.parametrize(
    ("places", "said"),
    [
        (None, "is no file of a checkpoint"),
        ([], "other tensors"),
        ({}, "other tensors"),
        ({"w": 3}, "is no file"),
        (place([4, 2], [1, 0]), "not inside"),
        (place([4, 2], [-1, 0]), "from 0 on"),
        (place([4.0, 2], [0, 0]), "from 0 on"),
        (place([4, 2], [0]), "not inside"),
        (place([2**62, 2], [0, 0]), "from 0 on"),
        ({**place([4, 2], [0, 0]), "b": {"shape": [1], "offsets": [0]}}, "other tensors"),
    ],
)
def test_a_header_that_places_tensors_wrongly_is_refused(places: Any, said: str, folder: Path) -> None:
    rewrite(folder, {"w": torch.ones(4, 2)}, places)
    with pytest.raises(ValueError, match=said) as caught:
        CheckpointFolder(folder)
    assert rank_file(0) in str(caught.value)


@pytest.mark.parametrize(("shape", "offsets"), [([5, 2], [0, 0]), ([2**61, 2], [0, 0]), ([8, 2], [4, 0])])
def test_parts_that_leave_a_gap_are_refused_by_name_before_memory_is_asked_for(
    shape: list[int], offsets: list[int], folder: Path
) -> None:
    rewrite(folder, {"w": torch.ones(4, 2)}, place(shape, offsets))
    opened = CheckpointFolder(folder)
    with pytest.raises(ValueError, match="parts of w"):
        opened.check()
    with pytest.raises(ValueError, match="parts of w"):
        opened.tensor("w")


def test_parts_that_overlap_or_contradict_each_other_are_refused(folder: Path) -> None:
    def add(tensor: Tensor, offsets: list[int]) -> None:
        metadata = {HEADER: json.dumps(place([4, 2], offsets))}
        save_file({"w": tensor}, folder / rank_file(1), metadata=metadata)
        content = json.loads((folder / COMPLETE).read_text()) | {"world_size": 2}
        (folder / COMPLETE).write_text(json.dumps(content))
        complete(folder, rank_file(1))

    rewrite(folder, {"w": torch.ones(3, 2)}, place([4, 2], [0, 0]))
    add(torch.ones(2, 2), [2, 0])
    with pytest.raises(ValueError, match="parts of w"):
        CheckpointFolder(folder).tensor("w")
    add(torch.ones(1, 2, dtype=torch.float64), [3, 0])
    with pytest.raises(ValueError, match="float64"):
        CheckpointFolder(folder)
    add(torch.zeros(3, 2), [0, 0])  # a copy of the same part: the first counts
    rewrite(folder, {"w": torch.ones(3, 2)}, place([3, 2], [0, 0]))
    add_shape = {HEADER: json.dumps(place([3, 2], [0, 0]))}
    save_file({"w": torch.zeros(3, 2)}, folder / rank_file(1), metadata=add_shape)
    complete(folder, rank_file(1))
    assert CheckpointFolder(folder).tensor("w").sum() == 6


def test_state_that_would_run_code_is_refused_and_does_not_run(folder: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"

    class Harm:
        def __reduce__(self) -> Any:
            return ran.touch, ()

    torch.save({"x": Harm()}, folder / STATE)
    complete(folder, STATE)
    with pytest.raises(ValueError, match=STATE):
        CheckpointFolder(folder).state  # noqa: B018
    (folder / STATE).write_bytes(pickle.dumps(Harm()))
    complete(folder, STATE)
    with pytest.raises(ValueError, match=STATE):
        CheckpointFolder(folder).state  # noqa: B018
    torch.save([1], folder / STATE)
    complete(folder, STATE)
    with pytest.raises(ValueError, match="mapping"):
        CheckpointFolder(folder).state  # noqa: B018
    os.truncate(folder / STATE, 2**31)
    complete(folder, STATE)
    with pytest.raises(ValueError, match="no state of a run needs"):
        CheckpointFolder(folder).state  # noqa: B018
    assert not ran.exists()


@pytest.mark.parametrize(
    "name", ["../state.pt", "/etc/passwd", "rank-1.safetensors", "rank-00000.safetensors/x"]
)
def test_names_of_files_elsewhere_are_refused(name: str, folder: Path) -> None:
    content = json.loads((folder / COMPLETE).read_text())
    content["files"] = {STATE: content["files"][STATE], name: 1}
    (folder / COMPLETE).write_text(json.dumps(content))
    with pytest.raises(ValueError, match="no file of a checkpoint"):
        read_complete(folder)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"format": 1}', '{"format": 2, "files": {}}', '{"format": 1, "files": []}']
)
def test_a_folder_without_a_whole_list_of_its_files_is_not_complete(content: str, folder: Path) -> None:
    assert is_complete(folder)
    (folder / COMPLETE).write_text(content)
    assert not is_complete(folder)
    with pytest.raises(ValueError, match=f"{COMPLETE}|of format"):
        read_complete(folder)


def test_a_file_that_is_cut_off_makes_a_folder_incomplete(folder: Path) -> None:
    os.truncate(folder / rank_file(0), 50)
    assert not is_complete(folder)
    complete(folder, rank_file(0))
    with pytest.raises(ValueError, match="no file of a checkpoint"):
        CheckpointFolder(folder)
    (folder / rank_file(0)).unlink()
    assert not is_complete(folder)


def test_boxes_fill_an_area_only_without_gaps_and_overlaps() -> None:
    area = Box((0, 0), (4, 4))
    quarters = [Box((row, column), (2, 2)) for row in (0, 2) for column in (0, 2)]
    assert tile([*quarters, Box((4, 0), (0, 4))], area)
    assert not tile(quarters[:3], area)
    assert not tile([*quarters[:3], quarters[0]], area)
    assert not tile([*quarters[:3], Box((1, 2), (2, 2))], area)
    assert tile([Box((), ())], Box((), ()))
    assert not tile([], Box((), ()))
