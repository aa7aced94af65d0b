"""Sampling responses: prefill each prompt once, copy its keys and values to G rows, decode all rows together.

What stock `generate(num_return_sequences=G)` does G times (the prompt's prefill) is done once here; finished rows leave
the batch; keys and values lie in one fixed block per layer instead of being concatenated at every token. The greedy
text is that of stock `generate`, token for token (tested).

Every response draws from its own uniform numbers, made from (seed, question, visit, response) before decoding starts:
the text does not depend on which other rows share the batch, on the number of GPUs, or on how often a run was resumed.
(Up to rounding: a number within about 1e-6 of the border between two tokens may fall on either side of it.)

Left out on purpose: paging, scheduling, speculative decoding (lengths are bounded and known).
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch.distributed.fsdp import FSDPModule
from transformers import DynamicCache

from config import Config
from data import seed_of, slices
from engine.attention import relaxed
from engine.keys_values import LOOK_EVERY, SHRINK_ABOVE, SHRINK_AT, Decoder, KeysValues
from engine.sharding import all_gather
from model import VLM, Prompt, pack


@dataclass
class Response:
    """One response to one question; `question` and `index` travel with it through judge and reward.

    source is "student" or a teacher's name; ids end with the end token when `finished`; logps are the sampler's own.
    """

    question: str
    index: int
    source: str
    ids: list[int]
    text: str
    finished: bool = True
    logps: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. The default is the pure policy: what is sampled is what is scored."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    greedy: bool = False


PURE, GREEDY = Sampling(), Sampling(greedy=True)
PAPER = Sampling(temperature=1.0, top_k=50, top_p=0.95, repetition_penalty=1.05)  # the paper's setting


def uniforms(count: int, length: int, *purpose) -> np.ndarray:
    """(count, length) uniform numbers in [0, 1): row i depends on (purpose, i) alone, token t on its place alone."""
    return np.stack([np.random.default_rng(seed_of(*purpose, i)).random(length) for i in range(count)])


def draw(logits, u, how: Sampling, seen=None) -> tuple[torch.Tensor, torch.Tensor]:
    """One token per row: logits (n, V) fp32, u (n,) fp64 -> tokens (n,), log-probs (n,).

    The log-probs are those of the distribution that is sampled. Inverse sampling takes the first token at which the
    cumulated probability passes u. `seen` (n, V) marks the tokens of prompt and response so far, for the repetition
    penalty.
    """
    if seen is not None and how.repetition_penalty != 1.0:
        scaled = torch.where(logits > 0, logits / how.repetition_penalty, logits * how.repetition_penalty)
        logits = torch.where(seen, scaled, logits)
    if how.greedy:
        tokens = logits.argmax(-1)
    else:
        logits = logits / how.temperature
        if how.top_k:
            kth = logits.topk(min(how.top_k, logits.shape[-1])).values[:, -1:]
            logits = logits.masked_fill(logits < kth, -torch.inf)
        if how.top_p < 1:
            ordered, order = logits.sort(descending=True)
            mass = cumulate(ordered.softmax(-1))
            drop = (mass - ordered.softmax(-1)) >= how.top_p  # the token that passes top_p stays
            logits = logits.masked_fill(drop.scatter(1, order, drop), -torch.inf)
        cumulated = cumulate(logits.double().softmax(-1))
        tokens = torch.searchsorted(cumulated, u[:, None] * cumulated[:, -1:], right=True)[:, 0]
        tokens = tokens.clamp(max=logits.shape[-1] - 1)  # only NaN gets there: the loss will stop the run and say where
    return tokens, logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]


def cumulate(p: torch.Tensor) -> torch.Tensor:
    """Cumulated sums along each row. On a GPU torch refuses cumsum in deterministic mode; only its rounding depends."""
    with relaxed(p.device):
        return p.cumsum(-1)


@torch.no_grad()
def rollout(
    vlm: VLM,
    prompts: list[Prompt],
    names: list,
    group: int,
    max_new_tokens: int,
    how: Sampling = PURE,
    purpose: tuple = (),
    max_rows: int = 512,
) -> list[list[Response]]:
    """`group` responses to each prompt, as lists in the prompts' order.

    names: the questions' ids, or (id, visit) where a question is asked more than once. `purpose` (seed, ...) and
    the name seed the uniform numbers. At most `max_rows` rows decode at once: memory for keys and values is max_rows x
    (prompt + max_new_tokens). A sharded model is asked by all ranks together, each with equally many prompts (`dealt`).
    """
    if not prompts or not group:
        return [[] for _ in prompts]
    vlm.eval()
    per_pass = max(1, max_rows // group)
    # a small step on a CPU is a tenth faster in inference mode; weights that FSDP gathers in it could not be trained
    lean = torch.no_grad if isinstance(vlm, FSDPModule) else torch.inference_mode
    out = []
    for part in slices(len(prompts), per_pass):
        keys = [name if isinstance(name, tuple) else (name,) for name in names[part]]
        encoded = vlm.encode_pictures(prompts[part])  # outside: training reads its patches
        with lean():
            out += sample(vlm, encoded, keys, group, max_new_tokens, how, purpose)
    return out


def prefill(vlm: VLM, prompts: list[Prompt], group: int, max_new_tokens: int) -> tuple[torch.Tensor, KeysValues]:
    """Prompts, once per question -> logits of the first token (rows, V), keys and values of all rows."""
    config, ends = vlm.base.language_model.config, torch.tensor([len(p.ids) - 1 for p in prompts])
    batch = pack(prompts, [[] for _ in prompts], device=vlm.device)  # (questions, T), padded
    cache = DynamicCache(config=config)
    places = ends + torch.arange(len(prompts)) * batch.ids.shape[1]
    logits = vlm.prefill(batch, places.to(vlm.device), cache)
    kv = KeysValues(config, prompts, group, max_new_tokens, cache.layers[0].keys, Decoder.captures(vlm))
    for i, layer in enumerate(cache.layers):
        kv.fill(i, layer.keys, layer.values, group)
    return logits.repeat_interleave(group, 0), kv


def sample(vlm, prompts, keys, group, max_new_tokens, how, purpose) -> list[list[Response]]:
    """One pass of `rollout`: prefill, then draw a token for every row, and decode it, until all rows have ended.

    What a row draws behind its end counts for nothing; now and then the rows that have ended leave.
    """
    encoder, rows, device = vlm.encoder, len(prompts) * group, vlm.device
    look_every, shrink_at, few = (of[device.type] for of in (LOOK_EVERY, SHRINK_AT, SHRINK_ABOVE))
    ends = torch.tensor(encoder.ends, device=device)
    u = torch.zeros(rows, max_new_tokens, dtype=torch.double)
    if not how.greedy:
        u = torch.from_numpy(np.concatenate([uniforms(group, max_new_tokens, *purpose, *k) for k in keys]))
    u = u.to(device)
    logits, kv = prefill(vlm, prompts, group, max_new_tokens)
    decode = Decoder(vlm, kv)
    seen = tokens_of(prompts, group, logits) if how.repetition_penalty != 1.0 else None
    tokens = torch.full((rows, max_new_tokens), encoder.end, device=device)
    logps = torch.zeros(rows, max_new_tokens, device=device)
    count = torch.zeros(rows, dtype=torch.long, device=device)
    finished = torch.zeros(rows, dtype=torch.bool, device=device)
    living = torch.arange(rows, device=device)  # the original index of each row that is still decoded
    for t in range(max_new_tokens):
        drawn, drawn_logps = draw(logits, u[living, t], how, None if seen is None else seen[living])
        running = ~finished[living]
        tokens[living, t] = torch.where(running, drawn, tokens[living, t])
        logps[living, t] = torch.where(running, drawn_logps, logps[living, t])
        count[living] += running
        finished[living] |= torch.isin(drawn, ends)
        if seen is not None:
            seen[living, drawn] = True
        if t == max_new_tokens - 1:
            break
        if (t + 1) % look_every == 0:
            running = ~finished[living]
            left = anywhere = int(running.sum())
            if isinstance(vlm, FSDPModule):  # every rank must take part until the last row of any rank has ended
                anywhere = max(all_gather(left))
            if anywhere == 0:
                break
            if 0 < left <= shrink_at * len(living) and len(living) > few:  # finished rows leave in bunches
                keep = running.nonzero()[:, 0]
                kv.keep(keep)
                living, drawn = living[keep], drawn[keep]
        logits = decode(drawn)
    tokens, logps, count, finished = tokens.tolist(), logps.tolist(), count.tolist(), finished.tolist()
    out = []
    for i, (name, *_) in enumerate(keys):
        rows = [(g, i * group + g, tokens[i * group + g][: count[i * group + g]]) for g in range(group)]
        out.append(
            [Response(name, g, "student", x, encoder.text(x), finished[r], logps[r][: len(x)]) for g, r, x in rows]
        )
    return out


def tokens_of(prompts: list[Prompt], group: int, logits: torch.Tensor) -> torch.Tensor:
    """Which tokens the prompt of each row holds: (rows, V) boolean, as the repetition penalty wants to know."""
    seen = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
    for i, p in enumerate(prompts):
        seen[i * group : (i + 1) * group, p.ids.to(logits.device)] = True
    return seen


def sampling_of(cfg: Config) -> Sampling:
    """How the student samples what D and the loop see."""
    return PAPER if cfg.sampling == "paper" else PURE
