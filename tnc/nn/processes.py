"""One process or several: each takes its share of every batch, and all hold the same model."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data.distributed import DistributedSampler

__all__ = ["Processes", "together"]


@dataclass(frozen=True)
class Processes:
    """The processes that train together, seen from one of them."""

    rank: int = 0
    count: int = 1

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model whose gradients are means over all processes."""
        if self.count == 1 or isinstance(model, DistributedDataParallel):
            return model
        return DistributedDataParallel(model)

    def batches(self, loader: Iterable[Any], device: torch.device) -> Iterator[tuple[Tensor, Tensor, float]]:
        """The part of each batch that this process takes, and the weight that makes the mean of all parts the batch's.

        Samples are dealt out one by one. A loader that divides the samples already is taken as it is: one with a
        `DistributedSampler`, or one prepared by accelerate.
        """
        divided = isinstance(getattr(loader, "sampler", None), DistributedSampler) or hasattr(loader, "gradient_state")
        for x, y in loader:
            weight = 1.0
            if self.count > 1 and not divided:
                whole, x, y = len(y), x[self.rank :: self.count], y[self.rank :: self.count]
                weight = self.count * len(y) / whole
            yield x.to(device, non_blocking=True), y.to(device, non_blocking=True), weight

    def total(self, numbers: Tensor) -> Tensor:
        """The sum over all processes, the same in each."""
        if self.count > 1:
            distributed.all_reduce(numbers)
        return numbers

    def first(self, action: Callable[[], None]) -> None:
        """Let the first process act, and the others wait for it."""
        if self.rank == 0:
            action()
        if self.count > 1:
            distributed.barrier()


@contextmanager
def together(model: nn.Module) -> Iterator[Processes]:
    """The processes that `torchrun` or `accelerate launch` started, connected; one alone where none did.

    A connection that is there already is used and stays. One made here moves a model on CUDA to the device of its
    process.
    """
    if distributed.is_available() and distributed.is_initialized():
        yield Processes(distributed.get_rank(), distributed.get_world_size())
        return
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield Processes()
        return
    if cuda := next(model.parameters()).is_cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        model.to(torch.device("cuda", torch.cuda.current_device()))
    distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Processes(distributed.get_rank(), distributed.get_world_size())
    finally:
        # Torch's reducer of gradients, where it is the last to hold the connection, frees it under the interpreter's
        # lock, for which gloo's threads may be waiting: let reducers go first.
        gc.collect()
        distributed.destroy_process_group()
