"""Models with one weight of each kind, and sums that are computed in the plain way."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

STATES = {"dtype": torch.float64}


class Raw(nn.Module):
    """A parameter that a module of its own uses in a way of its own."""

    def __init__(self, shape, use, **roles):
        super().__init__()
        self.w = nn.Parameter(torch.randn(*shape, **STATES))
        self.use = use
        if roles:
            self.tnc_roles = {"w": roles["roles"]}

    def forward(self, x):
        return self.use(x, self.w)


def routed(x, w):
    """Experts, each with the tokens whose first entry falls to it."""
    place = (x[:, 0] > 0).long() + (x[:, 0] > 1).long()
    parts = [(place == e).nonzero()[:, 0] for e in range(len(w))]
    out = x.new_zeros(len(x), w.shape[1])
    for e, index in enumerate(parts):
        out = out.index_add(0, index, F.linear(x[index], w[e]))
    return out


def x(*shape):
    return torch.randn(*shape, **STATES) + 0.3


def _added(x, w):
    return torch.stack([torch.addmv(v.new_ones(4), w, v) for v in x])


def _two_parts(x, w):
    return torch.cat([x[:, :2] @ w[:, :2].T, x[:, 2:] @ w[:, 2:].T])


def _apart(x, w):
    return torch.cat([p @ q.T for p, q in zip(x, w.chunk(3), strict=True)], 0)


LINEAR = {
    "linear": (lambda: nn.Linear(5, 4, **STATES), lambda: x(6, 5)),
    "linear, three axes": (lambda: nn.Linear(5, 4, **STATES), lambda: x(6, 3, 5)),
    "linear without bias": (lambda: nn.Linear(5, 4, bias=False, **STATES), lambda: x(6, 3, 5)),
    "linear to one": (lambda: nn.Linear(5, 1, **STATES), lambda: x(6, 5)),
    "linear from one": (lambda: nn.Linear(1, 4, **STATES), lambda: x(6, 1)),
    "conv1d": (lambda: nn.Conv1d(4, 3, 3, padding=1, stride=2, **STATES), lambda: x(2, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), **STATES),
               lambda: x(2, 3, 7, 8)),
    "conv2d same": (lambda: nn.Conv2d(3, 4, (3, 5), padding="same", **STATES), lambda: x(2, 3, 7, 8)),
    "conv2d reflect": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect", **STATES), lambda: x(2, 3, 5, 6)),
    "conv2d 1x1": (lambda: nn.Conv2d(3, 4, 1, **STATES), lambda: x(2, 3, 5, 6)),
    "conv2d of one image": (lambda: nn.Conv2d(3, 4, 3, **STATES), lambda: x(1, 3, 5, 6)),
    "conv2d channels last": (lambda: nn.Conv2d(3, 4, 3, **STATES).to(memory_format=torch.channels_last),
                             lambda: x(2, 3, 5, 6).to(memory_format=torch.channels_last)),
    "groups": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1, **STATES), lambda: x(2, 4, 5, 6)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1, **STATES), lambda: x(2, 4, 5, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 3, (2, 1, 3), padding=(0, 0, 1), **STATES), lambda: x(2, 2, 4, 3, 4)),
    "raw": (lambda: Raw((4, 5), lambda x, w: x @ w.T), lambda: x(6, 5)),
    "raw, in half the precision": (lambda: Raw((4, 5), lambda x, w: (x.float() @ w.float().T).double()),
                                   lambda: x(6, 5).float().double()),
    "raw, weight first": (lambda: Raw((4, 5), lambda x, w: (w @ x.T).T), lambda: x(6, 5)),
    "raw, weight first, batches": (lambda: Raw((4, 5), lambda x, w: w @ x.mT), lambda: x(6, 3, 5)),
    "raw, weight first, one batch": (lambda: Raw((4, 5), lambda x, w: torch.bmm(w[None], x.T[None])), lambda: x(6, 5)),
    "raw, added to a vector": (lambda: Raw((4, 5), _added), lambda: x(6, 5)),
    "unfolded": (lambda: Raw((4, 3, 2, 3), lambda x, w: w.flatten(1) @ F.unfold(x, (2, 3)),
                             roles="rows columns kernel kernel"), lambda: x(2, 3, 5, 6)),
    "experts, baddbmm": (lambda: Raw((3, 4, 5), lambda x, w: torch.baddbmm(x.new_ones(3, 4, 6), w, x.mT),
                                     roles="stack rows columns"), lambda: x(3, 6, 5)),
    "experts, two of three": (lambda: Raw((3, 5, 4), lambda x, w: torch.bmm(x, w[1:]), roles="stack columns rows"),
                              lambda: x(2, 6, 5)),
    "experts in two axes": (lambda: Raw((2, 3, 4, 5), lambda x, w: torch.einsum("abtc,abrc->abtr", x, w),
                                        roles="stack stack rows columns"), lambda: x(2, 3, 6, 5)),
    "raw vector": (lambda: Raw((4, 5), lambda x, w: torch.stack([w @ v for v in x])), lambda: x(6, 5)),
    "einsum": (lambda: Raw((4, 5), lambda x, w: torch.einsum("btc,oc->bot", x, w)), lambda: x(6, 3, 5)),
    "columns rows": (lambda: Raw((5, 4), lambda x, w: x @ w, roles="columns rows"), lambda: x(6, 5)),
    "columns in two parts": (lambda: Raw((4, 5), _two_parts),
                             lambda: x(6, 5)),
    "one column alone": (lambda: Raw((4, 5), lambda x, w: x[:, 3:4] @ w[:, 3:4].T), lambda: x(6, 5)),
    "rows in two parts": (lambda: Raw((4, 5), lambda x, w: torch.cat([x @ w[:1].T, x @ w[1:].T], 1)), lambda: x(6, 5)),
    "experts, routed": (lambda: Raw((3, 4, 5), routed, roles="stack rows columns"), lambda: x(12, 5)),
    "experts, bmm": (lambda: Raw((3, 5, 4), torch.bmm, roles="stack columns rows"), lambda: x(3, 6, 5)),
    "experts, broadcast": (lambda: Raw((3, 5, 4), lambda x, w: x[:, None] @ w, roles="stack columns rows"),
                           lambda: x(3, 6, 5)),
    "experts, einsum": (lambda: Raw((3, 4, 5), lambda x, w: torch.einsum("tc,erc->ter", x, w),
                                    roles="stack rows columns"), lambda: x(6, 5)),
    "experts, grouped": (lambda: Raw((3, 8, 16), lambda x, w: _grouped(x, w), roles="stack columns rows"),
                         lambda: x(6, 8)),
    "three in one": (lambda: Raw((12, 5), F.linear.__call__, roles="(stack=3 rows) columns"), lambda: x(6, 5)),
    "three in one, apart": (lambda: Raw((12, 5), _apart, roles="(stack=3 rows) columns"), lambda: x(3, 6, 5)),
}  # fmt: skip
"""Modules whose output is linear in their weight, and inputs."""


def _grouped(x, w):
    ends = torch.tensor([2, 2, len(x)], dtype=torch.int32)
    return torch._grouped_mm(x.bfloat16(), w.bfloat16(), offs=ends).double()


def name_of(model):
    return "w" if hasattr(model, "w") else "weight"


def change(model, inputs, delta, per_sample):
    """The squared change of the output, per sample."""
    name, was = name_of(model), model.state_dict()
    with torch.no_grad():
        before = functional_call(model, was, (inputs,))
        after = functional_call(model, was | {name: was[name] + delta}, (inputs,))
    return float((after - before).square().sum()) / per_sample


def predicted(moments, delta, roles):
    """What moments say about that change."""
    names, sizes = roles.split(tuple(delta.shape))
    d = delta.reshape(sizes).permute(roles.order)
    lead = [k for k in roles.order if names[k] in ("stack", "group")]
    d = d.reshape(-1, *d.shape[len(lead) :]).flatten(2)
    c = moments.columns.double()
    if c.ndim == 3 and len(d) != len(c):  # groups that are factorized together
        d = d.reshape(len(c), -1, d.shape[-1])
    c = c.expand(len(d), *c.shape[-2:])
    return moments.uses * float(torch.einsum("grn,gnm,grm->", d, c, d))
