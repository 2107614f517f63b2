"""The training loop and all that it stands on."""
