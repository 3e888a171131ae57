"""The shapes of request bodies as far as the gateway reads them; all other fields are skipped unread."""

from __future__ import annotations

from typing import Final

import msgspec

Number = int | float | None

NOTHING: Final = msgspec.Raw()
"""A member that is not there; one that is ``null`` is not this."""


class Options(msgspec.Struct, gc=False):
    num_ctx: Number = None
    num_batch: Number = None
    num_gpu: Number = None
    main_gpu: Number = None
    use_mmap: bool | None = None
    num_thread: Number = None
    draft_num_predict: Number = None
    num_predict: Number = None
    """The only one that reloads nothing."""


class Fields(msgspec.Struct, gc=False):
    """What routing cannot do without."""

    model: str | None = None
    name: str | None = None
    options: Options | None = None
    shift: bool | None = None


class Part(msgspec.Struct, gc=False):
    """A part of a message's content, or an item of ``/v1/responses``, whichever dialect and type it is of."""

    role: str | None = None
    text: str | None = None
    thinking: str | None = None
    content: str | list[Part] | None = None
    name: str | None = None
    input: msgspec.Raw = NOTHING
    arguments: msgspec.Raw = NOTHING
    output: str | list[Part] | Part | None = None
    encrypted_content: str | None = None
    """Of an item with the model's reasoning: Ollama puts the text itself there, and reads it back."""
    summary: msgspec.Raw = NOTHING
    image_url: msgspec.Raw = NOTHING
    source: msgspec.Raw = NOTHING
    input_audio: msgspec.Raw = NOTHING
    file: msgspec.Raw = NOTHING


class Message(msgspec.Struct, gc=False):
    """One message of a chat in any dialect."""

    role: str | None = None
    content: str | list[Part] | None = None
    thinking: str | None = None
    reasoning: str | None = None
    tool_calls: msgspec.Raw = NOTHING
    images: list[msgspec.Raw] | None = None


class Chat(Fields, gc=False):
    """The same, with what the model will read and how much it may answer, in any dialect."""

    system: str | list[Part] | None = None
    instructions: str | None = None
    tools: msgspec.Raw = NOTHING
    messages: list[Message] | None = None
    context: msgspec.Raw = NOTHING
    prompt: str | None = None
    suffix: str | None = None
    images: list[msgspec.Raw] | None = None
    input: str | list[Part] | None = None
    keep_alive: msgspec.Raw = NOTHING
    max_tokens: Number = None
    max_completion_tokens: Number = None
    max_output_tokens: Number = None


class Embedding(Fields, gc=False):
    """The same, with texts of which no two share anything."""

    prompt: str | None = None
    input: str | list[str] | None = None
    keep_alive: msgspec.Raw = NOTHING
