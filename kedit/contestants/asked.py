"""A base model as every contestant is asked: by the same tokens, and on the same device. Knows no method."""

import torch

from kedit.comparing.way import Base
from kedit.recipe.prefix import PrefixedModel


def asked(base: Base) -> PrefixedModel:
    """A copy of the base model, on cuda where there is one, with its weights frozen.

    Raises:
        DataError: it cannot be asked.
        OSError: it cannot be had.
    """
    model, tokenizer = base.load()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return PrefixedModel(model.to(device), tokenizer, bos=base.bos)  # type: ignore[arg-type]
