r"""What stands in a message for something else, and how the same characters are written as words.

`<image>` marks the place of an image and `<|region_1|>` that of a region. Where somebody's words hold these
characters (HTML, Markdown, a question about markup), a backslash behind the `<` makes them words: `<\image>`
is read as the words `<image>`, `<\\image>` as `<\image>`, and so on. Nothing else is changed, and words may
be put beside marks as they are.
"""

from __future__ import annotations

import re

from v1lit.grounding.markup import REGION_NAME

IMAGE_MARKER = "<image>"
"""Stands in a message where an image belongs; the k-th marker of an example is its k-th image."""
_REGION = REGION_NAME.pattern.removeprefix("<")
_LIKE_A_MARK = re.compile(rf"<(?=\\*(?:image>|{_REGION}))")
_NO_REGION = re.compile(rf"<(?=\\*image>|\\+{_REGION})")
_ESCAPED = re.compile(rf"<\\(?=\\*(?:image>|{_REGION}))")


def escape(words: str, *, keep_regions: bool = False) -> str:
    """Somebody's words as they are written in a message: nothing in them is a mark.

    With `keep_regions`, names of regions stay marks, for text in which they were meant.
    """
    return (_NO_REGION if keep_regions else _LIKE_A_MARK).sub(r"<\\", words)


def unescape(text: str) -> str:
    """The words of a part of a message that holds no marks; the inverse of `escape`."""
    return _ESCAPED.sub("<", text)


def words_of(content: str) -> str:
    """A message as a reader sees it: without the marks of images, and with its words as they are."""
    return unescape(content.replace(IMAGE_MARKER, "")).strip()
