"""What a device's memory holds and has left, by measurement. Knows no training; imports no Lightning."""

from contextlib import suppress
from pathlib import Path

import torch


class Baseline:
    """A device's memory when training began, and since.

    On the CPU a process holds interpreter and libraries, too: counted is what it has grown by, on top of the tensors
    that were there. The C library keeps blocks that were freed: a fifth to a third more than the tensors need.

    Args:
        device: of this process.
        tensors: bytes of weights and optimiser states that are there already.
    """

    def __init__(self, device: torch.device, tensors: float) -> None:
        self.device, self.present = device, tensors
        self.forget_peak()
        if device.type == "cuda":
            self.present = float(torch.cuda.memory_allocated(device))
        else:
            self._resident = _status("VmRSS")

    def forget_peak(self) -> None:
        """What was taken at most begins anew; what there was at first still counts as it did."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    @property
    def peak(self) -> float:
        """Bytes taken at most."""
        if self.device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(self.device))
        return self.present + max(_status("VmHWM") - self._resident, 0.0)

    @property
    def room(self) -> float:
        """Bytes still free."""
        if self.device.type == "cuda":
            unused = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
            return float(torch.cuda.mem_get_info(self.device)[0] + unused)
        return free_host_memory()


def free_host_memory(root: Path = Path("/")) -> float:
    """Bytes that the machine can give, or that are left to this process's control group; infinite where unknown."""
    free = float("inf")
    with suppress(OSError, ValueError, IndexError):
        free = 1024.0 * int((root / "proc/meminfo").read_text(encoding="ascii").split("MemAvailable:")[1].split()[0])
    with suppress(OSError, ValueError):
        group = root / "sys/fs/cgroup"
        limit, used = ((group / name).read_text(encoding="ascii") for name in ("memory.max", "memory.current"))
        free = min(free, float(int(limit) - int(used)))
    return free


def _status(name: str) -> float:
    with suppress(OSError, IndexError, ValueError):
        text = Path("/proc/self/status").read_text(encoding="ascii")
        return 1024.0 * int(text.split(f"{name}:")[1].split()[0])
    return 0.0
