"""A prompt without its text: the hashes of its blocks stand for it, and prompts share what their first hashes share."""

from __future__ import annotations

from dataclasses import dataclass, replace

from corral.emulator.prefix import BYTES_PER_TOKEN
from corral.emulator.text import MEAN_PIECE_BYTES
from corral.laboratory.types import Arrival
from corral.laboratory.workloads import BLOCK_TOKENS


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text as the prompt cache sees it: its length in bytes is that of the emulator's text of as many tokens."""

    blocks: tuple[int, ...]
    """The last one may be shorter than the others. A negative one is of this request alone."""
    tokens: int
    answer_tokens: int = 0
    """Said after it; nothing that comes later is known to begin with it."""

    def __len__(self) -> int:
        return self.tokens * BYTES_PER_TOKEN + round(self.answer_tokens * MEAN_PIECE_BYTES)

    def answered(self, tokens: int) -> Prompt:
        return replace(self, answer_tokens=tokens)


def prompt_of(arrival: Arrival) -> Prompt:
    """What its blocks do not cover is its own."""
    blocks = arrival.blocks
    if len(blocks) * BLOCK_TOKENS < arrival.prompt_tokens:
        blocks = (*blocks, -1 - arrival.number)
    return Prompt(blocks, arrival.prompt_tokens)


def common_blocks(left: Prompt, right: Prompt) -> int:
    """Bytes that both have at their beginning."""
    count = 0
    for one, other in zip(left.blocks, right.blocks, strict=False):
        if one != other:
            break
        count += 1
    return min(count * BLOCK_TOKENS, left.tokens, right.tokens) * BYTES_PER_TOKEN if count else 0
