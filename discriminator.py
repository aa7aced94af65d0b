"""The discriminator D: a twin of the student that learns to tell student text from teacher text.

It starts as the student's own weights with the language head replaced by a linear head to one number, read at the last
token of a fixed template (paper, section 3.1 and appendix). The sign is in the name: student_logit > 0 means "the
student wrote this", so the similarity reward "reads like a teacher" is 1[student_logit < 0] = 1[D(q, o) < 0.5].

Each response is read as clean text between tags, whoever wrote it: control tokens, end token and surrounding white
space are removed from both, and the text is tokenised afresh. So neither truncation, nor the end token, nor an unusual
tokenisation gives the source away, and the same text gets the same score from either side (tested).

All responses to a question lie in one packed row behind the template's shared beginning.
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from model import VLM, Batch, pack, shared_prefix, trunk

SYSTEM = "a response in <response> tags was written by a teacher or by a student."
USER = "<response>{}</response> teacher 0 or student 1?"


class Discriminator(nn.Module):
    """The student's backbone with a scalar head. The head starts small and without a bias, so D starts undecided."""

    def __init__(self, student: VLM):
        super().__init__()
        self.base = copy.deepcopy(student.base).requires_grad_(True)
        for part in (student.family.vision, student.family.projector):  # D reads text: no picture reaches it
            self.base.get_submodule(part).requires_grad_(False)
        width = student.hf.config.get_text_config().hidden_size
        self.head = nn.Linear(width, 1, bias=False, device=student.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            nn.init.normal_(self.head.weight, std=0.02)
        self.family, self.tokenizer, self.prompt = student.family, student.tokenizer, student.prompt
        whole = student.tokenizer.apply_chat_template(
            [{"role": "system", "content": SYSTEM}, {"role": "user", "content": USER}],
            tokenize=False,
            add_generation_prompt=True,
        )
        self.before, self.after = whole.split("{}")
        self.control = [t.content for t in student.tokenizer.added_tokens_decoder.values() if t.special]
        self.control += ["<response>", "</response>"]

    def clean(self, text: str) -> str:
        """The text without control tokens, template tags and surrounding white space."""
        for token in self.control:
            text = text.replace(token, "")
        return text.strip()

    def pack(self, groups: list[list[str]], device="cpu") -> Batch:
        """One packed row per question: groups[q] are the texts of its responses, students' and teachers' alike."""
        prompts, rows = [], []
        for texts in groups:
            whole = [f"{self.before}{self.clean(text)}{self.after}" for text in texts]
            ids = self.tokenizer(whole, add_special_tokens=False)["input_ids"]
            n = shared_prefix(ids)
            prompts.append(self.prompt(ids[0][:n], []))
            rows.append([x[n:] for x in ids])
        return pack(prompts, rows, device=device)

    def forward(self, batch: Batch) -> torch.Tensor:
        """student_logit (R,), fp32: above 0 reads like the student, below 0 like a teacher."""
        hidden = trunk(self.base, self.family, batch)[batch.last]
        return self.head(hidden.to(self.head.weight.dtype)).float()[:, 0]


def discriminator_loss(student_logit, is_student, students: int, teachers: int) -> torch.Tensor:
    """Eq. 1 as a loss: binary cross-entropy, student -> 1, teacher -> 0; student_logit, is_student (R,) -> scalar.

    `students` and `teachers` count the responses of the WHOLE step: each class weighs one half, and the losses of its
    parts add up.
    """
    terms = F.binary_cross_entropy_with_logits(student_logit, is_student.float(), reduction="none")
    return 0.5 * (terms[is_student].sum() / max(students, 1) + terms[~is_student].sum() / max(teachers, 1))


def similarity_reward(student_logit: torch.Tensor) -> torch.Tensor:
    """r_sim = 1[D(q, o) < 0.5]: 1 where the text reads like a teacher's; any shape -> same shape, fp32."""
    return (student_logit < 0).float()


def discriminator_accuracy(student_logit: torch.Tensor, is_student: torch.Tensor) -> dict[str, float]:
    """Share of right verdicts per class and their mean; 0.5 = D cannot tell them apart."""
    right = (student_logit > 0) == is_student
    on_student, on_teacher = (right[x].float().mean().item() if x.any() else 0.0 for x in (is_student, ~is_student))
    return {"d_accuracy": (on_student + on_teacher) / 2, "d_on_student": on_student, "d_on_teacher": on_teacher}
