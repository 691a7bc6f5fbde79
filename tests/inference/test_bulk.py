"""Many rows: none twice, none lost, the same results, whoever is killed and however many share the work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.asked import predictor, read_rows, write_rows

from v1lit.data.synthetic import synthesize
from v1lit.errors import OptionError
from v1lit.inference import bulk
from v1lit.inference.answers_file import AnswersFile, OtherSettingsError
from v1lit.inference.bulk import BulkOptions, BulkReport, Share, answer_rows
from v1lit.inference.predictor import Predictor
from v1lit.inference.rows import open_rows

pytestmark = pytest.mark.dependencies

OPTIONS = BulkOptions(batch_size=2, max_new_tokens=3)
ROWS = [
    {"image": "a.png", "question": "Where is it?"},
    {"images": ["a.png", "b.png"], "question": "<image>\n<image>\nWhich of the two, and why?", "id": "both"},
    {"question": "Nothing to see?", "answer": "yes"},
    {"image": "b.png", "messages": [{"role": "user", "content": "Is it in <image>?"}]},
    {"image": "missing.png", "question": "Where?"},
    {"image": "a.png", "question": "Again?"},
    {"image": "b.png", "question": "Once more, please, and slowly?"},
]


@pytest.fixture(scope="module")
def asked() -> Predictor:
    return predictor()


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path, [*ROWS[:3], "", *ROWS[3:]])


def run(asked: Predictor, rows: Path, out: str, options: BulkOptions = OPTIONS, **more: Any) -> BulkReport:
    return answer_rows(asked, open_rows(str(rows)), rows.parent / out, options, progress=False, **more)


def test_every_row_is_answered_in_order_as_it_would_be_alone(asked: Predictor, rows: Path) -> None:
    report = run(asked, rows, "out.jsonl")
    lines = read_rows(rows.parent / "out.jsonl")
    assert [line["row"] for line in lines] == list(range(7))
    assert [line["id"] for line in lines] == ["1", "both", "3", "5", "6", "7", "8"]  # line 4 is empty
    assert (report.rows, report.answered, report.complete) == (7, 7, True)
    (failed,) = report.failed
    assert failed["row"] == 4
    assert "there is no image file" in failed["error"]
    assert lines[2]["expected"] == "yes"
    assert [len(line["images"]) for line in lines if "images" in line] == [1, 2, 0, 1, 1, 1]
    alone = asked(rows.parent / "a.png", "Again?", max_new_tokens=3)
    assert (lines[5]["text"], lines[5]["counts"]["prompt"]) == (
        alone.text,
        alone.counts and alone.counts.prompt,
    )
    assert "seconds" not in lines[0]
    assert not list(rows.parent.glob("*.parts"))


class KilledError(BaseException):
    """Stands for SIGKILL: nothing is tidied up after it."""


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Kills the work in its N-th batch, leaving half a line of it in the file."""

    def kill(at: int) -> None:
        add, calls = AnswersFile.add, []

        def dying(self: AnswersFile, lines: Any) -> None:
            calls.append(1)
            add(self, lines)
            if len(calls) == at:
                own = self._own
                assert own is not None
                own.write(b'{"row": 6, "id": "8", "tex')
                own.flush()
                raise KilledError

        monkeypatch.setattr(AnswersFile, "add", dying)

    return kill


@pytest.mark.parametrize("at", [1, 3])
def test_who_is_killed_goes_on_with_equal_results(
    asked: Predictor, rows: Path, killed: Any, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(asked, rows, "whole.jsonl")
    with monkeypatch.context():
        killed(at)
        with pytest.raises(KilledError):
            run(asked, rows, "out.jsonl")
        monkeypatch.undo()
    assert not (rows.parent / "out.jsonl").exists()
    report = run(asked, rows, "out.jsonl")
    assert 0 < report.answered < 7
    assert (rows.parent / "out.jsonl").read_bytes() == (rows.parent / "whole.jsonl").read_bytes()


def test_twice_in_a_row_asks_nothing_again(
    asked: Predictor, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(asked, rows, "out.jsonl")
    before = (rows.parent / "out.jsonl").read_bytes()
    monkeypatch.setattr(bulk, "_ask", None)
    again = run(asked, rows, "out.jsonl")
    assert (again.answered, again.failed) == (0, first.failed)
    assert (rows.parent / "out.jsonl").read_bytes() == before


@pytest.mark.parametrize("world", [2, 5])
def test_processes_share_the_rows_and_the_last_one_gathers_them(
    asked: Predictor, rows: Path, world: int
) -> None:
    run(asked, rows, "whole.jsonl")
    reports = [run(asked, rows, "out.jsonl", share=Share(rank, world)) for rank in reversed(range(world))]
    assert [report.complete for report in reports] == [False] * (world - 1) + [True]
    assert sum(report.answered for report in reports) == 7
    assert (rows.parent / "out.jsonl").read_bytes() == (rows.parent / "whole.jsonl").read_bytes()


def test_another_number_of_processes_finishes_what_some_began(asked: Predictor, rows: Path) -> None:
    run(asked, rows, "whole.jsonl")
    first = run(asked, rows, "out.jsonl", share=Share(1, 3))
    second = run(asked, rows, "out.jsonl", share=Share(0, 1))
    assert first.answered + second.answered == 7
    assert (rows.parent / "out.jsonl").read_bytes() == (rows.parent / "whole.jsonl").read_bytes()


def test_other_settings_are_not_mixed(asked: Predictor, rows: Path) -> None:
    run(asked, rows, "out.jsonl", share=Share(0, 2))
    with pytest.raises(OtherSettingsError, match="made with other settings: max_new_tokens was 3 and is 4"):
        run(asked, rows, "out.jsonl", BulkOptions(batch_size=2, max_new_tokens=4))
    rows.write_text(rows.read_text() + json.dumps(ROWS[0]) + "\n")
    with pytest.raises(OtherSettingsError, match="rows was 7 and is 8"):
        run(asked, rows, "out.jsonl")
    (rows.parent / "mine.jsonl").write_text("not ours\n")
    with pytest.raises(OtherSettingsError, match="is there already, made with other settings, which nobody"):
        run(asked, rows, "mine.jsonl")
    assert (rows.parent / "mine.jsonl").read_text() == "not ours\n"


def test_mended_rows_are_asked_again(asked: Predictor, rows: Path) -> None:
    run(asked, rows, "out.jsonl")
    before = read_rows(rows.parent / "out.jsonl")
    (rows.parent / "missing.png").write_bytes((rows.parent / "b.png").read_bytes())
    report = run(asked, rows, "out.jsonl", retry_failed=True)
    after = read_rows(rows.parent / "out.jsonl")
    assert (report.answered, report.failed) == (1, [])
    assert "text" in after.pop(4)
    assert after == before[:4] + before[5:]
    with pytest.raises(ValueError, match="by one process"):
        run(asked, rows, "out.jsonl", retry_failed=True, share=Share(0, 2))


def test_samples_are_drawn_alike_whoever_draws_them(asked: Predictor, rows: Path) -> None:
    sampled = BulkOptions(2, 3, 7, {"do_sample": True, "temperature": 5.0})
    run(asked, rows, "whole.jsonl", sampled)
    for rank in (1, 0):
        run(asked, rows, "out.jsonl", sampled, share=Share(rank, 2))
    assert (rows.parent / "out.jsonl").read_bytes() == (rows.parent / "whole.jsonl").read_bytes()
    run(asked, rows, "other.jsonl", BulkOptions(2, 3, 8, sampled.generate))
    assert read_rows(rows.parent / "other.jsonl") != read_rows(rows.parent / "whole.jsonl")


def test_rows_of_a_batch_have_similar_lengths(
    asked: Predictor, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[list[int]]()
    answer = Predictor.answer

    def spy(self: Predictor, prompts: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append([len(prompt.encoded.input_ids) for prompt in prompts])
        return answer(self, prompts, *args, **kwargs)

    monkeypatch.setattr(Predictor, "answer", spy)
    run(asked, rows, "out.jsonl")
    lengths = [length for batch in seen for length in batch]
    assert lengths == sorted(lengths)
    assert max(map(len, seen)) == 2


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[1]", "a row is a JSON object, not list"),
        ("{", "line 2: not JSON"),
        ('{"image": "a.png"}', "a row has either a question or messages; given: image"),
        ('{"image": 3, "question": "?"}', "images are paths"),
        ('{"question": 3}', "the question is text, not int"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "the last of them the user's"),
        ('{"image": "a.png", "images": [], "question": "?"}', "an image or images, not both"),
        ('{"image": "a.png", "question": "<image><image>?"}', "1 images, but 2 <image> marks"),
        ('{"image": "rows.jsonl", "question": "?"}', "not a readable JPEG"),
    ],
)
def test_a_row_that_cannot_be_asked_is_named(
    asked: Predictor, tmp_path: Path, line: str, reason: str
) -> None:
    rows = write_rows(tmp_path, [{"question": "Yes?"}, line])
    (failed,) = run(asked, rows, "out.jsonl").failed
    assert failed["row"] == 1
    assert reason in failed["error"]


def test_shards_are_asked_their_first_question(asked: Predictor, tmp_path: Path) -> None:
    synthesize(tmp_path / "shards", examples=3, image_size=(112, 112), workers=1, progress=False)
    rows = open_rows(str(tmp_path / "shards"))
    assert len(rows) == 3
    report = answer_rows(asked, rows, tmp_path / "out.jsonl", OPTIONS, progress=False)
    lines = read_rows(tmp_path / "out.jsonl")
    assert report.failed == []
    assert [line["id"] for line in lines] == [rows.read(row).id for row in range(3)]
    assert all(line["expected"] and line["question"] for line in lines)


def test_nothing_to_ask_is_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.jsonl").write_text("\n\n")
    with pytest.raises(ValueError, match="has no rows"):
        open_rows(str(tmp_path / "rows.jsonl"))
    with pytest.raises(ValueError, match="there is no file"):
        open_rows(str(tmp_path / "other.jsonl"))
    with pytest.raises(OptionError, match="batch_size is 0"):
        BulkOptions(batch_size=0)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="RANK is 2, but WORLD_SIZE 2"):
        Share.from_environment()
