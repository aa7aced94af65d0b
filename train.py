"""RIL: a small vision-language model learns from teachers by reinforcement and imitation (arXiv 2510.19307).

    python train.py                                   # the whole loop on the tiny world, a CPU, three minutes
    python train.py --run mine --data mine.jsonl      # your own questions
    python train.py --run long --steps 120 --seed 3   # longer, another seed; the run lies in runs/long
    torchrun --nproc_per_node 8 train.py --student qwen2.5-vl-7b      # real scale: --plan and --pilot first
    python train.py --help                            # every setting, with the paper's value beside it

Stages, in order; each leaves an artefact in runs/NAME and is skipped when the artefact is there:

    sft            sft/              warm start, shipped or trained: the language of the world; it is pi_init and pi_ref
    teachers       teachers.jsonl    cached teacher responses with the judge's verdicts
    discriminator  discriminator/    D, from the warm-started student, until it tells student from teacher
    ril            checkpoints/      the loop (Algorithm 2): numbers 1-9 in `ril` below and in the README
    export         student/, last/   Hugging Face folders: best on the validation questions, and last
    evaluate       summary.json      held-out questions, before and after; curves.png, samples.md

Left out on purpose: trainer classes, callbacks, configuration files, a logging service.
"""

import gc
import json
import os
import shutil
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # torch reads this when it is imported; lengths differ at every step, and fixed segments would fragment memory
    os.environ.setdefault("PYTORCH_ALLOC_CONF", os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"))

import torch
import transformers
from safetensors.torch import save_file
from tqdm import tqdm

from config import BUILDS, D_ALARM, STAGES, Config, frozen_parts, is_real, parse, pretraining_samples
from data import UserError, questions_at, read_jsonl, run_command, slices
from discriminator import discriminator_accuracy, discriminator_update, make_discriminator, similarity_reward
from engine.families import FULL, JUDGES
from engine.loading import find_folder, language_shell, load, random_shell, save, shell
from engine.report import (
    draw_curves,
    line,
    look_auc,
    looks_of,
    loop_rows,
    print_summary,
    rounded,
    show,
    shown,
    start_and_end,
    token_metrics,
    write_samples,
)
from engine.run import (
    Checkpoints,
    Run,
    adamw,
    compute_dtype,
    device_of,
    hold_memory,
    move,
    on_gpu,
    peak_memory_mb,
    questions_in,
    refreshed,
    split,
    total,
    update,
)
from engine.served import Server, is_url
from engine.sharding import deal, dealt, everyone, everyone_of, new_folder, ranks, start_ranks, wait, whole
from eval import evaluate
from grpo import advantages, group_metrics, policy_loss, rewards, surrogate_metrics, teacher_advantages
from judge import MALFORMED_ALARM, judge_digits, known_judge
from model import VLM, pack
from rollout import rollout, sampling_of
from teachers import TeacherCache, pretraining_questions, teacher_folder, teacher_model, teachers
from tiny.lessons import build_students, build_teachers, fit, shipped_warm_start
from tiny.models import TINY
from tiny.world import look


def sft(run: Run) -> None:
    """The student's warm start: pi_init and pi_ref."""
    name, target, shipped = run.cfg.student, run.path / "sft", shipped_warm_start(run.cfg)
    if shipped:
        print(f"  a shipped warm start: results/students/{shipped.name}; --stage build-students trains it anew")
        with new_folder(target) as part:
            if run.first:
                shutil.copytree(shipped, part, ignore=lambda *_: ["warm_start.json"], dirs_exist_ok=True)
    elif name in TINY or run.cfg.sft_data:
        vlm = run.sharded(name)
        fit(run, vlm, "sft", run.cfg.sft_steps)
        save(vlm, target, torch.float32)
    elif run.cfg.random_weights and name in FULL:
        save(run.sharded(name), target)
    else:
        print("  a trained student already: it is pi_init and pi_ref as it is")
        folder = find_folder(name).resolve()
        if run.first:
            target.unlink(missing_ok=True)
            target.symlink_to(folder)
        wait()


# ------------------------------------------------------------------------------------------------ stage: discriminator
def discriminator(run: Run) -> None:
    """Pre-train D on fresh student samples against cached teacher responses; stop early on held-out questions."""
    cfg, world = run.cfg, ranks()[1]
    student = run.whole(run.path / "sft")
    cache = TeacherCache(run, student, split(cfg)["train"])
    held, visits = pretraining_questions(cfg, split(cfg)["train"], [q.id for q in cache.questions])
    n, read = pretraining_samples(cfg), {q.id for part in (held, *visits) for q in part}
    if few := cache.too_few(read, n):
        print(f"  {few} of {len(read)} questions have fewer than {n} cached responses of a teacher: D reads repeats")
    D = make_discriminator(run, trained=False).train()
    optimizer = adamw(D, cfg.d_pretrain_lr)
    run.rewind("discriminator", 0)

    def texts(questions: list, step: int) -> tuple[list, torch.Tensor, int]:
        """This rank's packed texts, who wrote them, and the number of questions of the step."""
        asked, own = dealt(questions)
        prompts, names = [student.encode_question(q) for q in asked], [q.id for q in asked[:own]]
        sampled = (cfg.max_new_tokens, sampling_of(cfg), (cfg.seed, "d", step))
        with on_gpu(run, student):
            fresh = rollout(student, prompts[:own], names, n, *sampled, max_rows=cfg.rollout_rows)
            seen = student.see(prompts)
        groups = [
            mine + cache.draw(name, cfg.seed, "d", step, count=n)[0] for name, mine in zip(names, fresh, strict=True)
        ]
        is_student = torch.tensor([r.source == "student" for g in groups for r in g], dtype=torch.bool)
        groups += [[]] * (len(asked) - own)
        cut = slices(n * (1 + len(cache.names)), 2 * cfg.group_size)  # a row has as many texts as in the loop
        asked, seen = ([x for x in of for _ in cut] for of in (asked, seen))
        return D.batches(asked, seen, [g[s] for g in groups for s in cut], cfg.micro_batch), is_student, own

    if visits:
        held_batches, held_is_student, _ = texts(held, -1)
    for step, step_questions in enumerate(visits):
        for group in optimizer.param_groups:
            group["lr"] = cfg.d_pretrain_lr * (1 - 0.9 * step / cfg.d_steps)
        batches, is_student, count = texts(step_questions, step)
        with on_gpu(run, D, optimizer):
            loss, _ = discriminator_update(D, batches, is_student, count / len(step_questions), world)
            loss = total(loss)
            update(optimizer, cfg.clip, loss, run, "discriminator", step, [q.id for q in step_questions])
            with torch.no_grad():
                mine = [torch.cat([D(b) for b in held_batches]).cpu(), held_is_student]
        found = discriminator_accuracy(*(torch.cat(everyone_of(x)) for x in mine))
        run.log("metrics.jsonl", stage="discriminator", step=step, loss=loss, **found)
        print(f"  step {step + 1:3d}  loss {loss:.3f}  held-out accuracy {found['d_accuracy']:.3f}", flush=True)
        if found["d_accuracy"] >= cfg.d_stop:
            break
    if visits and found["d_accuracy"] < D_ALARM:
        print(
            f"  WARNING: D ends at {found['d_accuracy']:.3f} on held-out questions, below {D_ALARM}: it hardly tells "
            "student from teacher, so its reward is noise; take more --d-steps or a larger --d-pretrain-lr"
        )
    weights = {name: whole(x.detach()).cpu().contiguous() for name, x in D.state_dict().items()}
    with new_folder(run.path / "discriminator") as part:
        if run.first:
            save_file(weights, part / "model.safetensors")


# ------------------------------------------------------------------------------------------------ stage: ril
def ril(run: Run) -> None:
    """Algorithm 2 of the paper. The numbers are those of the README; the switches default to the paper's choices.

    Every rank has its share of the questions from 2 to 8; what is logged is of all.
    """
    cfg, judge, world = run.cfg, run.judge(weak=True), ranks()[1]
    student = run.sharded(run.path / "sft").freeze(*frozen_parts(cfg))
    reference = run.sharded(run.path / "sft", dtype=compute_dtype(cfg)).requires_grad_(False)  # pi_ref never changes
    move(run, "cpu", reference)
    replica = run.whole(run.path / "sft")  # pi_old: takes over the student at every step
    hold_memory(run, replica, student, False)
    student_optimizer = adamw(student, cfg.lr)
    trained, D, d_optimizer = {"student": (student, student_optimizer)}, None, None
    if cfg.discriminator != "none":
        D = make_discriminator(run)
        move(run, "cpu", D)
        d_optimizer = adamw(D, cfg.d_lr)
        trained["D"] = (D, d_optimizer)
    parts = split(cfg)
    questions, valid = parts["train"], parts["valid"]
    cache = TeacherCache(run, replica, questions) if cfg.teacher_use != "none" else None
    questions = cache.questions if cache else questions
    checkpoints, progress = Checkpoints(run, "ril", trained, cfg.checkpoint_every), {"best": -1.0, "best_step": -1}
    start = checkpoints.resume(progress)
    how, P = sampling_of(cfg), cfg.questions_per_step
    G, T = cfg.group_size * (cfg.student_rows != "none"), cache.rows if cache else 0  # rows of a group: G + T
    inside = G if cfg.teacher_use == "discriminator" else G + T  # the rows that make the group's mean
    rows = G if cfg.teacher_use in ("discriminator", "baseline") else G + T  # the rows that the policy is scored on
    objective = dict(responses=P * inside, max_length=cfg.max_new_tokens, eps=cfg.eps, beta=cfg.beta, kl_kind=cfg.kl)
    objective |= dict(length_mean=cfg.length == "mean", teacher_use=cfg.teacher_use)
    blank = None if "vision" in frozen_parts(cfg) else replica.blank()
    student.train()  # only so that activations are recomputed; nothing drops out
    if start == 0:
        validate(run, replica, student, valid, 0, progress)

    for step in range(start, cfg.steps):
        clock = time.perf_counter()
        # 1 questions: P for all ranks; this one has `own` of them, and where P does not divide one more without rows
        step_questions = questions_at(questions, step, P, cfg.seed)
        here, own = dealt(step_questions)
        padded_asked, visits = [q for q, _ in here], [visit for _, visit in here[:own]]
        asked, names, everybody = padded_asked[:own], [q.id for q, _ in here[:own]], [q.id for q, _ in step_questions]
        prompts = [replica.encode_question(q) for q in padded_asked]

        # 2 rollout: G responses per question from the replica, which is pi_old
        with refreshed(run, replica, student):
            more = dict(visits=visits, max_rows=cfg.rollout_rows)
            fresh = rollout(replica, prompts[:own], names, G, cfg.max_new_tokens, how, (cfg.seed, "rollout"), **more)
            seen = replica.see(prompts)
        clock_rollout = time.perf_counter()

        # 3 teachers: cached responses to the same questions
        cached = [cache.draw(*visit, cfg.seed) if cache else ([], []) for visit in zip(names, visits, strict=True)]

        # 4 pack: one question = one row, for the policies (with picture and question) and for D (its template)
        groups = [mine + theirs for mine, (theirs, _) in zip(fresh, cached, strict=True)]
        is_teacher = (torch.arange(G + T) >= G).expand(len(groups), -1)  # (this rank's questions, G + T)
        padded_groups = groups + [[]] * (len(padded_asked) - len(groups))
        cut = slices(len(padded_groups), cfg.micro_batch)
        looked = [replace(p, patches=None) for p in seen] if blank else seen  # a trained tower sees for itself
        ids = [[r.ids for r in g[:rows]] for g in padded_groups]
        packed = [pack(looked[s], ids[s], device=student.device, blank=blank) for s in cut]

        # 5 discriminator: mu updates by Eq. 1
        d_row = {}
        if cfg.discriminator != "none":
            with on_gpu(run, D, d_optimizer):
                d_packed = D.batches(padded_asked, seen, padded_groups, cfg.micro_batch)
                for k in range(cfg.mu):
                    share = len(groups) / P
                    d_loss, student_logit = discriminator_update(
                        D.train(), d_packed, ~is_teacher.flatten(), share, world
                    )
                    d_loss = total(d_loss)
                    if k == 0:
                        logit = torch.stack(everyone(list(student_logit.cpu().view(len(groups), G + T))))
                        of_student = (torch.arange(G + T) < G).expand(P, -1)
                        d_row = {"d_loss": d_loss, **discriminator_accuracy(logit.flatten(), of_student.flatten())}
                    if cfg.discriminator == "updated":
                        update(d_optimizer, cfg.clip, d_loss, run, "ril", step, everybody)
                    d_optimizer.zero_grad()
                with torch.no_grad():
                    student_logit = torch.cat([D(b) for b in d_packed]).cpu().view(len(groups), G + T)
                    D.reshard()
        clock_d = time.perf_counter()

        # 6 rewards: r_sim from the just-updated D, r_ans from the judge (the teachers' verdicts are cached)
        if cfg.discriminator != "none":
            similarity = similarity_reward(student_logit, cfg.similarity)
            d_row["look_auc"] = look_auc(everyone(looks_of(asked, fresh, student_logit)))
        else:
            similarity = control_similarity(cfg.similarity, asked, groups, is_teacher)
        verdicts = iter(judge.verdicts(asked, [r for g in fresh for r in g]))
        bad, texts = map(sum, zip(*everyone_of(judge.malformed_counts()), strict=True))
        malformed = bad / max(texts, 1)
        verdicts = [[next(verdicts) for _ in mine] + v for mine, (_, v) in zip(fresh, cached, strict=True)]
        answer = torch.tensor(verdicts, dtype=torch.float32).view(len(groups), G + T) * (cfg.answer == "judge")
        reward = rewards(similarity, answer)

        # 7 advantages over the whole group
        advantage = advantages(reward[:, :inside], cfg.advantage)
        advantage = teacher_advantages(advantage, is_teacher[:, :inside], cfg.teacher_use)[:, :rows]

        # 8 student: mu updates by Eq. 2; pi_old's log-probs come from this forward pass, not from the sampler
        with on_gpu(run, reference), torch.no_grad():
            logp_ref = [reference(b) for b in packed] if cfg.beta else [None] * len(packed)
            reference.reshard()  # without a backward pass FSDP keeps the root's weights gathered
        logp_old: list = []
        with on_gpu(run, student_optimizer):
            for k in range(cfg.mu):
                loss_sum, ratios = 0.0, []
                for i, (s, batch) in enumerate(zip(cut, packed, strict=True)):
                    logp = student(batch)
                    if k == 0:
                        logp_old.append(logp.detach())
                    a, of_teacher = (x.flatten().to(logp.device) for x in (advantage[s], is_teacher[s, :rows]))
                    old, ref = logp_old[i], logp_ref[i]
                    loss = policy_loss(logp, old, ref, a, batch.mask, teacher=of_teacher, **objective)
                    (world * loss).backward()  # FSDP takes the mean over ranks
                    loss_sum += loss.item()
                    ratios.append(surrogate_metrics(logp.detach(), old, batch.mask, cfg.eps))
                loss_sum = total(loss_sum)
                norm = update(student_optimizer, cfg.clip, loss_sum, run, "ril", step, everybody)
        clock_student = time.perf_counter()

        # 9 log
        row = dict(loss=loss_sum, gradient_norm=norm, malformed=malformed, **d_row)
        if malformed > MALFORMED_ALARM:
            print(f"  step {step + 1}: {malformed:.0%} of the texts are empty, loop, or got no readable verdict")
        tables = (reward, similarity, answer, is_teacher, advantage)
        row |= group_metrics(*(torch.stack(everyone(list(x))) for x in tables))
        sums = [sum(x) for x in zip(*everyone_of(tuple(map(sum, zip(*ratios, strict=True)))), strict=True)]
        row |= dict(ratio=sums[0] / sums[2], clipped=sums[1] / sums[2])
        row |= token_metrics(fresh, packed, logp_old, logp_ref, is_teacher[:, :rows], cut, cfg.kl, how)
        if run.first:
            show(run, step, asked[0], groups[0], similarity[0], answer[0], advantage[0], [0, G] if G and T else [0])
        seconds = dict(rollout=clock_rollout - clock, discriminator=clock_d - clock_rollout)
        seconds |= dict(student=clock_student - clock_d, total=time.perf_counter() - clock)
        tokens = sum(int((b.segment >= 0).sum()) for b in packed)
        run.log("metrics.jsonl", stage="ril", step=step, **row)
        run.log("timing.jsonl", stage="ril", step=step, **seconds, tokens_per_rank=everyone_of(tokens))
        print(line(step, cfg.steps, row, seconds["total"]), flush=True)
        if cfg.eval_every and (step + 1) % cfg.eval_every == 0 or step + 1 == cfg.steps:
            validate(run, replica, student, valid, step + 1, progress)
        checkpoints.save(step + 1, progress)
    checkpoints.finish()
    save(student, run.path / "checkpoints" / "last", torch.float32)


def control_similarity(kind: str, asked: list, groups: list, is_teacher: torch.Tensor) -> torch.Tensor:
    """The similarity rewards that need no D: none (0), constant (1 on teacher rows), oracle (1 on right looks)."""
    if kind == "oracle":
        return torch.tensor([[float(look(q, r.text) or 0) for r in g] for q, g in zip(asked, groups, strict=True)])
    return is_teacher.float() * (kind == "constant")


def validate(run: Run, replica: VLM, student: VLM, valid: list, step: int, progress: dict) -> None:
    """Accuracy on the validation questions; the best student so far (by sampled accuracy) is kept for export."""
    cfg = run.cfg
    with refreshed(run, replica, student):
        found = evaluate(replica, valid, run.judge(), cfg.max_new_tokens, cfg.eval_draws, cfg.seed, cfg.rollout_rows)
    score = found.get("sampled", found["greedy"])
    row = dict(valid_greedy=found["greedy"], valid_sampled=score)
    run.log("metrics.jsonl", stage="ril", step=step - 1, **row)  # belongs to the state behind that step
    better = score > progress["best"]
    if better:
        progress |= {"best": score, "best_step": step}
        save(student, run.path / "checkpoints" / "best", torch.float32)
    print(
        f"  validation after {step} steps: {found['greedy']:.3f} greedy, {score:.3f} sampled{'  (best)' * better}",
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
            raise UserError(
                f"{run.path / target}: stock from_pretrained reads {wrong[0]} differently; is the disk full?"
            )
        print(f"  {run.path / target}: {len(again)} tensors, read back equal")


# ------------------------------------------------------------------------------------------------ stage: evaluate
def evaluate_run(run: Run) -> None:
    """Held-out questions before and after, the teachers beside them; writes samples.md, curves.png, then
    summary.json.
    """
    cfg, judge = run.cfg, run.judge()
    prefix = f"{cfg.ask_prefix} " if cfg.ask_prefix else ""
    test = [replace(q, text=prefix + q.text) for q in split(cfg)["test"]]
    players = {"before": run.path / "sft", "after": run.path / "student", "last": run.path / "last"}
    if cfg.teacher_use != "none":
        names = [n for n in cfg.teachers.split(",") if n != "reference" and "=" not in n and n not in FULL]
        names = [] if cfg.teachers_file else names
        players |= {f"teacher{'_2' * bool(i)}": name for i, name in enumerate(names[:2])}
    if cfg.evaluated == "after":
        players = {"after": players["after"]}
    summary, texts, answers = {"run": cfg.run, "algo": cfg.algo, "test_questions": len(test)}, {}, []
    how = (cfg.max_new_tokens, cfg.eval_draws, cfg.seed, cfg.rollout_rows)
    for who in tqdm(players, "evaluation", delay=2, disable=not run.first):
        asked = teacher_model(players[who], run) if who.startswith("teacher") else run.whole(players[who])
        found = evaluate(asked, test, judge, *how)
        del asked
        gc.collect()  # a sharded model lies in a circle of references
        texts[who] = found.pop("texts")
        answers += [dict(who=who, **row) for row in found.pop("answers")]
        summary |= {f"{name}_{who}": value for name, value in rounded(found).items() if name != "questions"}
    rows = loop_rows(run.path)
    summary |= start_and_end(rows)
    summary["packed_tokens"] = sum(r["packed_tokens"] for r in rows)
    validations = [r for r in run.rows("metrics.jsonl", "ril") if "valid_sampled" in r]
    summary["exported_step"] = max(validations, key=lambda r: r["valid_sampled"])["step"] + 1
    if cfg.evaluated == "all":
        samples = shown(run, test[:8], judge, texts)
        if run.first:
            write_samples(run.path, samples)
            draw_curves(run.path, rows, validations)
    run.write("answers.jsonl", "".join(json.dumps(row) + "\n" for row in answers))
    run.write("summary.json", summary)
    wait()


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


def check_players(cfg: Config) -> VLM | None:
    """Look at the files of every player that will be loaded, before anything is written: a UserError names the first
    that cannot be used. -> the student without memory, to encode --data with.
    """
    files = ((cfg.teachers_file, ("question", "teacher", "text")), (cfg.sft_data, ("id", "question", "answer")))
    for file, fields in filter(lambda x: x[0], files):
        read_jsonl(file, fields)
    cached = (Path("runs") / cfg.run / "teachers.jsonl").exists()
    for name in cfg.teachers.split(",") if cfg.teacher_use != "none" and cfg.stage != "build-teachers" else ():
        if "=" in name:
            Server(name.partition("=")[2])  # or one line that says what is wrong with the address
        elif name != "reference" and not (cached and name in FULL) and not cfg.teachers_file:
            shell(teacher_folder(name))
    known_judge(cfg.judge)
    if cfg.judge != "rule" and not is_url(cfg.judge):
        judge_digits(
            cfg.judge, language_shell(cfg.judge, torch.bfloat16, cfg.random_weights and cfg.judge in JUDGES)[1]
        )
    if cfg.student in TINY:
        return load(cfg.student) if cfg.data else None
    return (random_shell if cfg.random_weights and cfg.student in FULL else shell)(cfg.student)[0]


def check_questions(cfg: Config, encoder: VLM) -> None:
    """Read and encode every question before anything is written: bad input leaves no trace. All ranks stop together."""
    questions = questions_in(cfg.data, Path(cfg.data).stat().st_mtime_ns if Path(cfg.data).is_file() else 0)
    wrong = ""
    encoder.limit_pictures(cfg.image_tokens)
    try:
        for q in tqdm(deal(questions), "questions", delay=2, disable=ranks()[0] > 0):
            encoder.encode_question(q)
        split(cfg)
    except UserError as error:
        wrong = str(error)
    for message in filter(None, everyone_of(wrong)):
        raise UserError(message)


def unlike_the_paper(cfg: Config) -> list[str]:
    """What is asked and who plays, where a run with the paper's settings has other players; one line each."""
    if cfg.preset != "paper" and not is_real(cfg.student):
        return []
    out = []
    if not cfg.data:
        side = 336 if is_real(cfg.student) else 42
        out.append(f"no --data: questions of the embedded tiny world, pictures of {side} x {side} pixels")
    if cfg.judge == "rule":
        out.append("judge: an exact rule; the paper's is a language model (--judge qwen2.5-32b, or its URL)")
    tiny = [n for n in cfg.teachers.split(",") if n in TINY]
    if tiny and cfg.teacher_use != "none":
        out.append(f"teachers: {', '.join(tiny)}; the paper's have 72 and 78 B parameters (--teachers NAME=URL)")
    return out


def run_stage(run: Run, name: str) -> None:
    """Run a stage unless its artefact is there; its seconds and the most memory so far go to seconds.json."""
    action, artefact, title = STAGE_OF[name]
    if all(everyone_of((run.path / artefact).exists())):
        print(f"{title}: skipped, {run.path / artefact} is there")
        return
    print(title, flush=True)
    begin, file = time.perf_counter(), run.path / "seconds.json"
    action(run)
    gc.collect()  # a sharded model lies in a circle of references
    if run.device != "cpu":
        torch.cuda.empty_cache()
    seconds, took = json.loads(file.read_text()) if file.exists() else {}, time.perf_counter() - begin
    seconds[name] = round(seconds.get(name, 0) + took, 1)
    seconds["peak_memory_mb"] = max(round(peak_memory_mb()), seconds.get("peak_memory_mb", 0))
    run.write("seconds.json", seconds)
    print(f"  {title}: {took:.1f} s", flush=True)


def main(argv: list[str] | None = None) -> None:
    """Run the stages whose artefact is missing, say which are skipped, end with the summary."""
    cfg = parse(sys.argv[1:] if argv is None else argv)
    run_all(cfg, sys.argv[1:] if argv is None else argv)


def set_up(cfg: Config) -> None:
    """The process: threads, determinism, its rank. Rank 0 speaks for all."""
    warnings.filterwarnings("ignore", message=".*(torch.distributed is disabled|TypedStorage|_get_pg_default_device).*")
    torch.set_num_threads(cfg.threads)
    if cfg.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    torch.use_deterministic_algorithms(cfg.deterministic or device_of(cfg) == "cpu")
    start_ranks(device_of(cfg).partition(":")[0])
    if ranks()[0]:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    transformers.utils.logging.disable_progress_bar()


def run_all(cfg: Config, argv: list[str]) -> Run:
    """Check what can be checked, run the stages, print the summary; -> the run."""
    set_up(cfg)
    encoder = check_players(cfg)
    for difference in unlike_the_paper(cfg):
        print(difference)
    if cfg.data:
        check_questions(cfg, encoder)
    needed = STAGES[: STAGES.index(cfg.stage)] if cfg.stage in STAGES and cfg.stage != "teachers" else ()
    for earlier in stages_of(cfg):
        if earlier in needed and not (Path("runs") / cfg.run / STAGE_OF[earlier][1]).exists():
            missing = Path("runs") / cfg.run / STAGE_OF[earlier][1]
            raise UserError(f"--stage {cfg.stage} needs {missing}; run --stage {earlier} first")
    if is_url(cfg.judge) and ranks()[0] == 0:
        Server(cfg.judge).name_model()  # a dead judge is named now, before anything is written
    run = Run(cfg, argv)
    if cfg.stage in BUILDS:
        {"build-students": build_students, "build-teachers": build_teachers}[cfg.stage](run)
        return run
    for name in stages_of(cfg):
        if cfg.stage in ("all", name):
            run_stage(run, name)
    if run.first and (run.path / "summary.json").exists():
        summary = json.loads((run.path / "summary.json").read_text())
        if "seconds" not in summary and (run.path / "seconds.json").exists():
            summary["seconds"] = json.loads((run.path / "seconds.json").read_text())
            summary["peak_memory_mb"] = summary["seconds"].pop("peak_memory_mb")
            run.write("summary.json", summary)
        print_summary(run, summary)
    return run


if __name__ == "__main__":
    run_command(main)
