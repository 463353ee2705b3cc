"""Running turns: `perform` does one action, the drivers decide which, in one process or one action at a time."""
