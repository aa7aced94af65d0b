"""The next step's questions are encoded in a thread: the same numbers, the same errors, one thread at a time."""

import threading

import pytest

import engine.ahead as ahead_of
import engine.sharding as sharding
import train
from engine.ahead import Ahead
from engine.command import UserError
from tests.helpers import SMALL, metrics


def test_each_step_is_made_once_in_a_thread_when_it_was_begun_and_at_once_when_not():
    made = []

    def make(step):
        made.append((step, threading.current_thread() is threading.main_thread()))
        return f"questions of {step}"

    ahead = Ahead(make, 5)
    for step in (2, 3, 4):  # as after a resume
        assert ahead(step) == f"questions of {step}"
        ahead.begin(step + 1)
    ahead.thread.shutdown()
    assert made == [(2, True), (3, False), (4, False)]  # and nothing behind the last step


def test_an_error_comes_at_its_own_step_and_names_its_question():
    def make(step):
        if step == 1:
            raise UserError("question 'q7': pictures/7.png cannot be read")
        return step

    ahead = Ahead(make, 3)
    assert ahead(0) == 0
    ahead.begin(1)
    ahead.begin(2)
    with pytest.raises(UserError, match="question 'q7'"):
        ahead(1)
    assert ahead(2) == 2


@pytest.mark.parametrize("student", ["tiny-qwen", "tiny-internvl"])
def test_a_run_with_the_thread_writes_the_bytes_of_one_without(tmp_path, monkeypatch, student):
    monkeypatch.chdir(tmp_path)
    flags = [*SMALL, "--student", student, "--algo", "dr_grpo", "--steps", "3", "--eval-every", "0"]
    begun, encoders = [], []

    def replicas(run):
        found = plain_players(run)
        encoders.append(found.replica.encoder)
        return found

    def encoded(encoder, *more):
        encoders.append(encoder)
        return plain_encoded(encoder, *more)

    plain_players, plain_encoded = train.load_players, train.encoded_at
    monkeypatch.setattr(train, "load_players", replicas)
    monkeypatch.setattr(train, "encoded_at", encoded)

    def begin(self, step):
        begun.append(step)
        plain(self, step)

    plain = Ahead.begin
    monkeypatch.setattr(train, "Ahead", lambda make, end: Ahead(make, 3))  # as on a GPU: on a CPU the end is 0
    for name, replaced in (("thread", begin), ("alone", lambda self, step: None)):
        monkeypatch.setattr(ahead_of.Ahead, "begin", replaced)
        train.main(["--name", name, *flags, "--stage", "sft"])
        train.main(["--name", name, *flags, "--stage", "ril"])
    assert begun == [1, 2, 3] and len(metrics(tmp_path / "runs/thread")) > 3
    for file in ("metrics.jsonl", "samples.jsonl"):
        assert (tmp_path / "runs/thread" / file).read_bytes() == (tmp_path / "runs/alone" / file).read_bytes()
    first, second = (x.tokenizer for x in encoders[:2])
    assert first is not second and first.get_vocab() == second.get_vocab()  # a tokenizer serves one thread at a time
    assert sharding.rank_and_world() == (0, 1)
