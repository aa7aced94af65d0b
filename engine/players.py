"""The players of a run: loaded as its settings say, updated, and moved to and from the GPU (--offload)."""

import contextlib
import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from discriminator import Discriminator
from engine.command import UserError
from engine.families import FULL, JUDGES
from engine.loading import copy_slice, load
from engine.run import Run
from engine.sharding import all_gather, copy_trained, full_tensor, new_folder
from judge import Judge
from model import VLM


def compute_dtype(cfg) -> torch.dtype:
    """What forward and backward passes compute in."""
    return torch.bfloat16 if cfg.dtype == "bf16" else torch.float32


# ------------------------------------------------------------------------------------------------ loading
def load_sharded(run: Run, name: str | Path, **more):
    """A model to train: fp32 shards over all ranks, computing in --dtype."""
    player = load_player(run, name, mesh=run.mesh, compute=compute_dtype(run.cfg), **more)
    if run.cfg.recompute:
        recompute_activations(player.base)
    return player


def load_replica(run: Run, name: str | Path):
    """A model to sample from: whole on every rank, in --dtype."""
    return load_player(run, name, dtype=compute_dtype(run.cfg))


def load_player(run: Run, name: str | Path, **more):
    """A model on this rank's device, with the run's limit on pictures."""
    random = run.cfg.random_weights and name == run.cfg.student and name in FULL
    player = load(name, run.cfg.seed, run.device, random_weights=random, **more)
    player.encoder.limit_pictures(run.cfg.image_tokens)
    return player


def judge_of(run: Run, weak: bool = False) -> Judge:
    """The judge, loaded once. `weak`: with the errors of --judged and --judge-wrong; for training, never evaluation."""
    cfg = run.cfg
    if run.known_judge is None:
        more = dict(cache=run.path / "verdicts.jsonl", random=cfg.random_weights and cfg.judge in JUDGES)
        run.known_judge = Judge(cfg.judge, device=run.device, mesh=run.mesh, **more)
        run.known_judge.away = cfg.offload == "phase"
    judge = copy.copy(run.known_judge)
    if weak:
        judge.judged, judge.wrong = cfg.judged, cfg.judge_wrong
    return judge


def make_discriminator(run: Run, trained: bool = True) -> Discriminator:
    """D around the warm-started student's backbone, sharded; with its pre-trained weights when there are some."""
    D = load_sharded(run, run.path / "sft", player=lambda vlm: Discriminator(vlm, run.cfg.d_input))
    if trained:
        with safe_open(run.path / "discriminator" / "model.safetensors", "pt") as file, torch.no_grad():
            for name, x in D.state_dict().items():
                copy_slice(x, file.get_slice(name))
    return D


def save_discriminator(run: Run, D: Discriminator) -> None:
    """Write the weights that `make_discriminator` reads."""
    weights = {name: full_tensor(x.detach()).cpu().contiguous() for name, x in D.state_dict().items()}
    with new_folder(run.path / "discriminator") as part:
        if run.first:
            save_file(weights, part / "model.safetensors")


@dataclass
class Players:
    """Who takes part in the loop; D and its optimizer are None where the method has no discriminator."""

    student: VLM  # pi_theta: sharded, fp32 masters
    reference: VLM  # pi_ref: sharded, never changes
    replica: VLM  # pi_old: whole on every rank, takes over the student at every step
    student_optimizer: torch.optim.Optimizer
    D: Discriminator | None = None
    d_optimizer: torch.optim.Optimizer | None = None

    def trained(self) -> dict[str, tuple]:
        """The trained parts that a checkpoint holds: name -> (module, its optimizer)."""
        out = {"student": (self.student, self.student_optimizer)}
        return out | ({"D": (self.D, self.d_optimizer)} if self.D else {})


def load_players(run: Run) -> Players:
    """All players start at the warm-started student; D has been pre-trained."""
    cfg, start = run.cfg, run.path / "sft"
    student = load_sharded(run, start).freeze(*cfg.frozen_parts)
    reference = load_sharded(run, start, dtype=compute_dtype(cfg)).requires_grad_(False)
    move(run, "cpu", reference)
    replica = load_replica(run, start)
    hold_memory(run, replica, student, False)
    players = Players(student, reference, replica, adamw(student, cfg.lr))
    if cfg.discriminator != "none":
        players.D = make_discriminator(run)
        move(run, "cpu", players.D)
        players.d_optimizer = adamw(players.D, cfg.d_lr)
    student.train()  # only so that activations are recomputed; nothing drops out
    return players


def recompute_activations(base: torch.nn.Module) -> None:
    """Keep only each layer's input and recompute the rest in the backward pass."""
    name = "activation" if hasattr(base, "activation_checkpointing_enable") else "gradient"  # before transformers 5.23
    getattr(base, f"{name}_checkpointing_enable")(dict(use_reentrant=False))


# ------------------------------------------------------------------------------------------------ updates
def adamw(module: torch.nn.Module, lr: float) -> torch.optim.Optimizer:
    """AdamW over what is trained, without weight decay."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)


def update(
    optimizer: torch.optim.Optimizer, clip: float, loss: float, run: Run, stage: str, step: int, ids: list
) -> float:
    """One optimiser step on the gathered gradients; -> gradient norm.

    Raises UserError BEFORE the step where loss or norm is not finite; `ids` are the questions of the step.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for p in parameters:  # without pictures the projector has no gradient; zeros keep the optimiser's state complete
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    norm = full_tensor(torch.nn.utils.clip_grad_norm_(parameters, clip)).item()
    if not np.isfinite(norm) or not np.isfinite(loss):
        found = dict(stage=stage, step=step, loss=str(loss), gradient_norm=str(norm), questions=ids)
        run.write("not-finite.json", found)
        raise UserError(
            f"{stage} step {step}: loss {loss}, gradient norm {norm}; questions are in {run.path}/not-finite.json"
        )
    optimizer.step()
    optimizer.zero_grad()
    return norm


def total(x: float) -> float:
    """The sum over all ranks, added in rank order, so that every rank gets the same number."""
    return float(sum(all_gather(x)))


# ------------------------------------------------------------------------------------------------ --offload phase
def move(run: Run, device: str, *players) -> None:
    """With --offload phase these modules and optimisers go to `device`; else they stay where they are."""
    for x in players if run.cfg.offload == "phase" else ():
        if isinstance(x, torch.nn.Module):
            x.to(device)
        elif x is not None:
            for state in x.state.values():
                state |= {k: v.to(device) for k, v in state.items() if isinstance(v, torch.Tensor)}


@contextlib.contextmanager
def on_gpu(run: Run, *players):
    """With --offload phase these modules and optimisers are on the GPU inside the block only."""
    move(run, run.device, *players)
    yield
    move(run, "cpu", *players)


def hold_memory(run: Run, replica: VLM, student: VLM, held: bool) -> None:
    """With --offload phase: allocate (held=True) or free the weights of `replica` that `student` trains.

    They are freed without a copy on the host, because `copy_trained` writes all of them before the next use. Weights
    that the student does not train (the vision tower) stay on the GPU: `copy_trained` would not restore them.
    """
    for name, theirs in student.named_parameters() if run.cfg.offload == "phase" else ():
        if theirs.requires_grad:
            mine = replica.get_parameter(name)
            mine.data = mine.new_empty(theirs.shape if held else 0)


@contextlib.contextmanager
def refreshed(run: Run, replica: VLM, student: VLM):
    """Inside the block `replica` has the student's current weights; with --offload phase it is empty outside."""
    hold_memory(run, replica, student, True)
    copy_trained(replica, student)
    yield
    hold_memory(run, replica, student, False)
