from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from email.message import Message
from pathlib import Path

import pytest
from fake_hub import COMMIT, PAGE, QUICK, FakeHub, Fault

from dure import hub
from dure.errors import (
    DownloadError,
    DureError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from dure.hub import Progress, remote, transfer
from dure.hub.http import Document
from dure.hub.search import search_huggingface

REPO = "maker/Model-GGUF"
FILE = "model-Q4_0.gguf"


@pytest.fixture
def data(server: FakeHub, noise: Callable[[int], bytes]) -> bytes:
    """The bytes of the one GGUF file of REPO, on both hubs."""
    content = noise(2_500_000)
    server.huggingface[REPO] = {FILE: content, "README.md": b"# Model", "x.py": b"import os"}
    server.modelscope[REPO] = {FILE: content, "README.md": b"# Model"}
    return content


def pull(name: str = REPO, **options: object) -> hub.ResolvedModel:
    return hub.pull(name, patience=QUICK, **options)  # type: ignore[arg-type]


def assert_nothing_landed(home: Path) -> None:
    assert hub.local_models() == []
    assert not list((home / "models").glob("[!.]*"))
    with pytest.raises(ModelNotFoundError):
        hub.resolve(REPO, allow_download=False)


@pytest.mark.parametrize("name", [REPO, f"modelscope:{REPO}", f"{REPO}:q4_0", f"{REPO}@main"])
def test_a_model_is_pulled_from_either_hub_byte_for_byte(
    home: Path, server: FakeHub, data: bytes, name: str
) -> None:
    pulled = pull(name)
    assert data == pulled.path.read_bytes()
    assert {FILE, "dure.json"} == {file.name for file in pulled.path.parent.iterdir()}
    assert pulled.path == hub.resolve(name, allow_download=False).path
    assert len(data) == server.bytes_sent(FILE)


def test_a_safetensors_model_is_pulled_as_a_folder_with_only_what_is_needed(
    home: Path, server: FakeHub, noise: Callable[[int], bytes]
) -> None:
    wanted = {
        "config.json": b"{}",
        "generation_config.json": b'{"temperature": 0.6}',
        "model-00001-of-00002.safetensors": noise(200_000),
        "model-00002-of-00002.safetensors": noise(100_000),
        "model.safetensors.index.json": b'{"weight_map": {}}',
        "tokenizer.json": noise(5000),
    }
    other = {"pytorch_model.bin": noise(9), "modeling.py": b"x", "LICENSE": b"Apache"}
    server.huggingface["maker/Model"] = {**other, **wanted}
    folder = pull("maker/Model").path
    assert wanted == {f.name: f.read_bytes() for f in folder.iterdir() if f.name != "dure.json"}
    assert [name for name in other if server.sent[name]] == []


def test_what_is_here_is_not_asked_for_again(server: FakeHub, data: bytes) -> None:
    pull()
    before = len(server.asked)
    assert data == hub.resolve(REPO.upper()).path.read_bytes()
    assert data == pull().path.read_bytes()
    assert before == len(server.asked)


def test_a_cut_connection_is_continued_where_it_broke_off(server: FakeHub, data: bytes) -> None:
    server.faults[FILE] = [Fault(cut_after=1_000_000), Fault(cut_after=500_000)]
    assert data == pull().path.read_bytes()
    starts = [start for start, _ in server.sent[FILE]]
    assert starts == [0, 1_000_000, 1_500_000]
    assert len(data) == server.bytes_sent(FILE)


def test_a_pull_that_gave_up_is_continued_by_the_next(
    home: Path, server: FakeHub, data: bytes
) -> None:
    server.faults[FILE] = [Fault(cut_after=1_200_000), *[Fault(cut_after=0)] * QUICK.attempts]
    with pytest.raises(DownloadError) as caught:
        pull()
    assert "continues" in caught.value.hint
    assert_nothing_landed(home)
    assert data == pull().path.read_bytes()
    assert len(data) == server.bytes_sent(FILE)


def test_a_server_that_ignores_ranges_is_read_from_the_start(server: FakeHub, data: bytes) -> None:
    server.faults[FILE] = [Fault(cut_after=1_000_000), Fault(ignore_range=True)]
    assert data == pull().path.read_bytes()


def test_wrong_bytes_are_refused_and_nothing_of_them_is_kept(
    home: Path, server: FakeHub, data: bytes
) -> None:
    server.faults[FILE] = [Fault(wrong=True)]
    with pytest.raises(DownloadError, match="hash of the downloaded file is wrong"):
        pull()
    assert_nothing_landed(home)
    assert list(home.rglob("*.part")) == []
    assert data == pull().path.read_bytes()


def test_a_small_file_that_is_wrong_is_refused_too(
    home: Path, server: FakeHub, noise: Callable[[int], bytes]
) -> None:
    files = {"config.json": b'{"a": 1}', "model.safetensors": noise(1000)}
    server.huggingface[REPO] = files
    server.faults["config.json"] = [Fault(wrong=True)]
    with pytest.raises(DownloadError, match=r"config\.json"):
        pull()
    assert_nothing_landed(home)


def test_a_part_damaged_on_disk_is_fetched_again_from_the_start(
    home: Path, server: FakeHub, data: bytes
) -> None:
    server.faults[FILE] = [Fault(cut_after=1_000_000), *[Fault(cut_after=0)] * QUICK.attempts]
    with pytest.raises(DownloadError):
        pull()
    (part,) = home.rglob("*.part")
    part.write_bytes(bytes(len(part.read_bytes())))
    assert data == pull().path.read_bytes()


def test_an_answer_longer_than_the_file_is_cut_off(
    home: Path, server: FakeHub, data: bytes
) -> None:
    server.faults[FILE] = [Fault(endless=True)]
    with pytest.raises(DownloadError, match="more came"):
        pull()
    assert_nothing_landed(home)
    assert sum(f.stat().st_size for f in home.rglob("*.part")) == 0


def test_an_answer_packed_unasked_is_refused(home: Path, server: FakeHub, data: bytes) -> None:
    server.faults[FILE] = [Fault(gzipped=True)]
    with pytest.raises(DownloadError, match="packed"):
        pull()
    assert_nothing_landed(home)


def test_a_busy_server_is_asked_again(server: FakeHub, data: bytes) -> None:
    server.faults[FILE] = [Fault(status=503), Fault(status=429), Fault(status=500)][:2]
    assert data == pull().path.read_bytes()


def test_the_token_goes_to_the_hub_and_to_nobody_else(
    server: FakeHub, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.token = "hf_secret"
    with pytest.raises(ModelNotFoundError):
        pull()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server.asked.clear()
    pull()
    told = {path.split("/")[1] for path, headers in server.asked if "Authorization" in headers}
    assert {"api", "maker"} == told
    assert any(path.startswith("/blob/") for path, _ in server.asked)


def test_the_token_that_the_hubs_own_tools_saved_is_used(
    server: FakeHub, data: bytes, tmp_path: Path
) -> None:
    server.token = "hf_saved"
    (tmp_path / "huggingface").mkdir()
    (tmp_path / "huggingface" / "token").write_text("hf_saved\n")
    assert data == pull().path.read_bytes()


@pytest.mark.parametrize(
    "target",
    ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://", "gopher://127.0.0.1/x", "//\\evil/x"],
)
def test_a_redirect_to_anything_but_http_is_refused(
    home: Path, server: FakeHub, data: bytes, target: str
) -> None:
    server.faults[f"/{REPO}/resolve/{COMMIT}/{FILE}"] = [Fault(redirect=target)] * 5
    with pytest.raises(DureError):
        pull()
    assert_nothing_landed(home)


def test_redirects_in_a_circle_end(home: Path, server: FakeHub, data: bytes) -> None:
    path = f"/{REPO}/resolve/{COMMIT}/{FILE}"
    server.faults[path] = [Fault(redirect=server.url + path)] * 200
    with pytest.raises(DownloadError):
        pull()
    assert_nothing_landed(home)


def test_a_repository_that_is_not_there_is_said_not_to_be(server: FakeHub, data: bytes) -> None:
    with pytest.raises(ModelNotFoundError, match="has no repository maker/Nothing"):
        pull("maker/Nothing")
    with pytest.raises(ModelNotFoundError, match="ModelScope has no repository maker/Nothing"):
        pull("modelscope:maker/Nothing")


def test_a_gated_repository_says_where_to_accept_its_terms(server: FakeHub, data: bytes) -> None:
    server.token = "hf_other"
    server.gated.add(REPO)
    with pytest.raises(DownloadError, match="accepted its terms") as caught:
        pull()
    assert f"{server.url}/{REPO}" in caught.value.hint and "HF_TOKEN" in caught.value.hint


def test_a_revision_that_is_not_there_is_said_not_to_be(server: FakeHub, data: bytes) -> None:
    with pytest.raises(ModelNotFoundError, match="not the revision"):
        pull(REPO + "@v9")


def test_a_file_name_that_would_leave_the_folder_is_refused(
    home: Path, server: FakeHub, data: bytes
) -> None:
    server.paths[FILE] = "../../evil-Q4_0.gguf"
    with pytest.raises(DownloadError, match="leave its folder"):
        pull()
    assert list(home.rglob("*evil*")) == []


def test_a_repository_without_a_model_is_refused(server: FakeHub) -> None:
    server.huggingface[REPO] = {"pytorch_model.bin": b"pickle", "config.json": b"{}"}
    with pytest.raises(UnsupportedModelError):
        pull()


def test_a_listing_that_is_none_is_an_error(server: FakeHub, data: bytes) -> None:
    server.add_wheel("page", "1", {})
    server.html_index = True
    to_a_page = [Fault(redirect=server.url + "/simple/page/")]
    server.faults[f"/api/models/{REPO}/revision/main"] = to_a_page
    with pytest.raises(DownloadError, match="not JSON"):
        pull()


@pytest.mark.parametrize("host", ["the same", "the redirect's"])
def test_a_mirror_that_redirects_may_list_its_files_in_several_pages(
    server: FakeHub, data: bytes, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    server.huggingface[REPO] |= {f"note-{n}.txt": b"text" for n in range(2 * PAGE)}
    monkeypatch.setenv("HF_TOKEN", "secret")
    if host == "the redirect's":
        monkeypatch.setenv("HF_ENDPOINT", server.cdn_url)
    tree = f"/api/models/{REPO}/tree/{COMMIT}"
    server.faults[tree] = [Fault(redirect=f"{server.url}{tree}?recursive=true")]
    assert data == pull().path.read_bytes()
    pages = [headers for path, headers in server.asked if path.startswith(tree)]
    assert len(pages) == 4  # the redirect, and three pages
    for headers in pages:
        to_the_mirror = headers["Host"] in os.environ["HF_ENDPOINT"]
        assert headers.get("Authorization") == ("Bearer secret" if to_the_mirror else None)


def test_a_next_page_on_a_third_host_is_refused(server: FakeHub, data: bytes) -> None:
    server.huggingface[REPO] |= {f"note-{n}.txt": b"text" for n in range(PAGE)}
    listing = server.url
    server.url = server.cdn_url  # what the links name
    with pytest.raises(DownloadError, match="sent us to") as caught:
        pull()
    assert listing in caught.value.message


@pytest.mark.parametrize("wanted", [f"{REPO}:Q8_0", REPO])
def test_offline_the_quantisations_that_are_here_are_named(
    server: FakeHub, data: bytes, monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    hub.pull(f"{REPO}:Q4_0", patience=QUICK)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError) as caught:
        hub.resolve(wanted, patience=QUICK)
    assert caught.value.message.startswith(
        f"{wanted} is not on this machine, and it could not be downloaded: "
    )
    assert caught.value.hint == f"{REPO} is here as {REPO}:Q4_0"
    with pytest.raises(ModelNotFoundError) as missing:
        hub.resolve(wanted, allow_download=False)
    assert f"{REPO} is here as {REPO}:Q4_0" in missing.value.hint


def test_without_a_hub_the_error_says_what_was_tried_and_what_works(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", nobody)
        with pytest.raises(DownloadError) as caught:
            pull()
    assert REPO in caught.value.message and nobody in caught.value.message
    assert "qwen2.5-coder:0.5b" in caught.value.hint and "smollm2:135m" in caught.value.hint


def test_offline_mode_asks_nobody(
    server: FakeHub, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE"):
        pull()
    assert server.asked == []


def test_a_pull_that_cannot_fit_is_refused_before_it_begins(
    home: Path, server: FakeHub, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=1_000_000)
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DownloadError, match=r"needs 36 MB of disk.*1\.0 MB is free") as caught:
        pull()
    assert "DURE_HOME" in caught.value.hint
    assert server.bytes_sent(FILE) == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_disk_that_fills_up_leaves_nothing_that_looks_whole(
    home: Path, server: FakeHub, data: bytes
) -> None:
    partial = home / "models" / ".partial" / hub.parse_name(REPO).folder
    partial.mkdir(parents=True)
    (partial / (FILE + ".part")).symlink_to("/dev/full")
    with pytest.raises(DownloadError, match="of disk in") as caught:
        pull()
    assert "free some space" in caught.value.hint
    assert_nothing_landed(home)
    (partial / (FILE + ".part")).unlink()
    assert data == pull().path.read_bytes()


def test_two_pulls_of_one_model_at_once_fetch_it_once(server: FakeHub, data: bytes) -> None:
    server.faults[FILE] = [Fault(pause_s=0.01)]
    seen: list[Progress] = []
    paths: list[Path] = []

    def work() -> None:
        paths.append(pull(progress=seen.append).path)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 3 and len(set(paths)) == 1
    assert data == paths[0].read_bytes()
    assert len(data) == server.bytes_sent(FILE)
    assert "waiting" in {progress.stage for progress in seen}


def test_a_process_killed_at_any_moment_leaves_nothing_that_resolves(
    home: Path, server: FakeHub, data: bytes
) -> None:
    program = f"from dure import hub; hub.pull({REPO!r})"
    for moment in (0.0, 0.05, 0.2):
        server.faults[FILE] = [Fault(pause_s=0.5)]
        child = subprocess.Popen([sys.executable, "-c", program])
        while server.faults[FILE]:  # until it asks for the bytes, which come slowly
            assert child.poll() is None
            time.sleep(0.005)
        time.sleep(moment)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        assert_nothing_landed(home)
    assert data == pull().path.read_bytes()


def test_progress_never_goes_back_and_ends_at_the_size(server: FakeHub, data: bytes) -> None:
    server.faults[FILE] = [Fault(cut_after=1_000_000)]
    seen: list[Progress] = []
    pull(progress=seen.append)
    done = [progress.done_bytes for progress in seen if progress.stage == "downloading"]
    assert sorted(done) == done
    assert (len(data), len(data)) == (seen[-1].done_bytes, seen[-1].total_bytes)
    assert seen[-1].stage == "done"


def test_a_pull_stopped_by_ctrl_c_is_continued(home: Path, server: FakeHub, data: bytes) -> None:
    def stop(progress: Progress) -> None:
        if progress.done_bytes >= 2_000_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(progress=stop)
    assert_nothing_landed(home)
    assert data == pull().path.read_bytes()
    assert server.sent[FILE][-1][0] >= 1_000_000


def test_an_unverified_leftover_is_not_taken_for_the_file(
    home: Path, server: FakeHub, data: bytes
) -> None:
    partial = home / "models" / ".partial" / hub.parse_name(REPO).folder
    partial.mkdir(parents=True)
    (partial / FILE).write_bytes(bytes(len(data)))
    (partial / "junk").write_bytes(b"from another time")
    assert data == pull().path.read_bytes()
    assert not (hub.resolve(REPO).path.parent / "junk").exists()


def test_a_split_model_interrupted_between_its_parts_keeps_the_parts_it_has(
    server: FakeHub, noise: Callable[[int], bytes]
) -> None:
    parts = {f"m-Q4_0-0000{n}-of-00002.gguf": noise(300_000) for n in (1, 2)}
    first, second = parts
    server.huggingface[REPO] = dict(parts)
    server.faults[second] = [Fault(status=404)]
    with pytest.raises(DownloadError):
        pull()
    pulled = pull()
    assert first == pulled.path.name
    assert parts == {name: (pulled.path.parent / name).read_bytes() for name in parts}
    assert server.bytes_sent(first) == 300_000


def test_a_listing_of_modelscope_with_what_is_no_file_is_refused(
    server: FakeHub, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = {"Data": {"Files": [5, {"Type": "blob", "Path": FILE, "Size": 3}]}}
    monkeypatch.setattr(remote, "read_json", lambda *_, **__: (answer, None))
    with pytest.raises(DownloadError, match="not a list of files"):
        remote.list_modelscope(REPO, "", QUICK)


def test_a_next_page_at_no_address_is_refused(
    server: FakeHub, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = Message()
    headers["Link"] = '<http://[::1/x>; rel="next"'
    page = Document(b"", headers, server.url)
    monkeypatch.setattr(remote, "read_json", lambda *_, **__: ([{"type": "file"}], page))
    with pytest.raises(DownloadError, match="an address that is none"):
        remote._tree(server.url, {}, QUICK)


def test_a_mirror_at_no_address_is_an_error(
    server: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://[::1")
    with pytest.raises(DownloadError, match="no address"):
        remote.list_huggingface(REPO, "", QUICK)


def test_a_file_whose_path_is_not_unicode_is_refused() -> None:
    with pytest.raises(DownloadError, match="not Unicode"):
        remote._remote("model-\ud800.gguf", 5)


def test_a_search_lists_the_hubs_repositories_by_name(server: FakeHub) -> None:
    server.huggingface = {"a/Tiny-GGUF": {}, "b/tiny-2-GGUF": {}, "c/other": {}}
    found = search_huggingface("tiny gguf", 5, QUICK)
    assert [(each.repo, each.downloads) for each in found] == [
        ("a/Tiny-GGUF", 7),
        ("b/tiny-2-GGUF", 7),
    ]


def test_a_file_of_a_repository_is_pulled_by_its_place(server: FakeHub, data: bytes) -> None:
    server.huggingface["a/b"] = {"sub/one.gguf": b"GGUF one", "two-Q4_0.gguf": b"GGUF two"}
    assert hub.pull("a/b/sub/one.gguf", patience=QUICK).path.read_bytes() == b"GGUF one"


def test_unsloths_dynamic_mixtures_go_by_the_type_they_are_nearest_to(
    server: FakeHub, data: bytes
) -> None:
    server.huggingface["a/b"] = {
        "BF16/m-BF16.gguf": b"GGUF large",
        "m-UD-Q4_K_M.gguf": b"GGUF good",
        "m-UD-IQ1_S.gguf": b"GGUF bad",
    }
    assert hub.pull("a/b", patience=QUICK).path.read_bytes() == b"GGUF good"
    assert hub.pull("a/b:Q4_K_M", patience=QUICK).path.read_bytes() == b"GGUF good"
