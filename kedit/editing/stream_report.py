"""What came out of an edit stream: its figures with intervals, and the lifelong curve. Knows numbers only."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from kedit.editing.bootstrap import cluster_interval, estimate
from kedit.editing.conflicts import EditConflicts
from kedit.editing.judging import Verdicts

KINDS = ("free", "forced")
MEANINGS = {
    "test/reliability/free": "edits whose prompt is answered rightly by free greedy decoding, after all edits",
    "test/reliability/forced": "the same with the target given: share of its tokens that are the likeliest",
    "test/generality/free": "other wordings of an edit, answered rightly by free greedy decoding",
    "test/generality/forced": "the same with the target given",
    "test/locality/free": "what no edit concerns: answered as by the unedited model",
    "test/locality/forced": "the same with an answer given: share of its tokens on which both models agree",
    "test/portability/free": "what follows from an edit, answered rightly by free greedy decoding",
    "test/portability/forced": "the same with the target given",
    "test/reliability_ceiling": "reliability that conflicts among the edits leave possible",
    "test/locality_ceiling": "share of locality probes whose prompt is itself not edited",
    "test/edits": "edits made",
    "test/edit_seconds": "seconds an edit, until it can be asked for",
    "test/added_inference_share": "time to answer that editing adds, over the unedited model's",
    "test/false_activation_rate": "queries no edit concerns at which one fired",
    "test/perplexity/before": "perplexity of plain text before the first edit",
    "test/perplexity/after": "perplexity of the same text after the last edit",
}
MANY = 1000
"""Clusters from which on a tenth of the resamples does: intervals are narrow, and drawing takes long."""


@dataclass(frozen=True)
class Point:
    """The state after so many edits.

    Args:
        edits: how many were made.
        scores: by aspect or group the means `free` and `forced`, and `probes`, how many they are of.
    """

    edits: int
    scores: dict[str, dict[str, float]]


@dataclass
class StreamReport:
    """An edit stream, judged.

    Args:
        edits: how many were made.
        conflicts: which of them contradict others.
        final: every probe that was asked after the last edit.
        immediate: probes of drawn edits, each asked right after its edit was made.
        curve: means over all earlier edits after 1, 10, 100, ... and after all.
        edit_seconds: time an edit takes, over batches of the size asked for.
        added_inference_share: (seconds to answer after all edits) / (seconds of the unedited model) - 1, on the same
            prompts, edited and not, asked together; what each writes until it ends counts as it is.
        false_activation_rate: as the method gives it.
        perplexity: before the first and after the last edit.
    """

    edits: int
    conflicts: EditConflicts
    final: Verdicts
    immediate: Verdicts
    curve: list[Point]
    edit_seconds: float
    added_inference_share: float | None = None
    false_activation_rate: float | None = None
    perplexity: tuple[float, float] | None = None

    def results(self) -> dict[str, float]:
        """The figures of a test by key, each mean with a 95 % interval over `Verdicts.clusters`; see `MEANINGS`.

        Beside these there are `test/ASPECT/GROUP/KIND` of groups, and `test/immediate/ASPECT/KIND`. What was not asked
        has no key.
        """
        found: dict[str, float] = {}
        for key, values, clusters in self._scores(self.final, "test"):
            found[key] = estimate(values, clusters)
            resamples = 10_000 if len(set(clusters)) < MANY else 1_000
            found[f"{key}_ci_low"], found[f"{key}_ci_high"] = cluster_interval(values, clusters, resamples=resamples)
        for key, values, clusters in self._scores(self.immediate, "test/immediate"):
            found[key] = estimate(values, clusters)
        found["test/reliability_ceiling"] = self.conflicts.reliability_ceiling
        found["test/locality_ceiling"] = self.conflicts.locality_ceiling
        found["test/edits"] = float(self.edits)
        found["test/edit_seconds"] = self.edit_seconds
        for key in ("added_inference_share", "false_activation_rate"):
            if (value := getattr(self, key)) is not None:
                found[f"test/{key}"] = value
        if self.perplexity is not None:
            found["test/perplexity/before"], found["test/perplexity/after"] = self.perplexity
        return found

    def to_dict(self) -> dict[str, Any]:
        """Results, curve and conflicts in types that JSON has."""
        return {
            "results": self.results(),
            "curve": [{"edits": point.edits, "scores": point.scores} for point in self.curve],
            "conflicts": {
                "prompts": len(self.conflicts.conflicts),
                "edits": sum(map(len, self.conflicts.conflicts)),
                "duplicates": len(self.conflicts.duplicates),
                "edited_locality_probes": len(self.conflicts.overlapping),
            },
        }

    @staticmethod
    def _scores(verdicts: Verdicts, prefix: str) -> Iterator[tuple[str, np.ndarray, list[tuple[str, str]]]]:
        for group, numbers in verdicts.groups.items():
            for kind in KINDS:
                values, clusters = verdicts.values(kind, numbers)
                if len(values):
                    yield f"{prefix}/{group}/{kind}", values, clusters
