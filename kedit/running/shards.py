"""DeepSpeed's shards read without running what may be pickled in them: of its own classes, only those that it saves.

DeepSpeed, and Lightning's conversion of its folders, load with `weights_only=False`, which calls whatever a file names.
"""

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from kedit.editing.sources import DataError

FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


@contextmanager
def plain_values_only(checkpoint: Path) -> Iterator[None]:
    """Within it `torch.load` reads tensors, plain values and DeepSpeed's own records only, however it is called.

    Args:
        checkpoint: what is read, for an error.

    Raises:
        DataError: the file holds something else, which was not made.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    before = os.environ.get(FORCE)
    os.environ[FORCE] = "1"
    try:
        with torch.serialization.safe_globals([DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]):
            yield
    except pickle.UnpicklingError as error:
        raise DataError(
            f"checkpoint {checkpoint} is none of a run: it holds objects other than tensors and plain values, which "
            "could run code and are not loaded, or it is damaged"
        ) from error
    finally:
        if before is None:
            del os.environ[FORCE]
        else:
            os.environ[FORCE] = before
