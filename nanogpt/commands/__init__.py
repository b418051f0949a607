"""The engine's commands, one file per kind; each adds its own arguments and says what runs."""
