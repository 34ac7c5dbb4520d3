"""The model card of an export: where a model comes from, what it was measured to do, how to use it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

MARK = "<!-- exported by kedit -->"
"""In a model card: the folder may be exported to again."""


def model_card(
    checkpoint: Path, method: str, architecture: str, automatic: str, base: str | None, adapter: bool = False
) -> str:
    """README.md of an export.

    Args:
        checkpoint: what was exported, beside its run's files.
        method: the class that trained it.
        architecture: class of the model.
        automatic: class of transformers that loads it.
        base: the model that training started from, None for random weights.
        adapter: the export is a LoRA adapter, not a whole model.
    """
    folder = checkpoint.absolute().parent
    run = read_settings(folder / "config.yaml").get("run") or {}
    logs = Path(run.get("logs", "logs")) / folder.name
    results = read_settings(
        next((f for f in (logs, folder.parents[1] / "logs" / folder.name) if f.is_dir()), logs) / "results.json"
    )
    facts = read_settings(folder / "data.json").items()
    data = {key: value for key, value in facts if isinstance(value, str | int | float)}
    usage = next((f for part in ("memory", "backbone") if (f := folder / part / "usage.md").is_file()), None)
    trained_by = "kedit" if method == "kedit" else f"`{method}` of kedit"
    is_hub_id = base is not None and not Path(base).expanduser().exists()
    front = ["---", f"library_name: {'peft' if adapter else 'transformers'}", "tags: [kedit]"]
    front += [f"base_model: {base}"] if is_hub_id else []
    if adapter:
        use = _adapter_usage(automatic, str(base))
    else:
        use = usage.read_text(encoding="utf-8").strip() if usage else _generic_usage(automatic)
    parts = [
        "\n".join([*front, "---"]),
        MARK,
        f"# {folder.name}",
        f"A {f'LoRA adapter for a {architecture}' if adapter else architecture} trained by {trained_by}; base model: "
        f"{base or 'none, random weights'}; run `{folder.name}`, checkpoint `{checkpoint.name}`.",
        "## Use",
        use,
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


def _adapter_usage(automatic: str, base: str) -> str:
    return (
        f"```python\nfrom peft import PeftModel\nfrom transformers import AutoTokenizer, {automatic}\n\n"
        'tokenizer = AutoTokenizer.from_pretrained("this folder")\n'
        f'base = {automatic}.from_pretrained("{base}")\n'
        'model = PeftModel.from_pretrained(base, "this folder")\n'
        "with model.disable_adapter():\n    ...  # the base model, bit for bit\n```"
    )


def _table(values: Mapping[str, Any]) -> str:
    shown = {key: f"{value:.4f}" if isinstance(value, float) else str(value) for key, value in values.items()}
    return "\n".join(["| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in shown.items())])


def read_settings(path: Path) -> dict[str, Any]:
    """A YAML or JSON file's mapping; empty where there is no file."""
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8")
    return (json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)) or {}


def find_key(tree: Any, key: str) -> Any:
    """The first value under `key` in nested mappings."""
    if isinstance(tree, dict):
        found = (find_key(value, key) for value in tree.values())
        return tree[key] if key in tree else next((value for value in found if value), None)
    return None
