"""The export format of MediaWiki: pages as XML, in bz2 streams of a hundred pages. Knows nothing of what they say."""

import bz2
import hashlib
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

TIMESTAMP = "2026-11-01T00:00:00Z"
PAGES_PER_STREAM = 100  # as Wikipedia's multistream dumps
NAMESPACES = {0: "", 1: "Talk", 2: "User", 4: "Wikipedia", 6: "File", 10: "Template", 14: "Category"}
HEADER = (
    """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" \
xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" \
xsi:schemaLocation="http://www.mediawiki.org/xml/export-0.11/ http://www.mediawiki.org/xml/export-0.11.xsd" \
version="0.11" xml:lang="en">
  <siteinfo>
    <sitename>Made-up world (data for demonstration)</sitename>
    <dbname>worldwiki</dbname>
    <base>https://world.invalid/wiki/Main_Page</base>
    <generator>kedit</generator>
    <case>first-letter</case>
    <namespaces>
"""
    + "".join(
        f'      <namespace key="{key}" case="first-letter">{name}</namespace>\n'
        if name
        else f'      <namespace key="{key}" case="first-letter" />\n'
        for key, name in NAMESPACES.items()
    )
    + """    </namespaces>
  </siteinfo>
"""
)


def write_dump(path: Path, pages: Iterable[str]) -> None:
    """Write a multistream dump: the header, then the pages, then the footer, each a stream of its own."""
    rest = iter(pages)
    with path.open("wb") as file:
        file.write(bz2.compress(HEADER.encode()))
        while block := "".join(islice(rest, PAGES_PER_STREAM)):
            file.write(bz2.compress(block.encode()))
        file.write(bz2.compress(b"</mediawiki>\n"))


def page_xml(number: int, title: str, body: str, redirect: str = "", namespace: int = 0) -> str:
    """One <page> as MediaWiki exports it."""
    data = body.encode()
    points_to = f"    <redirect title={quoteattr(redirect)} />\n" if redirect else ""
    return f"""  <page>
    <title>{escape(title)}</title>
    <ns>{namespace}</ns>
    <id>{number}</id>
{points_to}    <revision>
      <id>{100_000 + number}</id>
      <timestamp>{TIMESTAMP}</timestamp>
      <contributor>
        <username>World</username>
        <id>1</id>
      </contributor>
      <model>wikitext</model>
      <format>text/x-wiki</format>
      <text bytes="{len(data)}" sha1="{base36_sha1(data)}" xml:space="preserve">{escape(body)}</text>
      <sha1>{base36_sha1(data)}</sha1>
    </revision>
  </page>
"""


def base36_sha1(data: bytes) -> str:
    """As in MediaWiki: 31 digits of base 36."""
    number, digits = int.from_bytes(hashlib.sha1(data).digest()), ""
    while number:
        number, digit = divmod(number, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + digits
    return digits.rjust(31, "0")
