"""The laptop: the same functions, routes and state machine, without an account."""
