"""What mkdocs calls while it builds the pages (`hooks` of mkdocs.yml): puts in what is made, not written.

A line of a page that is `<!-- made: NAME -->` becomes what the function of that name in `MADE` returns.
GitHub wants a bar to be escaped in the code of a table, and mkdocs would show the escape.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from keys import every_key
from verified import families, recorded, results, summary

MADE: dict[str, Callable[[], str]] = {
    "every key": every_key,
    "families": families,
    "tests recorded": recorded,
    "tests by family": summary,
    "results": results,
}
LINE = re.compile(r"^<!-- made: (.+) -->$", re.MULTILINE)
ROW = re.compile(r"^\|.*\|$", re.MULTILINE)
CODE = re.compile(r"`[^`]*`")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with everything in it that is made; raises KeyError for a name that nobody makes."""
    made = LINE.sub(lambda line: MADE[line[1]](), markdown)
    return ROW.sub(lambda row: CODE.sub(lambda code: code[0].replace(r"\|", "|"), row[0]), made)
