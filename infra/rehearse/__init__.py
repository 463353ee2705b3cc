"""A rehearsal of the deployment: `sam deploy` to an emulator of AWS on this machine, then what clients do with it."""
