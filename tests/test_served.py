"""The client of OpenAI-compatible servers, against a stub on loopback."""

import base64
import collections
import io
import json
import os
import socket
import threading

import numpy as np
import pytest
from PIL import Image

import data
import engine.run as running
import engine.served as clients
import tiny.world as tiny_world
from engine.command import UserError
from tests.helpers import (
    echo_anything,
    stub_server,
)


def chats(count: int) -> list:
    return [[clients.chat_message(f"chat {i}")] for i in range(count)]


def echo(handler, body):
    handler.say("echo " + body["messages"][-1]["content"])


def test_answers_come_back_in_order_with_the_request_that_was_meant(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with stub_server(echo) as (url, got):
        assert clients.Server(url, in_flight=4).ask(chats(20), 7, 0.5) == [f"echo chat {i}" for i in range(20)]
    assert {path for path, _, _ in got} == {"/v1/chat/completions"} and len(got) == 20
    assert all(h["Authorization"] == "Bearer secret" for _, h, _ in got)
    assert {b["model"] for _, _, b in got} == {"m"} and {(b["max_tokens"], b["temperature"]) for _, _, b in got} == {
        (7, 0.5)
    }


def test_no_more_requests_exist_than_may_be_in_flight():
    made = []

    def lazily():
        for chat in chats(40):
            made.append(1)
            yield chat

    with stub_server(echo) as (url, _):
        for n, _ in enumerate(clients.Server(url, in_flight=3).answers(lazily(), 1), 1):
            assert len(made) <= n + 5  # up to three answers arrive at once


def test_the_only_served_model_is_found_and_several_must_be_named():
    with stub_server(echo, models=()) as (url, got):
        clients.Server(url).ask(chats(1), 1)
        assert "model" not in got[0][2]  # a server that holds one model and lists none
        clients.Server(url.removesuffix("/v1") + "/#chosen").ask(chats(1), 1)
        assert got[1][2]["model"] == "chosen" and got[1][0] == "/v1/chat/completions"
    with stub_server(echo, models=("a", "b")) as (url, _), pytest.raises(UserError, match="serves a, b; name one"):
        clients.Server(url).ask(chats(1), 1)
    for wrong in ("http://", "http://host:port/v1", "https://a b", "ftp://host"):
        with pytest.raises(UserError, match="not the address of a server"):
            clients.Server(wrong)


def test_a_server_that_misbehaves_loses_nothing_and_doubles_nothing():
    held, tries, kinds = threading.Event(), collections.Counter(), collections.Counter()

    def answer(handler, body):
        text = body["messages"][-1]["content"]
        with handler.server.lock:
            tries[text] += 1
        dice = data.seed_of("stub", text, tries[text]) / 2**64
        kind = int(dice / 0.3 * 8) if dice < 0.3 and tries[text] < 6 else 8
        kind = 0 if kind == 7 and tries[text] > 1 else kind  # waiting for the time limit costs real time
        kinds[kind] += 1
        if kind == 0:
            handler.reply(500, b"out of order")
        elif kind == 1:
            handler.reply(429, b"too many", ("Retry-After", "17"))
        elif kind == 2:
            handler.reply(503, b"", ("Retry-After", "soon"))
        elif kind == 3:
            handler.reply(200, b'{"choices": [{"mess', promise=1000)  # cut inside the body
            handler.close_connection = True
        elif kind == 4:
            handler.connection.shutdown(socket.SHUT_RDWR)
            handler.close_connection = True
        elif kind == 5:
            handler.reply(200, b'{"choices": [{"message": {"content": 3}}]}' if dice < 0.2 else b"<html>busy</html>")
        elif kind == 6:
            handler.say(*["wrong count"] * (0 if tries[text] % 2 else 2))
        elif kind == 7:
            handler.reply(200, b"{", promise=1000)  # a body that does not come: the time limit ends it
            held.wait(20)
            handler.close_connection = True
        else:
            whole = json.dumps(
                {"choices": [{"message": {"content": "echo " + text}, "finish_reason": "stop"}]}
            ).encode()
            handler.reply(200, b"", promise=len(whole))
            for i in range(0, len(whole), 7):  # slow, but whole
                handler.wfile.write(whole[i : i + 7])
                handler.wfile.flush()

    pauses = []
    with stub_server(answer) as (url, _):
        server = clients.Server(url, timeout=3, sleep=pauses.append)
        found = list(server.answers(chats(200), 9))
        held.set()
    assert sorted(found) == sorted((i, f"echo chat {i}", "stop") for i in range(200))
    assert set(kinds) == set(range(9)) and kinds.total() > 240 and len(pauses) == kinds.total() - 200
    assert pauses.count(17.0) >= 5 and {1.0, 2.0, 4.0} <= set(pauses)


def test_a_dead_server_is_named_after_its_retries_and_what_had_arrived_is_kept():
    def answer(handler, body):
        echo(handler, body) if int(body["messages"][-1]["content"].split()[1]) < 5 else handler.reply(500, b"no\nmore")

    pauses, found = [], []
    with stub_server(answer) as (url, got), pytest.raises(UserError) as caught:
        for row in clients.Server(url, in_flight=3, tries=4, sleep=pauses.append).answers(chats(50), 9):
            found.append(row)
    assert sorted(i for i, _, _ in found) == [0, 1, 2, 3, 4]
    assert url in str(caught.value) and "HTTP Error 500" in str(caught.value) and "\n" not in str(caught.value)
    assert pauses.count(1.0) == pauses.count(4.0) == 3 and 8.0 not in pauses
    assert len(got) == 5 + 3 * 4  # nothing was sent after the first one failed for good
    with pytest.raises(UserError, match=f"{url}: 7 tries without a usable answer.*refused"):
        clients.Server(url, sleep=pauses.append).ask(chats(1), 1)


def test_a_refused_request_is_not_tried_again():
    with stub_server(lambda handler, body: handler.reply(400, b"too long a prompt")) as (url, got):
        with pytest.raises(UserError, match="refuses the request.*too long a prompt"):
            clients.Server(url, in_flight=1, sleep=None).ask(chats(3), 1)
        assert len(got) == 1


def test_the_picture_request_is_the_one_of_the_public_client():
    import openai

    question = tiny_world.world_questions("train", 1)[0]
    message = clients.chat_message(question.text, question.pictures())
    with stub_server(echo_anything) as (url, got):
        theirs = openai.OpenAI(base_url=url, api_key="k", max_retries=0).chat.completions
        theirs.create(model="m", messages=[message], max_tokens=5, temperature=0.5, seed=11)
        os.environ["OPENAI_API_KEY"] = "k"
        try:
            list(clients.Server(url).answers([[message]], 5, 0.5, seeds=[11]))
        finally:
            del os.environ["OPENAI_API_KEY"]
    (path_a, headers_a, body_a), (path_b, headers_b, body_b) = got
    assert path_a == path_b and body_a == body_b
    for name in ("Content-Type", "Authorization"):
        assert {k.lower(): v for k, v in headers_a.items()}[name.lower()] == headers_b[name]
    url = body_b["messages"][0]["content"][0]["image_url"]["url"]
    picture = Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"))))
    assert np.array_equal(np.asarray(picture), np.asarray(question.pictures()[0]))


def test_a_served_model_may_move_and_the_run_goes_on():
    moved = [running.without_host(f"big=http://{host}/v1,tiny-qwen-teacher") for host in ("a:1", "10.0.0.7:8000")]
    assert moved[0] == moved[1] == "big=http://,tiny-qwen-teacher"
    assert (
        running.without_host("http://a/v1#m")
        == running.without_host("https://b:2/v1#m")
        != running.without_host("http://a/v1#n")
    )
