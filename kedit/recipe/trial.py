"""Networks in training tried by the real protocol: edits stored in a repository, found by their queries, and asked.

Knows the editor, its rivals and the stream; of training only what it reads from the module.
"""

import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from torch import Tensor

from kedit.editing.conflicts import normal
from kedit.editing.edits import Edit
from kedit.editing.general_ability import TextPerplexity
from kedit.editing.stream import EditedModel, Stream, run
from kedit.editing.stream_report import Point, StreamReport
from kedit.lm.backbones import decoder_layers
from kedit.recipe.baselines import NoEdit, TextPrefix, fired_texts
from kedit.recipe.data import Evaluation, RecipeData, questions
from kedit.recipe.editor import RecipeEditor
from kedit.recipe.encoding import encode_keys, encode_queries
from kedit.recipe.finetune import FineTune, LoraTune
from kedit.recipe.gate import Gate
from kedit.recipe.memory import Memory
from kedit.recipe.repository import Repository
from kedit.recipe.trained import encoder_hash

SCORED = ("reliability", "generality", "locality")
BOUND = 1e-3
"""How far a weight may move for an edit, with `finetune_bound`."""


class Trial:
    """Judges the networks of a module as they stand.

    Args:
        module: holds networks and language model.
        data: holds the streams.
    """

    def __init__(self, module: Any, data: RecipeData) -> None:
        self.module, self.data = module, data

    @property
    def evaluation(self) -> Evaluation:
        return self.data.evaluation

    @contextmanager
    def editor(self) -> Iterator[RecipeEditor]:
        """An editor of the networks as they are, with a repository that goes away again."""
        networks, texts = self.module.networks, self.module.text_encoder()
        with self._as_used(), tempfile.TemporaryDirectory(prefix="kedit-edits-") as folder:
            calibration = encode_queries(networks, texts, self.data.texts_for_calibration())
            gate = Gate(*calibration, self.evaluation.rate, networks)
            store = Repository.open(folder, encoder=encoder_hash(networks.state_dict()), key_width=networks.key_width)
            memory = Memory(networks, texts, None, store, gate, context=self.module.trained.context)
            with RecipeEditor(memory, self.module.language_model) as editor:
                yield editor

    @contextmanager
    def _as_used(self) -> Iterator[None]:
        """In evaluation mode, without gradients, and without the mixed precision of training: similarities would be
        rounded there, by which the gate decides, and in use they are not.
        """
        networks = self.module.networks
        was_training = networks.training
        networks.eval()
        try:
            with torch.no_grad(), torch.autocast(self.module.device.type, enabled=False):
                yield
        finally:
            networks.train(was_training)

    def validation(self) -> dict[str, float]:
        """Free answers on the held-out stream, stored beside edits of the pool, and their mean, `val/score`."""
        held = self.data.validation
        with self.editor() as editor:
            if stored := self._stored():
                editor.edit(stored)
            whole = Stream(batch=len(held), immediate=0, retained=1, timed=0,
                           max_new_tokens=self.evaluation.max_new_tokens)  # fmt: skip
            means = run(editor, held, whole, self.module.language_model).final.means()
        found = {f"val/{name}/free": scores["free"] for name, scores in means.items()}
        return found | {"val/score": float(np.mean([means[name]["free"] for name in SCORED if name in means]))}

    def _stored(self) -> list[Edit]:
        pool = self.data.pool
        return random.Random(0).sample(pool, min(self.evaluation.validation_stored, len(pool)))

    def similarities(self) -> dict[str, Tensor]:
        """For histograms: of other wordings of held-out edits the similarity to their own key, to the best other one,
        and to the sentinel; nothing where there are no other wordings.
        """
        networks, texts = self.module.networks, self.module.text_encoder()
        held = self.data.validation
        asked = [(place, probe.prompt) for place, edit in enumerate(held) for probe in edit.asked("generality")]
        if not asked:
            return {}
        with self._as_used():
            keys_ND = encode_keys(networks, texts, [*held, *self._stored()])
            queries_QD, threshold_Q = encode_queries(networks, texts, [prompt for _, prompt in asked])
            similarity_QN = networks.similarities(queries_QD, keys_ND)
        own_Q1 = torch.tensor([[place] for place, _ in asked], device=keys_ND.device)
        own = similarity_QN.gather(1, own_Q1)[:, 0]
        return {"own": own, "best_other": similarity_QN.scatter(1, own_Q1, -torch.inf).amax(1), "sentinel": threshold_Q}

    def test(self) -> tuple[dict[str, float], StreamReport, dict[str, StreamReport]]:
        """The stream of the test: its figures, the report of RECIPE and those of its rivals by name."""
        evaluation, edits = self.evaluation, self.data.stream()
        perplexity = None if evaluation.perplexity is None else TextPerplexity(evaluation.perplexity)
        far = questions(self.data.far)
        self._tell_overlap(far)
        # refused at once
        tuned = {name: self._tuned(name) for name in evaluation.rivals if name not in ("none", "text_prefix")}

        def judged(editor: EditedModel, edits: Sequence[Edit], batch: int, retriever: RecipeEditor | None = None,
                   told: Callable[[Point], None] | None = None, most: int | None = None) -> StreamReport:  # fmt: skip
            stream = Stream(batch, evaluation.immediate, evaluation.retained, final=most,
                            max_new_tokens=evaluation.max_new_tokens)  # fmt: skip
            if isinstance(editor, FineTune | LoraTune):
                stream = replace(stream, timed=0)  # they change the very model that they would be timed beside
            rate = (lambda: false_activations(retriever, far)) if far and retriever is not None else None
            return run(editor, edits, stream, self.module.language_model, rate, perplexity, told=told)

        with self.editor() as editor:
            report = judged(editor, edits, evaluation.batch, editor, _say)
        results = report.results()
        rivals: dict[str, StreamReport] = {}
        for name in evaluation.rivals:
            _print(f"rival {name}")
            if name == "none":
                with self._as_used():
                    model = NoEdit(self.module.language_model)
                    rivals[name] = judged(model, edits, evaluation.batch, most=evaluation.rival_edits)
            elif name == "text_prefix":
                with self.editor() as editor:
                    rival = TextPrefix(
                        self.module.language_model, fired_texts(editor.decide), editor, "{edit}. {prompt}"
                    )
                    rivals[name] = judged(rival, edits, evaluation.batch, most=evaluation.rival_edits)
            else:
                # Lightning tests in inference mode
                with torch.inference_mode(False), self._as_used(), torch.enable_grad():
                    rivals[name] = judged(tuned[name], edits[: evaluation.rival_edits], 1)
                    tuned[name].reset()
            results |= {
                key.replace("test/", f"test/{name}/", 1): value for key, value in rivals[name].results().items()
            }
        return results, report, rivals

    def _tuned(self, name: str) -> FineTune | LoraTune:
        model, tuning = self.module.language_model, self.evaluation.tuning
        if name == "lora":
            return LoraTune(model, tuning)
        decoder = model.model.get_decoder() if model.is_seq2seq else model.model
        last = len(decoder_layers(decoder)) - 1 if name == "finetune_layer" else None
        return FineTune(model, tuning, layer=last, bound=BOUND if name == "finetune_bound" else None)

    def _tell_overlap(self, far: Sequence[str]) -> None:
        """What false activations are counted on should be new to networks and gate."""
        judged = set(map(normal, far))
        for name, sources in (("unrelated", self.data.unrelated), ("calibration", self.data.calibration)):
            if both := judged & set(map(normal, questions(sources))):
                rank_zero_info(
                    f"{len(both):,} of {len(judged):,} texts of data.far are among data.{name}: the rate of false "
                    "activations that they give is too good"
                )


def false_activations(editor: RecipeEditor, texts: Sequence[str]) -> float:
    """Share of texts that no edit concerns and that fire one."""
    return float(np.mean([decision.fired for decision in editor.decide(texts)]))


@rank_zero_only
def _print(line: str) -> None:
    print(line, flush=True)


def _say(point: Point) -> None:
    told = ", ".join(f"{name} {point.scores[name]['free']:.3f}" for name in SCORED if name in point.scores)
    _print(f"after {point.edits:,} edits, answered freely: {told}")
