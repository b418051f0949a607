"""The `data` section: which corpus. A corpus is identified by its content, never by where it lies."""

from typing import Annotated, Literal

from pydantic import Field

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
    """Any folder with nanoGPT's train.bin and val.bin (uint16) and a meta.json or meta.pkl."""

    kind: Literal["bin"] = "bin"
    path: str
    content: str | None = Field(None, description="sha256 of the files' manifest; filled in when resolved.")


Corpus = Annotated[
    ZipfMixture | ShakespeareChar | BinFolder, Field(discriminator="kind"), Shorthand("kind", "zipf_mixture")
]


class Data(Section):
    """What the model reads."""

    corpus: Corpus = ZipfMixture()
