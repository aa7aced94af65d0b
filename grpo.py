"""The objective: rewards of a group -> advantages -> clipped surrogate and KL. Pure tensor mathematics, no model, no
files.

Read it beside the paper (arXiv 2510.19307, section 3; Dr.GRPO: arXiv 2503.20783). Letters, here and everywhere:

    Q  questions of the step
    N  responses of one question: its group (G of the student + G of the teachers = 2G)
    R  responses of the pass (Q * N)
    L  longest response of the pass, in tokens; shorter ones are masked

The loss of a step is a sum over its tokens divided by constants of the step, never by a count of what happens to lie in
the micro-batch at hand. So it does not change with the micro-batch or the number of GPUs: losses of parts add up.
"""

from dataclasses import dataclass

import torch


def rewards(similarity: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
    """R = r_sim + r_ans (paper, section 3.2): both (Q, N), binary -> values in {0, 1, 2}."""
    return similarity + answer


def advantages(reward: torch.Tensor, kind: str = "dr_grpo") -> torch.Tensor:
    """A_i = R_i - mean over the group: (Q, N) -> (Q, N). The group is ALL responses of the question, teachers included.

    dr_grpo (the paper's choice) stops there; grpo divides by the group's standard deviation; one is A = 1 for
    everybody, which makes Eq. 2 maximum likelihood (distillation, SFT).

    Example: rewards [0, 1, 2, 1] -> [-1, 0, 1, 0]; four equal rewards -> four zeros (a dead group: nothing to learn).
    """
    if kind == "one":
        return torch.ones_like(reward)
    centred = reward - reward.mean(dim=1, keepdim=True)
    if kind == "grpo":
        centred = centred / (reward.std(dim=1, keepdim=True) + 1e-4)
    return centred


def teacher_advantages(advantage: torch.Tensor, teacher: torch.Tensor, use: str) -> torch.Tensor:
    """The advantages that reach the gradient, by `use` of the teacher rows; advantage, teacher (Q, N) -> (Q, N).

    gradient (the paper), right and denominator-1: all of it. positive: nothing below zero (pushing teacher text down
    has no bound, and cached text does not go away when its probability falls). baseline: nothing; the rows only move
    the mean.
    """
    if use == "baseline":
        return advantage.masked_fill(teacher, 0.0)
    if use == "positive":
        return torch.where(teacher, advantage.clamp(min=0), advantage)
    return advantage


def surrogate(logp: torch.Tensor, logp_old: torch.Tensor, advantage: torch.Tensor, eps: float) -> torch.Tensor:
    """min(rho A, clip(rho, 1 - eps, 1 + eps) A) per token (paper, Eq. 2): (R, L), (R, L), (R,) -> (R, L).

    To be maximised. rho = pi_theta / pi_old for student and teacher responses alike: the denominator is always the
    student's own old policy. On the first of the mu updates rho is 1 and the gradient is A grad log pi.
    """
    rho = torch.exp(logp - logp_old)
    a = advantage[:, None]
    return torch.minimum(rho * a, torch.clamp(rho, 1 - eps, 1 + eps) * a)


def kl(logp: torch.Tensor, logp_ref: torch.Tensor, kind: str = "k3") -> torch.Tensor:
    """A penalty per token that keeps the policy near the reference: (R, L), (R, L) -> (R, L), at least 0.

    Used as a LOSS on samples of the policy, what counts is its gradient, not its value:
        k3 = exp(ref - new) - (ref - new) - 1    mean gradient = that of KL(ref || policy)
        k2 = (new - ref)^2 / 2                   mean gradient = that of KL(policy || ref), the paper's direction
    (k1 = new - ref would have a mean gradient of zero.) On teacher text neither is a KL, only a token-wise pull.
    """
    if kind == "k3":
        delta = logp_ref - logp
        return torch.exp(delta) - delta - 1
    if kind == "k2":
        return 0.5 * (logp - logp_ref) ** 2
    raise ValueError(f"unknown KL estimator {kind!r}: k3 or k2")


@dataclass(frozen=True)
class Objective:
    """The constants of Eq. 2 in a step; `responses` counts those of all micro-batches and ranks."""

    responses: int  # the mean over questions of 1/2G sum_i divides by it
    max_length: int  # token terms are divided by it (Dr.GRPO: no 1/|o_i|, which would favour long wrong answers) ...
    length_mean: bool = False  # ... or by each response's own length (GRPO)
    eps: float = 0.2
    beta: float = 0.01
    kl: str = "k3"
    teacher_use: str = "gradient"


def policy_loss(logp, logp_old, logp_ref, advantage, mask, teacher, o: Objective) -> torch.Tensor:
    """The loss (Eq. 2) of some responses of a step, a scalar to be minimised; losses of all parts of a step add up.

    logp, logp_old, logp_ref (None where beta is 0), mask: (R, L); advantage, teacher: (R,). `mask` is 1 on response
    tokens, the end token of a finished response included; `teacher` marks the teachers' responses.
    """
    terms = surrogate(logp, logp_old, advantage, o.eps)
    if o.teacher_use == "denominator-1":  # as LUFFY (arXiv 2504.14945) has it: pi A on teacher rows, not clipped
        terms = torch.where(teacher[:, None], torch.exp(logp) * advantage[:, None], terms)
    if o.beta:
        terms = terms - o.beta * kl(logp, logp_ref, o.kl)
    length = mask.sum(dim=1, keepdim=True).clamp(min=1) if o.length_mean else o.max_length
    return -(terms * mask / length).sum() / o.responses


def sft_loss(logp: torch.Tensor, mask: torch.Tensor, tokens: int) -> torch.Tensor:
    """Mean negative log-likelihood: (R, L), (R, L) -> scalar. `tokens` counts the target tokens of the whole step."""
    return -(logp * mask).sum() / tokens
