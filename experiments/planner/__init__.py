"""What `plan` tells before anything runs: sizes, time, money, what the fit will know, and designs that fit a budget."""
