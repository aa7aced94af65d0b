"""Does D know its teacher texts by heart? Where few questions have teacher text, texts that it never learns from tell.

Its accuracy on them is measured at every step, before its update. While it was far behind that on the step's texts for
several steps (D_GAP, D_LOOKS in config.py), D rests: more updates would only teach it those texts better.
"""

import numpy as np
import torch

from config import D_GAP, D_LOOKS, UNSEEN
from data import seed_of, slices
from discriminator import Discriminator, discriminator_scores
from engine.sharding import dealt, gather_dealt


def unseen_logits(D: Discriminator, cache, cfg, step: int) -> torch.Tensor:
    """student_logit (R,) of at most UNSEEN teacher texts that D never learns from; R = 0 where none are held out."""
    texts = [r.text for q in cache.of if q in cache.held for found in cache.of[q].values() for r, _ in found]
    if not texts:
        return torch.zeros(0)
    rng = np.random.default_rng(seed_of(cfg.seed, "unseen", step))
    texts = [texts[i] for i in rng.choice(len(texts), min(UNSEEN, len(texts)), replace=False)]
    rows, own = dealt([texts[s] for s in slices(len(texts), 2 * cfg.group_size)])
    logits = discriminator_scores(D, [D.pack(rows, device=next(D.base.buffers()).device)])
    return torch.cat(gather_dealt(list(logits.split([len(row) for row in rows])[:own])))


def begin(cache) -> dict:
    """What the loop has to remember when it begins: the best validation; with held texts how long D was behind."""
    return {"best": -1.0} | ({"memorised": 0} if cache and cache.held else {})


def may_learn(cfg, progress: dict) -> bool:
    """Is D updated in this step? Not where it is frozen, and not while it knows its texts by heart."""
    return cfg.discriminator == "updated" and progress.get("memorised", 0) < D_LOOKS


def watch(row: dict, progress: dict) -> dict:
    """Count in `progress` the steps in a row in which unseen texts were far behind; -> what the step's log says of it.

    row: the step's metrics of D. Nothing where no texts are held out.
    """
    if "d_accuracy_unseen" not in row:
        return {}
    updated, behind = progress["memorised"] < D_LOOKS, row["d_accuracy"] - row["d_accuracy_unseen"]
    progress["memorised"] = progress["memorised"] + 1 if behind > D_GAP else 0
    if progress["memorised"] == D_LOOKS:
        print(f"  D rests: unseen texts are {behind:.2f} behind for {D_LOOKS} steps", flush=True)
    return {"d_updated": int(updated)}
