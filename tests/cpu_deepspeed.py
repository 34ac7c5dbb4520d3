"""Lightning's DeepSpeed strategy made to run on the CPU, for tests: stock, it refuses anything but CUDA."""

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.strategies import DeepSpeedStrategy


class CPUDeepSpeed(DeepSpeedStrategy):
    """ZeRO on CPU processes.

    Args:
        stage: of ZeRO.
    """

    def __init__(self, stage: int = 2):
        import deepspeed.ops

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled
        super().__init__(stage=stage, process_group_backend="gloo")
        # or weights as small as those of tests would not be dealt out
        self.config["zero_optimization"]["stage3_param_persistence_threshold"] = 0

    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu", self.local_rank)  # DeepSpeed wants an index

    def setup_environment(self) -> None:
        super(DeepSpeedStrategy, self).setup_environment()

    def setup_distributed(self) -> None:
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()
