"""`freeze` and `unfreeze`: make cores read-only for deployment, so that no call has to check whether they changed."""

from __future__ import annotations

from torch import nn

from tnc.errors import MatchError, WeightError
from tnc.nn.layers.base import Factorized
from tnc.nn.layers.cores import Cores
from tnc.nn.surgery.parameters import factorizations

__all__ = ["freeze", "unfreeze"]


def freeze(model: nn.Module) -> nn.Module:
    """Make the cores of a model read-only, in place, and keep what is computed from them without further checks.

    Weights that are rebuilt are rebuilt now, once. Afterwards they cost what dense weights cost, in compiled graphs
    and on every device. An embedding keeps rows that were looked up.

    Until `unfreeze`, every write to a core raises: by an optimizer, by ``load_state_dict``, through ``.data``.
    Gradients reach inputs and dense parameters only. The model can still be moved and cast. Writes through raw pointers
    cannot be refused, but the cores are in memory that nobody else has.

    Parameters
    ----------
    model : torch.nn.Module
        With factorized weights. Until `unfreeze`, the parameters that are their cores are new objects.

    Returns
    -------
    torch.nn.Module
        The same object.

    Raises
    ------
    MatchError
        No weight of the model is factorized.
    WeightError
        A core is pruned or parametrized: the tensors that it is computed from could still be written.
    """
    weights = list(factorizations(model))
    if not weights:
        raise MatchError("no weight of the model is factorized: there is nothing to freeze; call tnc.compress first")
    for name, _, _, cores in weights:
        _refuse_computed(name, cores)
    for _, module, _, cores in weights:
        keeps = module._tnc_keeps_weight if isinstance(module, Factorized) else module._tnc.keeps
        cores.freeze(keep=bool(keeps))
        module._tnc.rows = None  # rows may be outdated, and from now on no lookup checks them
    return model


def _refuse_computed(name: str, cores: Cores) -> None:
    """Refuse a weight whose cores are not all parameters."""
    computed = [core for core in cores.names if core not in cores._parameters]
    if computed:
        raise WeightError(
            f"{name} cannot be frozen: its core {computed[0]} is pruned or parametrized. Make that permanent first, "
            "with torch.nn.utils.prune.remove or torch.nn.utils.parametrize.remove_parametrizations"
        )


def unfreeze(model: nn.Module) -> nn.Module:
    """Undo `freeze`, in place: the cores are the same parameters again as before, with the same ``requires_grad``.

    They hold the values they were frozen with. An optimizer that was made before `freeze` can go on with them.
    """
    for _, module, _, cores in factorizations(model):
        cores.unfreeze()
        module._tnc.rows = None
    return model
