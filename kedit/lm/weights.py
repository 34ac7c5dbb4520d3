"""Weights compared with the module that is to take them. Knows names and shapes only."""

from collections.abc import Mapping

from torch import Tensor


def misfits(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """Why weights cannot be loaded, a phrase for each tensor; empty where they fit.

    Args:
        own: the module's state.
        given: the weights.
    """
    wrong = [f"{name} is missing" for name in own if name not in given]
    wrong += [f"{name} is unknown" for name in given if name not in own]
    return wrong + [
        f"{name} is {tuple(given[name].shape)}, wanted {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in given and given[name].shape != tensor.shape
    ]
