"""A Hugging Face data set becomes questions of ours: parquet files, or a folder that save_to_disk made.

python -m tools.convert SOURCE --out mine      # then: python train.py --data mine/questions.jsonl
python -m tools.convert data/train-*.parquet --out mine --question query --answer label --image chart --id none

Writes mine/questions.jsonl and mine/pictures, an equal picture once. Needs pyarrow, nothing else of Hugging Face.
Options are appended to the question, (A) red (B) blue, and the index of an answer becomes its letter; of a list of
answers the most frequent one is taken. Left out: chats of several turns, downloading.
"""

import hashlib
import io
import re
import shutil
from pathlib import Path

from tqdm import tqdm

from data import open_picture
from engine.command import Flags, UserError, run_command
from engine.files import as_jsonl, text_field
from tools.arrow import batches_of, files_of
from tools.benchmarks import listed

USUAL = {  # the usual names of columns; the first that is there is taken
    "question": "question query problem prompt instruction",
    "answer": "answer label solution answers multiple_choice_answer",
    "image": "images decoded_image image picture img",
    "options": "options choices",
    "id": "id question_id questionId qid uid pid",
}


def columns_of(names: list[str], given: dict) -> dict[str, str]:
    """{what: its column}, as given, else by a usual name, else "none". Raises UserError for one that is not there."""
    found = {what: given[what] or next((x for x in USUAL[what].split() if x in names), "none") for what in USUAL}
    for what, name in found.items():
        if name not in names and (name != "none" or what in ("question", "answer")):
            raise UserError(f"--{what} {name}: no such column; name one of {', '.join(names)}")
    print("columns:", ", ".join(f"{what} {name}" for what, name in found.items()))
    return found


def line_of(row: dict, first: int) -> dict:
    """id, question and answer as texts. Raises ValueError for an unusable row, IndexError: above the last option."""
    answer, options = row["answer"], listed(row["options"] or [])
    if options is None or len(options) > 8:
        raise ValueError("the options are no list, or more than (A) to (H), which the judges read")
    options = [str(x) for x in options]
    answer = max(answer, key=answer.count) if isinstance(answer, list) and answer else answer
    is_index = isinstance(answer, int | float) and not isinstance(answer, bool) and answer == answer // 1
    if options and (is_index or str(answer).strip().isdigit() and str(answer).strip() not in options):
        if (index := int(answer) - first) >= len(options):
            raise IndexError(f"answer {answer} of {len(options)} options; does (A) have index 1? then --first 1")
        answer = "ABCDEFGH"[index] if index >= 0 else None
    line = {name: text_field(row | {"answer": answer}, name) for name in ("id", "question", "answer")}
    if "(A)" not in line["question"]:
        line["question"] += "".join(f" ({x}) {text}" for x, text in zip("ABCDEFGH", options, strict=False))
    return line


def store(raw, name: str, source: Path, part: Path, stored: dict) -> str:
    """Write a picture (bytes, or a path from `source`) once; -> its path. Raises ValueError or UserError for others."""
    if isinstance(raw, str) and len(raw) < 1000 and (source / raw).is_file():
        raw = (source / raw).read_bytes()
    if not isinstance(raw, bytes):
        raise ValueError(f"{str(raw)[:60]!r} is neither a picture nor the path of one from {source}")
    if (digest := hashlib.sha256(raw).digest()) not in stored:
        picture, name = open_picture(io.BytesIO(raw), "image"), re.sub(r"[^\w-]", "_", name, flags=re.ASCII)[:80]
        while name.lower() in stored:
            name += "_"
        path = part / "pictures" / (name + (".jpg" if raw.startswith(b"\xff\xd8") else ".png"))
        path.write_bytes(raw) if raw.startswith((b"\xff\xd8", b"\x89PNG")) else picture.save(path)
        stored |= {digest: f"pictures/{path.name}", name.lower(): ""}
    return stored[digest]


def convert(sources: list[str], part: Path, first: int, given: dict) -> None:
    """Write questions.jsonl and pictures/ into `part`; rows that cannot be used are counted, the first ones named."""
    files, stored, seen, wrong = [f for x in sources for f in files_of(Path(x))], {}, {}, []
    columns = columns_of(next((b.schema.names for file in files for b in batches_of(file)), []), given)
    batches = ((file, x) for file in files for x in batches_of(file, sorted({*columns.values()} - {"none"})))
    rows = ((file, row) for file, batch in batches for row in batch.to_pylist())
    (part / "pictures").mkdir(parents=True)
    with (part / "questions.jsonl").open("w", encoding="utf-8", newline="\n") as lines:
        for number, (file, cells) in enumerate(tqdm(rows, "rows", delay=2)):
            row = {what: cells.get(name, number if what == "id" else None) for what, name in columns.items()}
            cells = row["image"] if isinstance(row["image"], list) else [row["image"]]
            cells = (x.get("bytes") or x.get("path") if isinstance(x, dict) else x for x in cells)
            try:
                line = line_of(row, first)
                if line["id"] in seen:
                    raise ValueError(f"id {line['id']!r} is that of row {seen[line['id']]}; try --id none")
                pictures = enumerate(x for x in cells if x is not None)
                names = [store(x, line["id"] + f"-{i}" * (i > 0), file.parent, part, stored) for i, x in pictures]
            except (ValueError, TypeError, UserError) as error:
                wrong.append(f"row {number}: {error}")
                continue
            seen[line["id"]] = number
            lines.write(as_jsonl([line | {"images": names}], ascii_only=False))
    if not seen:
        raise UserError(f"{sources[0]}: no row can be used: {'; '.join(wrong[:3]) or 'it has none'}")
    print(f"{len(seen)} questions, {len(stored) // 2} different pictures")
    print("\n  ".join([f"{len(wrong)} rows are left out", *wrong[:5]]))


def main(argv: list[str] | None = None) -> None:
    """The command line. The folder gets its name when it is whole."""
    parser = Flags(__doc__)
    parser.add_argument("source", nargs="+", help="parquet or Arrow files, or a folder with those of one split")
    parser.add_argument("--out", required=True, help="the folder that is made")
    parser.add_argument("--first", type=int, default=0, help="the index that (A) has in answers [0]")
    for what, usual in USUAL.items():
        parser.add_argument(f"--{what}", metavar="COLUMN", help=f"[the first of {', '.join(usual.split())}]; none")
    args = parser.parse_args(argv)
    out, part = Path(args.out), Path(f"{args.out.rstrip('/')}.part")
    if out.exists():
        raise UserError(f"--out {out}: is there already; give another folder, or remove it")
    shutil.rmtree(part, ignore_errors=True)
    try:
        convert(args.source, part, args.first, vars(args))
        part.rename(out)
    except IndexError as error:
        raise UserError(str(error)) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


if __name__ == "__main__":
    run_command(main)
