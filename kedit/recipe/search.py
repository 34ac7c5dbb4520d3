"""Search among keys: the exact k largest inner products, in blocks, on any device. Knows no edit, only its number.

Shapes: N keys, B queries, D key width, K wanted, G groups of keys, P pairs of a query and a group.

A first pass multiplies in the precision of the stored keys and keeps the maximum of each group of 32 keys. Rounding
moves a score by at most e, so that the K best lie in groups whose maximum is at least (K-th largest maximum) - 2 e:
these few are scored again in float32, and the answer is that of the whole product.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from kedit.editing.sources import DataError

GROUP = 32
BLOCK = 1 << 17
"""Keys in one piece of memory; a whole number of steps."""
STEPS = {"cpu": 1 << 15}
"""Keys multiplied at once; elsewhere a whole block."""
MOST_QUERIES = 1024
GATHERED = 1 << 24
"""Numbers gathered at once in the second pass."""
ROUNDING = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


class Found(NamedTuple):
    """What a search found, the best first.

    Args:
        scores_BK: inner products, float32; of equal ones the newest first; -inf where there are fewer than K keys.
        numbers_BK: the keys' numbers, int64; -1 where there are fewer.
    """

    scores_BK: Tensor
    numbers_BK: Tensor


class Index:
    """Keys by number, in memory.

    A key costs its own bytes and 16 more; adding never copies what is there beyond the last block, which doubles.

    Args:
        width: D.
        device: where the keys lie and are searched.
        dtype: in which they are stored: float32, float16 or bfloat16. The scores are exact for what is stored.
    """

    def __init__(self, width: int, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32):
        if dtype not in ROUNDING:
            raise DataError(f"keys in {dtype}: wanted one of {', '.join(map(str, ROUNDING))}")
        self.width, self.device, self.dtype = width, torch.device(device), dtype
        self._blocks: list[Tensor] = []
        self._numbers_N = np.empty(0, np.int64)
        self._places = np.empty(0, np.int64)  # row of a number; -1 where it has none
        self._length = 0
        self._longest = 0.0

    def __len__(self) -> int:
        return self._length

    def add(self, numbers: Sequence[int] | np.ndarray, keys_ND: np.ndarray | Tensor) -> None:
        """Add keys; one whose number is there already takes its place.

        Args:
            numbers: small and dense, as a repository's are: memory grows with the largest.
            keys_ND: finite.

        Raises:
            DataError: wrong shape, a number that comes twice or is negative, a key that is no number or too long.
        """
        numbers = np.asarray(numbers, dtype=np.int64).reshape(-1)
        keys_ND = self._checked(keys_ND, "key", len(numbers)).to(self.dtype)
        if not len(numbers):
            return
        if len(np.unique(numbers)) != len(numbers) or numbers.min() < 0:
            raise DataError("the keys' numbers: each must be 0 or more, and come once")
        longest = torch.linalg.vector_norm(keys_ND, dim=1, dtype=torch.float32).max().item()
        if not longest < torch.finfo(self.dtype).max / 2:
            raise DataError(f"a key of length {longest:.3g} does not fit {self.dtype}: use float32, or shorter keys")
        self._longest = max(self._longest, longest)
        self._places = _grown(self._places, int(numbers.max()) + 1, -1)
        rows = self._places[numbers]
        new = rows < 0
        rows[new] = np.arange(self._length, self._length + int(new.sum()))
        self._reserve(self._length + int(new.sum()))
        self._put(rows, keys_ND)
        self._numbers_N[rows], self._places[numbers] = numbers, rows

    def remove(self, numbers: Sequence[int] | np.ndarray) -> int:
        """Drop keys, pass over numbers that are not there; returns how many were."""
        numbers = np.unique(np.asarray(numbers, dtype=np.int64).reshape(-1))
        numbers = numbers[(numbers >= 0) & (numbers < len(self._places))]
        gone = self._places[numbers]
        numbers, gone = numbers[gone >= 0], gone[gone >= 0]
        length = self._length - len(gone)
        self._places[numbers] = -1
        holes = np.sort(gone[gone < length])
        tail = np.arange(length, self._length)
        movers = tail[self._places[self._numbers_N[tail]] == tail]
        self._put(holes, self._take(movers))
        self._numbers_N[holes] = self._numbers_N[movers]
        self._places[self._numbers_N[holes]] = holes
        self._length = length
        del self._blocks[-(-length // BLOCK) :]
        return len(gone)

    def keys(self, numbers: Sequence[int] | np.ndarray | Tensor) -> Tensor:
        """The stored keys [n, D] of numbers, in float32.

        Raises:
            DataError: a number is not there.
        """
        wanted = np.asarray(numbers, dtype=np.int64).reshape(-1)
        known = (wanted >= 0) & (wanted < len(self._places))
        rows = np.where(known, self._places[np.where(known, wanted, 0)] if len(self._places) else -1, -1)
        if (rows < 0).any():
            raise DataError(f"no key of number {wanted[rows < 0][0]} in the index")
        return self._take(rows).float()

    def blocks(self) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield (numbers, keys [n, D] as they are stored) of all keys."""
        for start in range(0, self._length, BLOCK):
            stop = min(start + BLOCK, self._length)
            yield self._numbers_N[start:stop], self._blocks[start // BLOCK][: stop - start]

    @torch.inference_mode()
    def search(self, queries_BD: np.ndarray | Tensor, k: int = 1) -> Found:
        """The k keys with the largest inner product.

        Raises:
            DataError: wrong shape, or a query that is no number.
        """
        if k < 1:
            raise DataError(f"k={k}: at least 1 is wanted")
        queries_BD = self._checked(queries_BD, "query")
        parts = [self._search(part_BD, k) for part_BD in queries_BD.split(MOST_QUERIES)]
        scores_BK, numbers_BK = (torch.cat(part) for part in zip(*parts, strict=True))
        return Found(scores_BK, numbers_BK)

    def _search(self, queries_BD: Tensor, k: int) -> tuple[Tensor, Tensor]:
        count = len(queries_BD)
        if not self._length or not count:
            empty_BK = torch.full((count, k), -torch.inf, device=self.device)
            return empty_BK, torch.full_like(empty_BK, -1, dtype=torch.int64)
        lengths_B1 = torch.linalg.vector_norm(queries_BD, dim=1, keepdim=True)
        unit_BD = queries_BD / lengths_B1.clamp_min(torch.finfo(torch.float32).tiny)
        maxima_BG, firsts_G, strides_G = self._maxima(unit_BD.to(self.dtype))
        bound_B1 = 2 * self._error(unit_BD)
        least_B1 = maxima_BG.topk(min(k, maxima_BG.shape[1]), dim=1).values[:, -1:] - bound_B1
        which_P, group_P = (maxima_BG >= least_B1).nonzero(as_tuple=True)
        rows_PG = firsts_G[group_P, None] + strides_G[group_P, None] * torch.arange(GROUP, device=self.device)
        scores_PG = self._rescore(queries_BD, which_P, rows_PG)
        numbers_N = torch.from_numpy(self._numbers_N[: self._length])
        numbers_PG = numbers_N[rows_PG.clamp_max(self._length - 1).cpu()].to(self.device)
        scores, numbers = scores_PG.flatten(), numbers_PG.flatten()
        which = which_P.repeat_interleave(GROUP)
        order = numbers.argsort(descending=True)  # by query, then score, then the newest: three stable sorts
        order = order[scores[order].argsort(descending=True, stable=True)]
        order = order[which[order].argsort(stable=True)]
        starts_B1 = torch.searchsorted(which[order], torch.arange(count, device=self.device))[:, None]
        places_BK = starts_B1 + torch.arange(min(k, self._length), device=self.device)
        best_BK = order[places_BK]
        missing = (0, k - best_BK.shape[1])
        return pad(scores[best_BK], missing, value=-torch.inf), pad(numbers[best_BK], missing, value=-1)

    def _maxima(self, queries_BD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of each group: the largest product [B, G], the first row [G] and the distance between rows [G]."""
        maxima, firsts, strides = [], [], []
        step = STEPS.get(self.device.type, BLOCK)
        for start in range(0, self._length, step):
            inside, stop = start % BLOCK, min(start + step, self._length)
            rows_MD = self._blocks[start // BLOCK][inside : inside + stop - start]
            products_BM = queries_BD @ rows_MD.T
            if short := -len(rows_MD) % GROUP:
                products_BM = pad(products_BM, (0, short), value=-torch.inf)
            stride = products_BM.shape[1] // GROUP
            maxima.append(products_BM.view(-1, GROUP, stride).amax(1))  # contiguous along rows: vectorised
            firsts.append(torch.arange(start, start + stride, device=self.device))
            strides.append(torch.full((stride,), stride, device=self.device))
        return torch.cat(maxima, 1).float(), torch.cat(firsts), torch.cat(strides)

    def _error(self, unit_BD: Tensor) -> Tensor:
        """How far a product of the first pass may be from the exact one, [B, 1]."""
        rounding = ROUNDING[self.dtype]
        if self.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
            rounding = ROUNDING[torch.bfloat16]
        rounded_B1 = torch.linalg.vector_norm(unit_BD - unit_BD.to(self.dtype).float(), dim=1, keepdim=True)
        error_B1 = self._longest * (rounded_B1 + 2 * rounding + 2 * self.width * ROUNDING[torch.float32])
        return error_B1 + (2.0**-24 if self.dtype == torch.float16 else 0.0)  # the smallest numbers are coarse

    def _rescore(self, queries_BD: Tensor, which_P: Tensor, rows_PG: Tensor) -> Tensor:
        parts = []
        size = max(1, GATHERED // (GROUP * self.width))
        for which, rows in zip(which_P.split(size), rows_PG.split(size), strict=True):
            keys = self._take(rows.flatten().clamp_max(self._length - 1)).view(*rows.shape, -1).float()
            scores = (keys * queries_BD[which, None]).sum(-1)  # no matrix product: none of its faster, rounder ways
            parts.append(scores.masked_fill(rows >= self._length, -torch.inf))  # what the last step was padded with
        return torch.cat(parts)

    def _take(self, rows: np.ndarray | Tensor) -> Tensor:
        rows = torch.as_tensor(rows, device=self.device)
        if len(self._blocks) == 1:
            return self._blocks[0].index_select(0, rows)
        out = torch.empty(len(rows), self.width, dtype=self.dtype, device=self.device)
        blocks = rows // BLOCK
        for block in blocks.unique().tolist():
            here = (blocks == block).nonzero()[:, 0]
            out[here] = self._blocks[block][rows[here] % BLOCK]
        return out

    def _put(self, rows: np.ndarray, keys_ND: Tensor) -> None:
        blocks = rows // BLOCK
        for block in np.unique(blocks):
            here = np.flatnonzero(blocks == block)
            inside = torch.from_numpy(rows[here] % BLOCK).to(self.device)
            self._blocks[block][inside] = keys_ND[torch.from_numpy(here).to(self.device)]

    def _reserve(self, length: int) -> None:
        self._numbers_N = _grown(self._numbers_N, length, -1)
        for block in range(-(-length // BLOCK)):
            wanted = min(BLOCK, length - block * BLOCK)
            have = len(self._blocks[block]) if block < len(self._blocks) else 0
            if have >= wanted:
                continue
            size = min(BLOCK, max(GROUP, 2 * have, wanted))
            larger = torch.empty(size, self.width, dtype=self.dtype, device=self.device)
            if have:
                larger[:have] = self._blocks[block]
                self._blocks[block] = larger
            else:
                self._blocks.append(larger)
        self._length = length

    def _checked(self, rows: Any, what: str, count: int | None = None) -> Tensor:
        """As float32 on the device."""
        if isinstance(rows, np.ndarray) and not rows.flags.writeable:
            rows = np.array(rows)  # as from a mapped file: torch takes no such memory without a warning
        rows_ND = torch.as_tensor(rows).detach()
        if rows_ND.ndim != 2 or rows_ND.shape[1] != self.width or not rows_ND.is_floating_point():
            raise DataError(
                f"{what}s of shape {list(rows_ND.shape)} and {rows_ND.dtype}: wanted [number, {self.width}] of floats"
            )
        if count is not None and len(rows_ND) != count:
            raise DataError(f"{len(rows_ND)} {what}s for {count} numbers: wanted one each")
        rows_ND = rows_ND.to(self.device, torch.float32)
        if not (finite := rows_ND.isfinite().all(1)).all():
            raise DataError(f"{what} {int(finite.logical_not().nonzero()[0]) + 1} of {len(rows_ND)} holds NaN or Inf")
        return rows_ND


class FaissIndex:
    """The same by FAISS, for serving on CPUs: a `Flat` index is exact, others trade it for speed.

    Args:
        width: D.
        factory: what faiss.index_factory takes, as in "Flat" or "IVF1024,Flat"; one that must be trained is, on the
            keys of the first call of `add`. From an HNSW index nothing can be taken out, so it is refused.

    Raises:
        DataError: FAISS is not installed, or has no such index.
    """

    def __init__(self, width: int, factory: str = "Flat"):
        try:
            import faiss
        except ImportError as error:
            raise DataError("faiss is not installed: pip install 'kedit[faiss]', or use the index of torch") from error
        try:
            index = faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT)
            # one of inverted lists keeps numbers itself, and a map beside it would be wrong after a removal
            self._index: Any = index if faiss.try_extract_index_ivf(index) else faiss.IndexIDMap(index)
            self.remove([])
        except RuntimeError as error:
            raise DataError(
                f"faiss has no index {factory!r} from which keys can be taken: give another, as Flat ({error})"
            ) from error
        self.width, self.factory = width, factory

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def add(self, numbers: Sequence[int] | np.ndarray, keys_ND: np.ndarray) -> None:
        """As `Index.add`.

        Raises:
            DataError: also where the keys are too few to train on.
        """
        numbers = np.asarray(numbers, dtype=np.int64)
        keys_ND = np.ascontiguousarray(keys_ND, np.float32)
        if keys_ND.shape != (len(numbers), self.width) or not np.isfinite(keys_ND).all():
            raise DataError(f"keys of shape {list(keys_ND.shape)}: wanted finite [{len(numbers)}, {self.width}]")
        if not self._index.is_trained:
            try:
                self._index.train(keys_ND)
            except RuntimeError as error:
                raise DataError(
                    f"the index {self.factory!r} of faiss cannot be trained on {len(keys_ND):,} keys: store more "
                    f"before it is opened, or give a smaller one, as Flat ({error})"
                ) from error
        self.remove(numbers)
        self._index.add_with_ids(keys_ND, numbers)

    def remove(self, numbers: Sequence[int] | np.ndarray) -> int:
        """As `Index.remove`; goes through all keys."""
        return int(self._index.remove_ids(np.asarray(numbers, dtype=np.int64)))

    def search(self, queries_BD: np.ndarray | Tensor, k: int = 1) -> Found:
        """As `Index.search`."""
        queries_BD = np.ascontiguousarray(torch.as_tensor(queries_BD).float().cpu().numpy())
        if queries_BD.ndim != 2 or queries_BD.shape[1] != self.width or not np.isfinite(queries_BD).all():
            raise DataError(f"queries of shape {list(queries_BD.shape)}: wanted finite [number, {self.width}]")
        if not len(self):  # which one that was not trained yet does not search
            return Found(torch.full((len(queries_BD), k), -torch.inf), torch.full((len(queries_BD), k), -1))
        scores_BK, numbers_BK = self._index.search(queries_BD, k)
        found_BK = torch.from_numpy(numbers_BK)
        return Found(torch.from_numpy(scores_BK).masked_fill(found_BK < 0, -torch.inf), found_BK)


def _grown(array: np.ndarray, length: int, fill: int) -> np.ndarray:
    if length <= len(array):
        return array
    larger = np.full(max(length, 2 * len(array), 1024), fill, array.dtype)
    larger[: len(array)] = array
    return larger
