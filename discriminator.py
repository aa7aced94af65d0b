"""The discriminator D: a twin of the student that learns to tell student text from teacher text.

It starts as the student's own weights with the language head replaced by a linear head to one number, read at the last
token of a fixed template (paper, section 3.1 and appendix). The sign is in the name: student_logit > 0 means "the
student wrote this", so the similarity reward "reads like a teacher" is 1[student_logit < 0] = 1[D(q, o) < 0.5].

Each response is read as clean text between tags, whoever wrote it: control tokens, end token and surrounding white
space are removed from both, and the text is tokenised afresh. So neither the end token nor an unusual tokenisation
gives the source away, and the same text gets the same score from either side (tested).

The template's shared beginning is read once: all responses of a pass lie in one packed row behind it, or, where D reads
the question or the picture too, all responses to a question.
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from data import shared_prefix, slices
from engine.loading import copy_slice
from engine.lora import Adapter, in_role
from engine.sharding import all_gather, rank_and_world, reshard
from model import VLM, Batch, Prompt, head_product, pack, trunk

SYSTEM = "a response in <response> tags was written by a teacher or by a student."
USER = "{question}<response>{response}</response> teacher 0 or student 1?"


class Discriminator(nn.Module):
    """The student's backbone with a scalar head. The head starts small and without a bias, so D starts undecided.

    With an `adapter` the backbone is the student's frozen one, shared (engine/lora.py).
    """

    def __init__(self, student: VLM, reads: str = "response", adapter: Adapter | None = None):
        super().__init__()
        self.reads, self.adapter, self.encoder, self.family = reads, adapter, student.encoder, student.family
        self.base = student.base if adapter else copy.deepcopy(student.base).requires_grad_(True)
        if adapter is None:
            self.base.get_submodule(self.family.vision).requires_grad_(False)  # as the student's: same patches
            for projector in self.family.projectors(self.base):
                projector.requires_grad_(reads == "picture")
        width, like = student.encoder.config.get_text_config().hidden_size, next(self.base.parameters())
        dtype = adapter.flat.dtype if adapter else like.dtype
        self.head = nn.Linear(width, 1, bias=False, device=like.device, dtype=dtype)
        if not like.is_meta:
            self.init_buffers()

    @torch.no_grad()
    def init_buffers(self) -> None:
        """Fill what meta-device initialisation left empty: the head, small and the same on every rank."""
        weight = torch.randn(self.head.weight.shape, generator=torch.Generator().manual_seed(0))
        copy_slice(self.head.weight, 0.02 * weight)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The backbone's weights under the names that the stock class gives them."""
        here = self.state_dict()
        return {"model." + name.removeprefix("base."): x for name, x in here.items() if name.startswith("base.")}

    def clean(self, text: str) -> str:
        """The text without control tokens, template tags and surrounding white space."""
        return self.encoder.clean(text).replace("<response>", "").replace("</response>", "").strip()

    def pack(self, groups: list[list[str]], asked: list[tuple[str, Prompt]] | None = None, device="cpu") -> Batch:
        """groups[q] are the texts of a question's responses, students' and teachers' alike -> packed rows, in order.

        One row per question, or one for all where D reads the response alone: the template begins alike for all then.
        asked[q] holds the question's text and encoded prompt; needed when D reads the question or the picture.
        """
        prompts, rows = [], []
        if self.reads == "response":
            groups = [[text for texts in groups for text in texts]]
        for q, texts in enumerate(groups):
            question, prompt = asked[q] if self.reads != "response" else ("", None)
            pictures = prompt.picture_tensors if self.reads == "picture" else []
            user = USER.replace("{question}", question and f"{self.clean(question)} ")
            before, _, after = self.encoder.chat_text(pictures, user, SYSTEM).rpartition("{response}")
            chats = [f"{before}{self.clean(text)}{after}" for text in texts]
            ids = self.encoder.tokenizer(chats or [before], add_special_tokens=False)["input_ids"]
            n = shared_prefix(ids)
            prompts.append(self.encoder.prompt(ids[0][:n], pictures))
            prompts[-1].patches = prompt.patches if pictures else None
            rows.append([x[n:] for x in ids[: len(texts)]])
        return pack(prompts, rows, device=device)

    def batches(self, questions: list, prompts: list[Prompt], groups: list[list], micro_batch: int) -> list[Batch]:
        """The responses of every question's group, packed: those to `micro_batch` questions a pass."""
        asked = [(q.text, p) for q, p in zip(questions, prompts, strict=True)]
        texts = [[r.text for r in g] for g in groups]
        cut = slices(len(groups), micro_batch)
        device = next(self.base.buffers()).device  # where it computes: the weights may live on the host
        return [self.pack(texts[s], asked[s], device) for s in cut]

    def forward(self, batch: Batch) -> torch.Tensor:
        """student_logit (R,), fp32: above 0 reads like the student, below 0 like a teacher."""
        with in_role(self):
            hidden = trunk(self.base, self.family, batch)[batch.last]
        return head_product(self.head, hidden.to(self.head.weight.dtype)).sum(-1)  # of one: not a view


def discriminator_loss(student_logit, is_student, students: int, teachers: int) -> torch.Tensor:
    """Eq. 1 as a loss: binary cross-entropy, student -> 1, teacher -> 0; student_logit, is_student (R,) -> scalar.

    `students` and `teachers` count the responses of the WHOLE step: each class weighs one half, and the losses of its
    parts add up.
    """
    terms = F.binary_cross_entropy_with_logits(student_logit, is_student.float(), reduction="none")
    return 0.5 * (terms[is_student].sum() / max(students, 1) + terms[~is_student].sum() / max(teachers, 1))


def pairwise_loss(student_logit, is_student, is_teacher, pairs: int) -> torch.Tensor:
    """Bradley-Terry: minus log P(of two texts of a group the student's is taken for the student's), summed over the
    pairs of a student's and a teacher's text and divided by `pairs`, those of the whole step; all (Q, N) -> scalar.

    P is sigmoid of the difference of the logits, so no logit has a meaning by itself: see `relative`.
    """
    behind = student_logit[:, None, :] - student_logit[:, :, None]  # (Q, N, N): text j minus text i
    pair = is_student[:, :, None] & is_teacher[:, None, :]
    return F.softplus(behind)[pair].sum() / max(pairs, 1)


def relative(student_logit: torch.Tensor, is_student: torch.Tensor) -> torch.Tensor:
    """Logits of a D that learned from pairs, each minus the mean of the other class: above 0 it reads like a student's
    beside them. Any shape -> same shape.
    """
    student, teacher = (student_logit[x].mean() for x in (is_student, ~is_student))
    return student_logit - torch.where(is_student, teacher, student)


def similarity_reward(student_logit: torch.Tensor, kind: str = "binary") -> torch.Tensor:
    """How much a text reads like a teacher's, in [0, 1]; any shape -> same shape, fp32. The paper's is binary.

    binary 1[D(q, o) < 0.5]; continuous 1 - D; levels and three: 1 - D rounded to 11 levels, and to 0, 0.5, 1.
    """
    if kind == "binary":
        return (student_logit < 0).float()
    teacher_like = torch.sigmoid(-student_logit)
    steps = {"continuous": 0, "levels": 10, "three": 2}[kind]
    return torch.round(teacher_like * steps) / steps if steps else teacher_like


def discriminator_backward(
    D: Discriminator, batches: list[Batch], is_student: torch.Tensor, learned: torch.Tensor, kind: str = "bce"
) -> tuple[float, torch.Tensor]:
    """Gradients of Eq. 1 on the packed texts of a step: -> loss of this rank's texts, student_logit (R,).

    is_student, learned (Q, N) in packed order: who wrote a text, and whether D learns from it. With kind pairwise all
    texts of a group lie in one batch. A collective: losses are divided by counts of all ranks.
    """
    student, teacher, logits, total = is_student & learned, ~is_student & learned, [], 0.0
    pairs, world = student.sum(dim=1) * teacher.sum(dim=1), rank_and_world()[1]
    counts = all_gather([int(x.sum()) for x in (student, teacher, pairs)])
    students, teachers, pairs = (sum(x) for x in zip(*counts, strict=True))
    for batch in batches:
        here = slice(sum(map(len, logits)), sum(map(len, logits)) + len(batch.last))
        student_logit = D(batch)
        mine, theirs = (x.flatten()[here].to(batch.ids.device) for x in (student, teacher))
        if kind == "pairwise":
            loss = pairwise_loss(*(x.view(-1, is_student.shape[1]) for x in (student_logit, mine, theirs)), pairs)
        else:
            kept = mine | theirs
            loss = discriminator_loss(student_logit[kept], mine[kept], students, teachers)
        (world * loss).backward()  # FSDP takes the mean over ranks
        logits.append(student_logit.detach())
        total += loss.item()
    return total, torch.cat(logits)


@torch.no_grad()
def discriminator_scores(D: Discriminator, batches: list[Batch]) -> torch.Tensor:
    """student_logit (R,) of packed texts, on the CPU."""
    student_logit = torch.cat([D(batch) for batch in batches]).cpu()
    reshard(D)
    return student_logit


def step_scores(D: Discriminator, batches: list[Batch], is_teacher: torch.Tensor, kind: str = "bce") -> torch.Tensor:
    """student_logit (questions, rows) on a step's texts; after pairs: minus the mean of all its teacher texts."""
    student_logit = discriminator_scores(D, batches).view(is_teacher.shape)
    if kind == "pairwise":
        student_logit -= torch.cat(all_gather(student_logit[is_teacher])).mean()
    return student_logit
