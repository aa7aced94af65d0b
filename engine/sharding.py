"""Ranks: start the process group, deal work, gather results; and FSDP2 over the ranks.

Training is always sharded, also over one process. No other file asks torch for its rank.
"""

import atexit
import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as futures_wait
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from engine.command import UserError, one_line

here = SimpleNamespace(meetings=0, step="before the first step")  # how far this rank is (engine/guard.py)


# ------------------------------------------------------------------------------------------------ ranks
def start_ranks(device: str) -> DeviceMesh:
    """Start the process group, of torchrun's processes or of this one; -> the mesh: (nodes, GPUs) or (GPUs,).

    With several nodes each node holds all shards, and only gradients cross between nodes (HSDP).
    """
    if not dist.is_initialized():
        backend, local = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", int(os.environ.get("LOCAL_RANK", 0))
        if device == "cuda" and local >= torch.cuda.device_count():
            raise UserError(
                f"{os.environ['LOCAL_WORLD_SIZE']} processes, but this machine shows {torch.cuda.device_count()} GPUs; "
                f"take --nproc_per_node {torch.cuda.device_count()}"
            )
        if device == "cuda":
            torch.cuda.set_device(local)
            torch.backends.cuda.enable_cudnn_sdp(False)  # NaN gradients under masks (pytorch #196678)
        alone = {} if "RANK" in os.environ else dict(store=own_store(), rank=0, world_size=1)
        try:
            dist.init_process_group(backend, timeout=timedelta(hours=1), **alone)
        except (dist.DistError, RuntimeError, ValueError) as error:
            where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise UserError(
                f"the processes cannot meet at {where} ({one_line(error)}); if the port is in use, "
                "give torchrun another --master_port, or --standalone"
            ) from None
        atexit.register(lambda: dist.is_initialized() and dist.destroy_process_group())
    world = dist.get_world_size()
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    if world > here:
        return init_device_mesh(device, (world // here, here), mesh_dim_names=("node", "gpu"))
    return init_device_mesh(device, (world,))


def has_bf16(device: str) -> bool:
    """Does this process's GPU compute in bf16? Older ones (compute capability below 8: T4, V100) only emulate it."""
    return device != "cpu" and torch.cuda.is_bf16_supported(including_emulation=False)


def own_store() -> dist.Store:
    """What a process group of this process alone keeps its few words in: memory; on Windows torch has only files."""
    if hasattr(dist, "HashStore"):
        return dist.HashStore()
    return dist.FileStore(str(Path(tempfile.mkdtemp()) / "store"), 1)


def device_of_mesh(mesh: DeviceMesh) -> torch.device:
    """Where this process computes."""
    return torch.device(mesh.device_type, torch.cuda.current_device() if mesh.device_type == "cuda" else None)


def rank_and_world() -> tuple[int, int]:
    """(rank, number of ranks); (0, 1) where no process group was started."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def deal(items: list) -> list:
    """This rank's share, dealt round robin: [a b c d e] of two ranks -> [a c e] and [b d]."""
    rank, world = rank_and_world()
    return list(items)[rank::world]


def dealt(items: list) -> tuple[list, int]:
    """(this rank's share, padded to the length of the longest share; how many of its items count).

    Every rank must make the same number of forward passes. A rank whose share is one item shorter repeats item 0 of
    `items` as padding; it contributes no loss and no result.
    """
    mine = deal(items)
    return mine + list(items[:1]) * (-(-len(items) // rank_and_world()[1]) - len(mine)), len(mine)


def all_gather(x) -> list:
    """The x of every rank, in rank order. A collective: all ranks call it."""
    parts: list = [None] * rank_and_world()[1]
    here.meetings += 1
    if len(parts) == 1:
        return [x]
    dist.all_gather_object(parts, x)
    return parts


def gather_dealt(mine: list) -> list:
    """Undo `deal`: the results of all ranks in the order of the dealt items, on every rank. A collective."""
    parts = all_gather(mine)
    return [parts[i % len(parts)][i // len(parts)] for i in range(sum(map(len, parts)))]


MEETING = 30.0  # seconds between two collectives of `together`; must be below the process group's timeout


def together(work: Callable):
    """Run work(), which may take hours on some ranks and no time on others; -> what it returns.

    A collective every 30 seconds keeps the waiting ranks from a timeout. `work` itself must not contain a collective.
    """
    if rank_and_world()[1] == 1:
        return work()
    pool = ThreadPoolExecutor(1)
    future = pool.submit(work)
    pool.shutdown(wait=False)  # Ctrl-C does not wait for the work
    while not all(all_gather(not futures_wait([future], timeout=MEETING).not_done)):
        pass
    return future.result()


def barrier() -> None:
    """Wait until every rank is here, for example until rank 0 has written a file."""
    here.meetings += 1
    if dist.is_initialized():
        dist.barrier()


def full_tensor(x: torch.Tensor) -> torch.Tensor:
    """The full tensor of a sharded one. A collective: all ranks call it."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def shard(player: nn.Module, blocks: list[nn.Module], mesh: DeviceMesh, compute: torch.dtype, on_host=False) -> None:
    """FSDP2 over `blocks` (decoder layers, vision blocks) and the rest; computes in `compute`, reduces in fp32.

    on_host: shards and gradients live in host memory; a block's weights come to the GPU when it is gathered.

    Embeddings, head, projector and norms stay one group: tied weights may not be split, and every rank must gather
    equally often. Inputs are not cast, so that a bf16 forward is that of a whole bf16 replica, bit for bit.
    """
    param = None if compute == torch.float32 else compute
    policy = MixedPrecisionPolicy(param, torch.float32, cast_forward_inputs=False)
    offload = CPUOffloadPolicy(pin_memory=mesh.device_type != "cpu") if on_host else OffloadPolicy()
    for part in (*blocks, player):
        fully_shard(part, mesh=mesh, mp_policy=policy, offload_policy=offload)
    for method in getattr(player, "gathering", ()):
        register_fsdp_forward_method(player, method)


def reshard(player: nn.Module) -> None:
    """Free the root's gathered weights, which FSDP keeps after a forward pass without a backward pass."""
    if isinstance(player, FSDPModule):
        player.reshard()


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Average the gradients of parameters that every rank holds whole; FSDP has averaged those of its own."""
    for p in (p for p in parameters if not isinstance(p, DTensor)):
        dist.all_reduce(p.grad)
        p.grad /= rank_and_world()[1]


@torch.no_grad()
def copy_trained(replica: nn.Module, student: nn.Module) -> None:
    """Copy the trained weights of a sharded `student` to an unsharded `replica`. A collective: all ranks call it."""
    mine = replica.tensors()
    trained = {name.removeprefix("hf.") for name, p in student.named_parameters() if p.requires_grad}
    for name, theirs in student.tensors().items():
        if name in trained:
            mine[name].copy_(full_tensor(theirs.to(mine[name].device, mine[name].dtype)))


@contextlib.contextmanager
def new_folder(path: str | Path):
    """Write a folder atomically: yields a temporary folder beside `path`, which rank 0 renames at the end."""
    path = Path(path)
    part = path.with_name(path.name + ".part")
    if rank_and_world()[0] == 0:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    barrier()
    yield part
    barrier()
    if rank_and_world()[0] == 0:
        shutil.rmtree(path, ignore_errors=True)
        part.rename(path)
    barrier()
