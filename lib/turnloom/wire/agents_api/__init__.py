"""The llama-stack Agents API on the wire."""
