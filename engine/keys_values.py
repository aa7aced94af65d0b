"""Keys and values of the rows that are decoded, in one fixed block per layer, and the attention that reads them."""

import contextlib

import torch
import torch.nn.functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from model import Prompt


class KeysValues:
    """Keys and values of all rows, (rows, heads, longest prompt + new tokens, dim) a layer; each row has its length.

    What the decoder layers take for `past_key_values`. The first `rows` rows are still being decoded.
    """

    def __init__(self, config, prompts: list[Prompt], group: int, max_new_tokens: int, device, dtype):
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        lengths = torch.tensor([len(p.ids) for p in prompts])
        begins = torch.tensor([int(p.positions.max()) + 1 for p in prompts])
        self.rows, self.window = len(prompts) * group, int(lengths.max())  # window: how far the longest row may reach
        shape = (self.rows, config.num_key_value_heads, self.window + max_new_tokens, dim)
        self.k = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_hidden_layers)]
        self.v = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_hidden_layers)]
        self.length = lengths.repeat_interleave(group).to(device)
        self.shift = (begins - lengths).repeat_interleave(group).to(device)  # rotary position = place + shift

    def fill(self, layer: int, k: torch.Tensor, v: torch.Tensor, group: int) -> None:
        """The prompts' keys and values (prompts, heads, T, dim), each for `group` rows."""
        for mine, prompt_part in ((self.k[layer], k), (self.v[layer], v)):
            mine[:, :, : self.window] = prompt_part[:, :, : self.window].repeat_interleave(group, 0)

    def keep(self, rows: torch.Tensor) -> None:
        """Move these rows to the front; the others have ended."""
        self.rows = len(rows)
        for block in (*self.k, *self.v, self.length, self.shift):
            block[: self.rows] = block[rows]

    def update(self, k, v, layer, *_, **__):
        """Write one new token per row at its own place; return what attention may read."""
        at = self.length[: self.rows, None, None, None].expand(-1, k.shape[1], 1, k.shape[3])
        self.k[layer][: self.rows].scatter_(2, at, k)
        self.v[layer][: self.rows].scatter_(2, at, v)
        return self.k[layer][: self.rows, :, : self.window], self.v[layer][: self.rows, :, : self.window]

    def get_seq_length(self, *_):
        """Not used: positions are given. Stock code asks for it."""
        return 0


def grouped_decode(module, q, k, v, mask, scaling=None, **_):
    """Attention of one query per row. Query heads that share a KV head become queries: K and V are read once."""
    if q.shape[2] > 1:
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, q, k, v, mask, scaling=scaling)
    rows, heads, _, dim = q.shape
    groups = module.num_key_value_groups
    out = F.scaled_dot_product_attention(
        q.reshape(rows, heads // groups, groups, dim), k, v, attn_mask=mask, scale=scaling
    )
    return out.reshape(rows, 1, heads, dim), None


@contextlib.contextmanager
def attention(config, name: str):
    """Use another attention function inside the block."""
    ALL_ATTENTION_FUNCTIONS.register("grouped_decode", grouped_decode)
    before, config._attn_implementation = config._attn_implementation, name
    try:
        yield
    finally:
        config._attn_implementation = before
