"""llama-index: a chat, whole and streamed, and a call of a tool."""

import sys

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

SAID = "Forty-two — naïve, 4²."


def look(at: str) -> str:
    """Looks."""
    return at


llm = OpenAILike(
    model="ir3de",
    api_base=sys.argv[1],
    api_key="none",
    is_chat_model=True,
    is_function_calling_model=True,
    context_window=8192,
    max_retries=0,
)
chat = [ChatMessage(role="user", content="the court and a judge")]
assert llm.chat(chat).message.content == SAID
assert "".join(part.delta or "" for part in llm.stream_chat(chat)) == SAID
called = llm.chat_with_tools([FunctionTool.from_defaults(look)], chat_history=chat)
[call] = llm.get_tool_calls_from_response(called)
assert call.tool_kwargs == {"at": "π"}
