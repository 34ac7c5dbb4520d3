"""Speed of the dump reader beside the reference repository's, on one file in one run.

    python tests/speed/wikipedia.py --dump enwiki-shortened-2016.xml.bz2 --reference CLONE_OF_ALEXA_KILM

Both turn the packed XML into cleaned articles on disk: the reference by its first step (`wiki_short_desc.py`), ours by
`parse_part`. The reference runs as it stands, but for two packages that are stubbed: spaCy (its sentence splitter is a
regular expression here, so what spaCy costs is left OUT of its time) and wikimapper (unused in this step). Its bzcat
runs beside it in a second process and is not counted as one of its cores.
"""

import argparse
import bz2
import contextlib
import io
import os
import re
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable
from pathlib import Path

from kedit.kilm.articles import parse_part
from kedit.kilm.pool import Job, run_jobs
from kedit.kilm.wikipedia import split


def reference(clone: Path, dump: Path, folder: Path) -> None:
    spacy, mapper = types.ModuleType("spacy"), types.ModuleType("wikimapper")

    class Document:
        def __init__(self, text: str) -> None:
            self.sents = re.split(r"(?<=[.!?])\s+", text)

    spacy.load = lambda name: Document  # type: ignore[attr-defined]
    mapper.WikiMapper = object  # type: ignore[attr-defined]
    sys.modules |= {"spacy": spacy, "wikimapper": mapper}
    sys.path.insert(0, str(clone / "data" / "wiki"))
    warnings.simplefilter("ignore")
    from wiki_short_desc import WikiXmlShortDescRetriever

    with contextlib.redirect_stdout(io.StringIO()):
        WikiXmlShortDescRetriever(str(dump), -1, str(folder)).run()


def ours(dump: Path, folder: Path, setting: str, workers: int, part_bytes: int) -> None:
    parts = split(dump, part_bytes)
    jobs = [Job(parse_part, (p, folder / f"{i}.parquet", setting), p.end - p.start) for i, p in enumerate(parts)]
    with contextlib.redirect_stderr(io.StringIO()):
        run_jobs("reading", jobs, workers)


def timed(run: Callable[[], None], rounds: int) -> float:
    """Least seconds of some rounds."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def multistream(dump: Path, path: Path, each: int) -> None:
    """The same dump as streams of `each` pages, so that it can be read in parallel."""
    text = bz2.decompress(dump.read_bytes())
    begin, end = text.index(b"<page>"), text.rindex(b"</mediawiki>")
    pages = text[begin:end].split(b"<page>")[1:]
    groups = [b"<page>" + b"<page>".join(pages[i : i + each]) for i in range(0, len(pages), each)]
    path.write_bytes(b"".join(bz2.compress(part) for part in [text[:begin], *groups, text[end:]]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dump", type=Path, required=True, help="a pages-articles .xml.bz2")
    parser.add_argument("--reference", type=Path, help="a checked-out clone of the reference repository")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="processes of the parallel run")
    given = parser.parse_args()
    megabytes = len(bz2.decompress(given.dump.read_bytes())) / 1e6
    print(f"{given.dump.name}: {megabytes:.2f} MB of XML, {os.cpu_count()} cores, least of {given.rounds} rounds")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        streams = folder / "multistream.xml.bz2"
        multistream(given.dump, streams, 10)
        part_bytes = streams.stat().st_size // (4 * given.workers)
        slow = None
        if given.reference:
            slow = timed(lambda: reference(given.reference, given.dump, folder), given.rounds)
            print(f"reference            1 process    {slow:6.2f} s {megabytes / slow:7.2f} MB/s")
        for setting in ("lead", "full"):
            for dump, workers, size in ((given.dump, 1, 1 << 40), (streams, given.workers, part_bytes)):
                seconds = timed(lambda d=dump, w=workers, s=size, t=setting: ours(d, folder, t, w, s), given.rounds)  # type: ignore[misc]
                times = f"  {slow / seconds:5.1f} times the reference" if slow else ""
                rate = megabytes / seconds
                print(
                    f"ours, {setting}, {workers} process(es) {seconds:6.2f} s {rate:7.2f} MB/s "
                    f"{rate / workers:7.2f} MB/s a core{times}"
                )


if __name__ == "__main__":
    main()
