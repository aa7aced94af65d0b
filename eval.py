"""Measuring a student: accuracy on questions, greedy and sampled, with intervals.

    python eval.py --student runs/demo/student                        # the tiny world's held-out questions
    python eval.py --student runs/demo/student --data mine.jsonl      # your own questions (their test part)
    python eval.py --student FOLDER --data DIR --benchmarks all       # the paper's fourteen benchmarks
    torchrun --nproc_per_node 8 eval.py ...                           # the same, each GPU a share
    python eval.py --compare RUN_A RUN_B                              # is B better? (runs/A1,runs/A2: seeds)
    python eval.py --calibrate results/judge_cases.jsonl --judge rule # a judge against labelled responses

Scores and statistics need neither torch nor a model: `import eval` works with the standard library and numpy alone.
"""

import hashlib
import json
import math
import os
import platform
import re
import subprocess
import time
from pathlib import Path

import numpy as np

import benchmarks as bm
from benchmarks import BENCHMARKS, PROMPTS, RULES, prompt_of, score_item, score_rows  # noqa: F401 (eval.score_item ...)
from data import (
    Flags,
    Question,
    UserError,
    load_questions,
    look,
    read_jsonl,
    run_command,
    split_questions,
    world_questions,
)
from judge import Judge, Server, agreement

# read when torch is imported, which happens below on demand (train.py says why)
os.environ.setdefault("PYTORCH_ALLOC_CONF", os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"))


def wilson(right: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share by Wilson's score: 8 of 10 -> (0.490, 0.943). n = 0 -> (0, 1)."""
    if n == 0:
        return 0.0, 1.0
    p = right / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def boot_means(values, clusters=None, weights=None, draws: int = 2000, seed: int = 0) -> np.ndarray:
    """Bootstrapped (weighted) means, (draws,): clusters, or single values, are drawn with replacement."""
    values = np.asarray(values, float)
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, float)
    place = np.arange(len(values)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    top, bottom = np.bincount(place, values * weights), np.bincount(place, weights)
    rng = np.random.default_rng(seed)
    picks = (rng.integers(0, len(top), len(top)) for _ in range(draws))
    return np.array([top[pick].sum() / bottom[pick].sum() for pick in picks])


def middle(draws) -> tuple[float, float]:
    """The 95 % in the middle of bootstrapped numbers."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def greedy_answers(student, prompts: list, names: list[str], max_new_tokens: int, max_rows: int) -> list:
    """The greedy Response to each Prompt, `max_rows` decoded at a time; names are the questions' ids."""
    from rollout import GREEDY, rollout

    return [r for (r,) in rollout(student, prompts, names, 1, max_new_tokens, GREEDY, max_rows=max_rows)]


def evaluate(
    student, questions: list[Question], judge: Judge, max_new_tokens: int, draws: int = 4, seed: int = 0, max_rows=512
) -> dict:
    """Answer every question once greedily and `draws` times at temperature 1, `max_rows` at a time; over ranks, each
    its share.

    -> greedy, sampled (accuracies with 95 % intervals: Wilson, bootstrap over questions), tokens and entropy of the
    sampled answers, the share that was cut off, accuracy by kind and looks where the world knows them, `texts` (the
    greedy response of each question) and `answers` (each question's verdict and share).
    """
    from model import dealt, everyone, ranks
    from rollout import PURE, rollout

    (asked, own), groups = dealt(questions), []  # a group: the greedy response to a question, then the sampled ones
    from tqdm import tqdm

    for i in tqdm(range(0, len(asked), 128), "questions", delay=2, leave=False, disable=ranks()[0] > 0):
        part = asked[i : i + 128]
        prompts, names = [student.encode_question(q) for q in part], [q.id for q in part]
        best = greedy_answers(student, prompts, names, max_new_tokens, max_rows)
        sampled = rollout(student, prompts, names, draws, max_new_tokens, PURE, (seed, "evaluate"), max_rows)
        groups += [[r, *more] for r, more in zip(best, sampled, strict=True)]
    verdicts, rows = iter(judge.verdicts(asked[:own], [r for group in groups[:own] for r in group])), []
    for q, (best, *group) in zip(asked[:own], groups, strict=False):
        row = dict(question=q.id, kind=q.meta.get("kind"), text=best.text, greedy=next(verdicts))
        rows.append(row | dict(said=[(next(verdicts), look(q, r.text), r) for r in group]))
    rows = everyone(rows)
    for row in rows:
        row["sampled"] = bm.mean([right for right, _, _ in row["said"]])
    greedy, kinds = [r["greedy"] for r in rows], sorted({r["kind"] for r in rows if r["kind"]})
    out = dict(questions=len(questions), greedy=bm.mean(greedy), texts={r["question"]: r["text"] for r in rows})
    out["answers"] = [{k: r[k] for k in ("question", "greedy", "sampled")} for r in rows]
    out["greedy_interval"] = wilson(sum(greedy), len(greedy))
    out["greedy_by_kind"] = {k: bm.mean([r["greedy"] for r in rows if r["kind"] == k]) for k in kinds}
    if draws:
        right, looks, said = zip(*(x for r in rows for x in r["said"]), strict=True)
        shares = [r["sampled"] for r in rows]
        out |= dict(sampled=bm.mean(shares), sampled_interval=middle(boot_means(shares)))
        out |= dict(tokens=bm.mean([len(r.ids) for r in said]), cut_off=1 - bm.mean([r.finished for r in said]))
        out["entropy"] = float(np.mean([-x for r in said for x in r.logps]))  # nats per sampled token
        if kinds:
            out["looks"] = bm.mean([x is not None for x in looks])
            out["right_looks"] = bm.mean([x for x in looks if x is not None]) or 0.0
            out["right_look_and_answer"] = bm.mean([bool(x and v) for x, v in zip(looks, right, strict=True)])
    return out


def auc(right, wrong) -> float:
    """Chance that a score of `right` is above one of `wrong` (ties count half); 0.5 = the scores say nothing."""
    right, wrong = np.asarray(right)[:, None], np.asarray(wrong)[None]
    return float(((right > wrong) + 0.5 * (right == wrong)).mean()) if right.size and wrong.size else 0.5


# ------------------------------------------------------------------------------------------------ asking
PRESETS = {"smoke": 64, "quick": 500, "paper": 0}  # questions a benchmark file; 0: all


def limit_pictures(student, args) -> dict:
    """Set the pixel and tile limits that the flags give -> what holds now. Other than in training: a warning."""
    it, size = student.image_processor, dict(student.image_processor.size)
    now = dict(min_pixels=size.get("shortest_edge"), max_pixels=size.get("longest_edge"), max_tiles=None)
    if hasattr(it, "max_patches"):
        now["max_tiles"] = it.max_patches if it.crop_to_patches else 1
    for name, before in now.items():
        flag, wanted = f"--{name.replace('_', '-')}", getattr(args, name)
        if wanted and before is None:
            raise UserError(f"{flag}: this student has no such limit; it has {', '.join(k for k in now if now[k])}")
        if wanted and wanted != before:
            print(f"warning: {flag} {wanted}, but the student was trained with {before}")
            now[name] = wanted
    if now["max_tiles"]:
        it.max_patches, it.crop_to_patches = now["max_tiles"], now["max_tiles"] > 1
    else:
        it.size = type(it.size)(**size | dict(shortest_edge=now["min_pixels"], longest_edge=now["max_pixels"]))
    return now


def weights_hash(student) -> str:
    """64 numbers of each tensor: tells students apart in seconds, the same on every rank."""
    digest = hashlib.sha256()
    for name, x in sorted(student.hf.state_dict().items()):
        digest.update(name.encode() + x.flatten()[:: max(1, x.numel() // 64)].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def run_key(settings: dict, data: str) -> str:
    """Names what a text depends on: the settings and the data."""
    return hashlib.sha256(json.dumps([settings, data], sort_keys=True).encode()).hexdigest()[:12]


def read_lines(path: Path) -> tuple[list[dict], list[int]]:
    """(objects, numbers of half-written lines) of a JSONL file that a killed process may have left; none without it."""
    rows, torn = [], []
    for number, line in enumerate(path.read_bytes().split(b"\n") if path.is_file() else (), 1):
        try:
            rows += [json.loads(line)] if line else []
        except ValueError:
            torn.append(number)
    return rows, torn


def read_predictions(table: bm.Table, settings: dict, folder: Path) -> tuple[dict, list[str]]:
    """({index: prediction}, what was wrong) of one benchmark file under these settings, from all ranks."""
    key, found, wrong = run_key(settings, table.md5), {}, []
    for path in sorted(folder.glob(f"preds.{table.name}.*.jsonl")):
        rows, torn = read_lines(path)
        if path.name.split(".")[-3] != key:
            wrong.append(f"{path}: {len(rows)} predictions of another run key (this one: {key}) are left alone")
            continue
        wrong += [f"{path}:{number}: a half-written line is not read" for number in torn]
        for row in rows:
            if "text" in row or row["index"] not in found:  # another start may have read what one could not
                found[row["index"]] = row
    return found, wrong


def encode_rows(student, table: bm.Table, rows: list[dict], settings: dict) -> tuple[dict, dict]:
    """({index: Prompt}, {index: error}): errors name the row whose picture cannot be read or which is too long."""
    prompts, errors, limit = {}, {}, student.hf.config.get_text_config().max_position_embeddings
    for row in rows:
        try:
            pictures = table.pictures(row["index"])
            shown, texts = prompt_of(table.name, row, len(pictures), settings["prompt"], settings["suffix"])
            prompt = student.encode([pictures[k] for k in shown], texts)
            if len(prompt.ids) >= limit:
                raise ValueError(f"{len(prompt.ids)} tokens, the model takes {limit}")
            prompts[row["index"]] = prompt
        except UserError as error:
            errors[row["index"]] = str(error)
        except ValueError as error:
            errors[row["index"]] = f"{table.path}: row {row['index']}: {error}"
    return prompts, errors


def ask_file(student, table: bm.Table, settings: dict, folder: Path, batch: int) -> None:
    """Append this rank's missing greedy answers to preds.NAME.KEY.RANK.jsonl, one JSON line each.

    Which rank asks a row depends on the row and the number of ranks alone, so ranks need not talk; a restart may have
    another number of them. Rows go by size, so that those of a batch are alike. Out of memory: half the batch, go on.
    """
    import torch
    from tqdm import tqdm

    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    done = {index for index, row in read_predictions(table, settings, folder)[0].items() if "text" in row}
    size = {r["index"]: (table.places[r["index"]][-1:], len(bm.cell(r, "question")), r["index"]) for r in table.rows}
    todo = [index for index in sorted(size, key=size.get, reverse=True)[rank::world] if index not in done]
    rows, many = {r["index"]: r for r in table.rows}, 2 * batch  # encoded together: their pictures lie in memory
    path = folder / f"preds.{table.name}.{run_key(settings, table.md5)}.{rank}.jsonl"
    torn = path.is_file() and path.read_bytes()[-1:] not in (b"", b"\n")
    with path.open("a") as out, tqdm(total=len(todo), desc=table.name, delay=2) as bar:
        out.write("\n" * torn)
        while todo:
            part, todo = todo[:many], todo[many:]
            prompts, errors = encode_rows(student, table, [rows[k] for k in part], settings)
            names, answers = sorted(prompts, key=lambda k: len(prompts[k].ids)), None
            while answers is None:
                try:
                    asked = [prompts[k] for k in names]
                    answers = greedy_answers(student, asked, names, settings["max_new_tokens"], batch)
                except torch.cuda.OutOfMemoryError:
                    if batch == 1:
                        raise UserError(f"{table.name}: row {names[-1]} alone does not fit into memory") from None
                    batch //= 2
            lines = [dict(index=k, error=error) for k, error in errors.items()]
            lines += [dict(index=r.question, text=r.text, tokens=len(r.ids), finished=r.finished) for r in answers]
            out.write("".join(json.dumps(x) + "\n" for x in lines))
            out.flush()
            bar.update(len(part))


def try_first(student, tables: list[bm.Table], settings: dict, args) -> dict:
    """Each file's first prompt as text; the first --check questions, alone and in a batch: are the answers the same?"""
    out = {"first_prompts": {}}
    for table in tables:
        rows = table.rows[: 1 if out["first_prompts"] else max(1, args.check)]
        prompts = list(encode_rows(student, table, rows, settings)[0].values())
        if args.check and not out["first_prompts"]:
            names = [str(i) for i in range(len(prompts))]
            ways = [greedy_answers(student, prompts, names, args.max_new_tokens, n) for n in (1, args.batch)]
            different = sum(a.text != b.text for a, b in zip(*ways, strict=True))
            out["batch_check"] = dict(items=len(prompts), batch=args.batch, different=different)
            print(f"batch check: {json.dumps(out['batch_check'])}")
        text = student.tokenizer.decode(prompts[0].ids) if prompts else ""  # with "* 9" for nine picture tokens
        out["first_prompts"][table.name] = re.sub(r"(<[^<>]+>)\1+", lambda m: f"{m[1]}*{len(m[0]) // len(m[1])}", text)
    return out


def device_here() -> str:
    """This process's GPU, or the CPU."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def load_student(args) -> tuple:
    """(--student on this process's device, the name of what it computes in)."""
    import torch

    from model import load, start_ranks

    if "MASTER_ADDR" in os.environ:  # under torchrun: all but the first rank of a node wait for its download
        start_ranks(device_here().partition(":")[0])
    dtype = args.dtype or ("fp32" if device_here() == "cpu" else "bf16")
    student = load(args.student, device=device_here(), dtype=dict(fp32=torch.float32, bf16=torch.bfloat16)[dtype])
    student.limit_pictures(trained_image_tokens(args.student))
    return student, dtype


def trained_image_tokens(student: str) -> int:
    """Most image tokens of a picture in the run that a student's folder lies in; 1,280 for other real students; 0, as
    the folder says, for tiny ones.
    """
    from run import REAL_IMAGE_TOKENS, is_real

    if Path(student).is_dir() and (config := Path(student).resolve().parent / "config.json").is_file():
        settings = json.loads(config.read_text(encoding="utf-8")).get("settings", {})
        if "image_tokens" in settings:
            return settings["image_tokens"]
    return REAL_IMAGE_TOKENS if is_real(student) else 0


def ask_benchmarks(args, tables: list[bm.Table], folder: Path) -> None:
    """Load the student and append the missing predictions; settings.json is what these depend on, run.json the rest."""
    import torch
    import transformers

    began, kept, (student, dtype) = time.time(), folder / "settings.json", load_student(args)
    settings = dict(weights=weights_hash(student), pictures=limit_pictures(student, args), prompt=args.prompt)
    settings |= dict(suffix=args.suffix, max_new_tokens=args.max_new_tokens, dtype=dtype, decoding="greedy")
    before = json.loads(kept.read_text()) if kept.is_file() else settings
    if before != settings:
        count = sum(path.read_bytes().count(b"\n") for path in folder.glob("preds.*.jsonl"))
        other = ", ".join(f"{k} {before.get(k)} -> {v}" for k, v in settings.items() if before.get(k) != v)
        raise UserError(f"{folder}: holds {count} predictions of another run key ({other}); give another --into")
    folder.mkdir(parents=True, exist_ok=True)
    write(kept, json.dumps(settings) + "\n")
    first = os.environ.get("RANK", "0") == "0"
    run = dict(student=args.student, batch=args.batch) | (try_first(student, tables, settings, args) if first else {})
    for table in tables:
        ask_file(student, table, settings, folder, args.batch)
    if first:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
        run |= dict(commit=done.stdout.strip(), attention=student.hf.config._attn_implementation)
        run |= dict(torch=torch.__version__, transformers=transformers.__version__, numpy=np.__version__)
        run |= dict(device=torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine())
        run |= dict(python=platform.python_version(), seconds=round(time.time() - began, 1))
        write(folder / "run.json", json.dumps(run, indent=1, ensure_ascii=False) + "\n")


# ------------------------------------------------------------------------------------------------ measuring
def measure_file(table: bm.Table, found: dict, wrong: list[str], rules: str, judge) -> tuple[dict, list, list]:
    """Score one benchmark file, `found` being its predictions by index -> (what results.json says of it, its
    [(row, score)] of what is counted, the predictions counted).

    A unit with a missing answer or an unreadable picture is left out of the mean and counted, never scored 0.
    """
    name, mine = table.name, {r["index"]: found.get(r["index"], {}) for r in table.rows}
    missing, bad = [k for k, x in mine.items() if not x], [x["error"] for x in mine.values() if "error" in x]
    lost = {bm.unit_of(name, r) for r in table.rows if "text" not in mine[r["index"]]}
    rows = [r for r in table.rows if bm.unit_of(name, r) not in lost]
    said = [mine[r["index"]] for r in rows]
    scored = bm.score_all(name, rows, [x["text"] for x in said], rules, judge)
    final = bm.score_all(name, rows, [bm.final_answer(x["text"]) for x in said], rules)
    if judge is None and bm.kind_of(name) == "math":
        scored = [x | {"score": None} for x in scored]  # without a judge only part of the answers can be read
    units, finals = (bm.units_of(name, rows, [x["score"] for x in it]) for it in (scored, final))
    *_, md5, count = bm.FILES[name]
    wrong = [*wrong, *table.wrong, *bad]
    if table.count != count:
        wrong.insert(0, f"{table.path}: {table.count} rows, the public file has {count}")
    if not table.md5.startswith(md5):
        wrong.insert(0, f"{table.path}: md5 {table.md5[:8]}, the public file has {md5}")
    if missing:
        wrong.insert(0, f"{name}: {len(missing)} rows have no answer, such as {missing[0]}")
    for line in [*wrong[:8], *[f"{name}: {len(wrong) - 8} more, in results.json"] * (len(wrong) > 8)]:
        print(f"warning: {line}")
    out = dict(md5=table.md5, rows=table.count, torn=len(table.wrong), unreadable=len(bad), missing=len(missing))
    out["records"] = bm.records_of(name, rows, [x["score"] for x in scored]) if rows else []
    out |= dict(score_of_final_answers=bm.mean([x for _, x in finals], 100), wrong=wrong)
    return out, units, [p | {"read": x["extracted"] is not False} for p, x in zip(said, scored, strict=True)]


def measure(title: str, tables: list[bm.Table], found: dict, rules: str, judge=None) -> tuple[dict, list, np.ndarray]:
    """Score one benchmark -> (result, its units for items.jsonl, bootstrapped scores). Its files weigh the same."""
    files, units, said = {}, [], []
    for table in tables:
        files[table.name], counted, texts = measure_file(table, *found[table.name], rules, judge)
        weight = 1 / max(1, len(counted)) / len(tables)
        for row, score in counted:
            unit = bm.unit_of(table.name, row)
            # what is drawn together: rows about one picture; the same question of MMMU-Pro's two files
            cluster = unit if len(tables) > 1 else table.twin[row["index"]]
            name = f"{table.name}:{unit}"
            units.append(dict(benchmark=title, unit=name, cluster=cluster, score=score, weight=weight))
        said += texts
    result, values = dict(score=None, n=len(units), files=files), [u["score"] for u in units]
    if not units or None in values:
        return result, [], np.array([])
    weights, clusters = [u["weight"] for u in units], [u["cluster"] for u in units]
    draws, score, n = boot_means(values, clusters, weights), float(np.dot(values, weights)), len(set(clusters))
    alike = draws.std() == 0 or (n == len(units) and set(values) <= {0, 1})
    low, high = wilson(score * n, n) if alike else middle(draws)
    result |= dict(score=100 * score, interval=[100 * low, 100 * high], tokens=bm.mean([x["tokens"] for x in said]))
    shares = dict(unparsed=[not x["read"] for x in said], cut_off=[not x["finished"] for x in said])
    return result | {name: bm.mean(xs) for name, xs in shares.items()}, units, draws


# ------------------------------------------------------------------------------------------------ results
PAPER = {  # the paper's 7B student (arXiv 2510.19307), measured by its authors' evaluator: beside ours, not against it
    "base": (83.9, 87.3, 67.8, 83.5, 83.4, 71.8, 63.7, 55.0, 38.3, 63.9, 56.4, 77.0, 70.4, 68.5),
    "GRPO": (84.1, 88.8, 69.0, 83.8, 83.9, 72.8, 63.9, 56.2, 40.3, 65.2, 58.9, 77.4, 70.6, 69.4),
    "Dr.GRPO": (84.5, 90.0, 69.5, 84.3, 84.4, 73.5, 64.2, 57.2, 41.8, 66.3, 60.7, 78.0, 70.9, 70.3),
    "RIL": (86.1, 95.6, 79.7, 86.3, 86.5, 80.4, 71.1, 65.7, 48.5, 71.1, 70.0, 80.5, 72.8, 72.8),
}


def score_cells(r: dict, digits: int) -> list[str]:
    """Score and interval as texts; n/a where there is none."""
    if r["score"] is None:
        return ["n/a", ""]
    low, high = r["interval"]
    return [f"{r['score']:.{digits}f}", f"{low:.{digits}f} to {high:.{digits}f}"]


def markdown(out: dict) -> str:
    """results.md: one line a benchmark in the paper's order, the paper's numbers beside ours, then everything else."""
    table = [["benchmark", "score", "95 %", "counted", "unparsed", "cut off", "tokens", *PAPER]]
    table.append(["---"] * len(table[0]))
    for name, reported in zip(BENCHMARKS, zip(*PAPER.values(), strict=True), strict=True):
        r, rest = out["benchmarks"].get(name, {"score": None}), [""] * 4
        if r["score"] is not None:
            rest = [r["n"], f"{r['unparsed']:.3f}", f"{r['cut_off']:.3f}", f"{r['tokens']:.0f}"]
        table.append([name, *score_cells(r, 1), *rest, *reported])
    means = [f"{np.mean(x):.1f}" for x in PAPER.values()]
    table.append([f"mean of {out['mean']['count']}", *score_cells(out["mean"], 1), *[""] * 4, *means])
    lines = ["| " + " | ".join(map(str, cells)) + " |" for cells in table]
    lines += ["", "The last columns are reported elsewhere: the paper's 7B student, mean of 14, another evaluator."]
    lines += ["Only runs of this one compare. n/a: no file, no answers, or no judge.", ""]
    for r in out["benchmarks"].values():
        for file, found in r["files"].items():
            lines += [f"- {file}: {json.dumps(record)}" for record in found["records"]]
            lines += [f"- {file}: {text}" for text in found["wrong"][:8]]
    rest = {k: v for k, v in out.items() if k not in ("benchmarks", "mean")}
    return "\n".join([*lines, "", "```", json.dumps(rest, indent=1, ensure_ascii=False), "```", ""])


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


class Remembering:
    """A judge that keeps its replies in judge.jsonl: scoring again asks nothing twice."""

    def __init__(self, judge, name: str, path: Path):
        self.judge, self.name, self.path = judge, name, path
        self.known = {row["key"]: row["reply"] for row in read_lines(path)[0]}

    def ask(self, chats: list, max_tokens: int, temperature: float = 0.0) -> list[str]:
        """judge.Server's ask."""
        keys = [run_key(dict(judge=self.name, temperature=temperature), json.dumps(chat)) for chat in chats]
        new = {key: chat for key, chat in zip(keys, chats, strict=True) if key not in self.known}
        replies = self.judge.ask(list(new.values()), max_tokens, temperature) if new else []
        with self.path.open("a") as out:
            for key, reply in zip(new, replies, strict=True):
                self.known[key] = reply
                out.write(json.dumps(dict(key=key, reply=reply)) + "\n")
        return [self.known[key] for key in keys]


def find_tables(data: str, wanted: str, limit: int) -> dict[str, list[bm.Table]]:
    """{benchmark: its files} of --benchmarks, with the rows to ask. With "all" a file may be absent: its benchmark is
    n/a, and said so.
    """
    names = list(BENCHMARKS) if wanted == "all" else wanted.split(",")
    for name in names:
        if name not in BENCHMARKS:
            raise UserError(f"--benchmarks {name}: unknown; there are all, {', '.join(BENCHMARKS)}")
    if not Path(data or "?").is_dir():
        raise UserError(f"--data {data or '(not given)'}: give the folder that holds the benchmark files (see README)")
    paths = {}
    for file in (f for name in names for f in BENCHMARKS[name]):
        places = (Path(data) / x for x in (f"{file}.tsv", f"{file}.jsonl", f"{file}/{file}.json"))
        paths[file] = next((x for x in places if x.is_file()), None)
    absent = [file for file, path in paths.items() if path is None]
    if absent and (wanted != "all" or len(absent) == len(paths)):
        raise UserError(f"{data}/{absent[0]}.tsv: no such file; the README says where each one comes from")
    if absent:
        print(f"warning: n/a, not in {data}: {', '.join(absent)}")
    there = [name for name in BENCHMARKS if name in names and not set(absent) & set(BENCHMARKS[name])]
    return {name: [bm.choose(bm.read_table(paths[f]), limit) for f in BENCHMARKS[name]] for name in there}


def run_benchmarks(args, judge=None) -> None:
    """Ask and score, then write results.json, results.md and items.jsonl; where other ranks are still at work, the last
    one does. `judge`: see bm.score_all.
    """
    began, benchmarks = time.time(), find_tables(args.data, args.benchmarks, args.limit)
    tables = [table for its in benchmarks.values() for table in its]
    folder = Path(args.into or f"{args.student if Path(args.student).is_dir() else 'runs/' + args.student}-eval")
    judged_by = f"{args.judge} {args.judge_model}".strip() if args.judge != "rule" else judge and "given"
    if judged_by and judge is None:
        judge = Server(args.judge, args.judge_model)
    if not args.score_only:
        ask_benchmarks(args, tables, folder)
    elif not (folder / "settings.json").is_file():
        raise UserError(f"{folder}/settings.json: no such file; run once without --score-only")
    settings = json.loads((folder / "settings.json").read_text())
    found = {table.name: read_predictions(table, settings, folder) for table in tables}
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not args.score_only:
        for table in tables:
            if any(row["index"] not in found[table.name][0] for row in table.rows):
                print(f"{table.name}: other ranks are at work; the last one writes the results (or --score-only does)")
                return
    judge = judge and Remembering(judge, judged_by, folder / "judge.jsonl")
    results, items, draws = {}, [], []
    for title, its in benchmarks.items():
        results[title], units, drawn = measure(title, its, found, args.rules, judge)
        items, draws = items + units, draws + [drawn] * bool(units)
    scores = {n: r["score"] for n, r in results.items() if r["score"] is not None}
    total = dict(count=len(scores), score=bm.mean(list(scores.values())), of=list(scores), interval=None)
    if draws:
        total["interval"] = [100 * x for x in middle(np.mean(draws, 0))]
    out = dict(mean=total, benchmarks=results, rules=args.rules, judge=judged_by, limit=args.limit, settings=settings)
    out["run"] = json.loads((folder / "run.json").read_text()) if (folder / "run.json").is_file() else {}
    write(folder / "items.jsonl", "".join(json.dumps(x) + "\n" for x in items))
    write(folder / "results.json", json.dumps(out, indent=1, ensure_ascii=False) + "\n")
    write(folder / "results.md", markdown(out))
    for name, r in results.items():
        unparsed = "" if r["score"] is None else f"  unparsed {r['unparsed']:.3f}"
        print(f"{name}: {'  95 % '.join(filter(None, score_cells(r, 2)))}{unparsed}  n {r['n']}")
    print(f"mean of {len(scores)}: {score_cells(total, 2)[0]}  ({time.time() - began:.1f} s)")
    print(f"results: {folder}/results.md")


# ------------------------------------------------------------------------------------------------ comparing
def mcnemar(won: int, lost: int) -> float:
    """Exact two-sided p of won against lost pairs if each were a fair coin: 10 and 2 -> 0.0386; none -> 1."""
    n, k = won + lost, min(won, lost)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)


def sign_flips(values, clusters, draws: int = 5000, seed: int = 0) -> float:
    """p of a mean difference when each cluster's sign were a fair coin; for graded units and means over seeds."""
    sums = np.bincount(np.unique(clusters, return_inverse=True)[1], values)
    rng, hit = np.random.default_rng(seed), 0
    for _ in range(draws):
        hit += abs((sums * rng.choice((-1, 1), len(sums))).sum()) >= abs(sums.sum()) - 1e-12
    return (hit + 1) / (draws + 1)


def holm(ps: dict[str, float]) -> dict[str, float]:
    """Holm's p-values for a family of tests: {a: 0.01, b: 0.04} -> {a: 0.02, b: 0.04}."""
    out, worst = {}, 0.0
    for rank, (name, p) in enumerate(sorted(ps.items(), key=lambda x: x[1])):
        out[name] = worst = max(worst, min(1.0, p * (len(ps) - rank)))
    return out


def load_run(folder: Path) -> tuple[dict, dict]:
    """(what must agree, {(benchmark, unit): {score, cluster, weight}}) of a folder with benchmark results, or of a run
    of train.py (its held-out questions, greedy). Raises UserError naming the folder.
    """
    if (folder / "items.jsonl").is_file() and (folder / "results.json").is_file():
        out = json.loads((folder / "results.json").read_text())
        same = out["settings"] | dict(weights=None, rules=out["rules"], judge=out["judge"])
        same["data"] = {f: x["md5"] for r in out["benchmarks"].values() for f, x in r["files"].items()}
        return same, {(r["benchmark"], r["unit"]): r for r in read_lines(folder / "items.jsonl")[0]}
    if not (folder / "answers.jsonl").is_file():
        raise UserError(f"{folder}: neither results.json with items.jsonl (eval.py --benchmarks) nor answers.jsonl")
    settings = json.loads((folder / "config.json").read_text())["settings"]
    rows = [r for r in read_lines(folder / "answers.jsonl")[0] if r["who"] == "after"]
    units = {("questions", r["question"]): dict(score=r["greedy"], cluster=r["question"], weight=1) for r in rows}
    return {k: settings[k] for k in ("data_hash", "judge", "ask_prefix")}, units


def compare(side_a: list[Path], side_b: list[Path], draws: int = 2000) -> dict:
    """Side B against side A, both lists of seeds -> {benchmark: {a, b, difference, interval, p, holm, won, lost,
    visible}, "mean": ...} in points. Raises UserError when anything but the weights differs: data, prompt, rules ...
    """
    runs = {path: load_run(path) for path in (*side_a, *side_b)}
    first, (same, units) = next(iter(runs.items()))
    for path, (other, theirs) in runs.items():
        for key in same.keys() | other.keys():
            if same.get(key) != other.get(key):
                raise UserError(f"{path}: {key} differs from that of {first}: {other.get(key)}, {same.get(key)}")
        if odd := units.keys() ^ theirs.keys():
            raise UserError(f"{path}: {min(odd)[0]} was not measured on the same questions as in {first}")
    out, all_draws = {}, []
    for name in dict.fromkeys(name for name, _ in units):
        ids = sorted(unit for of, unit in units if of == name)
        cluster, weight = ([units[name, u][k] for u in ids] for k in ("cluster", "weight"))
        weight = np.array(weight) * len(ids) / sum(weight)
        x = {path: np.array([theirs[name, u]["score"] for u in ids], float) for path, (_, theirs) in runs.items()}
        a, b = (np.mean([x[path] for path in side], 0) for side in (side_a, side_b))
        d = b - a
        found = boot_means(d, cluster, weight, draws)
        won, lost = ([u for u, v in zip(ids, sign * d, strict=True) if v > 0] for sign in (1, -1))
        binary = set(a) | set(b) <= {0.0, 1.0}
        share = float(np.mean(d**2)) or 0.15  # no pair differs: as if 15 % did
        out[name] = dict(
            a=over_seeds([100 * float(np.mean(x[path] * weight)) for path in side_a]),
            b=over_seeds([100 * float(np.mean(x[path] * weight)) for path in side_b]),
            n=len(ids),
            difference=100 * float(np.mean(d * weight)),
            interval=[100 * x for x in middle(found)],
            p=mcnemar(len(won), len(lost)) if binary else sign_flips(d * weight, cluster),
            won=len(won),
            lost=len(lost),
            visible=100 * 2.8 * math.sqrt(share / len(ids)),  # found in 80 % of such comparisons
            won_first=won[:10],
            lost_first=lost[:10],
        )
        all_draws.append(found)
    for name, p in holm({name: r["p"] for name, r in out.items()}).items():
        out[name]["holm"] = p
    if len(out) > 1:
        interval = [100 * x for x in middle(np.mean(all_draws, 0))]
        out["mean"] = dict(difference=bm.mean([r["difference"] for r in out.values()]), interval=interval)
    return out


def show_comparison(found: dict) -> None:
    """One line a benchmark; seeds' spread is half of Student's 95 % interval."""

    def side(x: dict) -> str:
        return f"{x['mean']:.2f}" + (f" +- {x['half']:.2f} ({len(x['values'])} seeds)" if x["half"] is not None else "")

    for name, r in found.items():
        low, high = r["interval"]
        line = f"{name}: difference {r['difference']:+.2f} [{low:+.2f}, {high:+.2f}]"
        if name != "mean":
            line += f"  {side(r['a'])} -> {side(r['b'])}  p {r['p']:.4f}  holm {r['holm']:.4f}"
            line += f"  won {r['won']} lost {r['lost']} of {r['n']}  visible from {r['visible']:.2f}"
        print(line)
        for which in ("won", "lost"):
            if r.get(which):
                print(f"    {which}: {', '.join(r[which + '_first'])}")


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


def draw_curves(folder: Path, rows: list[dict], validations: list[dict]) -> None:
    """curves.png, the three panels of the paper's figure 5; without matplotlib the numbers stay in metrics.jsonl."""
    try:
        import matplotlib
    except ImportError:
        print(f"  no curves.png: pip install matplotlib draws it; the numbers are in {folder}/metrics.jsonl")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), constrained_layout=True)
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
    figure.savefig(folder / "curves.part.png", dpi=110)
    plt.close(figure)
    (folder / "curves.part.png").replace(folder / "curves.png")


STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}  # 97.5 %, by n


def over_seeds(values: list[float]) -> dict:
    """Mean, half width of the 95 % interval by Student's t (None for one seed), and the values themselves."""
    n = len(values)
    half = STUDENT_T.get(n, 2.0) * float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else None
    return {"mean": float(np.mean(values)), "half": half, "values": values}


# ------------------------------------------------------------------------------------------------ a run's log
def loop_rows(run: Path) -> list[dict]:
    """The steps of a run's loop, from metrics.jsonl."""
    rows = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    return [r for r in rows if r["stage"] == "ril" and "loss" in r]


def start_and_end(rows: list[dict]) -> dict[str, float]:
    """Means over the first and the last five steps (fewer in a short run) of what is worth comparing."""
    few, out = max(1, min(5, len(rows) // 2)), {}
    for name in ("similarity", "answer", "d_accuracy", "look_auc", "dead_groups", "nll_student", "nll_teacher"):
        if rows and name in rows[0]:
            out[f"{name}_start"] = round(float(np.mean([r[name] for r in rows[:few]])), 4)
            out[f"{name}_end"] = round(float(np.mean([r[name] for r in rows[-few:]])), 4)
    return out


# ------------------------------------------------------------------------------------------------ calibration
def calibrate(path: str, names: list[str]) -> None:
    """Prints each judge's agreement with labelled lines {question, answer, response, label}, then that of each pair."""
    pairs, labels, found = [], [], {}
    for where, row in read_jsonl(path, ("question", "answer", "response", "label")):
        if row["label"] not in (0, 1) or not all(isinstance(row[k], str) for k in ("question", "answer", "response")):
            raise UserError(f"{where}: question, answer and response must be texts, label 0 or 1")
        pairs.append((Question(where, (), row["question"], row["answer"]), row["response"]))
        labels.append(int(row["label"]))
    for name in names:
        judge = Judge(name, device=device_here() if name != "rule" else "cpu")
        found[name] = judge.score(pairs)
        print(f"{name} malformed: {judge.malformed_share():.3f}")
    for i, (name, verdicts) in enumerate(found.items()):
        for against, truth in [("the labels", labels), *list(found.items())[:i]]:
            n = agreement(truth, verdicts)
            for part, whole in (("right", "n"), ("false_positives", "negatives"), ("false_negatives", "positives")):
                low, high = wilson(n[part], n[whole])
                what, share = part.replace("right", "accuracy").replace("_", " "), n[part] / max(n[whole], 1)
                print(f"{name} against {against}: {what} {n[part]}/{n[whole]} = {share:.3f} [{low:.3f}, {high:.3f}]")


def main(judge=None) -> None:
    """The command line; prints key: value lines. `judge` stands in for the server that --judge names."""
    parser = Flags(__doc__)
    parser.add_argument("--student", default="", help="a folder such as runs/NAME/student")
    parser.add_argument("--into", default="", help="a folder for what is found (benchmarks: beside the student)")
    parser.add_argument("--data", default="", help="a JSONL file of questions, or the folder of benchmark files")
    parts = ("train", "valid", "test", "all")
    parser.add_argument("--part", default="test", choices=parts, help="which part (train.py trains on train) [test]")
    parser.add_argument("--questions", type=int, default=1000, help="how many questions of the tiny world")
    parser.add_argument("--draws", type=int, default=4, help="sampled answers per question")
    parser.add_argument("--max-new-tokens", type=int, default=0, help="[40; benchmarks 2048]")
    parser.add_argument("--judge", default="rule", help="rule; for MM-Vet and MathVista a server, http://HOST/v1")
    parser.add_argument("--judge-model", default="", help="the model to ask that server for")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--benchmarks", default="", help=f"all, or some of {','.join(BENCHMARKS)}")
    parser.add_argument("--preset", default="paper", choices=PRESETS, help="questions a file: 64, 500 or all [paper]")
    parser.add_argument("--limit", type=int, default=0, help="questions a file, in place of the preset's")
    parser.add_argument("--rules", default="2025-10", choices=RULES, help="whose scoring [2025-10]")
    parser.add_argument("--prompt", default="kit", choices=PROMPTS, help="prompt style [kit]")
    parser.add_argument("--suffix", default="", help="text behind every prompt, such as the one of training")
    parser.add_argument("--min-pixels", type=int, default=0, help="a picture's [as in training]")
    parser.add_argument("--max-pixels", type=int, default=0, help="a picture's [as in training]")
    parser.add_argument("--max-tiles", type=int, default=0, help="a picture's [as in training]")
    parser.add_argument("--batch", type=int, default=64, help="questions answered together")
    parser.add_argument("--check", type=int, default=8, help="first questions to answer alone and in a batch; 0: none")
    parser.add_argument("--dtype", default="", choices=("", "fp32", "bf16"), help="[bf16 on a GPU, else fp32]")
    parser.add_argument("--score-only", action="store_true", help="score the predictions that are there; no model")
    parser.add_argument("--compare", nargs=2, metavar=("A", "B"), help="two runs, or two comma lists of seeds")
    parser.add_argument("--calibrate", default="", help="JSONL of labelled responses: how good is --judge A[,B]?")
    args = parser.parse_args()
    into = Path(args.into) if args.into else None
    if args.calibrate:
        return calibrate(args.calibrate, args.judge.split(","))
    if args.compare:
        found = compare(*([Path(x) for x in side.split(",") if x] for side in args.compare))
        show_comparison(found)
        if into:
            into.mkdir(parents=True, exist_ok=True)
            write(into / "compare.json", json.dumps(found, indent=1) + "\n")
        return
    if not args.student and not (args.score_only and into):
        raise UserError("--student is missing: give a folder such as runs/demo/student")
    args.max_new_tokens = args.max_new_tokens or (2048 if args.benchmarks else 40)
    if args.draws < 0 or min(args.questions, args.max_new_tokens, args.batch) < 1 or min(args.limit, args.check) < 0:
        raise UserError("--draws, --limit, --check: at least 0; --questions, --max-new-tokens, --batch: at least 1")
    if args.judge_model and not args.benchmarks:
        raise UserError("--judge-model goes with --benchmarks; else name the model in the address: --judge URL#MODEL")
    if args.benchmarks:
        args.limit = args.limit or PRESETS[args.preset]
        return run_benchmarks(args, judge)
    if args.score_only or Path(args.data or "no").is_dir():
        raise UserError("--benchmarks is missing: all, or some of " + ",".join(BENCHMARKS))
    if args.data:
        questions = load_questions(args.data)
        questions = questions if args.part == "all" else split_questions(questions)[args.part]
    else:
        questions = world_questions("test" if args.part == "all" else args.part, args.questions)
    from model import ranks, start_ranks

    mesh = start_ranks(device_here().partition(":")[0])
    judge = Judge(args.judge, device=device_here(), mesh=mesh)
    result = evaluate(load_student(args)[0], questions, judge, args.max_new_tokens, args.draws, args.seed)
    del result["texts"]
    answers = result.pop("answers")
    if ranks()[0]:  # the first speaks and writes for all
        return
    if into:
        into.mkdir(parents=True, exist_ok=True)
        write(into / "answers.jsonl", "".join(json.dumps(dict(who="after", **row)) + "\n" for row in answers))
        hashed = hashlib.sha256(Path(args.data).read_bytes()).hexdigest()[:16] if args.data else ""
        settings = dict(data_hash=hashed, judge=args.judge, ask_prefix="")  # as train.py's run says it, for --compare
        write(into / "config.json", json.dumps(dict(settings=settings)) + "\n")
        summary = {f"{name}_after": value for name, value in result.items()} | {"seconds": {}}
        write(into / "summary.json", json.dumps(summary, indent=1) + "\n")
    for name, value in result.items():
        print(f"{name}: {json.dumps(value)}")


if __name__ == "__main__":
    run_command(main)
