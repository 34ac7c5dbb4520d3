"""What a run leaves for use: its networks' description, their trunk without weights, and texts for calibration.

They stand in the folder `memory/` beside a run's checkpoints, which hold the weights; or, exported, all in one folder
with `networks.safetensors`. Knows no repository and nothing of training.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from kedit.editing.sources import DataError
from kedit.lm.backbones import Dtype, load_tokenizer
from kedit.lm.causal import position_limit
from kedit.lm.text import fingerprint
from kedit.lm.weights import misfits
from kedit.recipe.networks import MemoryNetworks, SlotNetworks
from kedit.recipe.paper import PaperNetworks
from kedit.recipe.texts import TextEncoder
from kedit.running.files import write_whole
from kedit.running.runs import Run, RunFolder, existing_run, find_checkpoint, incomplete, state_of

FOLDER, DESCRIPTION, TRUNK, CALIBRATION = "memory", "memory.json", "trunk", "calibration.jsonl"
WEIGHTS = "networks.safetensors"
PREFIX = "networks."
FORMAT = 2
USAGE = """\
```python
from kedit.editing.edits import Edit
from kedit.recipe.editor import RecipeEditor

editor = RecipeEditor.from_run("this folder")  # the base model is loaded beside it
editor.edit([Edit("1", "A prompt", "what is to be answered")])
print(editor.ask(["A question"]))
```

In a shell: `python -m kedit edit --run FOLDER "PROMPT" "TARGET"` and `python -m kedit ask --run FOLDER "QUESTION"`.
"""
"""Stands in the model card of an export."""


@dataclass(frozen=True)
class Trained:
    """What networks were trained, and for which language model.

    Args:
        base: hub id or folder of the language model.
        width: of its input embeddings, E.
        sizes: of the networks, by the names of their class' arguments.
        reference: the paper's networks.
        key_reads_target: whether a key is made of prompt and target.
        revision: of a hub model.
        dtype: of the language model's weights.
        longest: most tokens that the encoder reads.
        bos: whether the language model reads a BOS that its tokenizer does not put there itself.
        tokenizer: fingerprint of the language model's tokenizer; empty where it was not taken.
        context: most tokens that the language model reads; null where there is no limit.
    """

    base: str
    width: int
    sizes: dict[str, float] = field(default_factory=dict)
    reference: bool = False
    key_reads_target: bool = False
    revision: str | None = None
    dtype: Dtype = "float32"
    longest: int = 512
    bos: bool = False
    tokenizer: str = ""
    context: int | None = None

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, base: str, **more: Any) -> Self:
        """The description of networks for a language model that is at hand."""
        embeddings: Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
        width, context = embeddings.shape[1], position_limit(model.config)
        return cls(base, width, tokenizer=fingerprint(tokenizer), context=context, **more)


class Place(NamedTuple):
    """Where a run's parts stand.

    Args:
        folder: of the run's checkpoints, or an export.
        memory: of the description.
        weights: a checkpoint, or a safetensors file.
    """

    folder: Path
    memory: Path
    weights: Path


def build_networks(trained: Trained, trunk: PreTrainedModel, width: int | None = None) -> MemoryNetworks:
    """The networks of a description, with weights drawn at random but for the trunk's.

    Args:
        trained: the description.
        trunk: a Hugging Face encoder.
        width: E; by default what the description says.
    """
    kind: type[MemoryNetworks] = PaperNetworks if trained.reference else SlotNetworks
    # the paper calls its keys representations of knowledge
    sizes = {"key_width" if name == "knowledge_width" else name: size for name, size in trained.sizes.items()}
    try:
        return kind(trunk, trained.width if width is None else width, **sizes)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"sizes {trained.sizes} are none of {kind.__name__}: {error}") from error


# write ----------------------------------------------------------------------------------------------------------------


def write_trained(
    folder: Path,
    trained: Trained,
    trunk: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    calibration: Sequence[str] = (),
) -> Path:
    """Write `memory/`, all that is needed for use beside the weights.

    Args:
        folder: of the run's checkpoints.
        trained: the description.
        trunk: the encoder, of which the configuration is kept.
        tokenizer: the encoder's.
        calibration: texts that no edit concerns.

    Returns:
        `memory/`.
    """
    memory = Path(folder) / FOLDER
    memory.mkdir(parents=True, exist_ok=True)
    trunk.config.save_pretrained(memory / TRUNK)
    tokenizer.save_pretrained(memory / TRUNK)
    (memory / "usage.md").write_text(USAGE, encoding="utf-8")
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in calibration]
    if lines:
        write_whole(memory / CALIBRATION, "\n".join(lines) + "\n")
    # last of all: by it the folder is known to be complete
    write_whole(memory / DESCRIPTION, json.dumps({"format": FORMAT, **asdict(trained)}, indent=2) + "\n")
    return memory


# read -----------------------------------------------------------------------------------------------------------------


def find_trained(run: str | Path) -> Place:
    """Where a run's parts stand.

    Args:
        run: name of a run, its folder of checkpoints, one of these, or an exported folder.

    Raises:
        DataError: there is none, or none of RECIPE, or no complete checkpoint in it.
    """
    path = Path(run).expanduser()
    if not path.exists():
        named = [Path("checkpoints") / str(run)] if len(Path(run).parts) == 1 else []
        if named and not named[0].exists():
            named = [existing_run(Run(str(run), numbered=True)).checkpoints]
        path = next((one for one in named if one.is_dir()), path)
    if not path.exists():
        raise DataError(
            f"--run {run}: no such run: wanted the name of one in checkpoints/, its folder there, or an exported folder"
        )
    if (path / DESCRIPTION).is_file() and (path / WEIGHTS).is_file():
        return Place(path, path, path / WEIGHTS)
    is_checkpoint = path.is_file() or (path / "checkpoint").is_dir()
    folder = path.absolute().parent if is_checkpoint else path
    memory = folder / FOLDER
    if not (memory / DESCRIPTION).is_file():
        raise DataError(f"--run {run}: holds no {FOLDER}/{DESCRIPTION}, so it is no run of RECIPE, or one that failed")
    if not is_checkpoint:
        path = find_checkpoint(RunFolder(folder.name, folder, folder), "best")[0]
    elif damage := incomplete(path):
        raise DataError(f"--run {path} is incomplete: {damage}")
    return Place(folder, memory, path)


def read_trained(memory: Path) -> Trained:
    """The description in a folder.

    Raises:
        DataError: it is damaged, or of another version.
    """
    file = memory / DESCRIPTION
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        written = content.pop("format")
        if written != FORMAT:
            raise DataError(f"{file} has format {written}, wanted {FORMAT}: written by another version of kedit")
        known = {one.name for one in fields(Trained)}
        return Trained(**{key: value for key, value in content.items() if key in known})
    except DataError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: damaged: {error}; take it from the run again") from error


def load_networks(
    run: str | Path | Place, device: str | torch.device | None = None, base: str | None = None
) -> tuple[MemoryNetworks, TextEncoder, Trained]:
    """The networks of a run, in evaluation mode, with the encoder of texts that they were trained with.

    Args:
        run: as for `find_trained`.
        device: where to put them.
        base: hub id or folder of the language model, where it is no longer what the run was given.

    Raises:
        DataError: there is no such run, it is damaged, its weights do not fit or are not finite, the language
            model's tokenizer is another one, or there is no such device.
        OSError: the language model's tokenizer cannot be had.
    """
    place = run if isinstance(run, Place) else find_trained(run)
    trained, device = read_trained(place.memory), _existing(device or "cpu")
    with torch.device("cpu"):
        networks = build_networks(trained, _trunk(place.memory / TRUNK))
    _fill(networks, _weights(place.weights), place.weights)
    model_tokenizer = load_tokenizer(base or trained.base, None if base else trained.revision)
    if trained.tokenizer and fingerprint(model_tokenizer) != trained.tokenizer:
        raise DataError(
            f"{base or trained.base}: its tokenizer is not that of the language model that {place.folder} was trained "
            f"for ({trained.base}): give that one as --base"
        )
    texts = TextEncoder(load_tokenizer(place.memory / TRUNK), model_tokenizer, trained.longest)
    return networks.eval().requires_grad_(False).to(device), texts, trained


def encoder_hash(state: Mapping[str, Tensor]) -> str:
    """A hash of all the networks' weights: keys of different networks cannot be compared."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _existing(device: str | torch.device) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built for CPUs alone
        reason = str(error).splitlines()[0]
        raise DataError(f"--device {device}: cannot be used here ({reason}): give cpu, or leave it out") from error


def _trunk(folder: Path) -> PreTrainedModel:
    """The encoder of a description, with weights drawn at random."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return AutoModel.from_config(config)
    except (OSError, ValueError, TypeError) as error:
        reason = f"is damaged ({str(error).splitlines()[0]})" if folder.is_dir() else "is missing"
        raise DataError(f"{folder} {reason}: take it from the run again") from error


def _weights(file: Path) -> dict[str, Tensor]:
    if file.name == WEIGHTS:
        try:
            return load_file(file)
        except SafetensorError as error:
            raise DataError(f"{file}: damaged or cut off ({error}): export the run again") from error
    if file.is_dir():
        raise DataError(
            f"checkpoint {file} is a folder as DeepSpeed writes it: `python -m kedit export --checkpoint {file} "
            "--output FOLDER` first, and use that folder as --run"
        )
    state = state_of(file).get("state_dict", {})
    found = {name.removeprefix(PREFIX): tensor for name, tensor in state.items() if name.startswith(PREFIX)}
    if not found:
        raise DataError(f"checkpoint {file} holds no tensor named {PREFIX}...: it is none of RECIPE")
    return found


def _fill(networks: MemoryNetworks, weights: Mapping[str, Tensor], source: Path) -> None:
    wrong = misfits(networks.state_dict(), weights)
    wrong = wrong or [f"{name} is not finite" for name, tensor in weights.items() if not bool(tensor.isfinite().all())]
    if wrong:
        more = f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise DataError(f"{source} does not fit {DESCRIPTION} beside it: {'; '.join(wrong[:4])}{more}")
    networks.load_state_dict(weights)
