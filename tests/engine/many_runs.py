"""What a test's ranks do: train one run folder after another, so that the ranks start once for all of them.

Started by torchrun: `many_runs.py FOLDER...`, each with its config.yaml.
"""

import sys

import torch

from nanogpt.__main__ import main
from nanogpt.ranks import ranks_started

if __name__ == "__main__":
    torch.set_num_threads(1)
    if ranks_started() > 1:
        torch.distributed.init_process_group("gloo")
    for folder in sys.argv[1:]:
        status = main(["train", folder, "--attempt", "1"])
        if status:
            sys.exit(status)
    if ranks_started() > 1:
        torch.distributed.destroy_process_group()
