"""Folders laid out as the published ones load, train and come out as stock transformers expects them."""

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

import data
import discriminator as disc
import engine.loading as loading
import engine.sharding as sharding
import model
import rollout as ro
from engine.command import UserError
from tests import published as pub
from tests.helpers import HOME, command, made_once, stock_inputs, torchrun

torch.set_num_threads(1)
STUDENTS = ("qwen-untied", "qwen-tied", "internvl", "qwen3")
WIDE = data.Question("wide", (pub.picture(2400, 1500),), "What is in row 2?", "B")
LONG = data.Question("long", (pub.picture(2500, 500),), "What is in row 2?", "B")
SMALL = data.Question("small", (pub.picture(),), "What is in row 2?", "B")


@pytest.fixture(scope="session")
def speakers(published, tmp_path_factory):
    """The same folders with texts that end, so that a teacher has whole responses."""

    def make(root: Path) -> None:
        for name in pub.NAMES:
            pub.speaking(published / name, root / name)

    return made_once(tmp_path_factory, "speakers", make)


def dtypes(module: torch.nn.Module) -> set:
    return {p.dtype for p in module.parameters()}


def written_dtypes(folder: Path) -> set:
    """The dtypes of a folder's tensors, and those that config.json says, at every level."""
    config, said = pub.read(folder, "config.json"), set()
    for level in (config, *(config[x] for x in ("text_config", "vision_config") if x in config)):
        said |= {level.get("dtype"), level.get("torch_dtype")} - {None} or {"nothing"}
    for file in pub.weight_files(folder):
        with safe_open(file, "pt") as tensors:
            names = list(tensors.keys())
            said |= {str(tensors.get_tensor(name).dtype).removeprefix("torch.") for name in names}
    return said


# ------------------------------------------------------------------------------------------------ dtype and tie
@pytest.mark.parametrize("nested", [None, "float32", "float16"])
@pytest.mark.parametrize("name", STUDENTS)
def test_every_player_has_the_asked_dtype_whatever_the_folder_says(published, name, nested, tmp_path):
    folder = published / name
    if nested:
        pub.say_dtype(folder := pub.copied(folder, tmp_path / "copy"), nested)
    mesh = sharding.start_ranks("cpu")
    for dtype in (torch.float32, torch.bfloat16):
        whole = loading.load(folder, dtype=dtype)
        assert dtypes(whole) == {dtype} and {x.dtype for x in loading.levels(whole.hf.config)} == {dtype}
        D = loading.load(folder, dtype=dtype, mesh=mesh, player=disc.Discriminator)
        sharded = loading.load(folder, dtype=dtype, mesh=mesh, compute=torch.bfloat16)
        assert dtypes(D) == dtypes(sharded) == {dtype}
        with torch.no_grad():  # rotary tables are not rounded
            tables = [b for n, b in whole.named_buffers() if "inv_freq" in n]
        assert tables and all(b.dtype == torch.float32 for b in tables)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_judge_has_the_asked_dtype_and_the_heads_tie_is_that_of_the_files(published, dtype):
    for mesh in (None, sharding.start_ranks("cpu")):
        hf, _ = loading.load_language_model(published / "judge", "cpu", dtype, mesh)
        assert dtypes(hf) == {dtype} and not loading.is_tied(hf)
    assert [loading.is_tied(loading.load(published / name).hf) for name in STUDENTS] == [False, True, False, True]


@pytest.mark.parametrize("name", STUDENTS)
def test_a_saved_folder_says_its_dtype_at_every_level_and_keeps_all_other_files(published, name, tmp_path):
    for source, nested in ((published / name, None), (tmp_path / "copy", "float32")):
        if nested:
            pub.say_dtype(pub.copied(published / name, source), nested)
        vlm = loading.load(source)
        for dtype in (torch.float32, torch.bfloat16):
            loading.save(vlm, out := tmp_path / "out", dtype)
            assert written_dtypes(out) == {str(dtype).removeprefix("torch.")}
        for file in source.iterdir():
            if ".safetensors" not in file.name and file.name != "config.json":
                assert (out / file.name).read_bytes() == file.read_bytes(), file.name
        before, after = pub.read(source, "config.json"), pub.read(out, "config.json")
        assert {k for k in before | after if before.get(k) != after.get(k)} <= {
            *("vision_config", "text_config", "tie_word_embeddings", "dtype")
        }
        stock = vlm.family.model.from_pretrained(out, dtype="auto")
        assert dtypes(stock) == {torch.bfloat16} and loading.is_tied(stock) == loading.is_tied(vlm.hf)
        tied = type(stock.config).from_pretrained(out).tie_word_embeddings  # servers read it there
        assert tied == loading.is_tied(vlm.hf)
        again = loading.load(out, dtype=torch.bfloat16).hf.state_dict()
        for key, x in stock.state_dict().items():
            assert torch.equal(x, again[key]) and torch.equal(x, vlm.hf.state_dict()[key].bfloat16()), key


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("rows", [None, 151680])
@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_saved_by_stock_code_loads(published, name, rows, dtype, tmp_path):
    saved = pub.saved_by_stock(published / name, tmp_path / "saved", dtype, rows)
    vlm = loading.load(saved)
    stock = vlm.family.model.from_pretrained(saved, dtype=torch.float32).state_dict()
    assert dtypes(vlm) == {torch.float32}
    assert all(torch.equal(x, stock[key]) for key, x in vlm.hf.state_dict().items())
    assert not rows or vlm.banned.shape == (rows,)
    prompt = vlm.encoder.encode_question(WIDE)  # template and image processor stand in other files there
    assert torch.equal(prompt.ids, loading.load(published / name).encoder.encode_question(WIDE).ids)


# ------------------------------------------------------------------------------------------------ templates, tiles
def test_the_template_with_pictures_is_found_wherever_it_stands(published, tmp_path):
    for name, before, after in (
        ("qwen-tied", pub.SYSTEM + "<|im_start|>user\n<|vision_start|>", "<|vision_end|>What is in row 2?<|im_end|>\n"),
        ("internvl", "<|im_start|>user\n<img>", "</img>\nWhat is in row 2?<|im_end|>\n"),
    ):
        pub.template_in_tokenizer_config(moved := pub.copied(published / name, tmp_path / name))
        as_jinja = pub.copied(published / name, tmp_path / f"{name}-jinja")
        (as_jinja / "chat_template.jinja").write_text(
            pub.TEMPLATES[pub.read(published / name, "config.json")["model_type"]]
        )
        (as_jinja / "chat_template.json").unlink(missing_ok=True)
        for folder in (published / name, moved, as_jinja):
            vlm = loading.load(folder)
            text = vlm.encoder.tokenizer.decode(vlm.encoder.encode_question(SMALL).ids)
            picture = text.removeprefix(before).partition(after)[0]
            assert text == before + picture + after + "<|im_start|>assistant\n"
            assert picture == vlm.family.picture_sign * (len(picture) // len(vlm.family.picture_sign)) != ""


@pytest.mark.parametrize("tokens, tiles", [(0, 7), (1280, 3), (300, 1)])
def test_internvl_is_cut_into_tiles_as_its_stock_processor_does_when_it_is_called(published, tokens, tiles):
    vlm = loading.load(published / "internvl")
    vlm.encoder.limit_pictures(tokens)
    stock = GotOcr2ImageProcessorPil.from_pretrained(published / "internvl")
    assert not stock.crop_to_patches  # what the file says; the stock processor overrides it at every call
    at_most = tokens // 256 - 1 if tokens >= 512 else 1 if tokens else 12
    for question in (WIDE, SMALL, LONG):
        expected = stock(question.images[0], crop_to_patches=True, max_patches=at_most, return_tensors="pt")
        prompt = vlm.encoder.encode_question(question)
        assert torch.equal(prompt.pixels["pixel_values"], expected["pixel_values"])
        count = int((prompt.ids == 151667).sum())
        assert count == 256 * len(expected["pixel_values"]) and (not tokens or count <= tokens)
    assert len(vlm.encoder.encode_question(WIDE).pixels["pixel_values"]) == tiles


@pytest.mark.parametrize("name", STUDENTS)
def test_log_probs_and_greedy_texts_with_a_real_vocabulary_are_those_of_the_stock_model(speakers, name):
    vlm = loading.load(speakers / name)
    vlm.encoder.limit_pictures(1280)
    stock = vlm.family.model.from_pretrained(speakers / name, dtype=torch.float32).eval()
    questions = [WIDE, SMALL]
    prompts = [vlm.encoder.encode_question(q) for q in questions]
    responses = [vlm.encoder.reply_ids(x) for x in ("Row 2 holds 3.5 km of \u4f60\u597d", "B", "I see nothing")]
    with torch.no_grad():
        packed = vlm(model.pack(vlm.encode_pictures(prompts), [responses] * 2))
        for k, (prompt, ids) in enumerate((p, ids) for p in prompts for ids in responses):
            whole = torch.cat([prompt.ids, torch.tensor(ids)])
            logits = stock(**stock_inputs(vlm, prompt, whole)).logits[0, len(prompt.ids) - 1 : -1] + vlm.banned
            expected = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]
            assert torch.allclose(packed[k, : len(ids)], expected, atol=2e-5)
    ours = ro.rollout(vlm, prompts, [q.id for q in questions], 1, 8, ro.GREEDY)
    for prompt, (mine,) in zip(prompts, ours, strict=True):
        how = dict(max_new_tokens=8, do_sample=False, suppress_tokens=vlm.encoder.banned_ids, repetition_penalty=1.0)
        text = stock.generate(**stock_inputs(vlm, prompt, prompt.ids), **how)[0, len(prompt.ids) :]
        assert text.tolist() == mine.ids


def test_a_bf16_heads_log_probs_are_within_a_thousandth_of_fp32_at_a_real_vocabulary():
    """Given the same hidden states and bf16 weights; a bf16 product would be off by 0.03 on average."""
    random = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(64, 151936, bias=False, dtype=torch.bfloat16)
    hidden = torch.randn(48, 64, generator=random).bfloat16().requires_grad_()
    target, banned = torch.randint(0, 151936, (48,), generator=random), torch.zeros(151936)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=random) * 0.3)
    logps = model.token_logps(hidden, head, target, banned, chunk=16)
    rounded = head(hidden).float().log_softmax(-1).gather(1, target[:, None])[:, 0]
    exact_hidden, exact_weight = hidden.detach().float().requires_grad_(), head.weight.detach().float().requires_grad_()
    exact = (exact_hidden @ exact_weight.t()).log_softmax(-1).gather(1, target[:, None])[:, 0]
    assert (logps - exact).abs().max() < 1e-3 < (rounded - exact).abs().mean()
    logps.sum().backward()
    exact.sum().backward()
    for ours, theirs in ((hidden.grad, exact_hidden.grad), (head.weight.grad, exact_weight.grad)):
        assert ours.dtype == torch.bfloat16 and (ours - theirs).norm() < 0.01 * theirs.norm()


# ------------------------------------------------------------------------------------------------ known before
FLAGS = "--steps 2 --questions-per-step 3 --group-size 2 --d-steps 2 --eval-draws 1 --max-new-tokens 16 "
FLAGS = [*FLAGS.split(), "--preset", "paper", "--teacher-samples", "4", "--image-tokens", "600"]
SAYS = {
    pub.missing_shard: "model.*safetensors is missing",
    pub.truncated_file: "damaged .*; copy it anew",
    pub.wrong_shape: r"layers.1.mlp.up_proj.weight \[63, 32\] has to be \[64, 32\]",
    pub.missing_tensor: "layers.1.mlp.up_proj.weight is missing",
    pub.adapter_only: "an adapter of Qwen/Qwen2.5-VL-3B-Instruct without its base; merge",
    pub.bin_only: "weights as .bin only",
    pub.torn_config: "config.json: cannot be read as JSON",
    pub.other_config: "not a model's configuration",
    pub.wrong_width: r"tensor .*mlp.* has to be .*; is config.json of the same model",
    pub.quantised: "its weights are quantised .awq.; give the bf16 folder",
    pub.no_end_token: "no end token",
    pub.tokenizer_too_large: "tokens, the embeddings 151650 rows",
    pub.template_without_pictures: "no chat template can be used: that of .* drops the picture",
    pub.failing_template: "no chat template can be used: that of .* fails .roles must alternate",
    pub.no_template: "no chat template can be used: there is none",
}


@pytest.mark.parametrize("change", SAYS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("role, name", [("student", "qwen-untied"), ("teachers", "internvl")])
def test_a_damaged_folder_is_refused_in_one_line_before_anything_is_written(published, role, name, change, tmp_path):
    change(pub.copied(published / name, tmp_path / "bad"))
    players = dict(student=str(published / "qwen-tied"), teachers=str(published / "internvl"), judge="rule")
    players[role] = "bad"
    flags = [x for who, folder in players.items() for x in (f"--{who}", folder)]
    with pytest.raises(UserError, match=SAYS[change]) as caught:
        command(tmp_path, "--name", "a", "--data", pub.questions(tmp_path, 3, ((64, 48),)), *flags, *FLAGS)
    assert "\n" not in str(caught.value) and "bad" in str(caught.value) and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "change, says",
    [
        (pub.digits_are_no_tokens, "0 and 1 are no tokens of their own"),
        (pub.missing_tensor, "is missing"),
        (pub.quantised, "quantised"),
        (pub.tokenizer_too_large, "151650 rows"),
        (pub.no_template, "its chat template fails"),
    ],
)
def test_a_damaged_judge_is_refused_in_one_line_before_anything_is_written(published, change, says, tmp_path):
    change(pub.copied(published / "judge", tmp_path / "bad"))
    flags = ["--student", str(published / "qwen-tied"), "--teachers", str(published / "internvl"), "--judge", "bad"]
    with pytest.raises(UserError, match=says) as caught:
        command(tmp_path, "--name", "a", "--data", pub.questions(tmp_path, 3, ((64, 48),)), *flags, *FLAGS)
    assert "\n" not in str(caught.value) and "bad" in str(caught.value) and not (tmp_path / "runs").exists()


# ------------------------------------------------------------------------------------------------ downloads
def test_a_snapshot_is_local_only_when_all_its_files_are_there(published, tmp_path, monkeypatch):
    """An interrupted download goes on, and one that stays short of a file is named."""
    import huggingface_hub

    folder, asked = pub.copied(published / "qwen-untied", tmp_path / "cache"), []
    pub.missing_shard(folder)

    def snapshot_download(name, local_files_only=False, **_):
        asked.append(local_files_only)
        if not local_files_only:
            shutil.copytree(published / "qwen-untied", folder, dirs_exist_ok=True)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert loading.find_folder("qwen2.5-vl-7b") == folder and asked.count(False) == 1
    assert loading.find_folder("qwen2.5-vl-7b") == folder and asked.count(False) == 1  # whole now
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: str(folder))
    pub.missing_shard(folder)
    with pytest.raises(UserError, match="qwen2.5-vl-7b: the download of Qwen/Qwen2.5-VL-7B-Instruct lacks"):
        loading.find_folder("qwen2.5-vl-7b")


def test_ranks_meet_while_one_of_them_works_so_that_no_collective_waits_for_it(monkeypatch):
    go_on, meetings = threading.Event(), []

    def all_gather(done):
        meetings.append(done)
        if len(meetings) == 3:
            go_on.set()
        return [done, True]

    monkeypatch.setattr(sharding, "rank_and_world", lambda: (0, 2))
    monkeypatch.setattr(sharding, "all_gather", all_gather)
    monkeypatch.setattr(sharding, "MEETING", 0.01)
    assert sharding.together(lambda: go_on.wait(60)) and meetings[:3] == [False] * 3 and meetings[-1]


# ------------------------------------------------------------------------------------------------ whole runs
def check_run(run: Path, source: Path) -> None:
    """Every artefact is there, nearly all weights moved at lr 1e-6, and the export is the published folder again."""
    rows = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [r for r in rows if r["stage"] == "ril" and "loss" in r]
    assert len(steps) == 2 and all(np.isfinite(r["loss"]) and r["gradient_norm"] > 0 for r in steps)
    assert json.loads((run / "config.json").read_text())["settings"]["lr"] == 1e-6
    vlm = loading.load(source)
    out = loading.load(run / "checkpoints" / "last")
    tables = {"model.language_model.embed_tokens.weight", "lm_head.weight"}  # rows of tokens that no text had stay
    a, b = vlm.hf.state_dict(), out.hf.state_dict()
    tower = [k for k in a if ".visual." in k and "merger" not in k or ".vision_tower." in k]
    rest = [k for k in a if k not in tables and k not in tower]
    still = sum((a[k] == b[k]).sum().item() for k in rest) / sum(a[k].numel() for k in rest)
    assert still < 0.01, still
    assert tower and all(torch.equal(a[k], b[k]) for k in tower)
    for file in source.iterdir():
        if ".safetensors" not in file.name and file.name != "config.json":
            assert (run / "student" / file.name).read_bytes() == file.read_bytes(), file.name
    stock = vlm.family.model.from_pretrained(run / "student", dtype="auto")
    assert dtypes(stock) == {torch.bfloat16} and written_dtypes(run / "student") == {"bfloat16"}


def test_all_stages_run_on_a_published_folder_with_a_teacher_and_a_judge_in_process(speakers, tmp_path):
    flags = ["--student", str(speakers / "qwen-untied"), "--teachers", str(speakers / "internvl")]
    flags += ["--judge", str(speakers / "judge"), "--data", pub.questions(tmp_path, 20)]
    command(tmp_path, "--name", "a", *flags, "--judge-wrong", "0.4", *FLAGS)  # wrong verdicts make rewards differ
    settings = json.loads((tmp_path / "runs/a/config.json").read_text())["settings"]
    assert settings["dtype"] == "bf16" and settings["recompute"]
    check_run(tmp_path / "runs" / "a", speakers / "qwen-untied")
    assert len((tmp_path / "runs/a/verdicts.jsonl").read_text().splitlines()) > 20


def test_a_run_on_a_published_folder_trains_and_exports_every_merger_of_deepstack(speakers, tmp_path):
    flags = ["--student", str(speakers / "qwen3"), "--algo", "dr_grpo", "--judge", "rule", "--judge-wrong", "0.4"]
    flags += ["--data", pub.questions(tmp_path, 12, ((64, 48), (100, 60)))]
    command(tmp_path, "--name", "a", *flags, *FLAGS, "--max-new-tokens", "8", "--group-size", "4")
    check_run(tmp_path / "runs" / "a", speakers / "qwen3")


def test_all_stages_run_on_two_ranks_with_a_teacher_from_a_file(speakers, tmp_path):
    """Three questions a step on two ranks, one of them without a picture."""
    pub.questions(tmp_path, 19)
    lines = [json.loads(x) for x in (tmp_path / "mine.jsonl").read_text().splitlines()]
    lines += [dict(id="text", question="What is 1 + 1?", answer="2")]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    said = [dict(question=x["id"], teacher="big", text=f"Row {i} says {x['answer']}") for x in lines for i in range(4)]
    (tmp_path / "said.jsonl").write_text("".join(json.dumps(x) + "\n" for x in said))
    flags = ["--student", str(speakers / "internvl"), "--teachers", "big", "--teachers-file", "said.jsonl"]
    flags += ["--judge", "rule", "--judge-wrong", "0.4", "--data", "mine.jsonl", *FLAGS]
    ran = torchrun(tmp_path, 2, HOME / "train.py", "--name", "a", *flags)
    assert ran.returncode == 0, ran.stderr[-3000:]
    check_run(tmp_path / "runs" / "a", speakers / "internvl")
