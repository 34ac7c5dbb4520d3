"""Sentences by any server with OpenAI's interface. Knows HTTP, and no model.

A key is read from the environment when a request is sent; it is written nowhere.
"""

import json
import os
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, ClassVar

from kedit.distill.generators import INSTRUCTIONS, Generator, check_sampling, fill, own_seed, tidy, wordings
from kedit.distill.mentions import end_of_line
from kedit.distill.transfer import Provenance, TransferSentence
from kedit.editing.probes import Fact, Knowledge
from kedit.editing.sources import DataError

LONGEST_WAIT = 60.0  # seconds between two tries, whatever a server asks for


@dataclass
class ServerGenerator(Generator):
    """Sentences by a model behind OpenAI's interface: OpenAI itself, vLLM, SGLang, llama.cpp, Ollama and others.

    Args:
        url: where the interface begins, as in http://localhost:8000/v1.
        model: name of the model there.
        api_key_env: environment variable that holds the key, where the server wants one.
        chat: talk to /chat/completions; false continues a plain text by /completions.
        prompts: kinds (continue, paraphrase, question, implication, contrast, dialogue) or templates of your own with
            {definition} and {name}, taken in turn; by default all kinds, or without `chat` definition and name.
        temperature: of sampling.
        top_p: of sampling.
        max_new_tokens: longest answer.
        sentences: how many of an answer are kept; by default all in its first line.
        parallel: requests at once.
        timeout: seconds until a request counts as lost.
        tries: how often a request is sent before it is given up: what a busy server refuses is sent again later.
    """

    url: str
    model: str
    api_key_env: str | None = None
    chat: bool = True
    prompts: list[str] | None = None
    temperature: float = 0.9
    top_p: float = 0.95
    max_new_tokens: int = 80
    sentences: int | None = None
    parallel: int = 8
    timeout: float = 60.0
    tries: int = 6

    again: ClassVar[bool] = True
    first_wait: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise DataError(f"generator.url {self.url!r}: wanted http:// or https:// and a host")
        if parts.username or parts.password or parts.query:
            raise DataError("generator.url: holds a name, password or query: give a key by generator.api_key_env")
        check_sampling(self.temperature, self.top_p, self.max_new_tokens, self.sentences)
        if self.parallel < 1 or self.tries < 1 or self.timeout <= 0:
            raise DataError("generator: parallel, tries and timeout must be positive")
        if self.prompts is not None and not self.prompts:
            raise DataError("generator.prompts is an empty list: give at least one, or leave it out")
        self._templates = wordings(self.prompts or (list(INSTRUCTIONS) if self.chat else ["{definition} {name}"]))
        self._stopped = threading.Event()

    def describe(self, knowledge: Knowledge) -> dict[str, Any]:
        return {
            "class": "ServerGenerator",
            "url": self.url,
            "model": self.model,
            "chat": self.chat,
            "prompts": self._templates,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_new_tokens": self.max_new_tokens,
            "sentences": self.sentences,
        }

    def write(
        self, knowledge: Knowledge, wanted: Mapping[str, int], round: int, seed: int, skip: int
    ) -> Iterator[list[TransferSentence]]:
        requests = [
            (fact, fill(self._templates[(round + number) % len(self._templates)], fact),
             own_seed(seed, round, fact, number))
            for fact in knowledge.facts
            for number in range(wanted.get(fact.id, 0))
        ]  # fmt: skip
        self._key()
        self._stopped.clear()
        pool = ThreadPoolExecutor(self.parallel)
        try:
            # one request is one batch: what was paid for is kept, whatever `parallel` is
            pending = [pool.submit(self._sentence, *request) for request in requests[skip:]]
            for answer in pending:
                yield [answer.result()]
        finally:
            self._stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _sentence(self, fact: Fact, prompt: str, seed: int) -> TransferSentence:
        body: dict[str, Any] = {
            "model": self.model,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_new_tokens,
            "seed": seed,
        }
        body |= {"messages": [{"role": "user", "content": prompt}]} if self.chat else {"prompt": prompt}
        answer = self._post("chat/completions" if self.chat else "completions", body)
        try:
            choice = answer["choices"][0]
            text = (choice["message"]["content"] if self.chat else choice["text"]) or ""
            revision = "/".join(str(answer[key]) for key in ("model", "system_fingerprint") if answer.get(key))
            text = tidy(text)
        except (KeyError, IndexError, TypeError, AttributeError):
            raise DataError(f"{self.url} answered without a text: {self._hidden(json.dumps(answer))[:200]}") from None
        text = text[: end_of_line(text, self.sentences)]
        if not self.chat and text and prompt.endswith(fact.name):
            text = fact.name + (text if text[0] in "'’,.;:" else f" {text}")
        origin = Provenance(
            "ServerGenerator", self.model, revision or None, prompt, self.temperature, self.top_p, self.max_new_tokens,
            seed,
        )  # fmt: skip
        return TransferSentence(fact, text, provenance=origin)

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        """A server's answer, asked for again while it is busy."""
        address, wait, reason = f"{self.url.rstrip('/')}/{path}", self.first_wait, ""
        for attempt in range(self.tries):
            asked: float | None = None
            if self._stopped.is_set():
                break
            try:
                return self._send(address, body)
            except urllib.error.HTTPError as error:
                told = self._hidden(error.read(2000).decode("utf-8", "replace"))
                reason = f"{error.code} {error.reason}: {' '.join(told.split())[:200]}"
                if error.code not in (408, 409, 425, 429) and error.code < 500:
                    raise DataError(f"{address} refuses a request: {reason}") from None
                asked = _seconds(error.headers.get("Retry-After"))
            except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
                reason = self._hidden(str(getattr(error, "reason", "") or error or type(error).__name__))
            except ValueError:
                reason = "no JSON came back"
            if attempt + 1 < self.tries:
                self._stopped.wait(min(max(wait, asked or 0.0), LONGEST_WAIT))
                wait *= 2
        raise DataError(
            f"{address}: given up after {self.tries} tries: {reason}\nwhat came is kept: the same command goes on"
        )

    def _send(self, address: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
        if key := self._key():
            request.add_unredirected_header("Authorization", f"Bearer {key}")
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=self.timeout) as answer:
            return json.loads(answer.read())

    def _key(self) -> str:
        if self.api_key_env is None:
            return ""
        if not (key := os.environ.get(self.api_key_env, "").strip()):
            raise DataError(f"generator.api_key_env: the environment has no {self.api_key_env}")
        return key

    def _hidden(self, text: str) -> str:
        """Servers repeat a wrong key."""
        key = self._key()
        return text.replace(key, "***") if key else text


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A key goes to the host that was named, and no other."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _seconds(header: str | None) -> float | None:
    """A Retry-After in seconds; a date is not heeded."""
    try:
        return float(header) if header else None
    except ValueError:
        return None
