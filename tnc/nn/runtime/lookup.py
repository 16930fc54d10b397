"""Look up rows of a table through its cores."""

from __future__ import annotations

import torch
from torch import Tensor

from tnc.contract.lookup import Rows
from tnc.nn.runtime.autograd import PLAIN, own_precision

__all__ = ["look_up"]


def look_up(numbers: Tensor, *cores: Tensor, plan: Rows, columns: int, deep: bool = False) -> Tensor:
    """Rows of a factorized table by their numbers. The table itself is not computed.

    Parameters
    ----------
    numbers : Tensor (n,)
        Numbers of rows.
    *cores : Tensor
        Of the shapes that the network states.
    plan : Rows
        The plan for this number of rows.
    columns : int
        Number of columns of the table.
    deep : bool
        Whether so many cores are multiplied that at least float32 is needed.

    Returns
    -------
    Tensor (n, columns)
    """
    gathered: list[Tensor] = []
    dtype = cores[0].dtype
    if deep and dtype.itemsize < torch.float32.itemsize:
        cores = tuple(core.float() for core in cores)
    with own_precision(cores[0]):
        for (group, merge), digits in zip(plan.groups, plan.digits, strict=True):
            core = PLAIN.run(merge, [cores[k] for k in group])  # (row indices..., other indices...)
            if digits:
                row = torch.zeros_like(numbers)
                for stride, size in digits:
                    row = row * size + numbers // stride % size
                core = core.flatten(0, len(digits) - 1).index_select(0, row)  # (n, other indices...)
            gathered.append(core)
        return PLAIN.run(plan.last, gathered).flatten(1)[:, :columns].to(dtype)
