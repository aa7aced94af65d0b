"""Warm starts: supervised fine-tuning on the tiny world's lessons or on --sft-data."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import torch
from tqdm import tqdm

from config import Config
from data import contents, questions_at, seed_of, shared_prefix, slices
from engine.command import UserError
from engine.families import FULL
from engine.loading import find_folder, save
from engine.players import adamw, load_sharded, load_trained, total, update
from engine.run import HOME, Checkpoints, Run, questions_in, whole_split
from engine.sharding import barrier, deal, dealt, new_folder, rank_and_world
from grpo import sft_loss
from model import VLM, pack
from tiny.models import TINY
from tiny.world import world_lessons

STUDENTS = HOME / "results" / "students"  # shipped warm starts, one folder per tiny student and seed


# ------------------------------------------------------------------------------------------------ stage: sft
def sft(run: Run) -> None:
    """The student's warm start: pi_init and pi_ref."""
    name, target, shipped = run.cfg.student, run.path / "sft", shipped_warm_start(run.cfg)
    if shipped:
        print(f"  a shipped warm start: results/students/{shipped.name}; tools.build trains it anew")
        with new_folder(target) as part:
            if run.first:
                shutil.copytree(shipped, part, ignore=lambda *_: ["warm_start.json"], dirs_exist_ok=True)
    elif name in TINY or run.cfg.sft_data:
        vlm = load_trained(run, name) if run.cfg.warm_adapter else load_sharded(run, name)
        fit(run, vlm, run.cfg.sft_steps)
        save(vlm, target, torch.float32)
    elif run.cfg.random_weights and name in FULL:
        save(load_sharded(run, name), target)
    else:
        print("  a trained student already: it is pi_init and pi_ref as it is")
        folder = find_folder(name).resolve()
        if run.first:
            target.unlink(missing_ok=True)
            link_or_copy(folder, target)
        barrier()


def link_or_copy(folder: Path, target: Path) -> None:
    """Make `target` a link to a folder; a copy where there are no links (mounted drives, Windows without the right)."""
    try:
        target.symlink_to(folder)
    except OSError:
        part = target.with_suffix(".part")
        shutil.copytree(folder, part, dirs_exist_ok=True)
        part.rename(target)


def lessons(vlm: VLM, step: int, seed: int, pictures: int, per_picture: int, voice: str):
    """This rank's part of a warm-start batch, and the target tokens of the whole: the questions about a picture share
    its packed row; only the replies are targets.
    """
    prompts, rows, skip = [], [], []
    batch, encoder = world_lessons(step, seed, pictures, per_picture, voice), vlm.encoder
    boards = [encoder.preprocess([picture]) for picture, _ in batch]
    chats = [encoder.chat_text(one, text) for one, (_, pairs) in zip(boards, batch, strict=True) for text, _ in pairs]
    replies = [reply for _, pairs in batch for _, reply in pairs]
    asked, said = (encoder.tokenizer(texts, add_special_tokens=False)["input_ids"] for texts in (chats, replies))
    for one, s in zip(boards, slices(len(asked), per_picture), strict=True):
        n = shared_prefix(asked[s])
        prompts.append(encoder.prompt(asked[s][0][:n], one))
        rows.append([a[n:] + r + [encoder.end] for a, r in zip(asked[s], said[s], strict=True)])
        skip.append([len(a) - n for a in asked[s]])
    tokens = sum(map(len, (r for of in rows for r in of))) - sum(map(sum, skip))
    return pack(deal(prompts), deal(rows), deal(skip), vlm.device), tokens


def own_lessons(vlm: VLM, questions: list, step: int, seed: int, count: int):
    """The same from questions of yours with the answers as replies."""
    batch = [q for q, _ in questions_at(questions, step, count, seed_of(seed, "sft"))]
    rows = [[vlm.encoder.reply_ids(q.answer)] for q in batch]
    mine, own = dealt(batch)
    replies = deal(rows) + [[]] * (len(mine) - own)
    prompts = [vlm.encoder.encode_question(q) for q in mine]
    return pack(prompts, replies, device=vlm.device, blank=vlm.encoder.blank_picture()), sum(len(r) for (r,) in rows)


def sft_questions(cfg: Config) -> list:
    """The lines of --sft-data, without those about held-out questions or pictures of --data, whatever these are named;
    [] without the flag.
    """
    lines = questions_in(cfg.sft_data) if cfg.sft_data else []
    parts = whole_split(cfg) if lines and cfg.data else {"valid": [], "test": []}
    held = parts["valid"] + parts["test"]
    known = {q.id for q in held}.union(*map(contents, held))
    kept = [q for q in lines if not known & {q.id, *contents(q)}]
    if len(kept) < len(lines):
        print(f"  {len(lines) - len(kept)} lines of {cfg.sft_data} are left out: their questions are held out")
    if lines and not kept:
        raise UserError(f"--sft-data {cfg.sft_data}: all its lines are about held-out questions; give others")
    return kept


def fit(run: Run, vlm: VLM, steps: int, voice: str = "") -> None:
    """Supervised fine-tuning: `steps` on the tiny world with everything trained, or sft_epochs over --sft-data."""
    cfg, own = run.cfg, sft_questions(run.cfg)
    if own:
        steps = math.ceil(cfg.sft_epochs * len(own) / cfg.sft_pictures)
        steps = min(30, steps) if cfg.pilot else steps
        print(f"  {cfg.sft_epochs:g} epochs of {len(own)} questions: {steps} steps of {cfg.sft_pictures}")
    warmup = min(cfg.sft_warmup, max(1, steps // 2))
    vlm.freeze(*(() if cfg.student in TINY or voice else ("vision",))).train()
    optimizer = adamw(vlm, cfg.sft_lr)
    checkpoints = Checkpoints(run, "sft", {"student": (vlm, optimizer)}, 10 * cfg.checkpoint_every)
    start = checkpoints.resume({})
    for step in (bar := tqdm(range(start, steps), "sft", steps, initial=start, mininterval=2, disable=not run.first)):
        for group in optimizer.param_groups:
            falling = cfg.sft_lr + (cfg.sft_lr_end - cfg.sft_lr) * step / steps
            group["lr"] = falling * min(1, (step + 1) / warmup)
        if own:
            batch, tokens = own_lessons(vlm, own, step, cfg.seed, cfg.sft_pictures)
        else:
            batch, tokens = lessons(vlm, step, cfg.seed, cfg.sft_pictures, cfg.sft_questions, voice)
        loss = sft_loss(vlm(batch), batch.mask, tokens)
        (rank_and_world()[1] * loss).backward()  # FSDP takes the mean over ranks
        loss_sum = total(loss.item())
        norm = update(optimizer, cfg.clip, loss_sum, run, "sft", step, [])
        if step % 50 == 49 or step == steps - 1:
            run.log("metrics.jsonl", stage="sft", step=step, loss=loss_sum, gradient_norm=norm)
            bar.set_postfix_str(f"loss {loss_sum:.3f}")
        checkpoints.save(step + 1, {})
    checkpoints.finish()
    vlm.eval()


def warm_start_settings(cfg: Config) -> dict:
    """What the weights of a tiny student's warm start depend on."""
    fields = dataclasses.asdict(cfg)
    names = "student seed image_tokens sft_data sft_steps sft_pictures sft_questions sft_lr sft_lr_end sft_warmup"
    return {name: fields[name] for name in names.split()}


def shipped_warm_start(cfg: Config) -> Path | None:
    """The shipped folder that was made with exactly these settings; None: there is none."""
    folder = STUDENTS / f"{cfg.student}-seed{cfg.seed}"
    file = folder / "warm_start.json"
    made = json.loads(file.read_text(encoding="utf-8"))["settings"] if file.is_file() else None
    return folder if made == warm_start_settings(cfg) else None
