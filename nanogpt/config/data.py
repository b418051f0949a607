"""The `data` section: which corpus. A corpus is identified by its content, never by where it lies."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from nanogpt.config.section import NonNegativeInt, PositiveFloat, PositiveInt, Section, Shorthand


class ZipfMixture(Section):
    """The embedded corpus: a multi-lag mixture over a Zipf vocabulary whose entropy rate is known exactly.

    P(x | history) = w0 u(x) + sum_k w_k sum_j c_j 1[x = sigma_kj(x_{t-k})], k = 1..lags (Berchtold & Raftery 2002,
    the mixture transition distribution). Everything here defines the process, so everything is identity.
    """

    kind: Literal["zipf_mixture"] = "zipf_mixture"
    alphabet_size: PositiveInt = Field(256, ge=8, le=65536, description="Number of different tokens.")
    lags: PositiveInt = 4
    zipf_exponent: PositiveFloat = 1.3
    unconditional: float = Field(0.15, gt=0, le=1, description="w0, the weight of the unigram law u(x).")
    source_seed: NonNegativeInt = Field(0, lt=2**63, description="Draws the permutations and the text.")
    version: Literal[1] = Field(1, description="Of the generator: another one draws another text.")
    train_tokens: PositiveInt = Field(2**24, le=2**32)
    val_tokens: PositiveInt = Field(2**19, le=2**32)


class ShakespeareChar(Section):
    """Tiny Shakespeare by characters, in nanoGPT's files; made by `python -m nanogpt prepare shakespeare_char`."""

    kind: Literal["shakespeare_char"] = "shakespeare_char"
    content: str | None = Field(None, description="sha256 of the prepared files' manifest; filled in when resolved.")


class BinFolder(Section):
    """A folder of token files: a prepared corpus, nanoGPT's train.bin and val.bin, or other people's shards.

    `path` is the folder, or its name below the data directory, with or without the tokenizer at its end.
    """

    kind: Literal["bin"] = "bin"
    path: str
    content: str | None = Field(None, description="sha256 of the tokens' files; filled in when resolved.")


class CorpusShorthand(Shorthand):
    """`corpus: zipf_mixture` names a kind; any other text is a folder: `corpus: wikitext-2`."""

    def expand(self, value: Any) -> Any:
        return super().expand(named_corpus(value))


KINDS = ("zipf_mixture", "shakespeare_char", "bin", "mixture")


def named_corpus(value: Any) -> Any:
    """The corpus that a text stands for; anything else, and the name of a kind, stays as it is."""
    return {"kind": "bin", "path": value} if isinstance(value, str) and value not in KINDS else value


SingleCorpus = Annotated[
    ZipfMixture | ShakespeareChar | BinFolder, Field(discriminator="kind"), CorpusShorthand("kind", "zipf_mixture")
]


class MixturePart(Section):
    """One corpus of a mixture and its share of the sequences, in proportion to the other parts' weights."""

    corpus: SingleCorpus
    weight: Annotated[float, Field(ge=1e-9, le=1e9)] = 1.0


def _parts(value: Any) -> Any:
    if not isinstance(value, list | tuple):
        raise ValueError(f"expected a list of {{corpus: ..., weight: ...}}, got {value!r}")
    return tuple(value)


class Mixture(Section):
    """Several corpora in one tokenizer: every batch has its sequences from each in proportion to the weights."""

    kind: Literal["mixture"] = "mixture"
    parts: Annotated[tuple[MixturePart, ...], BeforeValidator(_parts), Field(min_length=1, max_length=1000)]


Corpus = Annotated[
    ZipfMixture | ShakespeareChar | BinFolder | Mixture,
    Field(discriminator="kind"),
    CorpusShorthand("kind", "zipf_mixture"),
]


class Data(Section):
    """What the model reads, and in which order."""

    corpus: Corpus = ZipfMixture()
    tokenizer: str | None = Field(
        None, description="Which of a corpus's prepared folders is meant, NAME.TOKENIZER; default gpt2."
    )
    sampling: Literal["random", "shuffled"] = Field(
        "random",
        description="random: windows anywhere, drawn with replacement, as nanoGPT does; shuffled: each window once per "
        "epoch, shard by shard in a new order.",
    )
