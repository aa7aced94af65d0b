"""The exercises of docs/lab.md. Each fails until it is solved, and is asked for by name:

python -m pytest tests/test_exercises.py -m exercise -k exercise_b
"""

import ast
import math
from pathlib import Path

import pytest
import torch

import config
import grpo
from engine import alarms, groups

HOME = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.exercise


def arguments(file: str, function: str) -> list[int]:
    """How many arguments each call of a function in a file gives."""
    calls = [n for n in ast.walk(ast.parse((HOME / file).read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
    return [len(n.args) + len(n.keywords) for n in calls if getattr(n.func, "id", "") == function]


def loss_and_gradient(teacher_use: str) -> tuple[float, list]:
    """policy_loss of a teacher row (A = 2) and a student row (A = -1), pi = 0.1 and 0.4 on the tokens of both."""
    logp = torch.tensor([[0.1, 0.4], [0.1, 0.4]]).log().requires_grad_()
    rows = torch.tensor([2.0, -1.0]), torch.ones(2, 2), torch.tensor([True, False])
    how = grpo.Objective(responses=1, max_length=1, beta=0.0, teacher_use=teacher_use)
    loss = grpo.policy_loss(logp, logp.detach(), None, *rows, how)
    loss.backward()
    return loss.item(), logp.grad.flatten().tolist()


def test_exercise_a_shapes_the_probability_of_teacher_rows():
    loss, gradient = loss_and_gradient("denominator-1")
    # f(0.1) = 0.1 / 0.2 = 0.5 and f(0.4) = 0.4 / 0.5 = 0.8, times A = 2; the student's ratio is 1, times A = -1
    assert math.isclose(loss, -(1.0 + 1.6) + 2.0, rel_tol=1e-5)
    # the derivative by log pi is 0.1 pi / (pi + 0.1)^2: 0.01 / 0.04 = 0.25 and 0.04 / 0.25 = 0.16
    assert gradient == pytest.approx([-0.5, -0.32, 1.0, 1.0], rel=1e-5)
    assert loss_and_gradient("gradient")[1] == pytest.approx([-2.0, -2.0, 1.0, 1.0])  # the paper's is as before


def test_exercise_b_lets_every_token_cost_a_fifth():
    similarity, answer, tokens = (torch.tensor([x]) for x in ([1.0, 0.0], [1.0, 1.0], [14, 2]))
    reward = grpo.rewards(similarity, answer, tokens)
    assert reward[0].tolist() == pytest.approx([-0.8, 0.6])  # 1 + 1 - 2.8 for a look, 0 + 1 - 0.4 for one word
    assert grpo.advantages(reward)[0].tolist() == pytest.approx([-0.7, 0.7])
    assert [arguments(file, "rewards") for file in ("train.py", "engine/groups.py")] == [[3], [3]]  # the loop, --refill


def test_exercise_c_fades_from_similarity_to_answer():
    similarity, answer = torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[0.0, 1.0, 1.0]])
    for t, wanted in ((0.0, [2.0, 2.0, 0.0]), (0.25, [1.5, 2.0, 0.5]), (0.5, [1.0, 2.0, 1.0]), (1.0, [0.0, 2.0, 2.0])):
        assert grpo.rewards(similarity, answer, t)[0].tolist() == pytest.approx(wanted)
    assert [arguments(file, "rewards") for file in ("train.py", "engine/groups.py")] == [[3], [3]]  # the loop, --refill


def test_exercise_d_tells_a_d_that_wins_from_one_that_gives_up():
    def logged(*kinds: tuple) -> list[dict]:
        """The rows of a log: (how many, the student's similarity, the teachers')."""
        metrics = dict(d_accuracy=0.5, tokens=5.0, gradient_norm=0.1)
        return [metrics | dict(similarity=s, teacher_similarity=t) for n, s, t in kinds for _ in range(n)]

    assert alarms.d_state(logged((10, 0.02, 0.98))) == "wins"
    assert alarms.d_state(logged((10, 0.01, 0.02))) == "gives up"  # a student's, whoever wrote it
    assert alarms.d_state(logged((10, 0.99, 1.0))) == "gives up"  # a teacher's, whoever wrote it
    assert alarms.d_state(logged((10, 0.8, 0.85))) == "works"  # the student has come near: some pass, some do not
    assert alarms.d_state(logged((20, 0.02, 0.98), (10, 0.4, 0.9))) == "works"  # only the last 10 rows count
    flips = logged((3, 0.0, 0.0), (4, 0.4, 0.9), (3, 1.0, 1.0))  # 6 of 10 rows with one verdict for all
    assert alarms.d_state(flips) == "gives up" and alarms.d_state(flips[1:]) == "works"  # 5 of 9: not most of 10
    assert any("D gives up" in line for line in alarms.raised(flips))
    without_d = [{k: x for k, x in row.items() if "d_" not in k and "teacher" not in k} for row in flips]
    assert alarms.d_state(without_d) == "works"  # --algo dr_grpo logs nothing of D


def test_exercise_e_takes_the_mean_over_the_students_own_rows():
    reward = torch.tensor([[0.0, 1.0, 2.0, 1.0], [1.0, 1.0, 2.0, 2.0], [0.0, 2.0, 9.0, 9.0]])
    is_teacher = torch.tensor([[False, False, True, True]]).expand(3, -1)
    there = torch.ones(3, 4, dtype=torch.bool)
    there[2, 2:] = False  # a question without teacher text
    found = groups.advantages_of(config.Config(), reward, is_teacher, there)
    assert found.tolist() == [[-0.5, 0.5, 1.5, 0.5], [0.0, 0.0, 1.0, 1.0], [-1.0, 1.0, 0.0, 0.0]]
    one = groups.advantages_of(config.Config(advantage="one"), reward, is_teacher, there)
    assert one[0].tolist() == [1.0, 1.0, 1.0, 1.0]  # --algo distill has no rows of the student
