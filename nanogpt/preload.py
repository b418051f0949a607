"""What a fork server loads before it forks children that train: modules, and facts that are the same for all of them.

Nothing here starts a thread or touches a GPU, and nothing runs backward: a child could not use either after a fork.
"""

import importlib

# torch._dynamo is what torch imports at the first operation on the meta device, on which a run measures its model: a
# second of CPU time that every child would spend again. The others are those that a run imports on its way.
MODULES = (
    "torch",
    "torch._dynamo",
    "torch.utils.serialization",
    "filelock",
    "nanogpt.__main__",
    "nanogpt.attempt",
    "nanogpt.reporting",
    "nanogpt.train",
)


def preload() -> None:
    """Import what a run needs, and find out once what every run would find out again."""
    for name in MODULES:
        importlib.import_module(name)
    import torch

    from nanogpt.config.model import Model
    from nanogpt.describe import model_facts
    from nanogpt.hardware import environment, float32_matmul_error

    model_facts(Model(n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=8))  # fills torch's own caches
    environment()
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # a second thread would not survive the fork, and the child would wait for it
    float32_matmul_error("cpu")
    torch.set_num_threads(before)
