"""The discriminator's template in packed rows."""

import pytest
import torch

import discriminator as disc
import engine.loading as loading
from tiny.world import world_questions

TEXTS = [["red", "i see red circle. the answer is red", "red"], [], ["3", "look: none; final 0"]]


@pytest.mark.parametrize("reads", ["response", "question", "picture"])
def test_the_templates_beginning_is_read_once_where_it_is_the_same(reads):
    """Alike for all questions where D reads the response alone; the scores are in order and those of separate rows."""
    student = loading.load("tiny-qwen")
    D = disc.Discriminator(student, reads)
    questions = world_questions("train", 3)
    asked = [(q.text, p) for q, p in zip(questions, map(student.encoder.encode_question, questions), strict=True)]
    batch = D.pack(TEXTS, asked)
    rows = 1 if reads == "response" else 3
    assert len(batch.ids) == rows and len(batch.last) == 5
    if rows == 1:
        assert (batch.segment == 0).sum() == batch.prompt > 5
    separate = torch.cat([D(D.pack([[t]], [of])) for texts, of in zip(TEXTS, asked, strict=True) for t in texts])
    assert (D(batch) - separate).abs().max() < 1e-5 and len(separate.unique()) >= 4


def test_gradients_behind_one_beginning_are_those_of_separate_rows():
    student, found = loading.load("tiny-qwen").double(), []
    for apart in (False, True):
        D = disc.Discriminator(student)
        batches = [D.pack([[t]]) for texts in TEXTS for t in texts] if apart else [D.pack(TEXTS)]
        is_student = torch.tensor([True, False, True, False, True])
        _, logit = disc.discriminator_backward(D, batches, is_student[None], torch.ones(1, 5, dtype=torch.bool))
        found.append([logit, *(p.grad for p in D.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 20
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max() < 1e-7 * (1 + b.abs().max())  # stock norms compute in fp32
