"""Tokenizers: round trips over Unicode, streams, GPT-2's ids, training, and the files they are kept in.

Fast: about 3 seconds together, of which GPT-2's own ranks take half where they lie beside the checkout. The slow one
imports transformers: 15 seconds.
"""

import itertools
import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt.config import UserError
from nanogpt.data.alphabets import as_text
from nanogpt.data.binfiles import write_meta
from nanogpt.data.bpe import GPT2_PATTERN, bpe_size
from nanogpt.data.hftokenizer import hf_content, merges_of, write_hf
from nanogpt.data.published import CL100K_PATTERN, O200K_PATTERN, PUBLISHED
from nanogpt.data.ranks import checked_ranks, from_merges
from nanogpt.data.tokenizers import (
    KINDS,
    Bpe,
    Bytes,
    Characters,
    TextStream,
    Tokenizer,
    load_tokenizer,
    read_tokenizer,
    train_bpe,
    train_char,
    write_tokenizer,
)

MERGES = [
    "Ġ t",
    "Ġt h",
    "h e",
    "Ġt he",
    "a a",
    "aa aa",
    "Ã ©",
    "ð Ł",
    "ðŁ ĺ",
    "Ġ Ġ",
    "ĠĠ ĠĠ",
    "č Ċ",
    "1 2",
    "12 3",
    "' s",
]
TEXT = "the then that's the thing, the the 123 aaaa, caf\u00e9\r\n    end the end of the theory of them all\n" * 30
WILD = [
    "",
    "\x00\x00a\x00",
    "e\u0301 \u1e9e \u0130 \ufb03",
    "a\r\nb\rc\n\n\r\n  \t \u00a0\u2003\u2028",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467\U0001f1e9\U0001f1ea",
    "\ud83d\ude00 \ud800 \udc00\ud800",
    "a<|endoftext|>b<|fim_prefix|>",
    "\ufffd\ufffe\uffff\U0010ffff",
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u0939\u093f\u0928\u094d\u0926\u0940 \u65e5\u672c\u8a9e",
    "I'LL we'Ve 1234567 don't    stop  ",
]
ANY_TEXT = st.text(
    st.one_of(st.characters(), st.characters(categories=["Cs"]), st.sampled_from("a the12\r\n\t'\u00e9"))
)


def toy(pattern: str = GPT2_PATTERN) -> Bpe:
    ranks = checked_ranks(from_merges(MERGES))
    return Bpe(f"bpe{len(ranks) + 1}", ranks, pattern, {"<|endoftext|>": len(ranks)})


TOY = [Bytes(), toy(), toy(CL100K_PATTERN), toy(O200K_PATTERN), train_char([TEXT, "<|endoftext|>"])]


def assert_round_trip(text: str, tokenizer: Tokenizer) -> None:
    if isinstance(tokenizer, Characters):
        tokenizer = train_char([text + "x"])
    ids, meant = tokenizer.encode(text), as_text(text)
    assert tokenizer.decode(ids) == meant
    assert b"".join(map(tokenizer.token_bytes, ids)) == meant.encode()
    assert all(0 <= token < tokenizer.n_vocab and token != tokenizer.eot for token in ids)
    assert [list(each) for each in tokenizer.encode_batch([text, "x", text])] == [ids, tokenizer.encode("x"), ids]
    stream = TextStream(tokenizer)
    assert "".join([stream.push(token) for token in ids]) == meant  # nothing of a whole text is held back
    assert stream.flush() == ""


@settings(max_examples=80, deadline=None)
@given(ANY_TEXT, st.sampled_from(TOY))
def test_every_text_survives_every_tokenizer(text: str, tokenizer: Tokenizer) -> None:
    assert_round_trip(text, tokenizer)


def test_texts_that_are_known_for_trouble_survive_every_tokenizer() -> None:
    for text, tokenizer in itertools.product([*WILD, TEXT], TOY):
        assert_round_trip(text, tokenizer)


def test_no_kind_is_left_out() -> None:
    assert {type(tokenizer) for tokenizer in TOY} == set(KINDS.values())


def test_lone_surrogates_are_replaced_and_pairs_joined() -> None:
    assert as_text("a\ud83d\ude00b\ud83dc\ude00\x00") == "a\U0001f600b\ufffdc\ufffd\x00"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 280)), st.sampled_from(TOY[:2]))
def test_any_ids_have_a_text_and_arrive_piece_by_piece_as_they_do_at_once(ids: list[int], tokenizer: Tokenizer) -> None:
    """What a model draws need not be UTF-8. Between special tokens it is decoded as Python does it at once."""
    stream = TextStream(tokenizer)
    text = "".join(stream.push(token) for token in ids) + stream.flush()
    expected, run = "", b""
    for token in ids:
        if token < tokenizer.n_vocab and token != tokenizer.eot:
            run += tokenizer.token_bytes(token)
        else:
            expected += run.decode(errors="replace") + ("<|endoftext|>" if token == tokenizer.eot else "\ufffd")
            run = b""
    assert text == tokenizer.decode(ids) == expected + run.decode(errors="replace")


def test_a_character_appears_with_the_last_of_its_tokens() -> None:
    stream = TextStream(Bytes())
    assert [stream.push(byte) for byte in "\U0001f600!".encode()] == ["", "", "", "\U0001f600", "!"]
    assert [stream.push(byte) for byte in b"\xf0\x9f"] == ["", ""]
    assert stream.push(255) == "\ufffd<|endoftext|>"
    assert stream.push(ord("a")) == "a"
    assert stream.flush() == ""


def test_ids_between_special_tokens_stand_for_nothing() -> None:
    ranks = toy().ranks
    tokenizer = Bpe("gaps", ranks, GPT2_PATTERN, {"<|endoftext|>": len(ranks) + 1, "<|x|>": len(ranks) + 5})
    first = len(ranks)
    assert (tokenizer.n_vocab, tokenizer.eot) == (first + 6, first + 1)
    assert tokenizer.decode(range(first - 1, first + 7)) == "'s\ufffd<|endoftext|>" + "\ufffd" * 3 + "<|x|>\ufffd"
    assert {tokenizer.token_bytes(token) for token in range(first, first + 9)} == {b""}


def test_characters() -> None:
    tokenizer = train_char(["ba", "c\n", ""])
    assert (tokenizer.characters, tokenizer.n_vocab, tokenizer.eot) == (("\n", "a", "b", "c"), 4, None)
    with pytest.raises(UserError, match=r"outside the vocabulary: '1' '2' '3' '4' '5' and 2 more; allowed: '\\nabc'"):
        tokenizer.encode("7654321a")
    with pytest.raises(UserError, match="char: the texts are empty"):
        train_char(["", ""])


@pytest.fixture(scope="module")
def gpt2(shared_data: Path) -> Tokenizer:
    return load_tokenizer("gpt2", ranks=shared_data / "tiktoken_cache")


def test_gpt2_is_what_nanogpt_and_tiktoken_have(
    gpt2: Tokenizer, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nanoGPT's readme counts tiny Shakespeare; tiktoken itself needs encoder.json, too."""
    import tiktoken

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared_data / "tiktoken_cache"))
    assert (gpt2.name, gpt2.n_vocab, gpt2.eot) == ("gpt2", 50257, 50256)
    assert load_tokenizer("gpt2") == gpt2
    text = (shared_data / "tinyshakespeare.txt").read_text(encoding="utf-8")
    split = int(len(text) * 0.9)
    assert [len(ids) for ids in gpt2.encode_batch([text[:split], text[split:]])] == [301_966, 36_059]
    theirs = tiktoken.get_encoding("gpt2")
    for wild in WILD:
        assert gpt2.encode(wild) == theirs.encode_ordinary(wild)
        assert gpt2.decode(gpt2.encode(wild)) == as_text(wild)
    assert gpt2.decode([15496, 11, 50256]) == "Hello,<|endoftext|>"


def test_a_long_piece_without_a_break_is_encoded(gpt2: Tokenizer) -> None:
    for text in ("a" * 200_000, " " * 100_000, "\n" * 100_000, "\U0001f600" * 50_000):
        assert gpt2.decode(gpt2.encode(text)) == text


def test_trained_ids_are_those_of_the_trainer_and_do_not_vary() -> None:
    """HF trains, tiktoken runs: on text that both cut alike, the ids are equal."""
    hf = pytest.importorskip("tokenizers")
    texts = [TEXT, "more of the same, and then some: " + "".join(map(chr, range(32, 400)))] * 3
    tokenizer = train_bpe(texts, 300)
    assert (tokenizer.name, tokenizer.n_vocab, tokenizer.eot) == ("bpe300", 300, 299)
    assert tokenizer == train_bpe(iter(texts), 300)
    assert tokenizer.ranks[:256] == tuple(from_merges([]))
    trained = hf.Tokenizer(hf.models.BPE())
    trained.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = hf.pre_tokenizers.ByteLevel.alphabet()
    trainer = hf.trainers.BpeTrainer(vocab_size=299, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(texts, trainer)
    for text in texts:
        assert tokenizer.encode(text) == trained.encode(text).ids
    for text in (*texts, *WILD):
        assert_round_trip(text, tokenizer)


@settings(max_examples=25, deadline=None)
@given(st.text("ab\u00e9 ", min_size=40, max_size=300), st.text("ab\u00e9 "))
def test_whatever_it_was_trained_on_all_texts_come_back_and_hugging_face_agrees(texts: str, text: str) -> None:
    hf = pytest.importorskip("tokenizers")
    try:
        tokenizer = train_bpe([texts], 265)
    except UserError:  # few pairs
        tokenizer = train_bpe([texts], 258)
    assert_round_trip(text + TEXT, tokenizer)
    assert hf.Tokenizer.from_str(json.dumps(hf_content(tokenizer))).encode(text).ids == tokenizer.encode(text)


def test_what_cannot_be_trained_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [bpe_size(name) for name in ("bpe4096", "bpe", "gpt2", "bpe04", "bpe-5")] == [4096, None, None, None, None]
    with pytest.raises(UserError, match="bpe256: expected at least 257"):
        train_bpe([TEXT], 256)
    with pytest.raises(UserError, match="bpe999999999: expected at most 1048576"):
        train_bpe([TEXT], 999_999_999)
    pytest.importorskip("tokenizers")
    assert train_bpe([""], 257).n_vocab == 257
    with pytest.raises(UserError, match="bpe4096: the texts have pairs to merge for 259 tokens only: ask for bpe259"):
        train_bpe(["ab ab"], 4096)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"pip install 'nanogpt-scaling\[data\]'"):
        train_bpe([TEXT], 300)


def test_what_is_written_is_read_again_without_anything_else(tmp_path: Path) -> None:
    fingerprints = set()
    for tokenizer in TOY:
        write_tokenizer(tokenizer, tmp_path)
        first = (tmp_path / "tokenizer.json").read_bytes()
        again = read_tokenizer(tmp_path)
        write_tokenizer(again, tmp_path)
        assert (tmp_path / "tokenizer.json").read_bytes() == first
        assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]
        for other in (again, load_tokenizer(str(tmp_path)), pickle.loads(pickle.dumps(tokenizer))):
            assert other == tokenizer
            assert (other.name, other.n_vocab, other.eot) == (tokenizer.name, tokenizer.n_vocab, tokenizer.eot)
            assert other.encode(TEXT) == tokenizer.encode(TEXT)
        fingerprints.add(tokenizer.fingerprint)
    assert len(fingerprints) == len(TOY)


def test_a_fingerprint_is_of_the_ids_and_not_of_the_name() -> None:
    ranks, pattern, specials = toy().ranks, toy().pattern, toy().specials
    assert Bpe("another", ranks, pattern, specials) == toy()
    assert Bpe("bpe272", (*ranks[:-2], ranks[-1], ranks[-2]), pattern, specials) != toy()
    assert Bpe("bpe272", ranks, pattern, {"<|endoftext|>": 300}) != toy()


def test_fingerprints_stay_what_they_are(gpt2: Tokenizer) -> None:
    """They are part of the content of every corpus that was ever prepared."""
    assert Bytes().fingerprint == "c7d7ed011c6408fcd66d0476396df4561a2a254b01e8c19736897ff53c280d3a"
    assert gpt2.fingerprint == "f62b692724cb7d4440a5f397f36093fd7956c50c3323cb3795e1b819573e9181"


def test_the_characters_of_nanogpts_meta_file_are_a_tokenizer(tmp_path: Path) -> None:
    write_meta(tmp_path, {"vocab_size": 2, "itos": {"0": "a", "1": "b"}})
    assert load_tokenizer(str(tmp_path)) == Characters("ab")
    (tmp_path / "meta.json").unlink()
    with pytest.raises(UserError, match="no tokenizer there: neither"):
        read_tokenizer(tmp_path)


def _with(**changes: Any) -> str:
    content = {"format": 1, "kind": "char", "fingerprint": Characters("ab").fingerprint, "characters": ["a", "b"]}
    return json.dumps(content | changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_with()[:-9], "damaged or truncated"),
        ("[1]", "expected a JSON object"),
        (_with(format=2), "written by a newer version"),
        (_with(kind="chra"), "no kind of tokenizer 'chra'; did you mean 'char'"),
        (_with(kind=["char"]), "damaged"),
        (_with(characters=["b", "a"]), "its tokens are not those that its fingerprint was made of"),
        (_with(characters="ab"), "damaged: not a tokenizer of this project"),
        (_with(kind="bpe"), "damaged: not a tokenizer of this project"),
        ("{}", "damaged: not a tokenizer of this project"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=message) as found:
        load_tokenizer(str(tmp_path))
    assert "tokenizer.json: " in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gpt-2", "no such tokenizer or file 'gpt-2'; did you mean 'gpt2'?"),
        ("o200", "did you mean 'o200k'?"),
        ("bpe-4096", "did you mean 'bpe4096'?"),
        ("nowhere/at/all", "no such tokenizer or file 'nowhere/at/all'; allowed: char, byte, gpt2"),
        ("char", "char is made from a text"),
        ("bpe512", "bpe512 is made from a text"),
    ],
)
def test_a_wrong_name_is_one_line(spec: str, message: str) -> None:
    with pytest.raises(UserError) as found:
        load_tokenizer(spec)
    assert message in str(found.value)
    with pytest.raises(UserError, match=r"--ranks file: byte has no ranks; they are of gpt2, cl100k_base, o200k_base"):
        load_tokenizer("byte", ranks=Path("file"))


def test_the_published_encodings_are_tiktokens_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses, hashes, special tokens; and texts are cut alike, however the pattern is written."""
    import tiktoken
    from tiktoken_ext import openai_public

    asked: list[tuple[str, str]] = []

    def load(url: str, expected_hash: str) -> dict[bytes, int]:
        asked.append((url, expected_hash))
        return {token: rank for rank, token in enumerate(toy().ranks)}

    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", load)
    for name in ("cl100k_base", "o200k_base"):
        published, theirs = PUBLISHED[name], getattr(openai_public, name)()
        assert [(file.url, file.sha256) for file in published.files] == [asked[-1]]
        assert published.specials == theirs["special_tokens"]
        cut = tiktoken.Encoding(**(theirs | {"special_tokens": {}}))
        for text in (TEXT, *WILD):
            assert toy(published.pattern).encode(text) == cut.encode_ordinary(text)
    gpt2 = PUBLISHED["gpt2"].files
    assert [file.cached_as[:8] for file in gpt2] == ["6d1cbeee", "0ea1e91b"]


def wild_texts() -> Iterator[str]:
    yield from (as_text(text) for text in WILD if "<|" not in text)
    yield TEXT


@pytest.mark.parametrize("tokenizer", TOY, ids=["byte", "gpt2-way", "cl100k-way", "o200k-way", "char"])
def test_hugging_face_reads_what_is_written_for_it(tokenizer: Tokenizer, tmp_path: Path) -> None:
    hf = pytest.importorskip("tokenizers")
    theirs = hf.Tokenizer.from_str(json.dumps(hf_content(tokenizer)))
    assert theirs.get_vocab_size() == tokenizer.n_vocab
    for text in wild_texts():
        if isinstance(tokenizer, Characters) and not set(text) <= set(tokenizer.characters):
            continue
        ids = tokenizer.encode(text)
        assert theirs.encode(text).ids == ids
        assert theirs.decode(ids, skip_special_tokens=False) == text
    write_hf(tokenizer, tmp_path)
    assert read_tokenizer(tmp_path) == tokenizer


@pytest.mark.slow
def test_transformers_reads_what_is_written_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers")
    for tokenizer in TOY:
        write_hf(tokenizer, tmp_path)
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
        assert (len(theirs), theirs.eos_token_id) == (tokenizer.n_vocab, tokenizer.eot)
        for text in wild_texts():
            if isinstance(tokenizer, Characters) and not set(text) <= set(tokenizer.characters):
                continue
            assert theirs(text).input_ids == tokenizer.encode(text)
            assert theirs.decode(tokenizer.encode(text)) == text


def test_gpt2_by_hugging_faces_files_is_gpt2(gpt2: Tokenizer, shared_data: Path, tmp_path: Path) -> None:
    """The older layout. RoBERTa has GPT-2's merges with ids of its own, so that vocab.json goes first."""
    cache = shared_data / "tiktoken_cache"
    (tmp_path / "merges.txt").write_bytes((cache / "6d1cbeee0f20b3d9449abfede4726ed8212e3aee").read_bytes())
    assert (read_tokenizer(tmp_path), read_tokenizer(tmp_path).name) == (gpt2, "gpt2")
    vocabulary = tmp_path / "vocab.json"
    vocabulary.write_bytes((cache / "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6").read_bytes())
    assert read_tokenizer(tmp_path) == load_tokenizer(str(vocabulary)) == gpt2
    vocabulary.write_text('{"<s>": 0, "!": 1}')
    with pytest.raises(UserError, match=r"vocab\.json: no ranks: the byte 0x00 is missing"):
        read_tokenizer(tmp_path)
    vocabulary.unlink()
    (tmp_path / "merges.txt").write_text("\u0120 t\n")
    with pytest.raises(UserError, match="how texts are cut is not told"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("normalizer", {"type": "NFC"}, r"this changes texts first \(NFC\)"),
        ("pre_tokenizer", {"type": "Whitespace"}, "this one cuts texts in another way"),
        ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": True}, "this one cuts texts in another way"),
        ("model", {"type": "WordPiece"}, "this is a WordPiece model"),
        ("model", {"type": "BPE"}, "not a tokenizer.json of Hugging Face's: KeyError"),
    ],
)
def test_what_ranks_cannot_do_is_refused(tmp_path: Path, part: str, value: Any, message: str) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(hf_content(toy()) | {part: value}))
    with pytest.raises(UserError, match=message):
        read_tokenizer(tmp_path)


def test_older_files_are_read_alike(tmp_path: Path) -> None:
    """Merges as texts, and no word on the kind of model, nor on cutting by ByteLevel's own pattern."""
    content = hf_content(toy())
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    del content["model"]["type"], content["pre_tokenizer"]["use_regex"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert read_tokenizer(tmp_path) == toy()


def test_merges_in_another_order_than_the_ids_are_refused(tmp_path: Path) -> None:
    content = hf_content(toy())
    content["model"]["merges"][:2] = content["model"]["merges"][1::-1]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="the merges of this one are not in the order of its ids"):
        read_tokenizer(tmp_path)


def test_merges_are_found_again_from_ranks() -> None:
    assert merges_of(toy().ranks)[:4] == [(b" ", b"t"), (b" t", b"h"), (b"h", b"e"), (b" th", b"e")]
    assert from_merges(MERGES) == list(toy().ranks)
    assert [left + right for left, right in merges_of(toy().ranks)] == list(toy().ranks[256:])
    with pytest.raises(ValueError, match="no merge of two earlier tokens makes b'xyz'"):
        merges_of((*from_merges([]), b"xyz"))
    ranks = (*from_merges([]), b"xyz")
    with pytest.raises(UserError, match="odd: cannot be written in Hugging Face's layout: no merge of two earlier"):
        hf_content(Bpe("odd", ranks, GPT2_PATTERN, {"<|endoftext|>": 257}))
