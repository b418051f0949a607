"""The key-value cache of generation: what attention has computed for the tokens so far, one slot per application.

Shapes: B batch, S tokens stored, T new tokens, J key/value heads, K head size.
"""

from torch import Tensor


class Cache:
    """Keys and values of up to `capacity` tokens. `length` are the tokens that every application has seen.

    A block that is used several times in one pass fills one slot per application: its keys differ from use to use.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self._slots: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def applications(self) -> set[int]:
        """The applications that have stored something."""
        return set(self._slots)

    def extend(self, application: int, k_BTJK: Tensor, v_BTJK: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values of new tokens; returns those of all tokens so far, (B, S + T, J, K) each.

        The pass counts only when all its applications are through: `advance` says so.
        """
        end = self.length + k_BTJK.shape[1]
        assert end <= self.capacity, f"{end} tokens in a cache of {self.capacity}"
        if application not in self._slots:
            self._slots[application] = (self._empty(k_BTJK), self._empty(v_BTJK))
        stored = []
        for buffer_BJSK, new_BTJK in zip(self._slots[application], (k_BTJK, v_BTJK), strict=True):
            buffer_BJSK[:, :, self.length : end] = new_BTJK.transpose(1, 2)
            stored.append(buffer_BJSK[:, :, :end].transpose(1, 2))
        return stored[0], stored[1]

    def _empty(self, new_BTJK: Tensor) -> Tensor:
        """Heads before tokens: attention then multiplies slices of the buffer, and copies nothing."""
        batch, _, heads, size = new_BTJK.shape
        return new_BTJK.new_empty(batch, heads, self.capacity, size)

    def advance(self, tokens: int) -> None:
        """A pass over that many tokens is complete."""
        self.length += tokens
