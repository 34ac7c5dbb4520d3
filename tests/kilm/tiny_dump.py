"""Writes small pages-articles dumps."""

import bz2
from pathlib import Path
from xml.sax.saxutils import escape

HEAD = (
    '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="en">\n'
    "  <siteinfo>\n    <sitename>Wikipedia</sitename>\n  </siteinfo>\n"
)
TAIL = "</mediawiki>\n"


def page(title: str, text: str | None, namespace: int = 0, redirect: str = "") -> str:
    body = "" if text is None else f'<text bytes="{len(text)}" xml:space="preserve">{escape(text)}</text>'
    leads = f'<redirect title="{escape(redirect)}" />' if redirect else ""
    return (
        f"  <page>\n    <title>{escape(title)}</title>\n    <ns>{namespace}</ns>\n    <id>1</id>\n{leads}"
        f"    <revision>\n      <id>2</id>\n      {body}\n    </revision>\n  </page>\n"
    )


def streams(pages: list[str], each: int) -> list[bytes]:
    """Multistream: the head, `each` pages a stream, the tail."""
    groups = ["".join(pages[i : i + each]) for i in range(0, len(pages), each)]
    return [bz2.compress(text.encode()) for text in [HEAD, *groups, TAIL]]


def write(path: Path, pages: list[str], each: int | None = None) -> Path:
    """XML, one bzip2 stream, or (with `each`) several, by the name of the file."""
    whole = (HEAD + "".join(pages) + TAIL).encode()
    if path.suffix == ".bz2":
        path.write_bytes(bz2.compress(whole) if each is None else b"".join(streams(pages, each)))
    else:
        path.write_bytes(whole)
    return path


def sample(count: int = 40) -> list[str]:
    """Articles that link to each other, a redirect to each, and one page of every other kind."""
    pages = []
    for i in range(count):
        others = [(i * 7 + k) % count for k in range(1, 4)]
        links = " ".join(f"It stands beside [[town {k}|Town{k}]] and the [[old_name {k}]]s." for k in others)
        text = (
            f"{{{{Short description|Town number {i}}}}}\n'''Town {i}''' is a town. {links}\n\n== History ==\n"
            + " ".join(f"In {1800 + k} the [[Town {others[0]}]] bridge was built by [[Nobody {k}]]." for k in range(12))
            + "\n\nA second paragraph stands here.\n== References ==\n* [[Town 1]]\n"
        )
        pages.append(page(f"Town {i}", text))
        pages.append(page(f"Old name {i}", f"#REDIRECT [[Town {i}]]", redirect=f"Town {i}"))
    pages.append(page("Town", "'''Town''' may refer to:\n* [[Town 1]]\n* [[Town 2]]\n{{disambiguation}}"))
    pages.append(page("Loop A", "#redirect [[loop B]]"))
    pages.append(page("Loop B", "#REDIRECT [[Loop A]]", redirect="Loop A"))
    pages.append(page("Empty", None))
    pages.append(page("Talk:Town 1", "hello [[Town 1]]", namespace=1))
    pages.append(page("Ends", "The '''Ends''' are [[Town]], [[Loop A]], [[Town 3#History|the third]] and [[Ends]]."))
    return pages
