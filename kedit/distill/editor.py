"""New knowledge for a causal language model in a notebook, without a Trainer.

editor = DistillEditor.from_pretrained("gpt2")
editor.edit([Fact("velmar", "Velmar", "Velmar is a harbour town in the north, known for its Grey Bridge.")])
editor.compare(["Velmar is known for"])
editor.save("velmar")
editor.forget(["velmar"])
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kedit.distill.edits import Edit, EditSettings, joined, read_edits, whole_folder, write_edits
from kedit.distill.learn import joined_config, learn, rows_of
from kedit.distill.own_sentences import check_lengths, gather
from kedit.distill.sampling import prompt_ids, sample
from kedit.distill.teacher import model_fingerprint
from kedit.editing.probes import Fact, Knowledge, Probe, check_facts
from kedit.editing.sources import DataError
from kedit.lm.adapters import Lora, adapter_off, apply_adapter, target_layers
from kedit.lm.backbones import Backbone, load_causal, load_tokenizer
from kedit.lm.scoring import Span, span_nll


@dataclass(frozen=True)
class EditReport:
    """How an edit went.

    Args:
        edited: ids of the facts that the model was taught.
        without: ids of those that no sentence could be used for; the model was not taught them.
        used: sentences it was taught by.
        skipped: sentences that were left out, by reason.
        steps: of the optimiser.
        seconds: in all.
        first_loss: mean over the first time through the sentences.
        last_loss: over the last.
    """

    edited: tuple[str, ...]
    without: tuple[str, ...]
    used: int
    skipped: dict[str, int]
    steps: int
    seconds: float
    first_loss: float
    last_loss: float


class NothingUsable(DataError):
    """There is no sentence that any of the facts could be learned from; the model is as it was."""


class Forgotten(NamedTuple):
    """What became of the facts' edits.

    Args:
        dropped: ids whose whole call was taken out, exactly.
        learned_again: ids that shared a call with a forgotten fact: their adapter was made anew without it.
    """

    dropped: tuple[str, ...]
    learned_again: tuple[str, ...]


class Comparison(NamedTuple):
    """What the initial and the edited model write behind a prompt."""

    prompt: str
    base: str
    edited: str


class DistillEditor:
    """A causal language model that can be taught facts by their definitions, and can forget them.

    Each call of `edit` learns an adapter of its own, in the presence of the earlier ones; the model computes the sum of
    all. The teacher is always the initial model. Whatever fails or is interrupted leaves the model as it was.

    Args:
        model: a decoder-only model, from now on in evaluation mode and with frozen weights. It has adapters as long as
            it is edited; `reset` gives it back bit for bit.
        tokenizer: its fast tokenizer; needs no padding token.
        lora: the adapter of a call.
        settings: how edits are made, where a call does not say otherwise.
        base: hub id or folder of the model, to be named by saved adapters; by default what the model says.
        revision: of a hub model.
        progress: whether to show how far an edit is.
        bos: what stands before all that the model reads, in learning as in asking. None: BOS where the tokenizer has
            one. False: what the tokenizer itself puts there. True: that, with BOS before it unless it begins so.

    Attributes:
        edits: what the model was taught, call by call.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        lora: Lora | None = None,
        settings: EditSettings | None = None,
        base: str | None = None,
        revision: str | None = None,
        progress: bool = True,
        bos: bool | None = None,
    ):
        if model.config.is_encoder_decoder:
            raise DataError(f"{model.config.model_type} is an encoder-decoder, wanted a decoder-only model")
        self.lora, self.settings = lora or Lora(), settings or EditSettings()
        target_layers(model, self.lora.targets)  # says what does not fit
        self.model, self.tokenizer = model.eval().requires_grad_(False), tokenizer
        self.base: str = base or model.config.name_or_path or ""
        if bos and tokenizer.bos_token_id is None:
            raise DataError("bos is true, and the tokenizer has no BOS token: leave bos out")
        self.revision, self.progress, self.bos = revision, progress, bos
        self.edits: list[Edit] = []
        self._adapted: PeftModel | None = None

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        lora: Lora | None = None,
        settings: EditSettings | None = None,
        adapter: str | Path | None = None,
        device: str | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        revision: str | None = None,
        progress: bool = True,
        bos: bool | None = None,
    ) -> Self:
        """Load a model.

        Args:
            name: hub id or folder.
            lora: the adapter of a call; with `adapter` it is what that was made with.
            settings: how edits are made.
            adapter: folder that `save` wrote, or of a LoRA adapter by PEFT.
            device: by default cuda where there is one.
            dtype: of the model's weights; those of adapters are float32.
            revision: branch, tag or commit of a hub model.
            progress: whether to show how far an edit is.
            bos: what stands before all that the model reads, as for the editor itself.
        """
        if lora is not None and adapter is not None:
            raise DataError("lora and adapter are both given: an adapter says itself how it is made; leave lora out")
        tokenizer = load_tokenizer(name, revision)
        model = load_causal(Backbone(name=str(name), dtype=dtype, revision=revision), tokenizer)
        model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))  # type: ignore[arg-type]
        editor = cls(model, tokenizer, lora, settings, str(name), revision, progress, bos)
        if adapter is not None:
            editor.load(adapter)
        return editor

    @property
    def facts(self) -> list[Fact]:
        """All that the model was taught."""
        return [fact for edit in self.edits for fact in edit.facts]

    # ask --------------------------------------------------------------------------------------------------------------

    def score(self, prompts: Sequence[str], targets: Sequence[str]) -> list[np.ndarray]:
        """Negative log-likelihoods of each target's tokens behind its prompt, in nats: float32 [its tokens].

        A space is put between the two unless one is there.
        """
        spans = []
        for prompt, target in zip(prompts, targets, strict=True):
            own = target.lstrip()
            between = target[: len(target) - len(own)] or ("" if not prompt or prompt[-1].isspace() else " ")
            spans.append(Span(prompt + between, own))
        try:
            return span_nll(self.model, self.tokenizer, spans, bos=self.bos)
        except ValueError as error:
            raise DataError(str(error)) from error

    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[str]:
        """What the model writes behind each prompt: its likeliest tokens, or at a temperature above 0 samples."""
        rows = prompt_ids(self.tokenizer, prompts, self.bos)
        return sample(self.model, self.tokenizer, rows, max_new_tokens=max_new_tokens, temperature=temperature,
                      top_p=top_p, seed=seed)  # fmt: skip

    def compare(self, prompts: Sequence[str], max_new_tokens: int = 32) -> list[Comparison]:
        """What the initial and the edited model write, both their likeliest tokens."""
        edited = self.generate(prompts, max_new_tokens)
        with self._initial():
            base = self.generate(prompts, max_new_tokens)
        return [Comparison(*one) for one in zip(prompts, base, edited, strict=True)]

    # edit -------------------------------------------------------------------------------------------------------------

    def edit(
        self,
        facts: Sequence[Fact],
        sentences: Mapping[str, Sequence[str]] | None = None,
        settings: EditSettings | None = None,
        probes: Sequence[Probe] = (),
    ) -> EditReport:
        """Teach the model facts, all in one adapter.

        Args:
            facts: what to teach.
            sentences: for facts, by id, sentences that mention the entity, as they might be said of it; of the others
                the initial model writes some, reading the definition.
            settings: how this edit is made; by default as all are.
            probes: what will be asked, and is neither learned from nor held in place: sentences that hold one with its
                answer are left out, and text to stay the same on that holds one at all.

        Raises:
            NothingUsable: there is not one usable sentence.
            DataError: no facts, or bad ones; one that was taught before; a definition longer than the model reads. The
                model is as it was.
        """
        began, settings = time.perf_counter(), settings or self.settings
        facts, sentences = list(facts), dict(sentences or {})
        self._check(facts, sentences)
        check_lengths(self.model, self.tokenizer, facts, sentences, settings, self.bos)
        number = 1 + max((edit.number for edit in self.edits), default=-1)
        made = datetime.now(UTC).isoformat(timespec="seconds")
        with self._bare():
            found, skipped = gather(
                self.model, self.tokenizer, facts, sentences, settings, self.progress, probes, self.bos
            )
            whole = Edit(number, tuple(facts), tuple(found), settings, made)
            rows = rows_of(self.model, self.tokenizer, whole, self.bos)
            skipped += rows.skipped
            usable = {row.fact for row in rows.rows}
            if not usable:
                reasons = "; ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
                raise NothingUsable(f"no usable sentence for any of {len(facts)} facts: {reasons or 'none were given'}")
            without = tuple(fact.id for place, fact in enumerate(facts) if place not in usable)
            edit = whole.without(set(without))
            if (keep := settings.regularisation).wanted:
                known = Knowledge(list(edit.facts), [], {"asked": list(probes)})
                edit.sentences += tuple(
                    keep.sentences(self.model, self.tokenizer, known, edit.sentences, settings.seed, bos=self.bos)
                )
            losses = self._learn(edit, self.edits)
            self.edits.append(edit)
        a_pass = len(losses) // settings.passes
        return EditReport(
            tuple(fact.id for fact in edit.facts), without, len(rows.rows), dict(skipped), len(losses),
            time.perf_counter() - began, float(np.mean(losses[:a_pass])), float(np.mean(losses[-a_pass:])),
        )  # fmt: skip

    def forget(self, ids: Sequence[str]) -> Forgotten:
        """Take facts out again.

        A call all of whose facts are forgotten is taken out exactly. Where others were taught in the same call, these
        are learned again without the forgotten ones, from the same sentences, as if the call had been made for them
        alone. Calls that came later stay as they were learned.

        Raises:
            DataError: an id is not known; nothing is forgotten.
        """
        gone = {ids} if isinstance(ids, str) else set(ids)
        if unknown := sorted(gone - {fact.id for fact in self.facts}):
            known = ", ".join(repr(fact.id) for fact in self.facts[:10]) or "nothing"
            raise DataError(f"the model was not taught {', '.join(map(repr, unknown))}; it was taught {known}")
        kept: list[Edit] = []
        again: list[str] = []
        with self._bare():
            for edit in self.edits:
                if gone.isdisjoint(edit.ids):
                    kept.append(edit)
                elif (rest := edit.without(gone)).facts:
                    self._learn(rest, kept)
                    kept.append(rest)
                    again += [fact.id for fact in rest.facts]
            self.edits = kept
        return Forgotten(tuple(sorted(gone)), tuple(again))

    def reset(self) -> None:
        """Take everything out: the initial model, bit for bit."""
        self.edits = []
        self._put_on()

    # keep -------------------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write all edits as one adapter that PEFT reads, with `edits.jsonl`, by which they can be told apart again.

        Raises:
            DataError: nothing was taught, or the folder holds something else.
        """
        if self._adapted is None:
            raise DataError("the model was taught nothing: there is no adapter to save")
        config: LoraConfig = self._adapted.peft_config["default"]  # type: ignore[assignment]
        write_edits(folder, self.edits, config, self.lora, self.base, self.revision, self._fingerprint)

    def load(self, folder: str | Path) -> None:
        """Take over the edits that `save` wrote, or a LoRA adapter by PEFT, in the place of those that the model has.

        Raises:
            DataError, OSError: the folder is incomplete or damaged, or of another model. The model is as it was.
        """
        lora, edits = read_edits(folder, self._fingerprint)
        before = self.lora, self.edits
        try:
            self.lora, self.edits = lora, edits
            self._put_on()
        except BaseException as error:
            self.lora, self.edits = before
            self._put_on()
            if isinstance(error, ValueError):
                raise DataError(f"{folder}: {error}") from error
            raise

    def save_merged(self, folder: str | Path) -> None:
        """Write the edited model with its tokenizer as a plain Hugging Face folder, which needs no adapter.

        Raises:
            DataError: a weight is too large for the model's dtype, or the folder holds something else.
        """
        merged: dict[str, Tensor] = {}
        for name, layer in self._lora_layers():
            weight: Tensor = layer.base_layer.weight  # type: ignore[assignment]
            change = layer.get_delta_weight("default")  # type: ignore[attr-defined]
            merged[f"{name}.weight"] = (weight + change).to(weight.dtype).detach().cpu()
            if not merged[f"{name}.weight"].isfinite().all():
                raise DataError(f"{name}: the merged weight is too large for {weight.dtype}: load it in float32")
        with whole_folder(folder, "config.json") as partial, self._bare():
            self.model.save_pretrained(partial, state_dict={**self.model.state_dict(), **merged})
            self.tokenizer.save_pretrained(partial)

    @cached_property
    def _fingerprint(self) -> str:
        """Of the initial model: its weights never change."""
        return model_fingerprint(self.model)

    # adapters ---------------------------------------------------------------------------------------------------------

    def _lora_layers(self) -> list[tuple[str, LoraLayer]]:
        return [(name, layer) for name, layer in self.model.named_modules() if isinstance(layer, LoraLayer)]

    def _initial(self) -> Any:
        """A context in which the model is the initial one."""
        return nullcontext() if self._adapted is None else adapter_off(self._adapted)

    @contextmanager
    def _bare(self) -> Iterator[None]:
        """Inside, the model has no adapter; afterwards those of `edits`, whatever happened."""
        self._take_off()
        try:
            yield
        finally:
            self._put_on()

    def _take_off(self) -> None:
        # PEFT's own way needs a whole PeftModel, which one that was interrupted is not
        for name, layer in self._lora_layers():
            self.model.set_submodule(name, layer.base_layer)
        self.model.__dict__.pop("peft_config", None)
        self._adapted = None

    def _put_on(self) -> None:
        self._take_off()
        if self.edits:
            self._adapted = apply_adapter(
                self.model, joined_config(self.model, self.lora, len(self.edits)), joined(self.edits)
            )
            self._adapted.eval().requires_grad_(False)

    def _learn(self, edit: Edit, earlier: Sequence[Edit]) -> list[float]:
        """Learn an edit on the bare model, which is bare again afterwards; the loss of every step."""
        losses = learn(self.model, self.tokenizer, edit, earlier, self.lora, self.progress, self.bos)
        self._take_off()
        return losses

    def _check(self, facts: Sequence[Fact], sentences: Mapping[str, Sequence[str]]) -> None:
        """Refuse what cannot be learned, before anything is changed."""
        if not facts:
            raise DataError("there are no facts to learn: give at least one")
        check_facts(facts)
        for known in self.facts:
            for fact in facts:
                if fact.id == known.id or fact.name == known.name:
                    raise DataError(
                        f"{fact.where or f'fact {fact.id!r}'}: the model was taught {known.name!r} before, as "
                        f"{known.id!r}: forget([{known.id!r}]) first"
                    )
        for id, given in sentences.items():
            if id not in {fact.id for fact in facts}:
                raise DataError(f"sentences are given for {id!r}, which is none of the facts' ids")
            if isinstance(given, str):
                raise DataError(f"the sentences of {id!r} are one text: wanted a list of sentences")
