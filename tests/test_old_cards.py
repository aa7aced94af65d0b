"""A GPU without bf16 (a T4): the run computes in fp32, says so and notes it; what torch says of the card is faked."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import config
import engine.attention as attention
import engine.loading as loading
import engine.local as local
import engine.memory as memory
import engine.run as running
import eval as ev
import tools.plan as plan
from engine.command import UserError
from engine.files import write
from engine.sharding import has_bf16

REAL = ["--student", "internvl3-1b"]


@pytest.fixture
def card(monkeypatch):
    """card(7): this process seems to have a GPU of compute capability 7.5; a T4 says that it emulates bf16."""

    def of(major: int):
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True: major > 7 or including_emulation
        )
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (major, 5))
        monkeypatch.setattr(running, "device_of", lambda cfg: "cuda:0")
        monkeypatch.setattr(running, "start_ranks", lambda device: None)
        monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda on: None)
        monkeypatch.setattr(ev, "device_here", lambda: "cuda:0")

    return of


@pytest.mark.parametrize("major, dtype", [(7, "fp32"), (8, "bf16")])
def test_a_run_takes_fp32_where_the_card_has_no_bf16_and_says_so(card, capsys, major, dtype):
    card(major)
    cfg = config.parse(REAL)
    assert cfg.dtype == "bf16"
    running.set_up(cfg)
    assert cfg.dtype == dtype and running.settings_of(cfg)["dtype"] == dtype  # what config.json says
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if "bf16" in line] == said and len(said) == (dtype == "fp32")


def test_a_run_goes_on_on_the_same_card_only(card, tmp_path):
    def set_up(major):
        card(major)
        running.set_up(cfg := config.parse(REAL))
        return cfg

    write(tmp_path / "config.json", running.json.dumps(dict(settings=running.settings_of(set_up(7)))))
    running.check_settings(tmp_path, set_up(7))
    with pytest.raises(UserError, match="dtype 'fp32' -> 'bf16'"):
        running.check_settings(tmp_path, set_up(8))


def test_a_cpu_is_not_asked_for_bf16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", None)
    monkeypatch.setattr(running, "device_of", lambda cfg: "cpu")
    assert not has_bf16("cpu")
    cfg = config.parse(REAL)
    running.set_up(cfg)
    assert cfg.dtype == "bf16"  # as the flag says: a CPU computes in either


@pytest.mark.parametrize("major, dtype", [(7, torch.float32), (8, torch.bfloat16)])
def test_judges_and_evaluations_take_what_the_card_has(card, monkeypatch, major, dtype):
    card(major)
    taken = []

    def load(name, device, dtype, *more):
        taken.append(dtype)
        raise InterruptedError

    monkeypatch.setattr(local, "load_language_model", load)
    monkeypatch.setattr(loading, "load", load)
    for ask in (
        lambda: local.LanguageModel("x", "cuda:0"),
        lambda: ev.load_student(SimpleNamespace(student="x", dtype="")),
    ):
        with pytest.raises(InterruptedError):
            ask()
    assert taken == [dtype, dtype]


class OnCard(torch.Tensor):
    """A tensor of a CPU that says it lies on a GPU."""

    is_cuda = True


@pytest.mark.parametrize("dtype, major, kernel", [("float32", 8, False), ("bfloat16", 7, False), ("bfloat16", 8, True)])
def test_the_variable_length_kernel_is_for_half_precision_on_new_cards(card, dtype, major, kernel):
    card(major)
    assert attention.has_kernel(torch.zeros(1, dtype=getattr(torch, dtype)).as_subclass(OnCard)) is kernel


def test_without_the_kernel_a_card_attends_as_a_cpu_does(card, monkeypatch):
    card(7)
    monkeypatch.setattr(attention, "varlen_attn", None)
    rows = torch.Generator().manual_seed(0)
    place = torch.tensor([[3, 4, -1], [5, 6, 7]])
    batch = SimpleNamespace(
        prompt=3, ids=torch.zeros(1, 8), place=place, segment=torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2]])
    )
    q, k, v = (torch.randn(1, heads, 8, 4, generator=rows) for heads in (4, 2, 2))
    there = [x.as_subclass(OnCard) for x in (q, k, v)]
    torch.testing.assert_close(
        attention.Branches(batch).attend(*there, 0.5).as_subclass(torch.Tensor),
        attention.Branches(batch).attend(q, k, v, 0.5),
    )
    ends = torch.tensor([0, 3, 8], dtype=torch.int32)
    more = dict(cu_seq_lens_q=ends, cu_seq_lens_k=ends, max_length_q=5, max_length_k=5)
    seen, plain = (attention.window_attention(None, *x, None, 0.5, **more)[0] for x in (there[:1] * 3, [q] * 3))
    torch.testing.assert_close(seen.as_subclass(torch.Tensor), plain)


@pytest.mark.parametrize("flags, copies", [([], 2), (["--lora", "8"], 1)])
def test_memory_counts_fp32_where_a_run_computes_in_it(flags, copies):
    half = config.parse([*REAL, *flags])
    whole, size = replace(half, dtype="fp32"), 2 * memory.sizes("internvl3-1b")["all"] / 1e9
    more = {name: gb - memory.phases(half, 1, "none")[name] for name, gb in memory.phases(whole, 1, "none").items()}
    assert (
        min(more[name] for name in ("rollout", "discriminator", "student")) > copies * size
    )  # replica, reference; base
    assert plan.teacher_phase(whole, "internvl3-1b")[0] > plan.teacher_phase(half, "internvl3-1b")[0] + size
