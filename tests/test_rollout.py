"""What a rollout leaves behind."""

import torch

import engine.loading as loading
import model
import rollout as ro
from tiny.world import world_questions


def test_pictures_that_a_rollout_encoded_can_be_trained_on():
    """Sampling runs in inference mode, whose tensors autograd refuses; the patches are made outside."""
    student = loading.load("tiny-qwen").freeze("vision")
    questions = world_questions("train", 2)
    prompts = [student.encoder.encode_question(q) for q in questions]
    groups = ro.rollout(student, prompts, [q.id for q in questions], 2, 4, max_rows=2)
    assert not any(p.patches.is_inference() for p in prompts)
    batch = model.pack(prompts, [[r.ids for r in g] for g in groups])
    assert batch.pixels is None
    student(batch).sum().backward()
    (projector,) = student.family.projectors(student.base)
    assert all(torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0 for p in projector.parameters())
