"""A page of HTML taken apart, as a browser that forgives nothing would."""

from __future__ import annotations

from html.parser import HTMLParser

UNCLOSED = ("meta", "img", "br")


class Page(HTMLParser):
    """Tags with their attributes, and text; fails where a tag is not closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in UNCLOSED:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def tags(self) -> list[str]:
        """Their names, in order."""
        return [tag for tag, _ in self.elements]

    @property
    def attributes(self) -> list[tuple[str, str]]:
        """Of all tags, in order."""
        return [pair for _, attributes in self.elements for pair in attributes.items()]

    @property
    def text(self) -> str:
        """All of it, as it stands there."""
        return "".join(self.texts)
