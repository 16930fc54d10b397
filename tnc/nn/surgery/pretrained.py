"""Models of transformers with factorized weights: methods that would go wrong are refused or corrected.

``save_pretrained`` would write a folder that ``from_pretrained`` reads as a dense model, with random weights in place
of the factorized ones. Therefore it is refused. A ``Trainer`` may still write its checkpoints, because it reads them
back into the same model.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor, nn

from tnc.errors import WeightError
from tnc.nn.layers.folders import by_trainer, refuse_folder
from tnc.nn.layers.holder import PREFIX, composed, cores_of, factorized
from tnc.nn.surgery.parameters import factorizations

__all__ = ["Pretrained", "exchange_pretrained_classes"]


class Pretrained(nn.Module):
    """The methods of a model of transformers while some of its weights are factorized."""

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Refuse to write a folder, except for the checkpoints of a ``Trainer``.

        Parameters
        ----------
        save_directory : str or PathLike
        *args, **kwargs
            As those of transformers.

        Raises
        ------
        WeightError
            ``from_pretrained`` could not read the folder.
        """
        if not _has_factorizations(self):  # its parts were made dense one by one, which leaves this class in place
            exchange_pretrained_classes(self)
            return self.save_pretrained(save_directory, *args, **kwargs)
        if not by_trainer(sys._getframe(1)):
            refuse_folder(always=True)
        state = kwargs.pop("state_dict", None)
        kwargs["state_dict"] = _untied(self.state_dict() if state is None else state)
        return super().save_pretrained(save_directory, *args, **kwargs)

    def tie_weights(self, missing_keys: Any = None, recompute_mapping: bool = True) -> None:
        """Tie weights as transformers does, but always by the names that the dense model had.

        A computed mapping would lack a factorized weight, because it is no parameter.
        """
        super().tie_weights(missing_keys, recompute_mapping=False)

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> Any:
        """Resize the embeddings as transformers does, if they are dense.

        Parameters
        ----------
        new_num_tokens : int, optional
            The new number of rows; the present one when omitted.
        *args, **kwargs
            As those of transformers; the first is ``pad_to_multiple_of``.

        Raises
        ------
        WeightError
            The input or output embeddings are factorized; nothing is changed.
        """
        multiple = args[0] if args else kwargs.get("pad_to_multiple_of")
        keeps_size = new_num_tokens is None and multiple is None
        for embeddings in (self.get_input_embeddings(), self.get_output_embeddings()):
            if embeddings is not None and any(factorized(embeddings)) and not keeps_size:
                raise WeightError(
                    "the embeddings are factorized and cannot be resized as they are: make them dense with "
                    "tnc.nn.uninstall(model), resize, and compress again"
                )
        return super().resize_token_embeddings(new_num_tokens, *args, **kwargs)

    def get_parameter_or_buffer(self, target: str) -> Any:
        """Find a parameter or buffer as transformers does, and a factorized weight as if it were a parameter.

        Transformers calls this when it ties weights.
        """
        path, _, leaf = target.rpartition(".")
        try:
            module = self.get_submodule(path)
        except AttributeError:
            module = self
        if cores_of(module, leaf) is not None:
            return getattr(module, leaf)
        return super().get_parameter_or_buffer(target)


def _untied(state: dict[str, Any]) -> dict[str, Any]:
    """A state dict in which the cores of tied weights do not share memory: transformers' files cannot hold ties."""
    seen: set[int] = set()
    untied = {}
    for name, value in state.items():
        if PREFIX in name and isinstance(value, Tensor):
            if value.data_ptr() in seen:
                value = value.detach().clone()
            seen.add(value.data_ptr())
        untied[name] = value
    return untied


def exchange_pretrained_classes(model: nn.Module) -> None:
    """Lay `Pretrained` over the class of models of transformers that have factorized weights; remove it from others.

    The models of transformers may be `model` itself or parts of it.
    """
    for module in list(model.modules()):
        kind: Any = type(module)
        parts = vars(kind).get("_tnc_parts")
        has_methods = parts is not None and parts[0] is Pretrained
        needs_methods = hasattr(module, "save_pretrained") and _has_factorizations(module)
        if needs_methods and not has_methods and hasattr(module, "get_parameter_or_buffer"):
            module.__class__ = composed(Pretrained, kind, ())
        elif has_methods and not needs_methods:
            module.__class__ = parts[1]


def _has_factorizations(model: nn.Module) -> bool:
    return next(factorizations(model), None) is not None
