"""A pages-articles dump (XML, plain or .bz2) as a stream of pages, whole or cut into parts that are read in parallel.

Knows the dump's container and says where it is damaged; knows nothing of wikitext beyond redirects.
"""

import bz2
import mmap
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.parsers import expat

from kedit.editing.problems import BadInput

STREAM = re.compile(rb"BZh[1-9]1AY&SY")  # how each bzip2 stream begins: the header and the first block's mark
CHUNK = 1 << 18
UNPACKED = 1 << 22
PAGE = 1 << 27
"""Most bytes between two pages' ends; MediaWiki itself lets no page be larger than 2 MiB."""
REDIRECT = re.compile(r"\s*#redirect\s*:?\s*\[\[([^\]\n|]*)", re.IGNORECASE)
AGAIN = "download it again, or leave it out of --dump"


@dataclass(frozen=True)
class Part:
    """A stretch of a dump file that can be read alone.

    Args:
        path: the file.
        start: first byte in the file as stored.
        end: one past the last byte.
        first: whether it holds the head of the document.
        last: whether it holds the end of the document.
    """

    path: Path
    start: int
    end: int
    first: bool = True
    last: bool = True

    @property
    def name(self) -> str:
        return str(self.path) if self.first and self.last else f"{self.path} (bytes {self.start:,} to {self.end:,})"


@dataclass
class Page:
    """A page as it stands in the dump.

    Args:
        title: its title.
        namespace: 0 for articles.
        redirect: where it leads, as written there; None where it is no redirect.
        text: its wikitext; None where the dump holds none.
    """

    title: str
    namespace: int
    redirect: str | None
    text: str | None


def split(path: Path, part_bytes: int) -> list[Part]:
    """Cut a dump file into parts of about `part_bytes` bytes as stored, at places where a page begins.

    A file of one bzip2 stream, or of streams that do not begin with a page (pbzip2), is one part.

    Raises:
        DataError: the file is empty, or neither XML nor bzip2.
    """
    size = path.stat().st_size
    if not size:
        raise BadInput("", f"{path} is empty", AGAIN)
    with path.open("rb") as file:
        head = file.read(512)
        packed = _kind(path, head)
        cuts = [0]
        if size > part_bytes:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                while size - cuts[-1] > part_bytes:
                    cut = (_stream_after if packed else _page_after)(data, cuts[-1] + part_bytes)
                    if cut is None:
                        break
                    cuts.append(cut)
    cuts.append(size)
    return [Part(path, a, b, first=a == 0, last=b == size) for a, b in pairwise(cuts)]


def _kind(path: Path, head: bytes) -> bool:
    """Whether the file is bzip2 (else it is XML)."""
    if STREAM.match(head) or head.startswith(b"BZh"):
        return True
    plain = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if plain.startswith((b"<mediawiki", b"<?xml")):
        return False
    shown = plain[:40].decode("utf-8", "replace")
    hint = AGAIN
    if plain[:1] == b"<":
        hint = f"is it an error page? {AGAIN}"
    elif head[:2] in (b"\x1f\x8b", b"7z"):
        hint = "unpack it first"
    what = f"{path} is no Wikipedia dump: wanted pages-articles XML, plain or .bz2, but it starts with {shown!r}"
    raise BadInput("", what, hint)


def _stream_after(data: mmap.mmap, position: int) -> int | None:
    """The next bzip2 stream, from `position` on, that begins with a page; looks at eight."""
    for tried, match in enumerate(STREAM.finditer(data, position)):
        if tried == 8:
            return None
        try:
            begin = bz2.BZ2Decompressor().decompress(data[match.start() : match.start() + (1 << 21)], 1 << 12)
        except OSError:  # damaged: whoever reads that part says so
            continue
        if begin.lstrip().startswith(b"<page>"):
            return match.start()
    return None


def _page_after(data: mmap.mmap, position: int) -> int | None:
    found = data.find(b"<page>", position)
    return found if found >= 0 else None


def pages(part: Part, advance: Callable[[int], None] = lambda count: None) -> Iterator[Page]:
    """The pages of a part, one at a time, in constant memory.

    Args:
        part: what to read.
        advance: called with the number of stored bytes read since the last call.

    Raises:
        DataError: the file is cut short, damaged or not well-formed; names the file, the place and the pages read.
    """
    count, title = 0, ""
    place = _Place(part.start)

    def broken(what: str) -> BadInput:
        after = f", the last one {title[:80]!r}" if title else ""
        told = f"{what} near byte {place.at:,}, after {count:,} whole pages{after}"
        return BadInput(str(part.path), told, AGAIN)

    parser: Any = ET.XMLPullParser(events=("start", "end"))
    root: ET.Element | None = None
    try:
        if not part.first:
            parser.feed(b"<mediawiki>")
        since = 0
        for data in _blocks(part, advance, place):
            parser.feed(data)
            since += len(data)
            if since > PAGE:
                raise _Damaged(f"a page of more than {PAGE >> 20} MiB")
            for event, element in parser.read_events():
                if event == "start":
                    root = _root(part, element) if root is None else root
                elif element.tag.endswith("page") and element.tag.rpartition("}")[2] == "page":
                    page = _page(element)
                    count, title, since = count + 1, page.title, 0
                    yield page
                    if root is not None:
                        root.clear()
        if not part.last:
            parser.feed(b"</mediawiki>")
        parser.close()
    except ET.ParseError as error:
        if error.code == expat.errors.codes[expat.errors.XML_ERROR_NO_ELEMENTS]:
            # bzip2 cut at a stream's end gives no error of its own
            raise broken("the file is cut short (no </mediawiki>)") from None
        raise broken(f"broken XML ({error})") from None
    except (_Damaged, OSError, EOFError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise broken(str(error)) from None


class _Damaged(Exception):
    pass


@dataclass
class _Place:
    at: int


def _blocks(part: Part, advance: Callable[[int], None], place: _Place) -> Iterator[bytes]:
    """The bytes of the document in a part, unpacked."""
    with part.path.open("rb") as file:
        packed = _kind(part.path, file.read(512))
        file.seek(part.start)
        unpacker = bz2.BZ2Decompressor()
        fresh = True  # nothing of the present stream was read yet
        while place.at < part.end:
            data = file.read(min(CHUNK, part.end - place.at))
            if not data:
                raise _Damaged("the file became shorter while it was read")
            advance(len(data))
            begin, place.at = place.at, place.at + len(data)
            while data:
                if not packed:
                    yield data
                    break
                if fresh and not b"BZh".startswith(data[:3]) and not data.startswith(b"BZh"):
                    # Python's bz2 takes it for rubbish behind the end and says nothing
                    place.at = max(begin, place.at - len(data))
                    raise _Damaged("a damaged bzip2 stream header")
                fresh = False
                while not unpacker.eof and (data or not unpacker.needs_input):
                    try:
                        # piece by piece: a few bytes may unpack to gigabytes
                        unpacked = unpacker.decompress(data, UNPACKED)
                    except OSError:
                        raise _Damaged("damaged bzip2 data") from None
                    data = b""
                    if unpacked:
                        yield unpacked
                if unpacker.eof:
                    data, unpacker, fresh = unpacker.unused_data, bz2.BZ2Decompressor(), True
        if packed and not fresh:
            raise _Damaged("the file is cut short (in the middle of a bzip2 stream)")


def _root(part: Part, element: ET.Element) -> ET.Element:
    tag = element.tag.rpartition("}")[2]
    if tag != "mediawiki":
        what = f"{part.path} is no Wikipedia dump: wanted XML whose first element is <mediawiki>, found <{tag[:60]}>"
        raise BadInput("", what, AGAIN)
    return element


def _number(text: str | None, title: str) -> int:
    try:
        return int(text or 0)
    except ValueError:
        raise _Damaged(f"page {title[:80]!r} with namespace {(text or '')[:40]!r} (wanted a number)") from None


def _page(element: ET.Element) -> Page:
    title, namespace, redirect, text = "", 0, None, None
    for child in element:
        tag = child.tag.rpartition("}")[2]
        if tag == "title":
            title = child.text or ""
        elif tag == "ns":
            namespace = _number(child.text, title)
        elif tag == "redirect":
            redirect = child.get("title", "")
        elif tag == "revision":
            for inner in child:
                if inner.tag.rpartition("}")[2] == "text":
                    text = inner.text
    if text is not None and text[:80].lstrip()[:9].lower() == "#redirect":
        # the attribute is the resolved title; dumps older than 2012 have none
        match = REDIRECT.match(text)
        redirect = redirect or (match.group(1) if match else "")
    return Page(title, namespace, redirect, text)
