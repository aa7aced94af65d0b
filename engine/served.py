"""The client of OpenAI-compatible servers: served judges and served teachers."""

import base64
import contextlib
import http.client
import io
import itertools
import json
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

from engine.command import UserError, one_line
from engine.files import SURROGATE

# what reading an answer of another form raises
MALFORMED = (ValueError, LookupError, TypeError, AttributeError, RecursionError)


# ------------------------------------------------------------------------------------------------ a served model
def chat_message(text: str, pictures: Iterable = ()) -> dict:
    """A user's message in the OpenAI form: pictures (PIL) as PNG data URLs, then the text."""
    parts = []
    for picture in pictures:
        picture.save(png := io.BytesIO(), "PNG")
        url = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}] if parts else text}


def is_url(name: str) -> bool:
    """Is this name the address of a server?"""
    return name.startswith(("http://", "https://"))


class Server:
    """A model behind an OpenAI-compatible URL, asked by `in_flight` requests at once.

    Busy and failing servers (429, 5xx), cut connections, torn JSON and wrong counts are tried again after pauses of 1,
    2, 4 ... seconds, or as long as Retry-After says. The key comes from OPENAI_API_KEY, if set. `sleep` is a parameter
    so that tests need not wait.
    """

    def __init__(self, url: str, model: str = "", in_flight: int = 32, tries: int = 7, timeout=300.0, sleep=time.sleep):
        address, _, named = url.partition("#")
        if not re.fullmatch(r"https?://[^\s/:?]+(:\d{1,5})?(/[^\s?]*)?", address):
            raise UserError(f"{url}: not the address of a server; give one such as http://127.0.0.1:8000/v1")
        self.url = address.rstrip("/") + ("" if address.rstrip("/").count("/") > 2 else "/v1")
        self.model, self.in_flight, self.tries = model or named or None, in_flight, tries
        self.timeout, self.sleep = timeout, sleep

    def name_model(self) -> str:
        """The name given, else that of the only model which the server lists ("" where it lists none).

        Raises UserError if it lists several.
        """
        if self.model is None:
            listed = self.call("/models", None, lambda got: [m["id"] for m in got["data"]])
            if len(listed) > 1:
                some = ", ".join(map(str, listed[:5]))
                raise UserError(f"{self.url}: serves {some}; name one: {self.url}#{listed[0]}")
            self.model = (listed or [""])[0]
        return self.model

    def call(self, path: str, body: dict | None, read):
        """One request with its retries; read(parsed answer) may raise what makes it worth another try.

        Raises UserError naming URL and last error when the tries are used up or the server refuses the request.
        """
        headers = {"Content-Type": "application/json"}
        if os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {os.environ['OPENAI_API_KEY']}"
        request = urllib.request.Request(self.url + path, json.dumps(body).encode() if body else None, headers)
        for attempt in range(self.tries):
            pause = 2.0**attempt
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                    return read(json.loads(answer.read()))
            except urllib.error.HTTPError as error:
                with contextlib.suppress(OSError, http.client.HTTPException):  # the reason may be cut off too
                    error.msg += " " + " ".join(error.read(2000).decode(errors="replace").split())
                if error.code < 500 and error.code not in (408, 409, 429):
                    fix = "correct it" if body else f"name the model: {self.url}#MODEL"
                    raise UserError(f"{self.url}: refuses the request: {one_line(error)}; {fix}") from None
                asked = error.headers.get("Retry-After") or ""
                pause, said = max(pause, min(float(asked), 600) if asked.isdigit() else 0), one_line(error)
            except (OSError, http.client.HTTPException, *MALFORMED) as error:
                said = f"{type(error).__name__}: {one_line(error)}"
            if attempt < self.tries - 1:
                if attempt > 1:  # the first two failures are common and not worth a line
                    print(f"  {self.url}: {said}; trying again in {pause:.0f} s", file=sys.stderr, flush=True)
                self.sleep(pause)
        raise UserError(f"{self.url}: {self.tries} tries without a usable answer (last: {said}); is it running?")

    def answers(self, chats, max_tokens: int, temperature: float = 0.0, seeds=None) -> Iterator[tuple[int, str, str]]:
        """(index, text, finish_reason) of every chat (a list of messages) as the answers arrive, in any order.

        chats and seeds may be generators: no more than `in_flight` requests exist at once. When one fails for good,
        those under way are still waited for and yielded; then its UserError is raised.
        """
        fields = {"model": self.name_model(), "max_tokens": max_tokens, "temperature": temperature}
        fields = {name: value for name, value in fields.items() if value != ""}
        waiting = zip(itertools.count(), chats, itertools.repeat(None) if seeds is None else seeds, strict=False)
        running, failed, mended = {}, None, 0
        with ThreadPoolExecutor(self.in_flight) as pool:
            while True:
                try:
                    for i, chat, seed in itertools.islice(waiting, 0 if failed else self.in_flight - len(running)):
                        body = fields | {"messages": chat} | ({} if seed is None else {"seed": seed})
                        running[pool.submit(self.call, "/chat/completions", body, only_choice)] = i
                except UserError as error:  # an unreadable picture: requests under way are still waited for
                    failed = error
                if not running:
                    break
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    i, error = running.pop(done), done.exception()
                    failed = failed or error
                    if error is None:
                        text, reason = done.result()
                        whole = SURROGATE.sub("\ufffd", text)  # half of a character could be written to no file
                        mended += whole != text
                        yield i, whole, reason
        if mended:
            print(
                f"  WARNING: {self.url}: {mended} answers held half of a character; U+FFFD replaces it", file=sys.stderr
            )
        if failed:
            raise failed

    def ask(self, chats, max_tokens: int, temperature: float = 0.0) -> list[str]:
        """The answers' texts in the chats' order."""
        return [text for _, text, _ in sorted(self.answers(chats, max_tokens, temperature))]


def only_choice(answer: dict) -> tuple[str, str]:
    """(text, finish_reason) of a chat completion. Raises ValueError and the like for anything but one choice."""
    [choice] = answer["choices"]
    text = choice["message"]["content"]
    if not isinstance(text, str | None):  # None: all of the answer was hidden reasoning
        raise ValueError("the answer's content is not text")
    return text or "", choice.get("finish_reason") or ""
