"""What a run reports: the line of a step, metrics over tokens, samples.md, curves.png, the summary."""

import io
import time
from pathlib import Path

import numpy as np
import torch

from discriminator import relative, similarity_reward
from engine.alarms import raised
from engine.command import UserError
from engine.files import read_jsonl, write
from engine.players import load_start, make_discriminator
from engine.run import Run, memory_mb
from engine.sharding import all_gather, gather_dealt
from eval import auc
from grpo import kl
from judge import Judge
from rollout import PURE, Response, Sampling
from tiny.world import look


class Clock:
    """Seconds of each phase of a step: clock(name) ends the phase that began with the last call."""

    def __init__(self):
        self.start = self.last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self.last = now - self.last, now


def discriminator_accuracy(
    student_logit: torch.Tensor, is_student: torch.Tensor, kind: str = "bce"
) -> dict[str, float]:
    """Share of right verdicts per class and their mean; 0.5 = D cannot tell them apart. kind: --d-loss."""
    student_logit = relative(student_logit, is_student) if kind == "pairwise" else student_logit
    right = (student_logit > 0) == is_student
    on_student, on_teacher = (right[x].float().mean().item() if x.any() else 0.0 for x in (is_student, ~is_student))
    return {"d_accuracy": (on_student + on_teacher) / 2, "d_on_student": on_student, "d_on_teacher": on_teacher}


def d_metrics(kind: str, d_loss: float, student_logit, is_teacher, learned, unseen) -> dict[str, float]:
    """D on the step's texts that it learns from, over all ranks, and on `unseen` teacher texts (R,), the same on all.

    is_teacher, learned (questions, rows), student_logit flat.
    """
    tables = student_logit.cpu().view(is_teacher.shape), ~is_teacher, learned
    logit, of_student, learned = (torch.stack(gather_dealt(list(x))) for x in tables)
    out = {"d_loss": d_loss, **discriminator_accuracy(logit[learned], of_student[learned], kind)}
    if len(unseen):
        texts = torch.cat([logit[of_student], unseen])
        found = discriminator_accuracy(texts, torch.arange(len(texts)) < of_student.sum(), kind)
        out["d_accuracy_unseen"] = found["d_accuracy"]
    return out


def taught_share(cache, there: torch.Tensor) -> dict[str, float]:
    """The share of the step's groups with teacher text, where some have none; there (questions, rows)."""
    if not (cache and cache.is_partial):
        return {}
    return {"taught": float(torch.stack(gather_dealt(list(there))).all(dim=1).float().mean())}


def malformed_share(judge: Judge) -> float:
    """Share of the step's texts that were malformed, over all ranks."""
    bad, texts = map(sum, zip(*all_gather(judge.malformed_counts()), strict=True))
    return bad / max(texts, 1)


def look_metrics(asked: list, fresh: list, student_logit: torch.Tensor | None) -> dict[str, float]:
    """Does D see truth? AUC of its teacher-likeness, right against wrong looks among the student's rows; 0.5 = no."""
    if student_logit is None:
        return {}
    mine = [
        [(look(q, r.text), -x) for r, x in zip(g, z, strict=False)]
        for q, g, z in zip(asked, fresh, student_logit.tolist(), strict=False)
    ]
    rows = [x for of in gather_dealt(mine) for x in of]
    return {"look_auc": auc([x for right, x in rows if right], [x for right, x in rows if right is False])}


def surrogate_metrics(logp: torch.Tensor, logp_old: torch.Tensor, mask: torch.Tensor, eps: float) -> tuple:
    """How far an update is from the sampling policy: (sum of the ratios, clipped tokens, tokens)."""
    rho = torch.exp(logp - logp_old)[mask].double()
    return rho.sum().item(), int(((rho - 1).abs() > eps).sum()), len(rho)


def group_metrics(reward, similarity, answer, teacher, advantage) -> dict[str, float]:
    """What the rewards of a step look like; all (Q, N), `teacher` marks the teachers' responses, `advantage` (Q, any)
    is what reaches the gradient. Defined in docs/metrics.md.
    """

    def mean(x, where):
        return x[where].mean().item() if where.any() else 0.0

    return {
        "reward": mean(reward, ~teacher),
        "similarity": mean(similarity, ~teacher),
        "answer": mean(answer, ~teacher),
        "teacher_similarity": mean(similarity, teacher),
        "teacher_answer": mean(answer, teacher),
        "dead_groups": (advantage == 0).all(dim=1).float().mean().item(),
    }


def step_metrics(tables: tuple, ratios: list) -> dict[str, float]:
    """Means over all ranks. tables: reward, similarity, answer, is_teacher, advantage, each (questions, rows); ratios:
    `surrogate_metrics` of the last update's batches.
    """
    sums = [sum(x) for x in zip(*all_gather(tuple(map(sum, zip(*ratios, strict=True)))), strict=True)]
    out = group_metrics(*(torch.stack(gather_dealt(list(x))) for x in tables))
    return out | dict(ratio=sums[0] / sums[2], clipped=sums[1] / sums[2])


def log_step(run: Run, step: int, row: dict, clock: Clock, packed: list) -> None:
    """Write a step's metrics, its times and the tokens of each rank; print its line and the alarms that it raises."""
    tokens = all_gather(sum(int((batch.segment >= 0).sum()) for batch in packed))
    seconds = clock.seconds | dict(total=time.perf_counter() - clock.start)
    run.log("metrics.jsonl", stage="ril", step=step, **row)
    run.log("timing.jsonl", stage="ril", step=step, **seconds, tokens_per_rank=tokens, memory_mb=memory_mb())
    print(line(step, run.cfg.steps, row, seconds["total"]), flush=True)
    for text in raised(loop_rows(run.path)) if run.first else ():
        print(f"  {text}", flush=True)


def token_metrics(fresh, packed, logp_old, logp_ref, is_teacher, cut, kind: str, how: Sampling) -> dict[str, float]:
    """Metrics of the step's tokens under the policy, over all ranks; docs/metrics.md defines every name.

    is_teacher[q] marks the rows of a group that are scored.

    Sums are taken per question, so that neither micro-batching nor the number of ranks changes them. Where sampler and
    scorer differ on purpose (`how` is not PURE), the mean and the spread of their difference are added.
    """
    mine = []
    for s, batch, old, ref in zip(cut, packed, logp_old, logp_ref, strict=True):
        begins = 0
        for q, (responses, teacher) in enumerate(zip(fresh[s], is_teacher[s], strict=True)):
            part = slice(begins, begins + len(teacher))
            begins = part.stop
            of_teacher = teacher[:, None].to(batch.mask.device) & batch.mask[part]
            of_student = batch.mask[part] & ~of_teacher
            said, sampler = old[part][of_student], torch.tensor([x for r in responses for x in r.logps])
            row = dict(said=-said.double().sum().item(), said_n=len(said), theirs_n=int(of_teacher.sum()))
            row |= dict(theirs=-old[part][of_teacher].double().sum().item(), answers=len(responses))
            row |= dict(tokens=sum(len(r.ids) for r in responses), cut=sum(not r.finished for r in responses))
            gaps = (said - sampler.to(said.device)).double() if len(said) == len(sampler) else said.new_zeros(0)
            ratios = [g.sum().item() for g in gaps.split([len(r.ids) for r in responses])] if len(gaps) else []
            row |= dict(gap=gaps.abs().max().item() if len(gaps) else 0.0, gaps=gaps.abs().sum().item())
            row |= dict(ratio=sum(ratios), ratio_squared=sum(x * x for x in ratios))
            row["packed"] = int((batch.segment[q] >= 0).sum())
            if ref is not None:
                row["kl"] = kl(said, ref[part][of_student], kind).double().sum().item()
            mine.append(row)
    rows = gather_dealt(mine)
    sums = {name: sum(r[name] for r in rows) for name in rows[0]}
    answers, said, theirs = (max(1, sums[name]) for name in ("answers", "said_n", "theirs_n"))
    spread = max(0.0, sums["ratio_squared"] / answers - (sums["ratio"] / answers) ** 2) ** 0.5
    apart = {} if how == PURE else {"sampler_gap_mean": sums["gaps"] / said, "sampler_log_ratio_sd": spread}
    return {
        "tokens": sums["tokens"] / answers,
        "cut_off": sums["cut"] / answers,
        "nll_student": sums["said"] / said,
        "nll_teacher": sums["theirs"] / theirs,
        **({"kl": sums["kl"] / said} if "kl" in sums else {}),
        "sampler_gap": max(r["gap"] for r in rows),
        **apart,
        "packed_tokens": sums["packed"],
    }


def line(step: int, steps: int, row: dict, seconds: float) -> str:
    """One aligned line per step; docs/metrics.md says how to read it."""
    d_accuracy = f"{row['d_accuracy']:.2f}" if "d_accuracy" in row else "-"
    return (
        f"  {step + 1:4d}/{steps}  sim {row['similarity']:.2f}  ans {row['answer']:.2f}"
        f"  D acc {d_accuracy}  dead {row['dead_groups']:.2f}  tokens {row['tokens']:4.1f}"
        f"  nll {row['nll_student']:.2f}/{row['nll_teacher']:.2f}  kl {row.get('kl', 0):.3f}"
        f"  grad {row['gradient_norm']:.2f}  {seconds:.2f} s"
    )


def show(run: Run, step: int, asked: list, groups: list, similarity, answer, advantage, which: list[int]) -> None:
    """Log the step's first question: responses `which` of its group with both rewards and the advantage that reaches
    the gradient (None: the policy is not scored on this row). Rank 0 writes; another rank may hold no question. A text
    about another question, which D alone reads, is not shown.
    """
    if not run.first:
        return
    question, group, similarity, answer, advantage = asked[0], groups[0], similarity[0], answer[0], advantage[0]
    chosen = [
        dict(source=group[i].source, text=group[i].text, similarity=similarity[i].item(), answer=answer[i].item())
        | dict(advantage=advantage[i].item() if i < len(advantage) else None)
        for i in which
        if group[i].question == question.id
    ]
    row = dict(question=question.id, text=question.text, reference=question.answer, responses=chosen)
    run.log("samples.jsonl", stage="ril", step=step, **row)


def rounded(found: dict) -> dict:
    """Numbers of a result, four digits each."""
    if isinstance(found, dict):
        return {k: rounded(v) for k, v in found.items()}
    return [rounded(x) for x in found] if isinstance(found, list | tuple) else round(found, 4)


@torch.no_grad()
def shown(run: Run, questions: list, judge: Judge, texts: dict) -> list[tuple]:
    """[(question, [{who, text, similarity, answer}])] for samples.md; similarity is the pre-trained discriminator's."""
    has_d = run.cfg.discriminator != "none" and run.cfg.d_loss != "pairwise"  # pairs give a lone text no verdict
    D = make_discriminator(run) if has_d else None
    student, out = load_start(run), []
    for q in questions:
        said = [Response(q.id, 0, who, [], texts[who][q.id]) for who in texts if who != "last"]
        verdicts = judge.verdicts([q], said)
        rows = [dict(who=r.source, text=r.text, answer=v) for r, v in zip(said, verdicts, strict=True)]
        if D:
            (batch,) = D.batches([q], student.encode_pictures([student.encoder.encode_question(q)]), [said], 1)
            for row, reward in zip(rows, similarity_reward(D(batch)).tolist(), strict=True):
                row["similarity"] = int(reward)
        out.append((q, rows))
    return out


def print_summary(run: Run) -> None:
    """Add the seconds to summary.json, once, and print the lines worth reading; nothing before the evaluate stage."""
    summary = run.read("summary.json")
    if not run.first or not summary:
        return
    if "seconds" not in summary:
        summary["seconds"] = run.read("seconds.json")
        summary["peak_memory_mb"] = summary["seconds"].pop("peak_memory_mb", 0)
        run.write("summary.json", summary)
    print("\n---")
    teachers = [name.removeprefix("greedy") for name in summary if name.startswith("greedy_teacher")]
    for name in (
        "test_questions",
        "greedy",
        "sampled",
        "tokens",
        "looks",
        "similarity",
        "answer",
        "d_accuracy",
        "d_accuracy_unseen",
    ):
        for when in ("", "_before", "_after", "_before_blank", "_after_blank", *teachers, "_start", "_end"):
            if name + when in summary:
                low_high = summary.get(f"{name}_interval{when}")
                interval = f"  (95 % interval {low_high[0]:.3f} to {low_high[1]:.3f})" if low_high else ""
                print(f"{name + when}: {summary[name + when]}{interval}")
    how = "chosen on the validation questions" if run.cfg.judged else "the last one: training had no answer key"
    print(f"exported_step: {summary['exported_step']} of {run.cfg.steps}, {how}")
    print("seconds: " + "  ".join(f"{k} {v:.0f}" for k, v in summary["seconds"].items()))
    print(f"peak_memory_mb: {summary['peak_memory_mb']}")
    pictures = f" {run.path}/curves.png {run.path}/samples.md" if run.cfg.evaluated == "all" else ""
    print(f"see: {run.path}/summary.json{pictures}")


# ------------------------------------------------------------------------------------------------ showing it
def write_samples(folder: Path, samples: list[tuple]) -> None:
    """samples.md: pictures and questions with [{who, text, similarity, answer}] each."""
    (folder / "samples").mkdir(exist_ok=True)
    out = ["# Before and after", "", "Held-out questions, greedy answers. similarity: 1 where the pre-trained"]
    out += ["discriminator takes the text for a teacher's; answer: 1 where the judge calls it right.", ""]
    for i, (q, rows) in enumerate(samples):
        for k, picture in enumerate(q.pictures()):
            scale = max(1, 168 // max(picture.size))
            picture.resize([x * scale for x in picture.size], 0).save(folder / "samples" / f"{i}-{k}.png")
            out += [f"![{q.id}](samples/{i}-{k}.png)", ""]
        out += [f"**{q.text}** (reference: {q.answer})", ""]
        out += ["| who | response | similarity | answer |", "|---|---|---|---|"]
        for r in rows:
            text = r["text"].replace("|", "/").replace("\n", " ")
            out.append(f"| {r['who']} | {text} | {r.get('similarity', '-')} | {r['answer']} |")
        out.append("")
    write(folder / "samples.md", "\n".join(out))


def draw_curves(run: Run) -> None:
    """curves.png, the three panels of the paper's figure 5; without matplotlib the numbers stay in metrics.jsonl."""
    try:
        import matplotlib
    except ImportError:
        print(f"  no curves.png: pip install matplotlib draws it; the numbers are in {run.path}/metrics.jsonl")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), constrained_layout=True)
    rows, validations = loop_rows(run.path), validations_of(run)
    steps = [r["step"] + 1 for r in rows]
    for axis, name, color in zip(axes, ("similarity", "answer"), ("tab:blue", "tab:green"), strict=False):
        y = [r[name] for r in rows]
        axis.plot(steps, y, color=color, alpha=0.25)
        axis.plot(steps, [np.mean(y[max(0, i - 4) : i + 5]) for i in range(len(y))], color=color, label="student")
        axis.plot(steps, [r[f"teacher_{name}"] for r in rows], "--", color="0.6", lw=1, label="teacher rows")
        axis.set(title=f"{name} reward (training questions)", xlabel="step", ylim=(-0.02, 1.02))
    x = [r["step"] + 1 for r in validations]
    axes[2].plot(x, [r["valid_sampled"] for r in validations], "o-", ms=3, color="tab:red", label="sampled")
    axes[2].plot(x, [r["valid_greedy"] for r in validations], "s--", ms=3, color="tab:orange", label="greedy")
    axes[2].set(title="accuracy (validation questions)", xlabel="step")
    for axis in axes:
        axis.legend(frameon=False, fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(png := io.BytesIO(), dpi=110)
    plt.close(figure)
    write(run.path / "curves.png", png.getvalue())


# ------------------------------------------------------------------------------------------------ a run's log
def loop_rows(run: Path) -> list[dict]:
    """The steps of a run's loop, from metrics.jsonl."""
    rows = [row for _, row in read_jsonl(run / "metrics.jsonl", ("stage",), torn=[])]
    return [r for r in rows if r["stage"] == "ril" and "loss" in r]


def validations_of(run: Run) -> list[dict]:
    """The validations of a run's loop."""
    return [r for r in run.rows("metrics.jsonl", "ril") if "valid_sampled" in r]


def of_the_loop(run: Run) -> dict:
    """What the summary says of the loop."""
    rows, validations = loop_rows(run.path), validations_of(run)
    if not validations:
        raise UserError(
            f"{run.path}/metrics.jsonl has lost the loop's lines: delete {run.path}/checkpoints, and the same command "
            "runs the loop anew"
        )
    best = max(validations, key=lambda r: r["valid_sampled"]) if run.cfg.judged else validations[-1]
    tokens = sum(r["packed_tokens"] for r in rows)
    return start_and_end(rows) | dict(packed_tokens=tokens, exported_step=best["step"] + 1)


def start_and_end(rows: list[dict]) -> dict[str, float]:
    """Means over the first and the last five steps (fewer in a short run) of what is worth comparing."""
    few, out = max(1, min(5, len(rows) // 2)), {}
    names = "similarity answer d_accuracy d_accuracy_unseen look_auc dead_groups nll_student nll_teacher".split()
    for name in names:
        if rows and name in rows[0]:
            out[f"{name}_start"] = round(float(np.mean([r[name] for r in rows[:few]])), 4)
            out[f"{name}_end"] = round(float(np.mean([r[name] for r in rows[-few:]])), 4)
    return out
