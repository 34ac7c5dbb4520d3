"""A checkpoint to a Hugging Face folder, with a model card. Knows a run's folder and transformers; no method.

A run's `backbone/` holds the model's configuration and tokenizer, its checkpoints hold the weights under `model.`, or
the tensors of a LoRA adapter alone under `adapter.`; `backbone/adapter_config.json` then names its base model.

A run that trained networks beside a frozen model has `memory/` instead, all that describes them, and its checkpoints
hold their weights under `networks.`.
"""

import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from kedit.editing.sources import DataError
from kedit.running.cards import MARK, find_key, model_card, read_settings
from kedit.running.convert import UNIVERSAL
from kedit.running.errors import is_out_of_space, space_message
from kedit.running.manifest import MANIFEST, read_manifest
from kedit.running.runs import RunFolder, find_checkpoint, incomplete, state_of
from kedit.running.shards import plain_values_only

if TYPE_CHECKING:
    from peft import LoraConfig

PREFIX = "model."
MEMORY, NETWORKS_PREFIX, NETWORKS = "memory", "networks.", "networks.safetensors"
LEFT_OUT = ("usage.md", "calibration.safetensors", ".*")
"""Of `memory/`: what the model card says already, and what is made again."""
EMBEDDINGS = ("shared.weight", "model.embed_tokens.weight", "transformer.wte.weight", "gpt_neox.embed_in.weight")
HEADS = ("lm_head.weight", "embed_out.weight")


def export(
    checkpoint: Path,
    output: Path,
    push_to: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    private: bool = True,
    form: Literal["merged", "adapter"] = "merged",
    base: str | None = None,
) -> Path:
    """Write a checkpoint as a Hugging Face folder: weights, tokenizer, model card. Of RECIPE, whose networks stand
    beside a frozen model, the folder holds all but that model, and no edits.

    Args:
        checkpoint: a checkpoint (a file, or a folder as DeepSpeed writes it), or a run's folder for its best one.
        output: the folder to write; it must be empty or an earlier export.
        push_to: hub repository to upload the folder to, as user/name.
        dtype: type of the weights written.
        private: whether a repository that push_to creates is private.
        form: what to write of a run that trained a LoRA adapter: a whole model, or the adapter alone as PEFT reads it.
        base: hub id or folder of the adapter's base model, where it is no longer what the run was given.

    Returns:
        The folder.
    """
    start = time.monotonic()
    checkpoint, output = _checkpoint(Path(checkpoint)), Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())) and not _is_export(output):
        raise DataError(f"--output {output} is not empty and no earlier export: name another folder")
    memory = checkpoint.absolute().parent / MEMORY
    if (memory / "memory.json").is_file():
        if form == "adapter":
            raise DataError(f"{checkpoint} holds networks and no adapter: leave out --form adapter")
        _export_memory(checkpoint, memory, output, getattr(torch, dtype))
    else:
        _export_model(checkpoint, output, getattr(torch, dtype), form, base)
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    print(f"{output}: {size / 2**20:,.1f} MiB in {time.monotonic() - start:.1f} s", flush=True)
    if push_to is not None:
        _push(output, push_to, private)
    return output


def _export_memory(checkpoint: Path, memory: Path, output: Path, dtype: torch.dtype) -> None:
    print(f"reading {checkpoint}", flush=True)
    tensors, method = _read(checkpoint)
    networks = {n.removeprefix(NETWORKS_PREFIX): t for n, t in tensors.items() if n.startswith(NETWORKS_PREFIX)}
    if not networks:
        raise DataError(f"{checkpoint} holds no tensor named {NETWORKS_PREFIX}...: not a checkpoint of {memory.parent}")
    with _replaced(output) as partial:
        print(f"writing {output}", flush=True)
        shutil.copytree(memory, partial, ignore=shutil.ignore_patterns(*LEFT_OUT), dirs_exist_ok=True)
        kept = {name: t.to(dtype) if t.is_floating_point() else t for name, t in networks.items()}
        # two names for one tensor would be refused
        save_file({n: t.clone(memory_format=torch.contiguous_format) for n, t in kept.items()}, partial / NETWORKS)
        base = read_settings(memory / "memory.json").get("base")
        card = model_card(checkpoint, method, "memory of edits beside a frozen language model", "", base)
        (partial / "README.md").write_text(card, encoding="utf-8")


def _export_model(
    checkpoint: Path, output: Path, dtype: torch.dtype, form: Literal["merged", "adapter"], base: str | None
) -> None:
    backbone = _backbone(checkpoint)
    print(f"reading {checkpoint}", flush=True)
    weights, is_adapter, method = _weights(checkpoint)
    settings = find_key(read_settings(checkpoint.absolute().parent / "config.yaml").get("model"), "backbone")
    settings = settings if isinstance(settings, dict) else {}
    source = f"{checkpoint} (written by {method})"
    print(f"{len(weights):,} tensors, {sum(map(Tensor.numel, weights.values())):,} numbers", flush=True)
    lora, model = None, None
    if is_adapter:
        lora = _lora(backbone, base)
        if form == "merged":
            model = _merged(backbone, lora, settings, weights, source)
    elif form == "adapter":
        raise DataError(f"{checkpoint} holds all weights of a model and no adapter: leave out --form adapter")
    else:
        model = _model(backbone, weights, source)

    with _replaced(output) as partial:
        print(f"writing {output}", flush=True)
        if model is not None:
            _save(model.to(dtype), backbone, partial)
        elif lora is not None:
            _save_adapter(lora, {name: tensor.to(dtype) for name, tensor in weights.items()}, partial)
        architecture, automatic = _classes(backbone)
        started_from = settings.get("name") or read_settings(backbone / "base.json").get("name")
        started_from = started_from if lora is None else lora.base_model_name_or_path
        card = model_card(checkpoint, method, architecture, automatic, started_from, adapter=model is None)
        (partial / "README.md").write_text(card, encoding="utf-8")
        _tokenizer(backbone).save_pretrained(partial)


@contextmanager
def _replaced(output: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of `output` when all went well and else leaves no trace."""
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        yield partial
        partial.chmod(0o755)
        if output.exists():
            shutil.rmtree(output)
        partial.rename(output)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if is_out_of_space(error):
            raise DataError(space_message(output, "; nothing was written")) from error
        raise


def _checkpoint(path: Path) -> Path:
    if not path.exists():
        raise DataError(f"--checkpoint {path}: there is no such file or folder")
    if path.is_dir() and not (path / "checkpoint").is_dir():
        return find_checkpoint(RunFolder(path.name, path, path), "best")[0]
    if damage := incomplete(path):
        raise DataError(f"--checkpoint {path} is incomplete: {damage}")
    return path


def _backbone(checkpoint: Path) -> Path:
    folder = next(
        (f / "backbone" for f in checkpoint.absolute().parents[:2] if (f / "backbone" / "config.json").is_file()), None
    )
    if folder is None:
        raise DataError(
            f"no backbone/config.json beside {checkpoint}: export a checkpoint where its run wrote it, or copy the "
            "run's backbone folder beside it"
        )
    return folder


def _is_export(folder: Path) -> bool:
    card = folder / "README.md"
    return card.is_file() and MARK in card.read_text(encoding="utf-8", errors="replace")


def _weights(checkpoint: Path) -> tuple[dict[str, Tensor], bool, str]:
    """The model's tensors by name, whether they are an adapter's alone, and the class of the module that wrote them."""
    from kedit.lm.adapter_files import CHECKPOINT_PREFIX, file_name, of_adapter

    tensors, method = _read(checkpoint)
    weights = {n.removeprefix(PREFIX): tensor for n, tensor in tensors.items() if n.startswith(PREFIX)}
    adapter = {n.removeprefix(CHECKPOINT_PREFIX): t for n, t in tensors.items() if n.startswith(CHECKPOINT_PREFIX)}
    # DeepSpeed writes the module as it is, base and all
    if any(not name.startswith("base_model.") for name in adapter):
        raise DataError(
            f"{checkpoint} holds the adapters of many edits side by side: each by itself, as PEFT reads it, is "
            f"a folder in {checkpoint.parent / 'edits'}"
        )
    adapter = adapter or {
        f"base_model.model.{file_name(name.removeprefix('base_model.model.'))}": tensor
        for name, tensor in weights.items()
        if of_adapter(name)
    }
    if not weights and not adapter:
        raise DataError(f"{checkpoint} holds no tensor named {PREFIX}...: not a checkpoint of kedit")
    return adapter or weights, bool(adapter), method


def _read(checkpoint: Path) -> tuple[dict[str, Tensor], str]:
    """All of a checkpoint's tensors, and the class of the module that wrote them."""
    if checkpoint.is_dir():
        if (checkpoint / MANIFEST).is_file() and read_manifest(checkpoint).get(UNIVERSAL):
            raise DataError(
                f"checkpoint {checkpoint} is there to train on from (`kedit convert` made it): export the one it is of"
            )
        from lightning.pytorch.utilities.deepspeed import convert_zero_checkpoint_to_fp32_state_dict

        with tempfile.TemporaryDirectory() as folder, plain_values_only(checkpoint):
            file = Path(folder) / "weights.ckpt"
            convert_zero_checkpoint_to_fp32_state_dict(str(checkpoint), str(file))
            state = torch.load(file, weights_only=True, map_location="cpu")
        # of stage 1 DeepSpeed's conversion leaves out what was not trained
        rest = state_of(checkpoint).get("module") or {}
        state["state_dict"] |= {name: value for name, value in rest.items() if name not in state["state_dict"]
                                and value.numel() and name.startswith((PREFIX, NETWORKS_PREFIX))}  # fmt: skip
    else:
        state = state_of(checkpoint)
    model = read_settings(checkpoint.absolute().parent / "config.yaml").get("model") or {}
    method = str(model.get("class_path") or state.get("hyper_parameters", {}).get("_class_path", "kedit"))
    return state.get("state_dict", {}), method


def _lora(backbone: Path, base: str | None) -> "LoraConfig":
    """The adapter's description, with the name of its base model."""
    from kedit.lm.adapter_files import read_config

    lora = read_config(backbone)
    if base is not None:
        lora.base_model_name_or_path, lora.revision = base, None
    if lora.base_model_name_or_path is None:
        raise DataError(f"{backbone} does not name the base model of the adapter: give it as --base")
    return lora


def _merged(
    backbone: Path, lora: "LoraConfig", settings: Mapping[str, Any], tensors: Mapping[str, Tensor], source: str
) -> Any:
    """The base model with the adapter added to its weights, in float32.

    Args:
        backbone: the run's.
        lora: the adapter's description.
        settings: the run's `backbone`.
        tensors: the adapter's.
        source: where they come from, for an error.
    """
    from kedit.lm.adapters import apply_adapter, merge
    from kedit.lm.backbones import Backbone, load_causal, load_seq2seq

    kept = {key: settings[key] for key in ("architecture", "dtype", "vocabulary_multiple") if settings.get(key)}
    load = load_seq2seq if _classes(backbone)[1] == "AutoModelForSeq2SeqLM" else load_causal
    print(f"loading the base model {lora.base_model_name_or_path}", flush=True)
    try:
        wanted = Backbone(name=lora.base_model_name_or_path, revision=lora.revision, **kept)
        # in the type that the adapter was trained over, and only then in float32
        return merge(apply_adapter(load(wanted, _tokenizer(backbone)).float(), lora, tensors)).eval()
    except ValueError as error:
        raise DataError(f"{source} cannot be merged into {lora.base_model_name_or_path}: {error}") from error


def _classes(backbone: Path) -> tuple[str, str]:
    """Name of the model's class, and of the one of transformers that loads it."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(backbone, local_files_only=True, trust_remote_code=False)
    automatic = "AutoModelForSeq2SeqLM" if config.is_encoder_decoder else "AutoModelForCausalLM"
    return (config.architectures or [automatic])[0], automatic


def _tokenizer(backbone: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(backbone, local_files_only=True, trust_remote_code=False)


def _model(backbone: Path, weights: Mapping[str, Tensor], source: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    from kedit.lm.weights import misfits

    config = AutoConfig.from_pretrained(backbone, local_files_only=True, trust_remote_code=False)
    builder = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    embedding, head = (next((weights[n] for n in names if n in weights), None) for names in (EMBEDDINGS, HEADS))
    if embedding is not None and head is not None and not torch.equal(embedding, head):
        config.tie_word_embeddings = False  # T5's configuration says true whatever was saved
    model = builder.from_config(config)
    wrong = misfits(model.state_dict(), weights)
    if wrong:
        raise DataError(
            f"the weights of {source} do not fit the {type(model).__name__} of {backbone / 'config.json'}:\n"
            f"{'; '.join(wrong[:4])}{f'; and {len(wrong) - 4} more' if len(wrong) > 4 else ''}"
        )
    model.load_state_dict(dict(weights))
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, weights[name].to(tensor))]
    if changed:
        raise DataError(f"{type(model).__name__} shares tensors that differ in {source}: {', '.join(changed[:4])}")
    return model.eval()


def _save(model: Any, backbone: Path, folder: Path) -> None:
    from transformers import GenerationConfig

    if (backbone / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(backbone, local_files_only=True)
    model.save_pretrained(folder)


def _save_adapter(lora: "LoraConfig", tensors: Mapping[str, Tensor], folder: Path) -> None:
    from kedit.lm.adapter_files import write_adapter

    write_adapter(folder, lora, tensors, str(lora.base_model_name_or_path), lora.revision)


def _push(folder: Path, repository: str, private: bool) -> None:
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        print(f"uploading to {repository}", flush=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Export by kedit")
    except Exception as error:  # the client's own, its HTTP library's and the system's
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise DataError(
            f"{folder} is written, but could not be uploaded to {repository}: {reason[:200]}\n"
            f"check network and login (`hf auth login`), then `hf upload {repository} {folder}`"
        ) from error
