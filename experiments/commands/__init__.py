"""What the commands of `python -m experiments` do, in files by what they are about."""
