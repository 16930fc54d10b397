"""Training in one process or in several: each takes its part of every batch, and all hold the same model."""

from __future__ import annotations

import atexit
import gc
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data.distributed import DistributedSampler

from tnc.errors import TncError, listed
from tnc.nn.data.batches import Batch, read

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

__all__ = ["Part", "Processes", "connect_processes"]

_api: Any = distributed
"""``torch.distributed``, for the names that it has without declaring them to type checkers."""

_ATTEMPTS = 20
"""How often to connect again if another run was still closing its store on the same port."""


class Part(list[Any]):
    """Some batches of a loader. They are divided among the processes, unless the loader has divided them already.

    Parameters
    ----------
    batches : iterable
    loader : iterable
    """

    def __init__(self, batches: Iterable[Any], loader: Iterable[Any]) -> None:
        super().__init__(batches)
        self.is_divided = _is_divided(loader)


def _is_divided(loader: Iterable[Any]) -> bool:
    """Whether the batches of a loader are the part of this process already."""
    if isinstance(loader, Part):
        return loader.is_divided
    has_sampler = isinstance(getattr(loader, "sampler", None), DistributedSampler)
    return has_sampler or hasattr(loader, "gradient_state")  # an attribute of accelerate's loaders


@dataclass(frozen=True)
class Processes:
    """The processes that train together, seen from one of them.

    Attributes
    ----------
    rank : int
        The number of this process, from 0.
    count : int
        How many processes there are.
    """

    rank: int = 0
    count: int = 1

    @contextmanager
    def parallel(self, model: nn.Module) -> Iterator[nn.Module]:
        """The model, wrapped so that its gradients are means over all processes."""
        if self.count == 1 or isinstance(model, DistributedDataParallel):
            yield model
            return
        wrapper = DistributedDataParallel(model)
        try:
            yield wrapper
        finally:
            _free_reducer(wrapper)

    def batches(self, loader: Iterable[Any], device: torch.device) -> Iterator[Batch]:
        """The part of each batch that this process takes, on a device.

        Process k of n takes every n-th sample, from sample k on. A loader that divides the samples itself is used as
        it is: one with a `DistributedSampler`, or one prepared by accelerate.
        """
        divided = _is_divided(loader)
        for given in loader:
            batch = read(given)
            if self.count > 1 and not divided:
                batch = batch.dealt(self.rank, self.count)
            yield batch.moved(device)

    def total(self, numbers: Tensor) -> Tensor:
        """The sum of a tensor over all processes, in place; the result is the same in each."""
        if self.count > 1:
            distributed.all_reduce(numbers)
        return numbers

    def first(self, action: Callable[[], None]) -> None:
        """Run `action` in the first process, and let the others wait for it."""
        if self.rank == 0:
            action()
        if self.count > 1:
            distributed.barrier()


def connect_processes(*models: nn.Module | None) -> Processes:
    """Connect the processes that ``torchrun`` or ``accelerate launch`` started; without them there is one process.

    A connection that exists already is used and left open. A connection that is made here lives as long as the
    process: torch cannot close it and open another one safely, because the processes would not do so at the same time.
    If the connection was made here, models on CUDA are moved to the device of their process.

    Parameters
    ----------
    *models : torch.nn.Module or None
        The models that will be trained or used as teachers.

    Raises
    ------
    TncError
        The other processes are not found.
    """
    connected = distributed.is_available() and distributed.is_initialized()
    if not connected and int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Processes()
    on_cuda = _on_cuda(models)
    if not connected:
        _connection.open("cpu:gloo,cuda:nccl" if on_cuda else "gloo")
    if on_cuda and _connection.is_open():
        _set_device()
        for model in on_cuda:
            model.to(torch.device("cuda", torch.cuda.current_device()))
    return Processes(distributed.get_rank(), distributed.get_world_size())


def _on_cuda(models: Iterable[nn.Module | None]) -> list[nn.Module]:
    """The models that have parameters on a CUDA device."""
    return [model for model in models if model is not None and any(p.is_cuda for p in model.parameters())]


def _set_device() -> None:
    """Make the device of this process the current one."""
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))


class _Connection:
    """The process group that this module made, and the store through which the processes found each other."""

    def __init__(self) -> None:
        self.store: Store | None = None
        self.group: object = None
        self.times_opened = 0

    def is_open(self) -> bool:
        """Whether the process group in use is the one made here."""
        return self.group is not None and distributed.is_initialized() and distributed.group.WORLD is self.group

    def open(self, backend: str) -> None:
        """Connect all processes."""
        # Equal in all processes. It is part of the keys in the store, so that keys of an earlier connection are not
        # taken for those of this one.
        self.times_opened += 1
        rank, count = _rank_and_count()
        if torch.cuda.is_available() and "nccl" in backend:
            _set_device()
        self.store = self.store or _shared_store(rank, count)
        store = _api.PrefixStore(f"tnc/{self.times_opened}", self.store)
        distributed.init_process_group(backend, store=store, rank=rank, world_size=count)
        self.group = distributed.group.WORLD
        atexit.unregister(self.close)
        atexit.register(self.close, os.getpid())

    def close(self, process: int) -> None:
        """Close the connection at the end of the process that made it, unless it is closed already."""
        if os.getpid() != process or not self.is_open():
            return
        for candidate in gc.get_objects():
            if issubclass(type(candidate), DistributedDataParallel):
                _free_reducer(candidate)
        self.group = None
        distributed.destroy_process_group()


_connection = _Connection()


def _rank_and_count() -> tuple[int, int]:
    """The number of this process and of all processes, from the variables that a launcher sets."""
    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise TncError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} without {listed(missing)}: start with torchrun or accelerate "
            "launch, which set them, or unset WORLD_SIZE to train in one process"
        )
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def _shared_store(rank: int, count: int) -> Store:
    """The store at the address that the environment names, once all processes have connected to it.

    An earlier run may still be closing its store on the same port. A process that starts early connects to that store
    and loses it. Therefore it tries again.
    """
    address = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
    message = (
        f"process {rank} of {count} does not find the others at {address}: start all of them, or unset WORLD_SIZE to "
        "train in one"
    )
    for _ in range(_ATTEMPTS):
        try:
            store: Store
            store, *_ = next(_api.rendezvous("env://"))
            store.set(f"tnc/here/{rank}", "")
            store.wait([f"tnc/here/{k}" for k in range(count)])
            return store
        except distributed.DistNetworkError:
            time.sleep(0.1)
        except distributed.DistStoreError as error:  # the others did not come before torch's timeout
            raise TncError(message) from error
    raise TncError(message)


def _free_reducer(wrapper: object) -> None:
    """Free torch's reducer of gradients now, even if something (such as a traceback) still holds the wrapper.

    The reducer may be the last object that holds a connection. If Python freed it later, it would close the connection
    while it holds the interpreter's lock. The threads of gloo may wait for that lock, so that both would wait forever.
    """
    for name in ("logger", "reducer"):
        vars(wrapper).pop(name, None)
