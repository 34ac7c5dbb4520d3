"""A LoRA adapter's files, as PEFT reads them: adapter_config.json and adapter_model.safetensors in a folder.

A folder appears when it is whole; one that was cut off or altered since is found out when it is read. Knows no model.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
IMPORTING = {"megatron_config", "megatron_core", "auto_mapping"}
"""Settings that name modules which PEFT imports: a file does not choose what is run."""
CHECKPOINT_PREFIX = "adapter."
"""Before the names of an adapter's tensors in a run's checkpoint."""


def of_adapter(name: str) -> bool:
    """Whether a parameter of that name in a PEFT model is the adapter's."""
    return ".lora_A.default." in name or ".lora_B.default." in name


def file_name(name: str) -> str:
    """What PEFT's files call a parameter of the adapter."""
    return name.replace(".default.", ".")


def write_adapter(
    folder: str | Path, config: LoraConfig, tensors: Mapping[str, Tensor], base_name: str, revision: str | None = None
) -> None:
    """Write an adapter's folder; an adapter that is there already is replaced, once the new one is whole.

    Args:
        folder: what to write.
        config: the adapter's description.
        tensors: by their `file_name`.
        base_name: hub id or folder of the base model.
        revision: of a hub model.

    Raises:
        OSError: the folder holds something else.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / CONFIG).is_file())):
        raise FileExistsError(f"{folder} is not empty and holds no adapter: name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(whole, partial / WEIGHTS, metadata={"format": "pt", "sha256": _checksum(whole)})
        write_config(partial, config, base_name, revision)
        partial.chmod(0o755)
        if folder.exists():
            old = folder.rename(partial.with_name(f"{partial.name}.old"))
            partial.rename(folder)
            shutil.rmtree(old)
        else:
            partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_config(folder: Path, config: LoraConfig, base_name: str | None, revision: str | None) -> None:
    """Write adapter_config.json alone."""
    settings = config.to_dict() | {
        "base_model_name_or_path": base_name,
        "revision": revision,
        "inference_mode": True,  # as PEFT saves it
        "target_modules": config.target_modules if isinstance(config.target_modules, str) else target_names(config),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def target_names(config: LoraConfig) -> list[str]:
    """Last names of the layers that have an adapter, where the description lists them."""
    return sorted(config.target_modules or ())


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + b"\0")
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_config(folder: str | Path) -> LoraConfig:
    """The description of the adapter in a folder.

    Raises:
        OSError: there is none, or it is damaged.
    """
    file = Path(folder) / CONFIG
    if not file.is_file():
        raise OSError(f"{folder}: holds no {CONFIG}, so it is no adapter, or one whose writing was cut off")
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        if settings["peft_type"] != "LORA":
            raise ValueError(f"its peft_type is {settings['peft_type']}, wanted LORA")
        # other versions of PEFT have other settings besides
        known = set(LoraConfig.__dataclass_fields__) - IMPORTING
        return LoraConfig(**{key: settings[key] for key in known if key in settings})
    except (ValueError, TypeError, KeyError) as error:
        raise OSError(f"{file}: damaged, or no description of a LoRA adapter: {error}") from error


def read_adapter(folder: str | Path) -> tuple[LoraConfig, dict[str, Tensor]]:
    """The adapter in a folder: its description, and its tensors by their `file_name`.

    Raises:
        OSError: it is incomplete or damaged.
    """
    config, file = read_config(folder), Path(folder) / WEIGHTS
    if not file.is_file():
        raise OSError(f"{folder}: holds no {WEIGHTS}, so its writing was cut off: write the adapter again")
    try:
        with safe_open(file, framework="pt") as opened:
            checksum = (opened.metadata() or {}).get("sha256")
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise OSError(f"{file}: cut off or damaged ({error}): write the adapter again") from error
    if checksum is not None and checksum != _checksum(tensors):
        raise OSError(f"{file}: damaged, its checksum is another one: write the adapter again")
    return config, tensors
