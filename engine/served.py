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
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from functools import partial

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


def proxy_of(url: str) -> str:
    """The proxy that the environment (http_proxy, https_proxy, no_proxy) gives for a URL; "": none, as on loopback.

    Raises UserError, without the proxy's password, where that is not the address of a proxy.
    """
    parts = urllib.parse.urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme, "")
    here = re.fullmatch(r"localhost|::1|127(\.\d+){3}|0\.0\.0\.0", parts.hostname)
    if not proxy or here or urllib.request.proxy_bypass(parts.netloc):
        return ""
    if not re.fullmatch(r"(https?://)?([^\s/@]*@)?[^\s/:@]+(:\d{1,5})?/?", proxy):
        raise UserError(
            f"{parts.scheme}_proxy: not the address of a proxy such as http://HOST:3128; correct or unset it"
        )
    return proxy


def api_key() -> str:
    """OPENAI_API_KEY without white space around it ("": none). Raises UserError, without the key, for a bad one."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not re.fullmatch(r"[!-~]*", key):
        raise UserError("OPENAI_API_KEY: has white space or a character that is not ASCII inside; set it again")
    return key


class Server:
    """A model behind an OpenAI-compatible URL, asked by `in_flight` requests at once.

    Busy and failing servers (429, 5xx), cut connections, torn JSON and wrong counts are tried again after pauses of 1,
    2, 4 ... seconds, or as long as Retry-After says. The key comes from OPENAI_API_KEY, if set; it is never printed.
    `sleep` is a parameter so that tests need not wait.
    """

    def __init__(self, url: str, model: str = "", in_flight: int = 32, tries: int = 7, timeout=300.0, sleep=time.sleep):
        address, _, named = url.partition("#")
        if not re.fullmatch(r"https?://([^\s/:?@]+|\[[\da-fA-F:.]+\])(:\d{1,5})?(/[^\s?]*)?", address):
            shown = re.sub(r"//.*@", "//", url)  # without a password
            raise UserError(f"{shown}: not the address of a server; give one such as http://127.0.0.1:8000/v1")
        self.url = address.rstrip("/") + ("" if address.rstrip("/").count("/") > 2 else "/v1")
        self.model, self.in_flight, self.tries = model or named or None, in_flight, tries
        self.timeout, self.sleep, self.key, proxy = timeout, sleep, api_key(), proxy_of(self.url)
        proxies = dict.fromkeys(("http", "https"), proxy) if proxy else {}  # {}: none
        self.open = urllib.request.build_opener(urllib.request.ProxyHandler(proxies)).open
        kind = "https://" if proxy.startswith("https://") else "http://"
        host = proxy.removeprefix(kind).rpartition("@")[2]  # without a password
        self.where = f"{self.url} through the proxy {kind}{host}" if proxy else self.url  # in errors

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
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(self.url + path, json.dumps(body).encode() if body else None, headers)
        for attempt in range(self.tries):
            pause, raw = 2.0**attempt, b""
            try:
                with self.open(request, timeout=self.timeout) as answer:
                    raw = answer.read()
                return read(json.loads(raw))
            except urllib.error.HTTPError as error:
                with contextlib.suppress(OSError, http.client.HTTPException):  # the reason may be cut off too
                    raw = error.read(2000)
                    error.msg += " " + (message_in(raw) or " ".join(raw.decode(errors="replace").split()))
                said = self.without_key(one_line(error))
                if error.code < 500 and error.code not in (408, 409, 429):
                    fix = "correct it" if body else f"name the model: {self.url}#MODEL"
                    raise UserError(f"{self.where}: refuses the request: {said}; {fix}") from None
                asked = error.headers.get("Retry-After") or ""
                pause = max(pause, min(float(asked), 600) if asked.isdigit() else 0)
            except (OSError, http.client.HTTPException, *MALFORMED) as error:
                said = self.without_key(message_in(raw) or f"{type(error).__name__}: {one_line(error)}")
            if attempt < self.tries - 1:
                if attempt > 1:  # the first two failures are common and not worth a line
                    print(f"  {self.where}: {said}; trying again in {pause:.0f} s", file=sys.stderr, flush=True)
                self.sleep(pause)
        raise UserError(f"{self.where}: {self.tries} tries without a usable answer (last: {said}); is it running?")

    def without_key(self, text: str) -> str:
        """A server's words, which may repeat the key."""
        return text.replace(self.key, "(key)") if self.key else text

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
                        running[
                            pool.submit(self.call, "/chat/completions", body, partial(only_choice, most=max_tokens))
                        ] = i
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


def only_choice(answer: dict, most: int) -> tuple[str, str]:
    """(text, finish_reason) of a chat completion. Raises ValueError and the like for anything but one choice.

    An answer without a reason is finished (stop), unless the server counts `most` tokens in it (length).
    """
    [choice] = answer["choices"]
    text = choice["message"]["content"]
    if not isinstance(text, str | None):  # None: all of the answer was hidden reasoning
        raise ValueError("the answer's content is not text")
    used = (answer.get("usage") or {}).get("completion_tokens") or 0
    return text or "", choice.get("finish_reason") or ("length" if used >= most else "stop")


def message_in(raw: bytes) -> str:
    """What a server says in a JSON error body (error, detail or message), in one line; "" where there is none."""
    try:
        said = json.loads(raw)
        said = said.get("error") or said.get("detail") or said.get("message")
        said = (said.get("message") or said) if isinstance(said, dict) else said
    except MALFORMED:
        return ""
    return " ".join(str(said or "").split())[:200]
