"""A language model with a memory of edits, in a notebook, without a Trainer.

editor = RecipeEditor.from_run("checkpoints/quickstart_recipe")
editor.edit([Edit("1", "Velmar lies in", "the north")])
editor.ask(["Where is Velmar?"])
editor.forget(["1"])
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from kedit.editing.edits import Edit
from kedit.editing.judging import Forced
from kedit.editing.sources import DataError
from kedit.lm.backbones import CAUSAL, SEQ2SEQ, Backbone, Dtype, load_causal, load_config, load_seq2seq
from kedit.recipe.encoding import calibration_vectors, device_of
from kedit.recipe.gate import Gate
from kedit.recipe.memory import Decision, EditReport, Memory
from kedit.recipe.prefix import PrefixedModel, Vectors
from kedit.recipe.repository import Repository
from kedit.recipe.search import FaissIndex
from kedit.recipe.tables import StoredEdit
from kedit.recipe.trained import Place, Trained, encoder_hash, find_trained, load_networks

EDITS = "edits"
"""Folder of a run's repository."""


class Answer(NamedTuple):
    """What is said to a prompt.

    Args:
        prompt: the prompt.
        answer: with the memory.
        without: by the language model alone.
        decision: which edit the prompt was taken to mean, and whether it fired.
    """

    prompt: str
    answer: str
    without: str
    decision: Decision


class Opened(NamedTuple):
    """A run's memory before its language model is loaded.

    Args:
        memory: the memory; it stores, and decides.
        trained: what the run says of its networks.
        place: where the run stands.
    """

    memory: Memory
    trained: Trained
    place: Place


class RecipeEditor:
    """A frozen language model whose answers a memory of edits corrects.

    Which edit a prompt means is decided once, on the prompt's own words; the whole answer is written behind that edit's
    prompt vectors. Where none is meant, the language model answers bit for bit as without a memory. An edit that `edit`
    has returned is on the disk, and counts from then on.

    Args:
        memory: stores the edits.
        model: the language model.
    """

    def __init__(self, memory: Memory, model: PrefixedModel) -> None:
        memory.model = self.model = model
        self.memory = memory
        self._chat: PrefixedModel | None = None

    @classmethod
    def from_run(
        cls,
        run: str | Path,
        repository: str | Path | None = None,
        rate: float = 0.01,
        device: str | None = None,
        model: PreTrainedModel | None = None,
        base: str | None = None,
        dtype: Dtype | None = None,
        read_only: bool = False,
        faiss: str | None = None,
    ) -> Self:
        """Open what a run trained.

        Args:
            run: name of a run in `checkpoints/`, its folder there, one of its checkpoints, or an exported folder.
            repository: folder of the edits; by default `edits` in the run's. It is made where there is none.
            rate: wanted share of questions that no edit concerns and that fire one all the same.
            device: of networks and language model; by default cuda where there is one.
            model: the language model, loaded already; it may be quantised, or spread over devices.
            base: its hub id or folder, where it is no longer what the run was given.
            dtype: of its weights; by default as in training.
            read_only: ask only; others may edit meanwhile.
            faiss: search by FAISS, with this index ("Flat", "IVF1024,Flat", ...): for CPUs; the default is exact.

        Raises:
            DataError: there is no such run, or it is damaged; the edits' keys are of other networks; another process
                writes to them; the language model is another.
            OSError: the language model cannot be had.
        """
        if device is None and model is not None:
            at = model.get_input_embeddings().weight.device
            device = None if at.type == "meta" else str(at)
        opened = open_memory(run, repository, rate, device, base, read_only, faiss)
        try:
            if model is None:
                model = load_model(opened, base, dtype, device)
            prefixed = PrefixedModel(model, opened.memory.texts.model, bos=opened.trained.bos)
            if prefixed.width != opened.trained.width:
                raise DataError(
                    f"the embeddings of the language model have {prefixed.width} numbers, those of "
                    f"{opened.trained.base}, for which {opened.place.folder} was trained, {opened.trained.width}"
                )
            return cls(opened.memory, prefixed)
        except BaseException:
            opened.memory.close()
            raise

    def close(self) -> None:
        """Let go of the repository: others may write."""
        self.memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # edit -------------------------------------------------------------------------------------------------------------

    def edit(self, edits: Sequence[Edit], source: str | None = None) -> EditReport:
        """Store edits. Of one prompt the newest edit counts; the older is kept as history.

        Args:
            edits: any number; many at once are read in batches.
            source: where they come from, as is kept with them; by default what each says.

        Raises:
            DataError: an edit is malformed, or longer than the language model reads: nothing was stored. Or FAISS
                cannot take the keys: the message says that the edits are stored.
        """
        report = self.memory.add(edits, source)
        try:
            self.memory.follow()
        except DataError as error:
            raise DataError(f"{error}\nthe edits are stored, under the ids {', '.join(report.ids[:8])}") from error
        return report

    def forget(self, ids: Sequence[str]) -> list[StoredEdit]:
        """Take edits out, by the ids that `edit` told; what they had replaced does not come back.

        Returns:
            what they were.

        Raises:
            DataError: an id is not known; nothing is forgotten.
        """
        return self.memory.forget([ids] if isinstance(ids, str) else list(ids))

    def reset(self) -> None:
        """Forget everything: the language model alone, bit for bit."""
        self.memory.clear()

    def save_prompt(self, id: str, folder: str | Path) -> None:
        """Write the prompt vectors of one edit as PEFT's prompt tuning has them: they then stand before whatever is
        asked, without a memory.

        Args:
            id: of the edit.
            folder: a new or empty one.

        Raises:
            DataError: there is no such edit, the folder holds something, or the model is an encoder-decoder.
        """
        from peft import PromptTuningConfig, TaskType

        folder, one = Path(folder).expanduser(), self.memory.repository.get(id)
        if self.model.is_seq2seq:
            raise DataError("PEFT puts prompt vectors before an encoder-decoder's input in another way: not exported")
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise DataError(f"{folder} is not empty: name another folder")
        (vectors_TE,) = self.memory.prompt_vectors([one.edit])
        config = PromptTuningConfig(
            task_type=TaskType.CAUSAL_LM, num_virtual_tokens=len(vectors_TE), token_dim=self.model.width,
            base_model_name_or_path=self.model.model.config.name_or_path or None,
        )  # fmt: skip
        config.inference_mode = True
        config.save_pretrained(str(folder))
        save_file({"prompt_embeddings": vectors_TE.cpu().contiguous()}, folder / "adapter_model.safetensors")

    # ask --------------------------------------------------------------------------------------------------------------

    def decide(self, prompts: Sequence[str]) -> list[Decision]:
        """Which edit each prompt means."""
        return self.memory.decide(prompts)

    def ask(self, prompts: Sequence[str], max_new_tokens: int = 32, chat: bool = False, **options: Any) -> list[Answer]:
        """Answers with and without the memory, with what was decided.

        Args:
            prompts: the user's words.
            max_new_tokens: longest answer.
            chat: apply the chat template around each prompt.
            options: as for `generate`.
        """
        decisions = self.decide(prompts)
        without = self._asked(chat).generate(prompts, max_new_tokens=max_new_tokens, **options)
        fired = [number for number, decision in enumerate(decisions) if decision.fired]
        answers = list(without)
        written = self.generate([prompts[n] for n in fired], max_new_tokens, chat, [decisions[n] for n in fired],
                                **options)  # fmt: skip
        for number, answer in zip(fired, written, strict=True):
            answers[number] = answer
        return [Answer(*one) for one in zip(prompts, answers, without, decisions, strict=True)]

    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 32,
        chat: bool = False,
        decisions: Sequence[Decision] | None = None,
        **options: Any,
    ) -> list[str]:
        """What the language model writes behind each prompt.

        Args:
            prompts: the user's words.
            max_new_tokens: longest continuation.
            chat: apply the chat template around each prompt.
            decisions: as `decide` made them for these prompts; by default it is asked.
            options: as for `PrefixedModel.generate`: stop, seed, do_sample, num_beams, temperature, top_p, ...
        """
        vectors = self._vectors(prompts, decisions)
        return self._asked(chat).generate(prompts, vectors, max_new_tokens=max_new_tokens, **options)

    def score(self, prompts: Sequence[str], targets: Sequence[str]) -> list[np.ndarray]:
        """Negative log-likelihoods of each target's tokens behind its prompt, in nats: float32 [its tokens]."""
        return self.model.score(prompts, targets, self._vectors(prompts))

    def greedy_matches(self, prompts: Sequence[str], targets: Sequence[str]) -> list[np.ndarray]:
        """Whether each of a target's tokens is the likeliest, the right ones before it given: bool [its tokens]."""
        return self.model.greedy_matches(prompts, targets, self._vectors(prompts))

    def greedy_tokens(self, prompts: Sequence[str], targets: Sequence[str]) -> list[Forced]:
        """The likeliest token in place of each of a target's tokens, the target being given up to there."""
        return self.model.greedy_tokens(prompts, targets, self._vectors(prompts))

    def _vectors(self, prompts: Sequence[str], decisions: Sequence[Decision] | None = None) -> Vectors:
        given = self.decide(prompts) if decisions is None else decisions
        if len(given) != len(prompts):
            raise DataError(f"{len(given)} decisions for {len(prompts)} prompts: give one for each")
        return self.memory.vectors(given)

    def _asked(self, chat: bool) -> PrefixedModel:
        if not chat:
            return self.model
        if self._chat is None:
            self._chat = PrefixedModel(
                self.model.model, self.model.tokenizer, bos=bool(self.model.asking.bos), chat=True,
                chat_options=self.model.asking.chat_options,
            )  # fmt: skip
        return self._chat


def open_memory(
    run: str | Path,
    repository: str | Path | None = None,
    rate: float = 0.01,
    device: str | None = None,
    base: str | None = None,
    read_only: bool = False,
    faiss: str | None = None,
) -> Opened:
    """A run's memory without its language model, which storing and deciding do not need; as `RecipeEditor.from_run`."""
    place = find_trained(run)
    networks, texts, trained = load_networks(place, device or ("cuda" if torch.cuda.is_available() else "cpu"), base)
    encoder = encoder_hash(networks.state_dict())
    vectors = calibration_vectors(place.memory, networks, texts, encoder)
    try:
        gate = Gate(*vectors, rate, networks)
    except ValueError as error:
        raise DataError(f"--rate: {error}") from error
    index = None if faiss is None else FaissIndex(networks.key_width, faiss)
    store = Repository.open(
        edits_folder(place, repository), encoder=encoder, key_width=networks.key_width, read_only=read_only
    )
    return Opened(Memory(networks, texts, None, store, gate, index, trained.context), trained, place)


def edits_folder(place: Place, repository: str | Path | None = None) -> Path:
    """Where a run's edits are: in its own folder, unless another is named."""
    return place.folder / EDITS if repository is None else Path(repository).expanduser()


def load_model(
    opened: Opened, base: str | None = None, dtype: Dtype | None = None, device: str | None = None
) -> PreTrainedModel:
    """The language model that a run's networks were trained for.

    Raises:
        DataError: it is another.
        OSError: it cannot be had.
    """
    trained, tokenizer = opened.trained, opened.memory.texts.model
    name, revision = (base, None) if base else (trained.base, trained.revision)
    backbone = Backbone(name=name, revision=revision, dtype=dtype or trained.dtype)
    try:
        config = load_config(backbone, (*CAUSAL, *SEQ2SEQ))
        model = (load_seq2seq if config.is_encoder_decoder else load_causal)(backbone, tokenizer)
    except ValueError as error:
        raise DataError(str(error)) from error
    return model.to(device or str(device_of(opened.memory.networks)))  # type: ignore[arg-type]
