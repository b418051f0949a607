"""Ranks: the forms of their files, tiktoken's cache, the one download, and what is said where there are none.

Nothing here needs a network: addresses are files, or a port of this machine that never answers.
"""

import base64
import hashlib
import json
import socket
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanogpt import downloads
from nanogpt.config import UserError
from nanogpt.data import published
from nanogpt.data.bpe import GPT2_PATTERN, Ranks, printable_bytes, ranks_sha256
from nanogpt.data.published import MissingRanks, Published, RanksFile
from nanogpt.data.ranks import from_merges, read_ranks
from nanogpt.data.tokenizers import Bpe, load_tokenizer

MERGES = ["Ġ t", "Ġt h", "h e", "Ġth e"]
TOY: Ranks = tuple(from_merges(MERGES))
CHARACTER_OF = {byte: character for character, byte in printable_bytes().items()}


def tiktoken_file(ranks: Ranks = TOY) -> str:
    return "".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(ranks))


def encoder_file(ranks: Ranks = TOY) -> str:
    words = {"".join(CHARACTER_OF[byte] for byte in token): rank for rank, token in enumerate(ranks)}
    return json.dumps({"<|endoftext|>": len(ranks)} | words)


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def toy_encoding(url: str, content: bytes) -> Published:
    file = RanksFile(url, hashlib.sha256(content).hexdigest())
    return Published(GPT2_PATTERN, {"<|endoftext|>": len(TOY)}, len(TOY), ranks_sha256(TOY), (file,))


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """GPT-2 is a toy here; its address is this file. The cache is `cache` beside it, and not there yet."""
    path = write(tmp_path / "toy.bpe", "#version: 0.2\n" + "\n".join(MERGES) + "\n")
    monkeypatch.setitem(published.PUBLISHED, "gpt2", toy_encoding(path.as_uri(), path.read_bytes()))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return path


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_all_forms_of_a_file_say_the_same(tmp_path: Path, newline: str) -> None:
    forms = {
        "vocab.bpe": "#version: 0.2\n" + "\n".join(MERGES) + "\n",
        "merges.txt": "\n".join(MERGES),
        "toy.tiktoken": tiktoken_file(),
        "reversed.tiktoken": "\n".join(reversed(tiktoken_file().splitlines())) + "\n\n",
        "encoder.json": encoder_file(),
    }
    for name, text in forms.items():
        file = write(tmp_path / name, text.replace("\n", newline))
        assert read_ranks(file) == TOY
        tokenizer = load_tokenizer(str(file))
        assert (tokenizer.name, tokenizer.n_vocab, tokenizer.eot) == ("bpe261", 261, 260)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'x' is no merge"),
        ("x\n", "'x' is no merge of two tokens before it"),
        ("Ġ t\nqu ick\n", "'qu ick' is no merge of two tokens before it"),
        ("Ġ t\nĠ t\n", "b' t' comes twice"),
        ("Ġ \u4e00\n", "'\u4e00' has the character '\u4e00', which stands for no byte"),
        (tiktoken_file()[:-9], "line 260: "),
        (tiktoken_file(TOY[1:]), "the byte 0x21 is missing"),
        (tiktoken_file().replace(" 258\n", " 999\n"), "rank 258 of 260 is missing"),
        (tiktoken_file((*TOY, b" t")), "b' t' comes twice"),
        ('{"a": "b"}', "a JSON object, but not from tokens to ids"),
        ('{"a": ', "Expecting value"),
        ('{"!": 0, "a": 1}', "the byte 0x00 is missing"),
    ],
)
def test_a_file_without_ranks_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    file = write(tmp_path / "ranks", text or "x")
    with pytest.raises(UserError) as found:
        read_ranks(file)
    assert f"{file}: no ranks: " in str(found.value)
    assert message in str(found.value)
    assert str(found.value).endswith("expected a .tiktoken file, vocab.bpe (merges.txt) or encoder.json (vocab.json)")
    assert "\n" not in str(found.value)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gone: No such file or directory"):
        load_tokenizer("gpt2", ranks=tmp_path / "gone")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="binary: no ranks: it is not a text"):
        read_ranks(tmp_path / "binary")


def test_another_encodings_ranks_are_refused(address: Path, tmp_path: Path) -> None:
    assert load_tokenizer("gpt2", ranks=address).name == "gpt2"
    with pytest.raises(UserError, match=r"short: 258 ranks, but gpt2 has 260: cut off, or of another encoding"):
        load_tokenizer("gpt2", ranks=write(tmp_path / "short", tiktoken_file(TOY[:258])))
    with pytest.raises(UserError, match=r"odd: as many ranks as gpt2 has, but not the same: damaged"):
        load_tokenizer("gpt2", ranks=write(tmp_path / "odd", tiktoken_file((*TOY[:259], b"zzz"))))
    # By its content alone, a file is known whatever its name.
    assert load_tokenizer(str(write(tmp_path / "any", tiktoken_file()))).name == "gpt2"


def test_a_folder_is_searched_by_both_names(address: Path, tmp_path: Path) -> None:
    file = published.PUBLISHED["gpt2"].files[0]
    with pytest.raises(UserError, match=rf"no ranks of gpt2 there: expected toy\.bpe \({file.cached_as}\)"):
        load_tokenizer("gpt2", ranks=tmp_path.parent)
    for name in (file.cached_as, file.name):
        folder = tmp_path / f"by {name}"
        folder.mkdir()
        (folder / name).write_bytes(address.read_bytes())
        assert load_tokenizer("gpt2", ranks=folder).encode(" the") == [259]


def test_the_cache_serves_without_a_network(address: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the name that tiktoken gives it, or its own; $DATA_GYM_CACHE_DIR is the older variable."""
    monkeypatch.setattr(published, "fetch", lambda *args: pytest.fail("there is no need to download"))
    file, cache = published.PUBLISHED["gpt2"].files[0], tmp_path / "cache"
    cache.mkdir()
    for name in (file.cached_as, file.name):
        (cache / name).write_bytes(address.read_bytes())
        assert load_tokenizer("gpt2").encode(" the") == [259]
        (cache / name).rename(cache / "elsewhere")
    (cache / "elsewhere").rename(cache / file.name)
    monkeypatch.setenv("DATA_GYM_CACHE_DIR", str(cache))
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR")
    assert load_tokenizer("gpt2").name == "gpt2"


def test_a_download_is_kept_for_the_next_time(address: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer("gpt2")
    kept = tmp_path / "cache" / published.PUBLISHED["gpt2"].files[0].cached_as
    assert kept.read_bytes() == address.read_bytes()
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]
    address.unlink()
    assert load_tokenizer("gpt2") == tokenizer


def test_a_download_without_a_cache_is_used_all_the_same(
    address: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    assert load_tokenizer("gpt2").name == "gpt2"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert load_tokenizer("gpt2").name == "gpt2"


def test_a_damaged_cache_is_passed_over_named_and_left_alone(address: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "cache" / published.PUBLISHED["gpt2"].files[0].cached_as
    damaged.parent.mkdir()
    damaged.write_bytes(address.read_bytes()[:-3])
    content = address.read_bytes()
    address.unlink()
    with pytest.raises(MissingRanks, match=f"{damaged.name} is damaged"):
        load_tokenizer("gpt2")
    assert damaged.read_bytes() == content[:-3]
    address.write_bytes(content)
    assert load_tokenizer("gpt2").name == "gpt2"
    assert damaged.read_bytes() == content


def test_what_is_missing_and_what_to_do_is_one_line(
    address: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address.unlink()
    with pytest.raises(MissingRanks) as found:
        load_tokenizer("gpt2")
    message, name = str(found.value), published.PUBLISHED["gpt2"].files[0].cached_as
    assert message.startswith(f"gpt2: its ranks are not in {tmp_path / 'cache'} (TIKTOKEN_CACHE_DIR; no file {name}), ")
    assert "cannot be downloaded: [Errno 2] No such file" in message
    assert message.endswith("put it there under that name or its own, or pass --ranks FILE")
    assert "\n" not in message
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR")
    monkeypatch.delenv("DATA_GYM_CACHE_DIR", raising=False)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    with pytest.raises(MissingRanks, match=r"data-gym-cache .TIKTOKEN_CACHE_DIR is not set; no file"):
        load_tokenizer("gpt2")


def test_something_else_at_the_address_is_not_taken(address: Path, tmp_path: Path) -> None:
    """The page of a hotel's network, for one."""
    address.write_text("<html>please log in</html>")
    with pytest.raises(MissingRanks, match=r"what came from file://.* is not the published file"):
        load_tokenizer("gpt2")
    assert not (tmp_path / "cache").exists()


def test_the_offline_switch_is_obeyed_at_once(address: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.urlopen", lambda *args, **more: pytest.fail("offline"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MissingRanks, match="cannot be downloaded: HF_HUB_OFFLINE=1"):
        load_tokenizer("gpt2")


@pytest.fixture
def silent_host() -> Iterator[str]:
    """An address whose host takes calls and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/ranks"


def test_a_host_that_never_answers_is_not_waited_for(
    silent_host: str, address: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "ANSWER_SECONDS", 0.1)
    monkeypatch.setitem(published.PUBLISHED, "gpt2", toy_encoding(silent_host, b""))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(MissingRanks, match=r"cannot be downloaded: (no answer within 0.1 s|timed out)"):
        load_tokenizer("gpt2")


def test_a_refused_call_is_said(address: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str, timeout: float) -> None:
        raise urllib.error.URLError(OSError(-2, "Name or service not known"))

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(MissingRanks, match=r"cannot be downloaded: .*Name or service not known"):
        load_tokenizer("gpt2")


def test_real_files_of_gpt2_say_the_same(shared_data: Path, tmp_path: Path) -> None:
    """vocab.bpe alone, encoder.json alone, and r50k_base.tiktoken, whose sha256 is the published one."""
    cache = shared_data / "tiktoken_cache"
    tokenizers = [load_tokenizer(str(file)) for file in sorted(cache.iterdir())]
    assert [each.name for each in tokenizers] == ["gpt2", "gpt2"]
    first = tokenizers[0]
    assert isinstance(first, Bpe)
    file = write(tmp_path / "r50k_base.tiktoken", tiktoken_file(first.ranks))
    assert hashlib.sha256(file.read_bytes()).hexdigest() == published.PUBLISHED["gpt2"].files[1].sha256
    assert load_tokenizer("r50k_base", ranks=tmp_path) == first == tokenizers[1]
