"""Low-rank adapters (LoRA, arXiv 2106.09685): one frozen base in memory, and a small trained part for each role.

A linear layer with the frozen weight W (out, in) and bias b becomes

    y = x W^T + b + scale * (x A^T) B^T        x (..., in), A (rank, in), B (out, rank), scale = 32 / rank

Only A and B are trained, in fp32. A starts random and B at zero, so a new adapter changes nothing. `merged` puts
W + scale * B A into the base, for validation and export, so inference costs nothing more.

Adapted are the linear layers of the language model's blocks and of the projector. Student, reference and D share one
base: `in_role` tells its layers, for the length of a call, whose adapter to use. Activation checkpointing runs a layer
again in the backward pass, when another role may be in force: `recompute_in_role` gives it that of its forward pass.
"""

import contextlib
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from data import seed_of

ALPHA = 32  # scale = ALPHA / rank, so that one learning rate suits every rank


class Adapted(nn.Linear):
    """A linear layer of a frozen base; adds what the adapter in force has for its path."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., in) -> (..., out)."""
        y, (adapter, pairs) = super().forward(x), self.switch.now
        if self.path not in pairs:
            return y
        A, B = pairs[self.path]
        down = F.linear(x, A).flatten(0, -2)  # (tokens, rank)
        return torch.addmm(y.flatten(0, -2), down, B.t(), alpha=adapter.scale).view_as(y)


def adapted_layers(hf: nn.Module, projectors: tuple[str, ...]) -> dict[str, nn.Linear]:
    """The layers of a stock model that adapters change, by path; `projectors`: where they lie below hf.model."""
    inside = ("model.language_model.layers.", *(f"model.{projector}." for projector in projectors))
    return {path: x for path, x in hf.named_modules() if isinstance(x, nn.Linear) and path.startswith(inside)}


def make_adaptable(hf: nn.Module, projectors: tuple[str, ...], name: str) -> None:
    """Freeze a stock model; its layers read a switch, whose `now` is the adapter in force or None, and its A and B."""
    layers = adapted_layers(hf.requires_grad_(False), projectors)
    hf.model.switch = switch = SimpleNamespace(layers=layers, name=name, now=(None, {}))
    for path, layer in layers.items():
        layer.__class__, layer.path, layer.switch = Adapted, path, switch


class Adapter(nn.Module):
    """A and B of every adapted layer of one role, in one vector: one tensor to cast, clip, average, move and save."""

    def __init__(self, layers: dict[str, nn.Linear], rank: int, device="cpu"):
        super().__init__()
        self.rank, self.scale, self.shapes, parts = rank, ALPHA / rank, {}, []
        for path, layer in layers.items():
            self.shapes[path] = (rank, layer.in_features), (layer.out_features, rank)
            random = torch.Generator().manual_seed(seed_of("lora", path))  # the same on every rank
            A = (2 * torch.rand(rank, layer.in_features, generator=random) - 1) / layer.in_features**0.5
            parts += [A.flatten(), torch.zeros(layer.out_features * rank)]
        self.flat = nn.Parameter(torch.cat(parts).to(device))  # A and B of the first layer, of the second, ...

    def pairs(self, device, dtype: torch.dtype) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Path -> (A, B), cast together; gradients flow back to `flat`, which may be on the host."""
        sizes = [n * m for both in self.shapes.values() for n, m in both]
        parts = iter(self.flat.to(device, dtype).split(sizes))
        return {path: (next(parts).view(A), next(parts).view(B)) for path, (A, B) in self.shapes.items()}


# ------------------------------------------------------------------------------------------------ roles
@contextlib.contextmanager
def using(switch: SimpleNamespace, now: tuple):
    """Inside the block the layers read `now`."""
    before, switch.now = switch.now, now
    try:
        yield
    finally:
        switch.now = before


@contextlib.contextmanager
def in_role(player: nn.Module):
    """Inside the block the shared base computes as `player` does: with its adapter, in its mode (train or eval).

    An inner block of the same player does not cast A and B again. A base of one player alone has no switch.
    """
    switch = getattr(player.base, "switch", None)
    if switch is None:
        yield
        return
    if player.base.training != player.training:  # another role called train() or eval()
        player.base.train(player.training)
    now, weight = switch.now, next(iter(switch.layers.values())).weight
    if now[0] is not player.adapter:
        now = player.adapter, player.adapter.pairs(weight.device, weight.dtype) if player.adapter else {}
    with using(switch, now):
        yield


def recompute_in_role(switch: SimpleNamespace) -> tuple:
    """torch's checkpoint calls this in the forward pass: -> (context of the forward pass, of the recomputation)."""
    return contextlib.nullcontext(), using(switch, switch.now)


@contextlib.contextmanager
@torch.no_grad()
def merged(player: nn.Module):
    """Inside the block the base's own weights are W + scale * B A, rounded to bf16 as in an export, and no A and B act.

    Behind it the base has its own bytes again; the host has kept them. Without an adapter nothing happens.
    """
    if player.adapter is None:
        yield
        return
    switch, kept = player.base.switch, {}
    for path, (A, B) in player.adapter.pairs(player.base.device, player.adapter.flat.dtype).items():
        weight = switch.layers[path].weight
        kept[path] = weight.to("cpu", copy=True)
        weight.copy_((weight + player.adapter.scale * (B @ A)).bfloat16())
    try:
        with using(switch, (player.adapter, {})):
            yield
    finally:
        for path, weight in kept.items():
            switch.layers[path].weight.copy_(weight)
