"""Words mean one thing, and the field's words stand where there are some."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GLOSSARY = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
ENTRIES = re.findall(r"^\*\*(.+)\*\*$", GLOSSARY, re.MULTILINE)
PLACES = ("v1lit/**/*.py", "docs/*.md", "README.md", "recipes/**/*.yaml", "configs/**/*.yaml")
FILES = [str(path.relative_to(ROOT)) for place in PLACES for path in sorted(ROOT.glob(place))]
TEXTS = {file: (ROOT / file).read_text(encoding="utf-8") for file in FILES}

INSTEAD = {
    # `"slots"` is a key in checkpoints.
    r"(?<![\"`_])\bslots?\b(?![\"`])": "micro-batch",
    r"\bstep_parts\b": "micro_batches",
    r"\bStepWindow|^class Window\b|\biter_windows": "StepBatches",
    r"^class (Made|Written|Held|Read|Swept|Drawn|Scanned|Examined)\b": "a noun that says of what",
    r"\b(go|goes|going|gone|went) on\b": "resume, or continue",
    r"\bso many\b": "that many, or N",
    r"\bto be had\b": "available",
    r"\bas ever\b": "as before, as always",
    r"\bsuch as it is\b": "unchanged",
}
"""What no file says, as a pattern -> what it says instead."""


# ---------------------------------------------------------------- the glossary


def test_every_word_has_one_entry_and_one_meaning() -> None:
    assert len(ENTRIES) > 40
    assert [word for word, count in Counter(map(str.lower, ENTRIES)).items() if count > 1] == []
    assert GLOSSARY.count("**") == 2 * len(ENTRIES), "a word in bold that is no entry of its own"
    assert len(re.findall(r"^: ", GLOSSARY, re.MULTILINE)) == len(ENTRIES), (
        "an entry with two meanings or none"
    )


@pytest.mark.parametrize("word", ENTRIES)
def test_a_word_of_the_glossary_is_used(word: str) -> None:
    spelled = re.compile(r"[\s_-]*".join(re.split(r"[ -]", word)), re.IGNORECASE)
    assert any(spelled.search(text) for file, text in TEXTS.items() if file != "docs/glossary.md")


# ---------------------------------------------------------------- what stands nowhere


def unwanted(text: str) -> list[str]:
    """Words of a text that have a better one, each with its line."""
    return [
        f"{text[: match.start()].count(chr(10)) + 1}: {match[0]!r}: {instead}"
        for pattern, instead in INSTEAD.items()
        for match in re.finditer(pattern.replace(" ", r"\s+"), text, re.IGNORECASE | re.MULTILINE)
    ]


@pytest.mark.parametrize("file", FILES)
def test_a_file_uses_the_fields_words_and_plain_english(file: str) -> None:
    assert unwanted(TEXTS[file]) == []


@pytest.mark.parametrize("text", ["a slot of", "the run goes\non", "so many rows", "class Held:", "As ever,"])
def test_a_word_that_has_a_better_one_is_found(text: str) -> None:
    assert len(unwanted(text)) == 1


@pytest.mark.parametrize(
    "text", ['state["slots"]', "__slots__", "it goes only", "class HeldOut:", "Rows so manyfold"]
)
def test_other_words_are_not(text: str) -> None:
    assert unwanted(text) == []
