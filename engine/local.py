"""A stock language model in this process, asked for a 0 or a 1: the client of judges that are not served."""

import torch
from torch.distributed.device_mesh import DeviceMesh

from data import shared_prefix
from engine.command import UserError
from engine.loading import fault_of_template, load_language_model
from engine.sharding import has_bf16
from model import Prompt, pack


def judge_digits(name: str, tok) -> list[int]:
    """The tokens of "0" and "1" behind "<answer>".

    Raises UserError where a digit is no token of its own, and for a chat template that takes no system message.
    """
    if fault := fault_of_template(tok, tok.chat_template):
        raise UserError(f"--judge {name}: its chat template {fault}; take an instruct model, or serve it")
    ids = tok(["<answer>", "<answer>0", "<answer>1"], add_special_tokens=False)["input_ids"]
    if ids[1][:-1] != ids[0] or ids[2][:-1] != ids[0]:
        raise UserError(f"--judge {name}: 0 and 1 are no tokens of their own here; serve it and give the URL")
    return [ids[1][-1], ids[2][-1]]


class LanguageModel:
    """A name in JUDGES or a folder, in bf16 on a GPU that has it, else in fp32; sharded over `mesh`.

    random: random weights at a named model's size. control: the special tokens, which no text may spell.
    """

    def __init__(self, name: str, device: str = "cpu", mesh: DeviceMesh | None = None, random: bool = False):
        dtype = torch.bfloat16 if has_bf16(device) else torch.float32
        self.model, self.tokenizer = load_language_model(name, device, dtype, mesh, random)
        self.control = [t.content for t in self.tokenizer.added_tokens_decoder.values() if t.special and t.content]
        self.digits, self.device = judge_digits(name, self.tokenizer), device

    @torch.no_grad()
    def logits(self, chats: list[list[dict]]) -> torch.Tensor:
        """(n, 2) fp32: the logits of "0" and "1" behind "<answer>" in the reply to n chats, in one packed row.

        Each chat is tokenised whole, and the row's prompt is what all of them share: so no token is cut where a plain
        forward would have merged one.
        """
        texts = [self.tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in chats]
        ids = self.tokenizer([text + "<answer>" for text in texts], add_special_tokens=False)["input_ids"]
        n = shared_prefix(ids)
        prompt = Prompt(torch.tensor(ids[0][:n]), torch.arange(n).expand(3, -1), [])
        batch = pack([prompt], [[x[n:] for x in ids]], device=self.device)
        out = self.model(
            input_ids=batch.ids,
            attention_mask=batch.tree,
            position_ids=batch.positions[0],
            use_cache=False,
            logits_to_keep=batch.last,
        )
        return out.logits[0, :, self.digits].float()
