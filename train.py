"""RIL: a small vision-language model learns from teachers by reinforcement and imitation (arXiv 2510.19307).

    python train.py                                   # the whole loop on the tiny world, a CPU, three minutes
    python train.py --name mine --data mine.jsonl      # your own questions
    python train.py --name long --steps 120 --seed 3   # longer, another seed; the run lies in runs/long
    torchrun --nproc_per_node 8 train.py --student qwen2.5-vl-7b      # real scale: tools.plan and tools.pilot first
    python train.py --help                            # every setting, with the paper's value beside it

Stages, in order; each leaves an artefact in runs/NAME and is skipped when the artefact is there:

    sft            sft/              warm start, shipped or trained: the language of the world; it is pi_init and pi_ref
    teachers       teachers.jsonl    cached teacher responses with the judge's verdicts
    discriminator  discriminator/    D, from the warm-started student, until it tells student from teacher
    ril            checkpoints/      the loop (Algorithm 2): numbers 1-9 in `ril` below and in the README
    export         student/, last/   Hugging Face folders: best on the validation questions, and last
    evaluate       summary.json      held-out questions, before and after; curves.png, samples.md

Left out on purpose: trainer classes, callbacks, configuration files; metrics.jsonl is the log (--tracker copies it).
"""

import copy
import gc
import os
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # torch reads this when it is imported; lengths differ at every step, and fixed segments would fragment memory
    os.environ.setdefault("PYTORCH_ALLOC_CONF", os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"))

import torch
from tqdm import tqdm

from config import D_ALARM, STAGES, Config, parse
from data import blanked, questions_at, slices
from discriminator import discriminator_backward, step_scores
from engine import report
from engine.ahead import Ahead
from engine.asking import teacher_model
from engine.checks import check_players, check_questions, unlike_the_paper
from engine.command import UserError, run_command
from engine.families import FULL
from engine.files import as_jsonl
from engine.groups import advantages_of, answers_of, masks, objective_of, pack_policies, refill, rows_of, similarity_of
from engine.loading import load, save
from engine.lora import in_role
from engine.memory import best_offload
from engine.players import (
    adamw,
    as_exported,
    export_adapter,
    judge_of,
    load_players,
    load_replica,
    load_start,
    make_discriminator,
    on_gpu,
    reference_log_probs,
    refreshed,
    save_discriminator,
    total,
    update,
)
from engine.run import Checkpoints, Run, open_run, peak_memory_mb, pretraining_questions, set_up, split
from engine.sharding import all_gather, barrier, dealt, new_folder, rank_and_world
from engine.unseen import begin, may_learn, unseen_logits, watch
from eval import evaluate
from grpo import policy_loss, rewards
from model import VLM, Encoder
from rollout import rollout, sampling_of
from teachers import TeacherCache, teacher_folder, teachers
from tiny.lessons import sft


# ------------------------------------------------------------------------------------------------ stage: discriminator
def discriminator(run: Run) -> None:
    """Pre-train D on fresh student samples against cached teacher responses; stop early on held-out questions."""
    cfg, student = run.cfg, load_start(run)
    cache = TeacherCache(run, student.encoder, split(cfg)["train"])
    held, visits = pretraining_questions(cfg, split(cfg)["train"], cache.of)
    n, read = cfg.pretraining_samples, {q.id for part in (held, *visits) for q in part}
    if few := sum(min(map(len, cache.of[q].values())) < n for q in read):
        print(f"  {few} of {len(read)} questions have fewer than {n} cached responses of a teacher: D reads repeats")
    D = make_discriminator(run, trained=False).train()
    optimizer = adamw(D, cfg.d_pretrain_lr)
    run.rewind("discriminator", 0)

    def texts(questions: list, step: int) -> tuple[list, torch.Tensor]:
        """This rank's packed texts, and who wrote them (its questions, texts)."""
        asked, own = dealt(questions)
        prompts, names = [student.encoder.encode_question(q) for q in asked], [q.id for q in asked[:own]]
        sampled = (cfg.max_new_tokens, sampling_of(cfg), (cfg.seed, "d", step))
        with on_gpu(run, student), in_role(student):  # an adapter is cast once for all tokens
            fresh = rollout(student, prompts[:own], names, n, *sampled, max_rows=cfg.rollout_rows)
            seen = student.encode_pictures(prompts)
        groups = [
            mine + cache.draw(name, cfg.seed, "d", step, count=n)[0] for name, mine in zip(names, fresh, strict=True)
        ]
        groups += [[]] * (len(asked) - own)
        count = n * (1 + len(cache.names))
        is_student = (torch.arange(count) < n).expand(own, -1)
        # a row has as many texts as in the loop; pairs of a question's texts need all of them in one row
        cut = slices(count, count if cfg.d_loss == "pairwise" else 2 * cfg.group_size)
        asked, seen = ([x for x in of for _ in cut] for of in (asked, seen))
        return D.batches(asked, seen, [g[s] for g in groups for s in cut], cfg.micro_batch), is_student

    if visits:
        held_batches, held_is_student = texts(held, -1)
    for step, step_questions in enumerate(visits):
        for group in optimizer.param_groups:
            group["lr"] = cfg.d_pretrain_lr * (1 - 0.9 * step / cfg.d_steps)
        batches, is_student = texts(step_questions, step)
        with on_gpu(run, D, optimizer):
            loss, _ = discriminator_backward(D, batches, is_student, torch.ones_like(is_student), cfg.d_loss)
            loss = total(loss)
            update(optimizer, cfg.clip, loss, run, "discriminator", step, [q.id for q in step_questions])
            with torch.no_grad():
                mine = [torch.cat([D(b) for b in held_batches]).cpu(), held_is_student.flatten()]
        found = report.discriminator_accuracy(*(torch.cat(all_gather(x)) for x in mine), cfg.d_loss)
        run.log("metrics.jsonl", stage="discriminator", step=step, loss=loss, **found)
        print(f"  step {step + 1:3d}  loss {loss:.3f}  held-out accuracy {found['d_accuracy']:.3f}", flush=True)
        if found["d_accuracy"] >= cfg.d_stop:
            break
    if visits and found["d_accuracy"] < D_ALARM:
        print(
            f"  WARNING: D ends at {found['d_accuracy']:.3f} on held-out questions, below {D_ALARM}: it hardly tells "
            "student from teacher, so its reward is noise; take more --d-steps"
        )
    save_discriminator(run, D)


# ------------------------------------------------------------------------------------------------ stage: ril
def ril(run: Run) -> None:
    """Algorithm 2 of the paper. The numbers 1-9 are those of the README; the switches default to the paper's choices.

    From 2 to 8 each rank works on its share of the questions; the logged numbers are of all ranks.
    """
    cfg, judge, how, world = run.cfg, judge_of(run, weak=True), sampling_of(run.cfg), rank_and_world()[1]
    players = load_players(run)  # lines 1-2 of Algorithm 2
    student, reference, replica, D = players.student, players.reference, players.replica, players.D
    parts = split(cfg)
    cache = TeacherCache(run, replica.encoder, parts["train"]) if cfg.teacher_use != "none" else None
    questions = cache.questions if cache else parts["train"]
    checkpoints, progress = Checkpoints(run, "ril", players.trained(), cfg.checkpoint_every), begin(cache)
    T = cache.rows if cache else 0
    G, in_mean, scored = rows_of(cfg, T)  # rows of a group: the student's, those in its mean, those in the gradient
    if (start := checkpoints.resume(progress)) == 0:
        validate(run, replica, student, parts["valid"], 0, progress)
    ahead = questions_ahead(run, replica.encoder, questions)

    for step in range(start, cfg.steps):  # line 3
        clock = report.Clock()
        # 1 questions: P over all ranks, each with its visit; `own` of them are this rank's
        visits, here, own, prompts = ahead(step)
        asked, keys, ids = [q for q, _ in here], [(q.id, n) for q, n in here[:own]], [q.id for q, _ in visits]

        # 2 rollout: G responses per question from the replica, which is pi_old (lines 4-5)
        with refreshed(run, replica, student):
            limits = (cfg.max_new_tokens, how, (cfg.seed, "rollout"), cfg.rollout_rows)
            fresh = rollout(replica, prompts[:own], keys, G, *limits)
            seen = replica.encode_pictures(prompts)
        ahead.begin(step + 1)
        clock("rollout")

        # 3 teachers: cached responses to the same questions, and their verdicts (line 6)
        cached = [cache.draw(q.id, visit, cfg.seed) if cache else ([], []) for q, visit in here[:own]]

        # 4 pack: one question = one row for the policies (in 8); for D, which reads texts alone, a pass = one row
        groups = [mine + theirs for mine, (theirs, _) in zip(fresh, cached, strict=True)] + [[]] * (len(asked) - own)
        is_teacher, there, learned = masks(groups[:own], asked, cache, G + T)  # (own, G + T)
        cut = slices(len(groups), cfg.micro_batch)

        # 5 discriminator: mu updates by Eq. 1 (lines 7-9)
        student_logit, d_row = None, {}
        if D:
            with on_gpu(run, D, players.d_optimizer):
                d_packed, unseen = D.batches(asked, seen, groups, cfg.micro_batch), unseen_logits(D, cache, cfg, step)
                for _ in range(cfg.mu):
                    d_loss, logit = discriminator_backward(D.train(), d_packed, ~is_teacher, learned, cfg.d_loss)
                    d_loss = total(d_loss)
                    d_row = d_row or report.d_metrics(cfg.d_loss, d_loss, logit, is_teacher, learned, unseen)
                    if may_learn(cfg, progress):
                        update(players.d_optimizer, cfg.clip, d_loss, run, "ril", step, ids)
                    players.d_optimizer.zero_grad()
                student_logit = step_scores(D, d_packed, is_teacher, cfg.d_loss)
            d_row |= watch(d_row, progress)
        clock("discriminator")

        # 6 rewards: r_sim from the just-updated D, r_ans from the judge (line 10)
        answer = answers_of(judge, asked, fresh, cached, G + T) * (cfg.judged > 0)
        similarity = similarity_of(cfg, asked, groups, is_teacher, student_logit, (answer * there)[:, :in_mean])
        reward = rewards(similarity, answer)

        # 7 advantages over the whole group (line 10)
        advantage = advantages_of(cfg, *(x[:, :in_mean] for x in (reward, is_teacher, there)))[:, :scored]
        if cfg.refill:  # dead groups give way to other questions, once
            now = (ids, asked, seen, fresh, groups), (there, student_logit, similarity, answer, reward, advantage)
            d_row["refilled"] = refill(run, players, judge, cache, questions, step, *now)

        # 8 student: mu updates by Eq. 2; pi_old's log-probs come from this forward pass, not from the sampler (11-13)
        kept, objective = there[:, :scored], objective_of(cfg, there[:, :in_mean])
        packed = pack_policies(run, replica, seen, groups, kept, cut)
        logp_ref, logp_old = reference_log_probs(run, reference, packed), []
        with on_gpu(run, players.student_optimizer):
            for _ in range(cfg.mu):
                loss_sum, ratios = 0.0, []
                for i, (s, batch) in enumerate(zip(cut, packed, strict=True)):
                    logp = student(batch)  # (R, L)
                    if len(logp_old) == i:
                        logp_old.append(logp.detach())
                    a, teacher = (x[s][kept[s]].to(logp.device) for x in (advantage, is_teacher[:, :scored]))  # (R,)
                    loss = policy_loss(logp, logp_old[i], logp_ref[i], a, batch.mask, teacher, objective)
                    (world * loss).backward()  # FSDP takes the mean over ranks
                    loss_sum += loss.item()
                    ratios.append(report.surrogate_metrics(logp.detach(), logp_old[i], batch.mask, cfg.eps))
                loss_sum = total(loss_sum)
                norm = update(players.student_optimizer, cfg.clip, loss_sum, run, "ril", step, ids)
        clock("student")

        # 9 log
        report.show(run, step, asked, groups, similarity, answer, advantage, [0, G] if G and T else [0])
        row = dict(loss=loss_sum, gradient_norm=norm, malformed=report.malformed_share(judge), **d_row)
        row |= report.look_metrics(asked, fresh, student_logit) | report.taught_share(cache, there)
        row |= report.step_metrics((reward, similarity, answer, is_teacher, advantage), ratios)
        whose = [teacher[k] for teacher, k in zip(is_teacher[:, :scored], kept, strict=True)]
        row |= report.token_metrics(fresh, packed, logp_old, logp_ref, whose, cut, cfg.kl, how)
        report.log_step(run, step, row, clock, packed)
        if cfg.eval_every and (step + 1) % cfg.eval_every == 0 or step + 1 == cfg.steps:
            validate(run, replica, student, parts["valid"], step + 1, progress)
        checkpoints.save(step + 1, progress)
    checkpoints.finish()
    save(student, run.path / "checkpoints" / "last", torch.float32)


def questions_ahead(run: Run, encoder: Encoder, questions: list) -> Ahead:
    """`encoded_at` of every step; on a GPU in a thread, one step ahead. On a CPU a thread takes more than it gives.

    A tokenizer serves one thread at a time, so the encoder is a copy.
    """
    encode = partial(encoded_at, copy.deepcopy(encoder), questions, run.cfg.questions_per_step, run.cfg.seed)
    return Ahead(encode, run.cfg.steps if run.device != "cpu" else 0)


def encoded_at(encoder: Encoder, questions: list, count: int, seed: int, step: int) -> tuple[list, list, int, list]:
    """A step's (question, visit) over all ranks; this rank's, one more where others have more; its own; its prompts."""
    visits = questions_at(questions, step, count, seed)
    here, own = dealt(visits)
    return visits, here, own, [encoder.encode_question(q) for q, _ in here]


def validate(run: Run, replica: VLM, student: VLM, valid: list, step: int, progress: dict) -> None:
    """Accuracy on the validation questions; the best student so far (by sampled accuracy) is kept for export.

    Training without an answer key (--judged 0) has none to choose by: the last student is kept, whatever its accuracy.
    """
    cfg = run.cfg
    with as_exported(run, replica, student):
        found = evaluate(replica, valid, judge_of(run), cfg.max_new_tokens, cfg.eval_draws, cfg.seed, cfg.rollout_rows)
    score = found.get("sampled", found["greedy"])
    row = dict(valid_greedy=found["greedy"], valid_sampled=score)
    run.log("metrics.jsonl", stage="ril", step=step - 1, **row)  # belongs to the state behind that step
    better = score > progress["best"] or not cfg.judged
    if better:
        progress |= {"best": score, "best_step": step}
        save(student, run.path / "checkpoints" / "best", torch.float32)
    print(
        f"  validation after {step} steps: {found['greedy']:.3f} greedy, {score:.3f} sampled"
        f"{'  (best)' * bool(better and cfg.judged)}",
        flush=True,
    )


# ------------------------------------------------------------------------------------------------ stage: export
def export(run: Run) -> None:
    """student/ (best on validation) and last/ as bf16 Hugging Face folders, each read back by stock from_pretrained."""
    for source, target in (("best", "student"), ("last", "last")):
        if not run.first:  # rank 0 has the weights in its memory, the others wait
            with new_folder(run.path / target):
                continue
        vlm = load(run.path / "checkpoints" / source, dtype=torch.bfloat16)
        save(vlm, run.path / target)
        again = vlm.family.model.from_pretrained(run.path / target, dtype=torch.bfloat16).state_dict()
        wrong = [k for k, x in vlm.hf.state_dict().items() if not torch.equal(x, again[k])]
        if wrong:
            raise UserError(f"{run.path / target}: stock from_pretrained reads {wrong[0]} differently; disk full?")
        print(f"  {run.path / target}: {len(again)} tensors, read back equal")
    export_adapter(run)


# ------------------------------------------------------------------------------------------------ stage: evaluate
def evaluate_run(run: Run) -> None:
    """Held-out questions before and after, the teachers beside them; summary.json is written last."""
    cfg, judge = run.cfg, judge_of(run)
    test = [replace(q, text=f"look {q.text}") if cfg.evaluated == "look" else q for q in split(cfg)["test"]]
    blank = [blanked(q) for q in test] if cfg.evaluated == "blank" else []
    players = {"before": run.path / "sft", "after": run.path / "student", "last": run.path / "last"}
    if cfg.teacher_use != "none":
        names = [n for n in cfg.teachers.split(",") if n != "reference" and "=" not in n and n not in FULL]
        names = [] if cfg.teachers_file else names
        players |= {f"teacher_{i + 1}".removesuffix("_1"): name for i, name in enumerate(names)}
    if cfg.evaluated != "all":
        more = {f"{who}_blank": players[who] for who in ("before", "after") if blank}
        players = {"after": players["after"]} | more
    summary, texts, answers = {"name": cfg.name, "algo": cfg.algo, "test_questions": len(test)}, {}, []
    how = (cfg.max_new_tokens, cfg.eval_draws, cfg.seed, cfg.rollout_rows)
    for who in tqdm(players, "evaluation", delay=2, disable=not run.first):
        is_teacher = who.startswith("teacher")
        asked = teacher_model(teacher_folder(players[who]), run) if is_teacher else load_replica(run, players[who])
        found = evaluate(asked, blank if who.endswith("_blank") else test, judge, *how)
        del asked
        gc.collect()  # FSDP modules hold reference cycles, so collect explicitly
        texts[who] = found.pop("texts")
        answers += [dict(who=who, **row) for row in found.pop("answers")]
        summary |= {f"{name}_{who}": value for name, value in report.rounded(found).items() if name != "questions"}
    summary |= report.of_the_loop(run)
    if cfg.evaluated == "all":
        samples = report.shown(run, test[:8], judge, texts)
        if run.first:
            report.write_samples(run.path, samples)
            report.draw_curves(run)
    run.write("answers.jsonl", as_jsonl(answers))
    run.write("summary.json", summary)
    barrier()


# ------------------------------------------------------------------------------------------------ main
STAGE_OF = dict(
    sft=(sft, "sft/config.json", "warm start"),
    teachers=(teachers, "teachers.jsonl", "teacher responses"),
    discriminator=(discriminator, "discriminator/model.safetensors", "discriminator pre-training"),
    ril=(ril, "checkpoints/last/config.json", "RIL"),
    export=(export, "last/config.json", "export"),
    evaluate=(evaluate_run, "summary.json", "evaluation on held-out questions"),
)


def stages_of(cfg: Config) -> list[str]:
    """The stages that this method has: no teachers without teacher rows, no discriminator without D."""
    has = {"teachers": cfg.teacher_use != "none", "discriminator": cfg.discriminator != "none"}
    return [name for name in STAGES if has.get(name, True)]


def run_stage(run: Run, name: str) -> None:
    """Run a stage unless its artefact is there; its seconds and the most memory so far go to seconds.json."""
    action, artefact, title = STAGE_OF[name]
    if all(all_gather((run.path / artefact).exists())):
        print(f"{title}: skipped, {run.path / artefact} is there")
        return
    print(title, flush=True)
    begin = time.perf_counter()
    action(run)
    run.base = None
    gc.collect()  # FSDP modules hold reference cycles, so collect explicitly
    if run.device != "cpu":
        torch.cuda.empty_cache()
    seconds, took = run.read("seconds.json"), time.perf_counter() - begin
    seconds[name] = round(seconds.get(name, 0) + took, 1)
    seconds["peak_memory_mb"] = max(round(peak_memory_mb()), seconds.get("peak_memory_mb", 0))
    run.write("seconds.json", seconds)
    print(f"  {title}: {took:.1f} s", flush=True)


def main(argv: list[str] | None = None) -> None:
    """Run the stages whose artefact is missing, say which are skipped, end with the summary."""
    argv = sys.argv[1:] if argv is None else argv
    run_all(parse(argv), ["train.py", *argv])


def run_all(cfg: Config, command: list[str]) -> Run:
    """Check what can be checked, run the stages, print the summary; -> the run. `command` goes to config.json."""
    set_up(cfg)
    encoder = check_players(cfg)
    for difference in unlike_the_paper(cfg):
        print(difference)
    if cfg.data or cfg.sft_data:
        check_questions(cfg, encoder)
    before = () if cfg.stage in ("all", "teachers") else STAGES[: STAGES.index(cfg.stage)]
    for earlier in (name for name in stages_of(cfg) if name in before):
        if not (missing := Path("runs") / cfg.name / STAGE_OF[earlier][1]).exists():
            raise UserError(f"--stage {cfg.stage} needs {missing}; run --stage {earlier} first")
    cfg.offload = best_offload(cfg)
    with open_run(cfg, command) as run:
        for name in stages_of(cfg):
            if cfg.stage in ("all", name):
                run_stage(run, name)
        report.print_summary(run)
    return run


if __name__ == "__main__":
    run_command(main)
