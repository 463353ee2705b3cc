"""Turnloom: the llama-stack Agents API and the OpenAI Responses API, with no server to keep."""

__version__ = "0.1.0"
