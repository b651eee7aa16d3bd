"""The `torchmodel` command: run, predict, validate and version, for the person who has a model."""
