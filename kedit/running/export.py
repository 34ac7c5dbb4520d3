"""A checkpoint to a Hugging Face folder, with a model card. Knows a run's folder and transformers; no method.

A run's `backbone/` holds the model's configuration and tokenizer, its checkpoints hold the weights under `model.`.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor

from kedit.editing.sources import DataError
from kedit.running.errors import is_out_of_space, space_message
from kedit.running.runs import RunFolder, find_checkpoint, incomplete, state_of

PREFIX = "model."
MARK = "<!-- exported by kedit -->"
"""In a model card: the folder may be exported to again."""


def export(
    checkpoint: Path,
    output: Path,
    push_to: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    private: bool = True,
) -> Path:
    """Write a checkpoint as a Hugging Face folder: weights, tokenizer, model card.

    Args:
        checkpoint: a checkpoint (a file, or a folder as DeepSpeed writes it), or a run's folder for its best one.
        output: the folder to write; it must be empty or an earlier export.
        push_to: hub repository to upload the folder to, as user/name.
        dtype: type of the weights written.
        private: whether a repository that push_to creates is private.

    Returns:
        The folder.
    """
    start = time.monotonic()
    checkpoint, output = _checkpoint(Path(checkpoint)), Path(output)
    backbone = _backbone(checkpoint)
    if output.exists() and (not output.is_dir() or any(output.iterdir())) and not _is_export(output):
        raise DataError(f"--output {output} is not empty and no earlier export: name another folder")

    print(f"reading {checkpoint}", flush=True)
    weights, method = _weights(checkpoint)
    print(
        f"{len(weights):,} tensors, {sum(map(Tensor.numel, weights.values())):,} numbers; building the model",
        flush=True,
    )
    model = _model(backbone, weights, f"{checkpoint} (written by {method})").to(getattr(torch, dtype))

    output.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        print(f"writing {output}", flush=True)
        _save(model, backbone, partial)
        (partial / "README.md").write_text(model_card(checkpoint, method, model), encoding="utf-8")
        partial.chmod(0o755)
        if output.exists():
            shutil.rmtree(output)
        partial.rename(output)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if is_out_of_space(error):
            raise DataError(space_message(output, "; nothing was written")) from error
        raise
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    print(f"{output}: {size / 2**20:,.1f} MiB in {time.monotonic() - start:.1f} s", flush=True)
    if push_to is not None:
        _push(output, push_to, private)
    return output


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


def _weights(checkpoint: Path) -> tuple[dict[str, Tensor], str]:
    """The model's tensors by name, and the class of the module that wrote them."""
    if checkpoint.is_dir():
        # DeepSpeed reads its shards with pickle: for checkpoints of one's own
        from lightning.pytorch.utilities.deepspeed import convert_zero_checkpoint_to_fp32_state_dict

        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "weights.ckpt"
            convert_zero_checkpoint_to_fp32_state_dict(str(checkpoint), str(file))
            state = torch.load(file, weights_only=True, map_location="cpu")
    else:
        state = state_of(checkpoint)
    weights = {
        name.removeprefix(PREFIX): tensor
        for name, tensor in state.get("state_dict", {}).items()
        if name.startswith(PREFIX)
    }
    if not weights:
        raise DataError(f"{checkpoint} holds no tensor named {PREFIX}...: not a checkpoint of kedit")
    model = _read(checkpoint.absolute().parent / "config.yaml").get("model") or {}
    return weights, str(model.get("class_path") or state.get("hyper_parameters", {}).get("_class_path", "kedit"))


def _model(backbone: Path, weights: Mapping[str, Tensor], source: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    config = AutoConfig.from_pretrained(backbone, local_files_only=True)
    builder = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    embedding = next(
        (weights[name] for name in ("shared.weight", "model.embed_tokens.weight") if name in weights), None
    )
    head = weights.get("lm_head.weight")
    if embedding is not None and head is not None and not torch.equal(embedding, head):
        config.tie_word_embeddings = False  # T5's configuration says true whatever was saved
    model = builder.from_config(config)
    own = model.state_dict()
    wrong = [f"{name} is missing" for name in own if name not in weights]
    wrong += [f"{name} is unknown" for name in weights if name not in own]
    wrong += [
        f"{name} is {tuple(weights[name].shape)}, wanted {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
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
    from transformers import AutoTokenizer, GenerationConfig

    if (backbone / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(backbone, local_files_only=True)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(backbone, local_files_only=True).save_pretrained(folder)


def model_card(checkpoint: Path, method: str, model: Any) -> str:
    """README.md of an export: where the model comes from, what it was measured to do, how to use it."""
    folder = checkpoint.absolute().parent
    config = _read(folder / "config.yaml")
    base = _find(config.get("model"), "backbone")
    base = (base.get("name") if isinstance(base, dict) else None) or None
    run = config.get("run") or {}
    logs = Path(run.get("logs", "logs")) / folder.name
    results = _read(
        next((f for f in (logs, folder.parents[1] / "logs" / folder.name) if f.is_dir()), logs) / "results.json"
    )
    data = {key: value for key, value in _read(folder / "data.json").items() if isinstance(value, str | int | float)}
    automatic = "AutoModelForSeq2SeqLM" if model.config.is_encoder_decoder else "AutoModelForCausalLM"
    usage = folder / "backbone" / "usage.md"
    trained_by = "kedit" if method == "kedit" else f"`{method}` of kedit"
    front = ["---", "library_name: transformers", "tags: [kedit]", *([f"base_model: {base}"] if base else []), "---"]
    parts = [
        "\n".join(front),
        MARK,
        f"# {folder.name}",
        f"A {type(model).__name__} trained by {trained_by}; base model: {base or 'none, random weights'}; "
        f"run `{folder.name}`, checkpoint `{checkpoint.name}`.",
        "## Use",
        usage.read_text(encoding="utf-8").strip() if usage.is_file() else _generic_usage(automatic),
        "## Data",
        _table(data) if data else "See the run's configuration.",
        "Text from Wikipedia is licensed CC BY-SA 4.0 and GFDL: who passes on text, or a model that can repeat it, "
        "names its source.",
        "## Measured",
        _table(results) if results else "Not tested.",
    ]
    return "\n\n".join(parts) + "\n"


def _generic_usage(automatic: str) -> str:
    return (
        f"```python\nfrom transformers import AutoTokenizer, {automatic}\n\n"
        'tokenizer = AutoTokenizer.from_pretrained("this folder")\n'
        f'model = {automatic}.from_pretrained("this folder")\n'
        'ids = tokenizer("A text.", return_tensors="pt")\n'
        "print(tokenizer.decode(model.generate(**ids, max_new_tokens=32)[0]))\n```"
    )


def _table(values: Mapping[str, Any]) -> str:
    shown = {key: f"{value:.4f}" if isinstance(value, float) else str(value) for key, value in values.items()}
    return "\n".join(["| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in shown.items())])


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8")
    return (json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)) or {}


def _find(tree: Any, key: str) -> Any:
    """The first value under `key` in nested mappings."""
    if isinstance(tree, dict):
        return (
            tree[key] if key in tree else next((found for value in tree.values() if (found := _find(value, key))), None)
        )
    return None


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
