"""A small real model for a laptop without a key, behind an OpenAI-compatible loopback endpoint.

Demo model; tool choice is a heuristic: see `tools`.
"""
