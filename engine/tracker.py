"""--tracker: what metrics.jsonl gets goes to TensorBoard or to Weights & Biases too. Rank 0 has one for each stage.

A stage begins with all of its rows that metrics.jsonl holds. So a resumed run has every step once, also those that a
kill took: TensorBoard drops what earlier files say (purge_step), and steps that wandb's server has are left out.
"""

import json
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from engine.command import UserError, one_line


def check_tracker(kind: str) -> None:
    """Raises UserError where the package is not installed."""
    try:
        if kind == "tensorboard":
            import torch.utils.tensorboard  # noqa: F401
        elif kind == "wandb":
            import wandb  # noqa: F401
    except ImportError:
        raise UserError(f"--tracker {kind} is not installed: pip install {kind}, or leave it out") from None


def open_tracker(kind: str, folder: Path, stage: str) -> Callable[[int, dict], object]:
    """-> put(number of steps done, {name: number}) for a stage of the run in `folder`. Raises UserError."""
    if kind == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        board = SummaryWriter(folder / "tensorboard" / stage, purge_step=0)
        return lambda x, numbers: ([board.add_scalar(k, v, x) for k, v in numbers.items()], board.flush())
    import wandb

    wandb.finish()  # the stage before
    if not (file := folder / f"wandb-{stage}.id").exists():
        file.write_text(uuid4().hex, encoding="utf-8", newline="\n")
    how = dict(project="nanoril", group=folder.name, name=f"{folder.name} {stage}", dir=folder, resume="allow")
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))["settings"]
        run = wandb.init(id=file.read_text(encoding="utf-8"), config=settings, **how)
    except Exception as error:
        raise UserError(f"--tracker wandb: {one_line(error)}; wandb login, or WANDB_MODE=offline") from None
    known = run.step  # the first step that its server does not have
    return lambda x, numbers: run.log(numbers, step=x) if x >= known else None
