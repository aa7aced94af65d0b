"""A vision-language model: its Encoder (pictures, chat, tokens; no weights) and VLM, the network that is trained.

The packed row is the heart. All responses to one question lie in ONE row behind one copy of picture and question:

    token      picture + question | response 1 | response 2 | ... | response N | padding
    segment    0 0 0 0 0 0 0 0 0 0| 1 1 1 1 1 1| 2 2 2 2    |     | N N N N N  | -1
    position   0 1 2 ........ P-1 | P P+1 ...  | P P+1 ...  |     | P P+1 ...

A token sees the earlier tokens of its own response and of the question, nothing else (a tree mask), and the positions
of every response go on where the question ends. So each response gets exactly the numbers that it would get alone, at
the price of one prompt instead of N (tested: log-probs, gradients, discriminator scores).

A picture passes the vision tower once (`encode_pictures`). While the tower is frozen, student, reference and rollout
replica share its patches, and each applies its own projector. engine/families.py holds what differs between model
families, engine/loading.py loads and saves.

Left out on purpose: video, attention kernels of our own, quantisation, tensor parallelism.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.checkpoint import checkpoint

from data import Question
from engine.attention import Branches
from engine.command import UserError
from engine.families import FAMILIES, Family
from engine.lora import Adapter, in_role


# ------------------------------------------------------------------------------------------------ the encoder
@dataclass
class Prompt:
    """An encoded prompt: ids (P,), rotary positions (3, P), each picture's tensors, and patches once encoded."""

    ids: torch.Tensor
    positions: torch.Tensor
    picture_tensors: list[dict]
    patches: torch.Tensor | None = None

    @property
    def pixels(self) -> dict | None:
        """The tensors of all its pictures, joined along the first axis; None without a picture."""
        return join_pixels([self])


class Encoder:
    """From questions to prompts, from tokens to text: tokenizer, image processor, configuration. It has no weights.

    ends: the ids that end a response (None: the tokenizer's); folder: all files that are not weights come from there.
    """

    def __init__(self, config, tokenizer, image_processor, ends=None, folder: Path | None = None):
        self.config, self.tokenizer, self.image_processor, self.folder = config, tokenizer, image_processor, folder
        self.family, eos = FAMILIES[config.model_type], tokenizer.eos_token_id
        ends = ends or eos or []
        self.ends = [ends] if isinstance(ends, int) else list(ends)
        self.end = eos if eos in self.ends else (self.ends or [0])[0]  # what a teacher's response ends with
        special = {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        self.control = [tokenizer.added_tokens_decoder[i].content for i in sorted(special)]
        unused = range(len(tokenizer), config.get_text_config().vocab_size)  # rows of the embeddings without a token
        self.banned_ids = sorted((special | set(unused)) - set(self.ends))  # never sampled, no probability when scored

    def limit_pictures(self, tokens: int) -> None:
        """Limit the image tokens per picture (0: the folder's own limit)."""
        if tokens:
            self.family.limit(self.image_processor, self.config, tokens)

    def preprocess(self, pictures: list) -> list[dict]:
        """The stock image processor's tensors that the vision tower takes, one dict per picture."""
        outputs = [self.image_processor([p], return_tensors="pt") for p in pictures]
        return [{name: x[name] for name in self.family.tensors} for x in outputs]

    def blank_picture(self) -> dict:
        """The tensors of a blank picture, for a rank without pictures: under FSDP its vision tower must run too."""
        return self.preprocess([Image.new("RGB", (56, 56))])[0]

    def chat_text(self, picture_tensors: list[dict], text: str | list[str], system: str = "") -> str:
        """The chat up to where the answer begins, with as many placeholders as each picture has image tokens.

        Pictures stand before the text; a list of texts, one more than pictures, has them in between.
        """
        texts = text if isinstance(text, list) else [""] * len(picture_tensors) + [text]
        text, content = "".join(texts), [{"type": "text", "text": texts[0]}]
        for piece in texts[1:]:
            content += [{"type": "image"}, {"type": "text", "text": piece}]
        content = [part for part in content if part.get("text") != ""]
        chat = [{"role": "system", "content": system}] if system else []
        chat.append({"role": "user", "content": content if picture_tensors else text})
        text = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        sign = self.family.picture_sign
        pieces = text.split(sign)
        if len(pieces) != len(picture_tensors) + 1:
            raise ValueError(f"the text holds {sign!r}, the sign for a picture")
        for i, one in enumerate(picture_tensors):
            pieces[i] += self.family.picture_text(self.family.picture_tokens(self.config, one))
        return "".join(pieces)

    def prompt(self, ids: list[int], picture_tensors: list[dict]) -> Prompt:
        """Tokens and picture tensors as a Prompt, with the family's rotary positions."""
        prompt = Prompt(torch.tensor(ids), torch.empty(0), picture_tensors)
        prompt.positions = self.family.positions(self.config, prompt.ids, prompt.pixels)
        return prompt

    def encode(self, pictures: list, text: str | list[str], system: str = "") -> Prompt:
        """Pictures and text as the model's chat, up to where the answer begins."""
        picture_tensors = self.preprocess(pictures)
        text = self.chat_text(picture_tensors, text, system)
        return self.prompt(self.tokenizer(text, add_special_tokens=False)["input_ids"], picture_tensors)

    def encode_question(self, question: Question) -> Prompt:
        """A question as a prompt. Raises UserError if it cannot be encoded or is longer than the model's positions."""
        try:
            prompt = self.encode(question.pictures(), question.text)
        except ValueError as error:
            raise UserError(f"question {question.id!r}: {error}; change its picture or text") from None
        limit = self.config.get_text_config().max_position_embeddings
        if (n := len(prompt.ids)) >= limit:
            raise UserError(f"question {question.id!r}: {n} prompt tokens, the model takes {limit}; shorten it")
        return prompt

    def reply_ids(self, text: str) -> list[int]:
        """A reply's tokens with the end token, as the student would have to write it."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] + [self.end]

    def clean(self, text: str) -> str:
        """Remove from a text everything that the tokenizer would read as a control token."""
        for token in self.control:
            text = text.replace(token, "")
        return text.strip() if not any(token in text for token in self.control) else self.clean(text)

    def text(self, ids: list[int]) -> str:
        """Tokens as text, control tokens and surrounding white space removed."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()


# ------------------------------------------------------------------------------------------------ the packed row
@dataclass
class Batch:
    """B packed rows that hold R responses; the module docstring shows one row.

    ids, segment (B, T); positions (3, B, T); patches (image tokens, width) or pixels; and per response, padded to the
    longest: source, target (R, L): the flat place (in B * T) of the state that predicts a token, and that token;
    mask (R, L): which of them count; last (R,): the flat place of the response's last token; place (R, L): that of each
    token of a response, -1 behind the last; prompt: tokens of the longest prompt.
    """

    ids: torch.Tensor
    segment: torch.Tensor
    positions: torch.Tensor
    source: torch.Tensor
    target: torch.Tensor
    mask: torch.Tensor
    last: torch.Tensor
    place: torch.Tensor
    prompt: int
    pixels: dict | None = None
    patches: torch.Tensor | None = None

    @property
    def tree(self) -> torch.Tensor:
        """(B, 1, T, T) boolean attention mask: causal, and only within the own segment or to the prompt (segment 0).

        For models that take a plain mask only (the judge); ours get `Branches` (engine/attention.py), the same in less.
        """
        s = self.segment
        causal = torch.ones(s.shape[1], s.shape[1], dtype=torch.bool, device=s.device).tril()
        return (causal & ((s[:, None, :] == 0) | (s[:, :, None] == s[:, None, :])))[:, None]


def pack(prompts: list[Prompt], rows: list, skip: list | None = None, device="cpu", blank: dict | None = None) -> Batch:
    """One packed row per prompt: rows[b] are the token lists behind prompts[b]; R = sum of their number, in that order.

    skip[b][i] leading tokens of a row are context, not targets (0 without `skip`). Rows must not be empty. The length T
    is padded to a multiple of 8 (64 on a GPU).

    Rows may be absent (rows[b] == []): then the batch holds bare prompts. Where the vision tower is trained, a batch
    without pictures takes the tensors of a `blank` one: under FSDP all ranks have to pass the tower.

    Example: a prompt of 3 tokens and rows [7, 8], [9]: ids 3 + 2 + 1, positions 0 1 2 | 3 4 | 3; sources 2 3 | 2.
    """
    align = 64 if torch.device(device).type == "cuda" else 8
    length = max(len(p.ids) + sum(map(len, r)) for p, r in zip(prompts, rows, strict=True))
    width = -(-length // align) * align
    count = sum(map(len, rows))
    longest = max((len(x) for r in rows for x in r), default=0)
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    segment, positions = torch.full_like(ids, -1), torch.zeros(3, *ids.shape, dtype=torch.long)
    source, target, place = (torch.full((count, longest), x, dtype=torch.long) for x in (0, 0, -1))
    mask, last = torch.zeros(count, longest, dtype=torch.bool), torch.zeros(count, dtype=torch.long)
    r = 0
    for b, (prompt, responses) in enumerate(zip(prompts, rows, strict=True)):
        at, begin = len(prompt.ids), int(prompt.positions.max()) + 1
        ids[b, :at], segment[b, :at], positions[:, b, :at] = prompt.ids, 0, prompt.positions
        for i, tokens in enumerate(responses):
            here = torch.arange(n := len(tokens))
            ids[b, at : at + n], segment[b, at : at + n] = torch.tensor(tokens), i + 1
            positions[:, b, at : at + n] = begin + here
            source[r, 0], source[r, 1:n] = len(prompt.ids) - 1 + b * width, at + b * width + here[:-1]
            target[r, :n] = ids[b, at : at + n]
            mask[r, (skip[b][i] if skip else 0) : n] = True
            place[r, :n], last[r] = at + b * width + here, at + n - 1 + b * width
            at, r = at + n, r + 1
    batch = Batch(ids, segment, positions, source, target, mask, last, place, max(len(p.ids) for p in prompts))
    pictured = [p for p in prompts if p.picture_tensors]
    if pictured and all(p.patches is not None for p in pictured):
        batch.patches = torch.cat([p.patches for p in pictured])
    else:
        batch.pixels = join_pixels(pictured) or blank
    for name, value in vars(batch).items():
        if isinstance(value, torch.Tensor):
            setattr(batch, name, value.to(device))
    if batch.pixels:
        batch.pixels = {name: x.to(device) for name, x in batch.pixels.items()}
    return batch


def join_pixels(prompts: list[Prompt]) -> dict | None:
    """All picture tensors of the prompts in one dict, joined along the first axis; None without a picture."""
    parts = [x for p in prompts for x in p.picture_tensors]
    return {name: torch.cat([x[name] for x in parts]) for name in parts[0]} if parts else None


def trunk(base: nn.Module, family: Family, batch: Batch, cache=None) -> torch.Tensor:
    """Packed rows through the stock language model: -> last hidden states, flat (B * T, H).

    Pixels pass the vision tower first, with its gradient; patches have passed it already. Without pictures the
    projector gets one patch of zeros that no token uses: under FSDP every rank must run it. `cache` takes keys and
    values. A batch of bare prompts needs no mask, since only padding follows a prompt.
    """
    embedded = base.get_input_embeddings()(batch.ids)  # (B, T, H)
    patches = batch.patches if batch.pixels is None else family.encode_pixels(base, batch.pixels)
    pictures = [x.to(embedded.dtype) for x in family.project(base, patches)]  # (image tokens, H) each
    is_image = ((batch.ids == base.config.image_token_id) & (batch.segment == 0))[..., None]
    deeper = [torch.zeros_like(embedded).masked_scatter(is_image, x) for x in pictures[1:]]  # (B, T, H) each
    embedded = embedded.masked_scatter(is_image, pictures[0])
    pattern = Branches(batch) if len(batch.last) else None
    return family.language_states(base, embedded, batch.positions, cache, pattern, deeper).flatten(0, 1)


class Fp32Product(torch.autograd.Function):
    """hidden (N, H) times weight (V, H), both bf16 -> (N, V) accumulated and kept in fp32.

    A bf16 result moves a token's log-prob by about 0.03 nats at a vocabulary of 152k. Gradients are the bf16 product's.
    """

    @staticmethod
    def forward(ctx, hidden, weight):
        ctx.save_for_backward(hidden, weight)
        if hidden.is_cuda:
            return torch.mm(hidden, weight.t(), out_dtype=torch.float32)
        return hidden.float() @ weight.t().float()  # there is no such kernel for a CPU

    @staticmethod
    def backward(ctx, gradient):
        hidden, weight = ctx.saved_tensors
        gradient = gradient.to(hidden.dtype)
        return gradient @ weight, gradient.t() @ hidden if ctx.needs_input_grad[1] else None


def head_product(head: nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    """The product of a head without bias, at least in fp32 whatever its weights are in: (N, H) -> (N, V)."""
    if head.weight.dtype.itemsize >= 4:
        return head(hidden)
    return Fp32Product.apply(hidden.to(head.weight.dtype), head.weight)


def token_logps(hidden, head, target, banned, chunk: int = 1024) -> torch.Tensor:
    """log pi(target) in fp32: hidden (N, H), target (N,) -> (N,), in chunks of tokens.

    With a vocabulary of 152k the logits are the largest tensor of a step: a chunk's are recomputed in the backward
    pass. `banned` (V,) is 0 or -inf: what cannot be sampled has no probability when scored either.
    """

    def part(h, t):
        return -F.cross_entropy(head_product(head, h) + banned, t, reduction="none")

    pieces = zip(hidden.split(chunk), target.split(chunk), strict=True)
    if len(target) > chunk and torch.is_grad_enabled():
        return torch.cat([checkpoint(part, h, t, use_reentrant=False) for h, t in pieces])
    return torch.cat([part(h, t) for h, t in pieces])


class VLM(nn.Module):
    """A stock transformers model and its Encoder; calling it gives token log-probs of packed rows."""

    gathering = ("encode_pictures", "prefill", "decode")  # these, like forward, gather a sharded model's weights

    def __init__(self, hf: nn.Module, encoder: Encoder, adapter: Adapter | None = None):
        super().__init__()
        self.hf, self.encoder, self.family, self.adapter = hf, encoder, encoder.family, adapter  # --lora: hf is shared
        words, device = hf.config.get_text_config().vocab_size, hf.lm_head.weight.device
        self.register_buffer("banned", torch.zeros(words, device=device), persistent=False)
        self.family.use_own_attention(hf.model)
        self.init_buffers()

    def init_buffers(self) -> None:
        """Fill what meta-device initialisation left empty: tied weights, and `banned` (V,), 0 or -inf."""
        self.hf.tie_weights()
        self.banned.zero_()[self.encoder.banned_ids] = -torch.inf

    @property
    def base(self) -> nn.Module:
        """The stock model without its language head."""
        return self.hf.model

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.banned.device

    def forward(self, batch: Batch) -> torch.Tensor:
        """Log-probs of the packed responses: (R, L), zero outside batch.mask."""
        with in_role(self):
            hidden = trunk(self.base, self.family, batch)
        logps = token_logps(hidden[batch.source[batch.mask]], self.hf.lm_head, batch.target[batch.mask], self.banned)
        return logps.new_zeros(batch.mask.shape).index_put((batch.mask,), logps)

    # ---- sampling (rollout.py); a sharded model's ranks call these together
    @torch.no_grad()
    def encode_pictures(self, prompts: list[Prompt]) -> list[Prompt]:
        """Set the patches of these prompts, each picture once, without gradient; -> the prompts."""
        todo = [p for p in prompts if p.picture_tensors and p.patches is None]
        if not todo and not isinstance(self, FSDPModule):
            return prompts
        pixels = join_pixels(todo) or self.encoder.blank_picture()  # all ranks have to pass the tower
        patches = self.family.encode_pixels(self.base, {name: x.to(self.device) for name, x in pixels.items()})
        counts = [int((p.ids == self.encoder.config.image_token_id).sum()) for p in todo]
        for prompt, part in zip(todo, patches.split(counts) if todo else (), strict=True):
            prompt.patches = part
        return prompts

    def prefill(self, batch: Batch, ends: torch.Tensor, cache) -> torch.Tensor:
        """Bare prompts into the cache; ends (B,) are the flat places of their last tokens -> logits there, (B, V)."""
        with in_role(self):
            return self.logits(trunk(self.base, self.family, batch, cache)[ends])

    def decode(self, tokens: torch.Tensor, positions: torch.Tensor, kv) -> torch.Tensor:
        """One more token (n,) for n rows at positions (3, n, 1), over KeysValues -> logits of the next (n, V)."""
        embedded = self.base.get_input_embeddings()(tokens[:, None])  # (n, 1, H)
        with in_role(self):
            hidden = self.family.language_states(self.base, embedded, positions, kv, kv)
        return self.logits(hidden[:, 0])

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Last hidden states (n, H) -> logits (n, V), fp32; banned tokens have -inf."""
        return head_product(self.hf.lm_head, hidden) + self.banned

    # ---- weights
    def freeze(self, *parts: str) -> "VLM":
        """Train everything but these of families.PARTS. With a tied head, freezing it freezes the embeddings too.

        The projector is always trained: it counts as language, as in the paper's "all language modules". With an
        adapter, that alone is trained.
        """
        self.hf.requires_grad_(self.adapter is None)
        layers = self.base.language_model.layers
        modules = {
            "vision": [self.base.get_submodule(self.family.vision)],
            "embeddings": [self.base.get_input_embeddings()],
            "attention": [layer.self_attn for layer in layers],
            "mlp": [layer.mlp for layer in layers],
            "head": [self.hf.lm_head],
        }
        for module in (m for part in parts for m in modules[part]):
            module.requires_grad_(False)
        for projector in self.family.projectors(self.base):
            projector.requires_grad_(self.adapter is None)
        return self

    def tensors(self) -> dict[str, torch.Tensor]:
        """The weights under the names that the stock class gives them; shards where it is sharded."""
        return {name[3:]: x for name, x in self.state_dict().items() if name.startswith("hf.")}
