"""The players of a run: loaded as its settings say, updated, and moved to and from the GPU (--offload)."""

import contextlib
import copy
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from discriminator import Discriminator
from engine.command import UserError
from engine.families import FULL, JUDGES
from engine.loading import copy_slice, load, load_adapter
from engine.lora import Adapter, in_role, make_adaptable, merged, recompute_in_role
from engine.run import Run
from engine.sharding import all_gather, average_gradients, copy_trained, full_tensor, new_folder, reshard
from judge import Judge
from model import VLM, Batch


def compute_dtype(cfg) -> torch.dtype:
    """What forward and backward passes compute in."""
    return torch.bfloat16 if cfg.dtype == "bf16" else torch.float32


# ------------------------------------------------------------------------------------------------ loading
def load_sharded(run: Run, name: str | Path, **more):
    """A model sharded over all ranks, computing in --dtype; its weights are fp32 unless `more` says otherwise."""
    player = load_player(run, name, mesh=run.mesh, compute=compute_dtype(run.cfg), **more)
    if run.cfg.recompute:
        recompute_activations(player.base)
    return player


def home(run: Run) -> str:
    """Where trained weights, their gradients and AdamW's state live."""
    return "host" if run.cfg.optimizer_offload else run.device


def load_replica(run: Run, name: str | Path):
    """A model to sample from: whole on every rank, in --dtype."""
    return load_player(run, name, dtype=compute_dtype(run.cfg))


def load_player(run: Run, name: str | Path, **more):
    """A model on this rank's device, with the run's limit on pictures."""
    random = run.cfg.random_weights and name == run.cfg.student and name in FULL
    player = load(name, run.cfg.seed, **dict(device=run.device, random_weights=random) | more)
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
    """D around the warm-started student's backbone; with its pre-trained weights when there are some."""
    reads = run.cfg.d_input
    if run.cfg.lora:
        D = Discriminator(shared_base(run), reads, new_adapter(run, projector=reads == "picture")).eval()
    else:
        D = load_sharded(run, run.path / "sft", device=home(run), player=lambda vlm: Discriminator(vlm, reads))
    if trained:
        tensors = D.state_dict()
        with safe_open(run.path / "discriminator" / "model.safetensors", "pt") as file, torch.no_grad():
            for name in file.keys():  # noqa: SIM118 (not a dict)
                copy_slice(tensors[name], file.get_slice(name))
    return D


def save_discriminator(run: Run, D: Discriminator) -> None:
    """Write the weights that `make_discriminator` reads: the trained ones."""
    trained = {name: p.detach() for name, p in D.named_parameters() if p.requires_grad}
    weights = {name: full_tensor(x).cpu().contiguous() for name, x in trained.items()}
    with new_folder(run.path / "discriminator") as part:
        if run.first:
            save_file(weights, part / "model.safetensors")


@dataclass
class Players:
    """Who takes part in the loop; D and its optimizer are None where the method has no discriminator.

    With --lora all share one base: the replica has the student's own adapter, the reference none or the warm start's.
    """

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
    student = load_trained(run, start).freeze(*cfg.frozen_parts)
    if cfg.lora:
        reference, replica = load_start(run), VLM(student.hf, student.encoder, student.adapter).eval()
    else:
        reference = load_sharded(run, start, dtype=compute_dtype(cfg)).requires_grad_(False)
        replica = load_replica(run, start)
    move(run, "cpu", reference)
    hold_memory(run, replica, student, False)
    players = Players(student, reference, replica, adamw(student, cfg.lr))
    if cfg.discriminator != "none":
        players.D = make_discriminator(run)
        move(run, "cpu", players.D)
        players.d_optimizer = adamw(players.D, cfg.d_lr)
    student.train()  # only so that activations are recomputed; nothing drops out
    return players


def recompute_activations(base: torch.nn.Module, **more) -> None:
    """Keep only each layer's input and recompute the rest in the backward pass; `more` is for torch's checkpoint."""
    name = "activation" if hasattr(base, "activation_checkpointing_enable") else "gradient"  # before transformers 5.23
    getattr(base, f"{name}_checkpointing_enable")(dict(use_reentrant=False, **more))


# ------------------------------------------------------------------------------------------------ --lora
def shared_base(run: Run) -> VLM:
    """The frozen model that all players of a stage share, whole on every rank, in --dtype; a stage loads it once.

    It is the warm-started student; but a warm start on --sft-data is an adapter itself, on the student's own folder.
    """
    cfg = run.cfg
    if run.base is None:
        name = cfg.student if cfg.warm_adapter else run.path / "sft"
        run.base = load_replica(run, name)
        make_adaptable(run.base.hf, run.base.family.projector_paths, FULL.get(str(name), str(Path(name).resolve())))
        if cfg.recompute:
            recompute_activations(run.base.base, context_fn=partial(recompute_in_role, run.base.base.switch))
    return run.base


def new_adapter(run: Run, projector: bool = True) -> Adapter:
    """An adapter of the shared base that starts where the warm start's ended; without `projector`, not of that part."""
    base, warm = shared_base(run), run.path / "sft" / "adapter"
    layers = {k: x for k, x in base.base.switch.layers.items() if projector or not base.family.in_projector(k)}
    adapter = Adapter(layers, run.cfg.lora, "cpu" if run.cfg.optimizer_offload else run.device)
    if run.cfg.warm_adapter and warm.exists():
        load_adapter(adapter, warm)
    return adapter


def load_trained(run: Run, name: str | Path) -> VLM:
    """The student to train: with --lora an adapter of the shared base, else the model of that name, sharded."""
    if not run.cfg.lora:
        return load_sharded(run, name, device=home(run))
    return VLM(shared_base(run).hf, shared_base(run).encoder, new_adapter(run))


def load_start(run: Run) -> VLM:
    """The warm-started student, whole on every rank, in --dtype, never to change."""
    if not run.cfg.lora:
        return load_replica(run, run.path / "sft")
    adapter = new_adapter(run).requires_grad_(False) if run.cfg.warm_adapter else None
    return VLM(shared_base(run).hf, shared_base(run).encoder, adapter).eval()


def export_adapter(run: Run) -> None:
    """Copy the exported student's adapter, in PEFT's format, beside student/. Without --lora there is none."""
    if run.cfg.lora:
        with new_folder(run.path / "adapter") as part:
            if run.first:
                shutil.copytree(run.path / "checkpoints" / "best" / "adapter", part, dirs_exist_ok=True)


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
    average_gradients(parameters)
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


def reference_log_probs(run: Run, reference: VLM, packed: list[Batch]) -> list:
    """log pi_ref of every batch, (R, L) each; None each where beta is 0."""
    if not run.cfg.beta:
        return [None] * len(packed)
    with on_gpu(run, reference), torch.no_grad():
        out = [reference(batch) for batch in packed]
        reshard(reference)
    return out


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
    if student.adapter is not None:  # the replica's too: cast once for all tokens
        with in_role(replica):
            yield
        return
    hold_memory(run, replica, student, True)
    copy_trained(replica, student)
    yield
    hold_memory(run, replica, student, False)


@contextlib.contextmanager
def as_exported(run: Run, replica: VLM, student: VLM):
    """Inside the block `replica` has the weights that an export would write now: merging an adapter rounds."""
    with refreshed(run, replica, student) if student.adapter is None else merged(student):
        yield
