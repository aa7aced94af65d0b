"""Who attends to whom, without large masks and repeated heads: packed rows, vision windows, rows that are decoded.

On a GPU in half precision each of them is one call of torch's variable-length kernel: sequences of different lengths
lie end to end, without padding. That kernel exists for CUDA alone. Elsewhere packed rows and decoding pad to the
longest and use stock SDPA, and windows of equal length share one SDPA call; tests hold all to the same numbers.
"""

import contextlib
import copy
import inspect
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

KERNEL_TAKES = frozenset(inspect.signature(varlen_attn).parameters)  # torch 2.12 takes more than 2.11


def has_kernel(x: torch.Tensor) -> bool:
    """Can the variable-length kernel compute with tensors like this one?"""
    half = x.dtype in (torch.bfloat16, torch.float16)
    return x.is_cuda and half and torch.cuda.get_device_capability(x.device)[0] >= 8


@contextlib.contextmanager
def relaxed(device: torch.device):
    """Inside, kernels on a GPU need not be deterministic: for operations whose result does not depend on the order."""
    strict = torch.are_deterministic_algorithms_enabled() and device.type != "cpu"
    if strict:
        torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        if strict:
            torch.use_deterministic_algorithms(True)


# ------------------------------------------------------------------------------------------------ sequences
@dataclass
class Sequences:
    """Sequences laid end to end: i has queries q_ends[i]:q_ends[i + 1] and keys k_ends[i]:k_ends[i + 1]; int32."""

    q_ends: torch.Tensor
    k_ends: torch.Tensor
    longest_q: int  # or more: it sizes the kernel's work only
    longest_k: int


def variable_length(q, k, v, at: Sequences, scale: float, causal=False, used=None) -> torch.Tensor:
    """Attention inside each sequence: q (queries, heads, dim), k and v (keys, KV heads, dim) -> as q.

    causal: the last query sees all keys of its sequence, the one before it all but the last. used (sequences,), int32:
    how many keys of each sequence there are already (torch 2.12 and later).
    """
    if not q.is_cuda:
        return by_length(q, k, v, at, scale, causal, used)
    more = dict(seqused_k=used) if used is not None else {}
    if "enable_gqa" in KERNEL_TAKES:  # torch 2.11 takes fewer KV heads without being told
        more["enable_gqa"] = q.shape[1] != k.shape[1]
    window = (-1, 0) if causal else (-1, -1)
    ends = (at.q_ends, at.k_ends, at.longest_q, at.longest_k)
    return varlen_attn(q, k, v, *ends, scale=scale, window_size=window, **more)


def by_length(q, k, v, at: Sequences, scale: float, causal=False, used=None) -> torch.Tensor:
    """The same in plain SDPA: sequences of equal lengths go through one call, without padding."""
    q_ends, k_ends, found, places = at.q_ends.tolist(), at.k_ends.tolist(), [], []
    of_keys = at.k_ends.diff().tolist() if used is None else used.tolist()
    sizes = list(zip(at.q_ends.diff().tolist(), of_keys, strict=True))
    for n, m in dict.fromkeys(sizes):
        those = [i for i, size in enumerate(sizes) if size == (n, m)]
        of_q = torch.tensor([q_ends[i] for i in those])[:, None] + torch.arange(n)
        of_k = torch.tensor([k_ends[i] for i in those])[:, None] + torch.arange(m)
        parts = (q[of_q].transpose(1, 2), k[of_k].transpose(1, 2), v[of_k].transpose(1, 2))
        mask = torch.ones(n, m, dtype=torch.bool).tril(m - n) if causal else None
        out = F.scaled_dot_product_attention(*parts, attn_mask=mask, scale=scale, enable_gqa=True)
        found.append(out.transpose(1, 2).flatten(0, 1))
        places.append(of_q.flatten())
    return torch.cat(found)[torch.cat(places).argsort()]


# ------------------------------------------------------------------------------------------------ packed rows
class Branches:
    """The tree of a packed row: prompts see themselves, then each response sees its prompt and itself."""

    def __init__(self, batch):
        self.prompt, self.width = batch.prompt, batch.ids.shape[1]
        self.place, self.lengths = batch.place, (batch.segment == 0).sum(1)  # (R, L); tokens of each prompt (B,)
        self.row, self.mask = batch.place[:, 0] // self.width, None  # row of each response

    def attend(self, q, k, v, scale: float) -> torch.Tensor:
        """q (B, heads, T, dim), k and v (B, KV heads, T, dim) -> (B, T, heads, dim)."""
        return self.in_one_call(q, k, v, scale) if has_kernel(q) else self.padded(q, k, v, scale)

    # ---- without padding
    @cached_property
    def sequences(self) -> tuple[torch.Tensor, torch.Tensor, Sequences]:
        """Where the queries and keys of all prompts, then of all responses, lie in the flat rows; their ends.

        Once per batch: choosing by a mask makes the CPU wait for the GPU.
        """
        before = torch.arange(self.prompt, device=self.place.device)
        in_prompt, own = before < self.lengths[:, None], self.place >= 0  # (B, P), (R, L)
        start = self.width * torch.arange(len(self.lengths), device=before.device)[:, None]
        keys = torch.cat([(start + before)[self.row], self.place], 1)
        prompts = (start + before)[in_prompt]
        k_at = torch.cat([prompts, keys[torch.cat([in_prompt[self.row], own], 1)]])
        ends = [torch.cat([self.lengths, own.sum(1) + more]) for more in (0, self.lengths[self.row])]
        ends = [F.pad(x.cumsum(0), (1, 0)).int() for x in ends]
        longest = self.place.shape[1]
        at = Sequences(*ends, max(self.prompt, longest), self.prompt + longest)
        return torch.cat([prompts, self.place[own]]), k_at, at

    def in_one_call(self, q, k, v, scale: float) -> torch.Tensor:
        """`attend` by one call of the kernel."""
        q_at, k_at, at = self.sequences
        flat_q, flat_k, flat_v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
        found = variable_length(flat_q[q_at], flat_k[k_at], flat_v[k_at], at, scale, causal=True)
        return torch.zeros_like(flat_q).index_copy(0, q_at, found).unflatten(0, (len(q), -1))

    # ---- padded to the longest
    @cached_property
    def padding(self) -> tuple:
        """Places of the responses' tokens, which of those are real, where these lie, who sees whom (R, 1, L, P + L)."""
        own = self.place >= 0
        live = own.flatten().nonzero()[:, 0]
        before = torch.arange(self.prompt, device=own.device) < self.lengths[self.row][:, None]
        causal = own.new_ones(own.shape[1], own.shape[1]).tril() & own[:, None]
        mask = torch.cat([before[:, None].expand(-1, causal.shape[1], -1), causal], 2)[:, None]
        return self.place.clamp(min=0), live, self.place.flatten()[live], mask

    def padded(self, q, k, v, scale: float) -> torch.Tensor:
        """`attend` by two calls of stock SDPA: one for the prompts, one for the responses."""
        if q.is_cuda:  # SDPA's kernels for a mask want equal heads there
            k, v = (repeat_kv(x, q.shape[1] // x.shape[1]) for x in (k, v))
        place, live, there, sees = self.padding
        if self.mask is None:  # as SDPA adds it, once for all layers
            self.mask = torch.zeros(sees.shape, dtype=q.dtype, device=q.device).masked_fill_(~sees, -torch.inf)
        B, _, T, _ = q.shape
        equal = dict(scale=scale, enable_gqa=q.shape[1] != k.shape[1])
        of_prompts = [x[:, :, : self.prompt] for x in (q, k, v)]
        out = F.scaled_dot_product_attention(*of_prompts, is_causal=True, **equal).transpose(1, 2)
        out = F.pad(out, (0, 0, 0, 0, 0, T - self.prompt)).flatten(0, 1)
        own = [x.transpose(1, 2).flatten(0, 1)[place].transpose(1, 2) for x in (q, k, v)]  # (R, heads, L, dim)
        seen = [torch.cat([x[self.row], y], 2) for x, y in zip(of_prompts[1:], own[1:], strict=True)]
        found = F.scaled_dot_product_attention(own[0], *seen, attn_mask=self.mask, **equal).transpose(1, 2)
        return out.index_copy(0, there, found.flatten(0, 1)[live]).unflatten(0, (B, T))


# ------------------------------------------------------------------------------------------------ for stock layers
def attention(module, q, k, v, attention_mask, scaling=None, pattern=None, **more):
    """What stock layers call: stock SDPA, unless a `pattern` (Branches, KeysValues) says who attends to whom."""
    if pattern is None:
        return sdpa_attention_forward(module, q, k, v, attention_mask, scaling=scaling, **more)
    return pattern.attend(q, k, v, scaling), None


def window_attention(module, q, k, v, attention_mask, scaling=None, **more):
    """A vision tower's attention inside its windows, or inside each picture; q, k, v (1, heads, patches, dim)."""
    at = Sequences(more["cu_seq_lens_q"], more["cu_seq_lens_k"], more["max_length_q"], more["max_length_k"])
    q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))
    if q.is_cuda and not has_kernel(q):
        return by_length(q, k, v, at, scaling)[None], None
    return variable_length(q, k, v, at, scaling)[None], None


def use_own_attention(language, tower=None) -> None:
    """Let a language model, and a vision tower whose attention stays inside sequences, attend by this file.

    Stock models beside it stay stock. Stock code gives sequences to an attention with "flash" in its name, but refuses
    to build a model whose configuration names an unknown one: the tower gets a copy of its configuration.
    """
    ALL_ATTENTION_FUNCTIONS.register("tree", attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register("tree", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])  # for stock generate
    language.config._attn_implementation = "tree"
    if tower is not None:
        ALL_ATTENTION_FUNCTIONS.register("windows_flash", window_attention)
        shared, own = tower.config, copy.deepcopy(tower.config)
        own._attn_implementation = "windows_flash"
        for module in tower.modules():
            if getattr(module, "config", None) is shared:
                module.config = own
