"""tools.bench --against trl: seconds of a step of ours beside one of TRL's GRPOTrainer, in one run, taking turns.

    pip install 'trl>=1.16'      # in an environment of its own, with what requirements.txt names
    python -m tools.bench --against trl --student tiny-qwen-3m --questions 2 --group-size 4 --response-tokens 48

Both train the same weights on the same pictures and questions: G responses of exactly --response-tokens, a reference,
one AdamW update of everything but the vision tower. TRL runs with its own loop, generate and loss "dr_grpo", without
gradient checkpointing and without logs, which would only cost it time. Its processor is written here, since the stock
one wants torchvision for videos; it encodes with our encoder and, like the stock one, anew for every response.

Ours is counted twice: without D (G rows, the work of TRL), and whole: D, which TRL has not, and twice the rows, since
the teachers' are trained on too. Rewards are made up on both sides: no judge is asked. The gain comes from the prompt,
which TRL reads once for every response and we once for all, so it grows with --cell (pixels of a picture's cell).
"""

import re
import tempfile
import time
from pathlib import Path

import torch
from transformers import PrinterCallback, ProcessorMixin, TrainerCallback

from data import Question
from engine.command import UserError
from engine.loading import save
from model import VLM, join_pixels

OLDEST = (1, 16)  # of TRL


def trl_version() -> str:
    """The version of the installed TRL. Raises UserError where there is none or it is too old."""
    fix = "give `pip install 'trl>={}.{}'`, best in an environment of its own".format(*OLDEST)
    try:
        import trl
    except ImportError:
        raise UserError(f"--against trl: TRL is not installed; {fix}") from None
    if tuple(int(x) for x in re.findall(r"\d+", trl.__version__)[:2]) < OLDEST:
        raise UserError(f"--against trl: TRL {trl.__version__} is too old; {fix}")
    return trl.__version__


class Processor(ProcessorMixin):
    """What TRL asks of a processor, by our encoder. A chat is here one turn: pictures, then a text."""

    def __init__(self, encoder):
        self.encoder, self.tokenizer, self.image_processor = encoder, encoder.tokenizer, encoder.image_processor

    def apply_chat_template(self, conversation, tokenize=False, **_):
        """One chat -> its text, or with `tokenize` a list of chats -> what the model takes."""
        if not tokenize:
            return next(part["text"] for part in conversation[0]["content"] if part["type"] == "text")
        pictures = [[part["image"] for part in chat[0]["content"] if part["type"] == "image"] for chat in conversation]
        return self(pictures, [self.apply_chat_template(chat) for chat in conversation])

    def __call__(self, images, text, **_) -> dict:
        """The pictures and the text of each prompt -> what the model takes, ids as lists."""
        prompts = [self.encoder.encode(*one) for one in zip(images, text, strict=True)]
        width, image = max(len(p.ids) for p in prompts), self.encoder.config.image_token_id
        kinds = [[0] * (width - len(p.ids)) + (p.ids == image).int().tolist() for p in prompts]  # padded on the left
        return dict(
            input_ids=[p.ids.tolist() for p in prompts], mm_token_type_ids=torch.tensor(kinds), **join_pixels(prompts)
        )

    def batch_decode(self, *args, **more) -> list[str]:
        """Tokens as texts."""
        return self.tokenizer.batch_decode(*args, **more)


class Turns(TrainerCallback):
    """Seconds of each of TRL's steps, from the end of one to the end of the next; `between` runs after each."""

    def __init__(self, between):
        self.between, self.seconds, self.begin = between, [], 0.0

    def on_train_begin(self, *_, **__):
        """Called by the trainer."""
        self.begin = time.thread_time()

    def on_step_end(self, *_, **__):
        """Called by the trainer."""
        self.seconds.append(time.thread_time() - self.begin)
        self.between()
        self.begin = time.thread_time()


def trl_steps(student: VLM, questions: list[Question], G: int, T: int, steps: int, beta: float, between) -> list[float]:
    """CPU seconds of each of `steps` steps of TRL's GRPO on these questions; between() is called after each of them."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    def reward(completions, **_) -> list[float]:
        return [float(i % 3) for i in range(len(completions))]

    rows = [dict(prompt=[dict(role="user", content=q.text)], images=q.pictures()) for q in questions]
    turns = Turns(between)
    how = dict(num_generations=G, max_completion_length=T, per_device_train_batch_size=len(questions) * G)
    how |= dict(generation_kwargs=dict(min_new_tokens=T, suppress_tokens=student.encoder.banned_ids))
    how |= dict(loss_type="dr_grpo", scale_rewards="none", beta=beta, max_grad_norm=1.0, learning_rate=0.0)
    how |= dict(use_cpu=True, bf16=False, gradient_checkpointing=False, max_steps=steps, save_strategy="no")
    how |= dict(report_to="none", logging_strategy="no", disable_tqdm=True)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "student"  # TRL reads its reference from there
        save(student, weights, torch.float32)
        model = student.family.model.from_pretrained(weights, dtype=torch.float32)
        model.model.get_submodule(student.family.vision).requires_grad_(False)
        more = dict(processing_class=Processor(student.encoder), callbacks=[turns])
        trainer = GRPOTrainer(model, reward, GRPOConfig(folder, **how), Dataset.from_list(rows), **more)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return turns.seconds
