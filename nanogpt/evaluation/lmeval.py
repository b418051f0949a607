"""A trained model as lm-evaluation-harness sees models. Importing this needs the extra `lm-eval`.

Requests that lm-eval makes are scored by the same code as our own tasks, so that the two can only differ in the tasks.
Several processes share the requests inside: to lm-eval each of them is the only one, and all get all answers.
"""

from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor

from nanogpt.config import UserError
from nanogpt.data.alphabets import Tokenizer
from nanogpt.evaluation.rows import Pair, longest, rows_of
from nanogpt.evaluation.scoring import LIKELIEST, LOG_PROB, Scorer, check_finite, score_rows, take_turns
from nanogpt.generation import generate, row_generators
from nanogpt.sampling import Sampling

COLUMNS = 3
NEW_TOKENS = 256  # what a task that names no length gets, as lm-eval's own models give it
Encoded = tuple[tuple[str, str], list[int], list[int]]


class NanoGPT(TemplateLM):
    """`lm_eval.simple_evaluate(model=NanoGPT(scorer, tokenizer), ...)`."""

    def __init__(self, scorer: Scorer, tokenizer: Tokenizer, batch_size: int | None = None) -> None:
        super().__init__()
        self._scorer, self._codec, self._batch_size = scorer, tokenizer, batch_size

    @property
    def eot_token_id(self) -> int:
        """The end of a text, which also begins one; where there is none a newline, as nanoGPT's samples begin."""
        if self._codec.eot is not None:
            return self._codec.eot
        return self._codec.encode("\n")[0]

    @property
    def max_length(self) -> int:
        """The model's context, in tokens."""
        return self._scorer.block_size

    @property
    def tokenizer_name(self) -> str:
        """What caches of requests are told apart by."""
        return f"{self._codec.name}-{self._codec.fingerprint[:12]}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids of a text; nothing is put before it."""
        return self._codec.encode(string)

    def _loglikelihood_tokens(self, requests: Sequence[Encoded], **kwargs: Any) -> list[tuple[float, bool]]:
        if not requests:
            return []
        rows = [rows_of(Pair(tuple(before), tuple(after)), self.max_length) for _, before, after in requests]
        # Long ones first: those of about one length share a batch, and memory that does not suffice says so early.
        order = sorted(range(len(rows)), key=lambda number: -longest(rows[number]))
        flat = [row for number in order for row in rows[number]]
        at_once = self._scorer.rows_at_once(longest(flat), self._batch_size)
        batches = [flat[first : first + at_once] for first in range(0, len(flat), at_once)]
        turns = take_turns(
            list(map(len, batches)), lambda turn: score_rows(self._scorer, batches[turn], at_once), COLUMNS,
            self._scorer.team,
        )  # fmt: skip
        sums = iter([row for _, part in turns for row in _finite(part)])
        answers: list[tuple[float, bool]] = [(0.0, True)] * len(rows)
        for number in order:
            own = [next(sums) for _ in rows[number]]
            answers[number] = (sum(row[LOG_PROB] for row in own), all(row[LIKELIEST] for row in own))
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts, each given the end of a text before it, cut into windows as lm-eval cuts."""
        pairs: list[Encoded] = []
        counts = []
        for request in requests:
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            before = len(pairs)
            pairs += [(("", ""), *make_disjoint_window(window)) for window in windows]
            counts.append(len(pairs) - before)
        found = iter(self._loglikelihood_tokens(pairs))
        return [sum(next(found)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The likeliest continuation of each context, up to the first of the texts that end it."""
        return [self._generate(*request.args) for request in requests]

    def _generate(self, context: str, settings: dict[str, Any]) -> str:
        if settings.get("do_sample") or settings.get("temperature"):
            raise UserError("eval: --lm-eval: this task draws its texts; only the likeliest continuation is given")
        ends = settings.get("until") or []
        ends = [ends] if isinstance(ends, str) else list(ends)
        most = int(settings.get("max_gen_toks", NEW_TOKENS))
        return self._continue(self.tok_encode(context) or [self.eot_token_id], ends, most)

    def _continue(self, start: list[int], ends: list[str], most: int) -> str:
        import torch

        idx_BT = torch.tensor([start], device=self._scorer.device)
        ids: list[int] = []
        how = Sampling(most, do_sample=False)
        known = min(self._codec.n_vocab, self._scorer.vocab_size)
        for token in generate(self._scorer.model, idx_BT, how, row_generators(0, range(1)), tokens=known):
            if int(token) == self._codec.eot:
                break
            ids.append(int(token))
            if any(end in self._codec.decode(ids) for end in ends):
                break
        text = self._codec.decode(ids)
        return text[: min((text.index(end) for end in ends if end in text), default=len(text))]


def _finite(sums: Tensor) -> list[list[float]]:
    check_finite(sums)
    return sums.tolist()
