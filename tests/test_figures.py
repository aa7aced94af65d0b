"""The README's figures: they are drawn from the code, and the packed row's mask is the engine's."""

import json
import re

import matplotlib.image
import numpy as np
import pytest

from config import parse
from docs import figures


@pytest.mark.parametrize("name", figures.FIGURES)
def test_every_figure_is_drawn_again(name, tmp_path):
    figures.FIGURES[name](tmp_path / "x.png")
    drawn, kept = (matplotlib.image.imread(x) for x in (tmp_path / "x.png", figures.HERE / f"{name}.png"))
    assert drawn.shape == kept.shape and drawn.shape[1] == 1800  # the committed one is of this layout
    assert drawn[..., :3].std() > 0.05 and (drawn[..., 3] == 1).all()  # no empty sheet, and opaque on a dark page


def test_the_packed_figures_mask_is_the_engines(tmp_path):
    drawn = figures.packed(tmp_path / "x.png")
    batch, names, _ = figures.small_row()
    n = len(names)
    assert n == int((batch.segment >= 0).sum()) and drawn.shape == (n, n)
    assert np.array_equal(drawn > 0, batch.tree[0, 0, :n, :n].numpy())
    segment = batch.segment[0, :n].numpy()
    for q in range(n):  # and in plain words
        for k in range(n):
            assert (drawn[q, k] > 0) == (k <= q and segment[k] in (0, segment[q]))
    assert sorted(set(segment)) == [0, 1, 2, 3, 4] and len(set(drawn[-1])) > 2


def test_the_curves_are_of_runs_that_anybody_can_repeat():
    runs = json.loads((figures.HERE / "curves.json").read_text())
    assert runs.keys() == figures.RUNS.keys()
    for name, run in runs.items():
        assert re.fullmatch(r"[0-9a-f]{7,}", run["commit"]), name  # a commit, and not a dirty one
        assert run["command"].startswith(f"python train.py --name figure-{name} ")
        cfg = parse(run["command"].split()[2:])
        assert (cfg.seed, cfg.judged) == (run["seed"], 0.25)
        assert all(len(run[metric]) == cfg.steps for metric in figures.LINES)
    ends = {name: {metric: np.mean(run[metric][-10:]) for metric in figures.LINES} for name, run in runs.items()}
    assert ends["healthy"]["similarity"] > 0.7 and 0.5 < ends["healthy"]["d_accuracy"] < 0.65
    assert ends["slow"]["similarity"] < 0.15 and ends["slow"]["d_accuracy"] > 0.93
    assert ends["gives-up"]["d_accuracy"] < 0.4 and ends["gives-up"]["similarity"] > 0.9


def test_docs_say_how_the_figures_are_made():
    assert "python -m docs.figures" in figures.__doc__ and "curves.json" in figures.__doc__
