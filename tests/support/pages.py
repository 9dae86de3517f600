"""What every page must be: well-formed, and free of anything that the content security policy forbids."""

from html.parser import HTMLParser

from typing_extensions import override

VOID = {"meta", "link", "input", "br", "hr", "img"}


class Page(HTMLParser):
    """Reads a page and complains about what is wrong with it."""

    def __init__(self, html: str) -> None:
        """Read all of it."""
        super().__init__()
        self.open: list[str] = []
        self.complaints: list[str] = []
        self.links: list[str] = []
        self.feed(html)
        self.complaints += [f"<{tag}> is never closed" for tag in self.open]

    @override
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "style" or name.startswith("on"):
                self.complaints.append(f"<{tag}> has an inline {name}")
            if name in {"src", "href"}:
                self.links.append(value or "")

    @override
    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.complaints.append(f"</{tag}> closes something else")

    @override
    def handle_data(self, data: str) -> None:
        if data.strip() and self.open and self.open[-1] in {"script", "style"}:
            self.complaints.append(f"inline <{self.open[-1]}>")


def complaints(html: str) -> list[str]:
    """What is wrong with a page, and which of its parts come from somewhere else."""
    page = Page(html)
    return page.complaints + [link for link in page.links if not link.startswith(("/", "#"))]
