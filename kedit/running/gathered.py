"""Weights that ZeRO-3 deals out to the processes, whole for a while on each. Knows no method.

Dealt out, a module can run only where all processes run it together and equally often: not to write texts, which end
when they end, nor on one process alone.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakSet

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

_WHOLE: WeakSet[nn.Module] = WeakSet()


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Inside, each process has all weights of a module, and may do with it what it likes; what it changes in them is
    lost. Of no effect where they are not dealt out. All processes enter together; to leave, none waits for another.
    """
    dealt_out = [weight for weight in module.parameters() if hasattr(weight, "ds_id")]
    if not dealt_out or module in _WHOLE:
        yield
        return
    import deepspeed

    # the hooks that gather and deal out, all processes together, layer by layer
    tables = [table for part in module.modules() for table in (part._forward_pre_hooks, part._forward_hooks)]
    before = [dict(table) for table in tables]
    whole = deepspeed.zero.GatheredParameters(dealt_out)
    with _plain_tensors():
        whole.__enter__()
    _WHOLE.add(module)
    try:
        for table in tables:
            for key in [key for key, hook in table.items() if _of_deepspeed(hook)]:
                del table[key]
        yield
    finally:
        _WHOLE.discard(module)
        for table, hooks in zip(tables, before, strict=True):
            table.clear()
            table.update(hooks)
        with _plain_tensors():
            whole.__exit__(None, None, None)


@contextmanager
def _plain_tensors() -> Iterator[None]:
    """Weights made in inference mode, in which Lightning judges, could not be trained any more."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def _of_deepspeed(hook: Callable[..., Any]) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("deepspeed.")


class WholeForJudging(Callback):
    """Validates, tests and predicts with whole weights."""

    def __init__(self) -> None:
        self._open = ExitStack()

    def _gather(self, module: LightningModule) -> None:
        self._open.enter_context(gathered(module))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._gather(pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._gather(pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._gather(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open.close()  # before ModelCheckpoint, which comes last, saves

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open.close()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._open.close()
