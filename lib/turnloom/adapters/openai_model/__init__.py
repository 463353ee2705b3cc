"""The Model port on any OpenAI-compatible chat-completions endpoint, over the `openai` package.

`openai` is imported by the first call, as that takes half a second: a function that calls models imports it at its
start, any other never pays. Requests go through the client's `post`, and answers are read as they lie on the wire: the
typed `create` checks every message and every chunk (for 40 messages and 8 chunks 10 ms, instead of 1.3 ms).
"""

from turnloom.adapters.openai_model.client import OpenAIModel

__all__ = ["OpenAIModel"]
