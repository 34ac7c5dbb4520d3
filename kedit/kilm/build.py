"""From dumps to a corpus: which parts there are, what is done already, and the last step that joins them.

Every step writes its result beside and renames it, so a run that was killed goes on where it stopped.
"""

import errno
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from kedit.editing.sources import DataError
from kedit.kilm import units
from kedit.kilm.articles import parse_part
from kedit.kilm.join import join
from kedit.kilm.plan import Plan, load_tokenizer
from kedit.kilm.pool import Advance, Job, run_jobs
from kedit.kilm.titles import Descriptions, Titles
from kedit.kilm.wikitext import Setting

# no space, no quota, a file larger than the disk or `ulimit -f` allows; of these libraries in Rust give the text only
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SAID = ("No space left", "quota exceeded", "File too large", *(f"os error {number})" for number in FULL))


def build_corpus(
    dump: list[Path],
    tokenizer: str,
    output: Path,
    setting: Setting = "lead",
    chunk_tokens: int = 448,
    descriptions: Path | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Make a tokenised corpus of linked text from Wikipedia dumps. Interrupted, the same command goes on.

    Args:
        dump: pages-articles files (.xml or .xml.bz2, multistream or not), or .parquet files of
            wikimedia/structured-wikipedia. Redirects are followed across all of them.
        tokenizer: folder or hub id of the tokenizer whose ids the corpus holds; a fast one.
        output: folder of the corpus. manifest.json in it says what was kept and dropped, and why.
        setting: lead reads the text before the first heading of each article (the paper's primary setting), full the
            whole article (its data upscale).
        chunk_tokens: most tokens in a unit. An article is cut between paragraphs, else sentences, never in a mention.
        descriptions: table of titles and descriptions (tab-separated or .parquet) for articles whose page has no
            {{Short description}}; the first sentence serves where that has none either.
        workers: processes; as many as there are cores by default. 1 works in this process.

    Returns:
        the manifest.

    Raises:
        DataError: a damaged dump or one without articles, a tokenizer that KILM cannot use, another corpus or another
            build in the folder, no space left.
    """
    output = Path(output)
    if chunk_tokens < 8:
        raise DataError(f"--chunk_tokens {chunk_tokens}: wanted at least 8")
    if workers is not None and workers < 1:
        raise DataError(f"--workers {workers}: wanted at least 1")
    plan = Plan([Path(path) for path in dump], tokenizer, output, setting, chunk_tokens, descriptions)
    try:
        plan.enter()
        with FileLock(output / "lock", timeout=0):
            return _build(plan, workers)
    except Timeout:
        raise DataError(f"another build is writing in {output}: wait for it, or choose another --output") from None
    except DataError:
        raise
    except Exception as error:
        if getattr(error, "errno", None) in FULL or any(text in str(error) for text in SAID):
            raise plan.no_space(error) from None
        raise


def _build(plan: "Plan", workers: int | None) -> dict[str, Any]:
    """All steps, in a folder that is locked."""
    plan.sweep()
    done = plan.claim()
    if done:
        print(f"{plan.output / 'manifest.json'} is complete already: {_summary(done)}")
        return done
    parts = plan.parts()
    plan.sweep()
    setting, output = plan.settings["setting"], plan.output
    sizes = [part.end - part.start for part in parts]
    todo = [i for i in range(len(parts)) if not plan.parsed(i).exists()]
    jobs = [Job(parse_part, (parts[i], plan.parsed(i), setting), sizes[i]) for i in todo]
    run_jobs(f"reading {len(parts)} part(s)", jobs, workers, done=sum(sizes) - sum(sizes[i] for i in todo))
    bases = plan.titles(len(parts))
    todo = [i for i in range(len(parts)) if not plan.units(i).exists()]
    rows = [pq.read_metadata(plan.parsed(i)).num_rows for i in range(len(parts))]
    jobs = [Job(write_units, (output, i, bases[i]), rows[i]) for i in todo]
    run_jobs("tokenising", jobs, workers, unit="page", done=sum(rows) - sum(rows[i] for i in todo))
    manifest = join(plan, len(parts))
    print(f"{output / 'manifest.json'}: {_summary(manifest)}")
    return manifest


def _summary(manifest: dict[str, Any]) -> str:
    links = manifest["links"]
    return (
        f"{manifest['entities']:,} articles, {links.get('kept', 0):,} of {links['total']:,} links kept, "
        f"{manifest['units']:,} units, {manifest['tokens']:,} tokens"
    )


def write_units(output: Path, part: int, base: int, advance: Advance) -> None:
    """Write the arrays of one parsed part; its entities are numbered from `base`."""
    settings = (output / "build.json").read_text()
    titles = output / "titles"
    parsed = json.loads((titles / "counts.json").read_text())["made_of"]["parsed"][part]
    # a worker does many parts of one corpus; the folder may have been made anew in between
    key = (str(output.resolve()), settings, (titles / "counts.json").stat().st_mtime_ns)
    if key not in _opened:
        _opened.clear()
        table = titles / "descriptions"
        _opened[key] = units.UnitWriter(
            load_tokenizer(str(output / "tokenizer")),
            Titles.load(titles),
            json.loads(settings)["chunk_tokens"],
            Descriptions(table) if table.exists() else None,
        )
    _opened[key].write(output / "parsed" / parsed, output / "units" / f"{part:05d}", base, advance)


_opened: dict[tuple[str, str, int], units.UnitWriter] = {}
