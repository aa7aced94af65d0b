"""Keys and values of the rows that are decoded, in one fixed block per layer, and the step that decodes one token."""

import torch
import torch.nn.functional as F
from torch.distributed.fsdp import FSDPModule

from config import Config
from engine.attention import KERNEL_TAKES, Sequences, has_kernel, relaxed, variable_length
from engine.command import UserError, one_line
from model import VLM, Prompt

# On a GPU every look at "has everybody ended?" makes the CPU wait, every number of rows is a graph of its own, and a
# token of few rows costs the bytes of the weights, however few they are.
LOOK_EVERY = dict(cpu=1, cuda=16)  # tokens between two looks
SHRINK_AT = dict(cpu=0.75, cuda=0.5)  # the share of rows still running at which the finished ones leave ...
SHRINK_ABOVE = dict(cpu=0, cuda=64)  # ... where there are more rows than that


class KeysValues:
    """Keys and values of all rows, (rows, longest prompt + new tokens, heads, dim) a layer; each row has its length.

    What the decoder layers take for `past_key_values`, and the pattern of their attention. The first `rows` rows are
    still being decoded. `fixed`: attention always reads the whole block, as a captured graph must.
    """

    def __init__(self, config, prompts: list[Prompt], group: int, max_new_tokens: int, like: torch.Tensor, fixed: bool):
        dim, device = like.shape[-1], like.device
        lengths = torch.tensor([len(p.ids) for p in prompts])
        begins = torch.tensor([int(p.positions.max()) + 1 for p in prompts])
        self.rows, self.window = len(prompts) * group, int(lengths.max())  # window: how far attention reads
        self.fixed, self.total = fixed, self.window + max_new_tokens
        shape = (self.rows, self.total, config.num_key_value_heads, dim)
        self.k = [torch.zeros(shape, device=device, dtype=like.dtype) for _ in range(config.num_hidden_layers)]
        self.v = [torch.zeros(shape, device=device, dtype=like.dtype) for _ in range(config.num_hidden_layers)]
        self.length = lengths.repeat_interleave(group).to(device)
        self.shift = (begins - lengths).repeat_interleave(group).to(device)  # rotary position = place + shift

    def fill(self, layer: int, k: torch.Tensor, v: torch.Tensor, group: int) -> None:
        """The prompts' keys and values (prompts, heads, T, dim), each for `group` rows."""
        for mine, prompt_part in ((self.k[layer], k), (self.v[layer], v)):
            part = prompt_part[:, :, : self.window].transpose(1, 2)
            mine[:, : self.window].unflatten(0, (-1, group)).copy_(part[:, None])

    def keep(self, rows: torch.Tensor) -> None:
        """Move these rows to the front; the others have ended."""
        self.rows = len(rows)
        for block in (*self.k, *self.v, self.length, self.shift):
            block[: self.rows] = block[rows]

    def open_token(self) -> torch.Tensor:
        """Make room for one more token of every row -> its rotary positions (3, rows, 1)."""
        self.window = self.total if self.fixed else self.window + 1
        length = self.length[: self.rows]
        self.at = length[:, None, None, None].expand(-1, 1, *self.k[0].shape[2:])  # where it is written
        if self.in_one_call:
            ends = torch.arange(self.rows + 1, device=length.device, dtype=torch.int32)
            self.sequences, self.used = Sequences(ends, ends * self.total, 1, self.total), (length + 1).int()
        else:
            there = torch.arange(self.window, device=length.device) <= length[:, None]
            mask = torch.zeros(there.shape, dtype=self.k[0].dtype, device=length.device)
            self.mask = mask.masked_fill_(~there, -torch.inf)[:, None, None]  # as SDPA adds it, once for all layers
        return (length + self.shift[: self.rows])[None, :, None].expand(3, -1, -1)

    @property
    def in_one_call(self) -> bool:
        """Does the variable-length kernel read this block?"""
        return self.fixed and "seqused_k" in KERNEL_TAKES and has_kernel(self.k[0])

    def update(self, k, v, layer, *_, **__):
        """Write one new token per row, (rows, heads, 1, dim), at its own place; -> what attention may read."""
        with relaxed(k.device):  # no place is written twice
            for mine, new in ((self.k[layer], k), (self.v[layer], v)):
                mine[: self.rows].scatter_(1, self.at, new.transpose(1, 2))
        return self.k[layer][: self.rows], self.v[layer][: self.rows]

    def attend(self, q, k, v, scale: float) -> torch.Tensor:
        """One query per row over the block: q (rows, heads, 1, dim) -> (rows, 1, heads, dim)."""
        if self.in_one_call:
            flat = (x.flatten(0, 1) for x in (k, v))
            return variable_length(q.squeeze(2), *flat, self.sequences, scale, used=self.used)[:, None]
        rows, heads, _, dim = q.shape
        k, v = (x[:, : self.window].transpose(1, 2) for x in (k, v))
        q = q.reshape(rows, k.shape[1], -1, dim)  # query heads that share a KV head become queries: it is read once
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, scale=scale).reshape(rows, 1, heads, dim)

    def get_seq_length(self, *_):
        """Not used: positions are given. Stock code asks for it."""
        return 0


class Decoder:
    """Decodes one more token for every row of `kv`. On a GPU the step is captured as a graph, one per number of rows.

    Launching a thousand kernels takes longer than running them, and a graph launches all at once. A graph lives as long
    as its pass has that many rows: it points at the pass's block and at the model's weights as they are now.
    """

    side: torch.cuda.Stream | None = None  # capturing needs a stream of its own; one for all, since each holds memory

    def __init__(self, vlm: VLM, kv: KeysValues):
        self.vlm, self.kv, self.graphs = vlm, kv, {}
        self.tokens = torch.zeros(kv.rows, dtype=torch.long, device=vlm.device)

    @staticmethod
    def captures(vlm: VLM) -> bool:
        """Is a step of this model captured? A sharded model gathers its weights by calls that cannot be."""
        return Config.graphs and vlm.device.type == "cuda" and not isinstance(vlm, FSDPModule)

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens (rows,), the last of each row -> logits of the next (rows, V), overwritten by the next call."""
        rows = self.kv.rows
        self.tokens[:rows].copy_(tokens)
        if not self.captures(self.vlm):
            return self.step()
        if rows not in self.graphs:
            length = self.kv.length.clone()
            self.graphs = {rows: self.capture()}  # rows only leave: a larger graph is never asked again
            self.kv.length.copy_(length)
        graph, logits = self.graphs[rows]
        graph.replay()
        return logits

    def step(self) -> torch.Tensor:
        """Decode one token for the first `kv.rows` rows, out of self.tokens."""
        logits = self.vlm.decode(self.tokens[: self.kv.rows], self.kv.open_token(), self.kv)
        self.kv.length[: self.kv.rows] += 1
        return logits

    def capture(self) -> tuple:
        """A graph of the step and the logits that it writes; a plain step warms up. Lengths may change.

        Raises UserError where the GPU refuses: what is left of such a capture makes later work of the process unsafe.
        """
        Decoder.side = Decoder.side or torch.cuda.Stream()
        graph = torch.cuda.CUDAGraph()
        self.side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.side):
            self.step()
            torch.cuda.synchronize()
            try:
                graph.capture_begin()
                logits = self.step()
                graph.capture_end()
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise UserError(
                    f"a decode step cannot be captured as a CUDA graph here ({one_line(error)}); set graphs to False "
                    "in config.py, give the command again, and please open an issue"
                ) from None
        torch.cuda.current_stream().wait_stream(self.side)
        return graph, logits
