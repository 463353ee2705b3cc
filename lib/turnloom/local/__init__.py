"""Turnloom on one machine: the deployed functions, the deployed state machine, and a model that needs no key."""
