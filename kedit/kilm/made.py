"""A corpus made when it is first needed, with a tokenizer of its own: for demonstrations. Knows no training."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock

from kedit.editing.sources import WikiSource
from kedit.kilm.build import build_corpus
from kedit.kilm.plan import PART_BYTES
from kedit.kilm.wikipedia import pages, split
from kedit.kilm.wikitext import clean
from kedit.lm.cache import cache_folder
from kedit.lm.tokenizers import train_tokenizer


@dataclass
class MadeCorpus:
    """A corpus to be made when it is first needed, and kept in the cache (`KEDIT_CACHE`, else ~/.cache/kedit).

    Args:
        wiki: writes the dump.
        tokenizer: hub id or folder; without it one is trained on the dump.
        vocabulary: tokens of the trained one.
        sentinels: T5's sentinels in the trained one.
        setting: lead sections or whole articles.
        chunk_tokens: longest document.
    """

    wiki: WikiSource
    tokenizer: str | None = None
    vocabulary: int = 2048
    sentinels: int = 0
    setting: Literal["lead", "full"] = "full"
    chunk_tokens: int = 64

    def folder(self) -> Path:
        settings = [self.wiki.fingerprint, self.tokenizer, self.vocabulary, self.sentinels, self.setting,
                    self.chunk_tokens]  # fmt: skip
        name = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]
        return cache_folder() / "corpora" / name

    def make(self) -> Path:
        """The corpus' folder, written unless it is complete."""
        folder = self.folder()
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):  # two runs may want it at once
            if not (folder / "corpus" / "manifest.json").exists():
                dump = self.wiki.write(folder)
                tokenizer = self.tokenizer
                if tokenizer is None:
                    tokenizer = str(folder / "tokenizer")
                    train_tokenizer(self._texts(dump), self.vocabulary, self.sentinels).save_pretrained(tokenizer)
                build_corpus(dump, tokenizer, folder / "corpus", self.setting, self.chunk_tokens)
        return folder / "corpus"

    def _texts(self, dump: list[Path]) -> Iterator[str]:
        """What the corpus will hold: articles, and titles and descriptions as they stand behind another word."""
        for path in dump:
            for page in (page for part in split(path, PART_BYTES) for page in pages(part)):
                if page.namespace == 0 and page.redirect is None and page.text:
                    cleaned = clean(page.text, self.setting)
                    yield from (cleaned.text, f" {page.title}", f" {cleaned.short_description or ''}")
