"""Every answer says what it cost; keys have limits; the ledger, /metrics and clients agree."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import pytest
from crowd import Crowd, check, rows_of, sums
from fake_model import reply

from dure.metering.keys_file import KeyPolicy, PriceList
from dure.metering.limits import Limits
from dure.metering.prices import Prices

PRICES = PriceList((("*", Prices(input=100.0, cached_input=25.0, output=400.0, currency="EUR")),))
SECRET = "sk-secret-of-{}"
HELLO = [{"role": "user", "content": "hello"}]


BODIES = {
    "/v1/chat/completions": {"messages": HELLO, "max_tokens": 9},
    "/v1/completions": {"prompt": "hello", "max_tokens": 9},
    "/v1/responses": {"input": "hello", "max_output_tokens": 9},
    "/v1/messages": {"messages": HELLO, "max_tokens": 9},
    "/api/chat": {"messages": HELLO, "options": {"num_predict": 9}},
    "/api/generate": {"prompt": "hello", "options": {"num_predict": 9}},
}


def policies(**limits: dict[str, Any]) -> tuple[tuple[str, KeyPolicy], ...]:
    """A key a name, with limits."""
    return tuple(
        (SECRET.format(name), KeyPolicy(name, PRICES, Limits(**each)))
        for name, each in limits.items()
    )


@pytest.fixture(scope="module")
def priced(serve_module):
    return serve_module(reply("answer"), prices=PRICES)


def asked(server: Any, path: str, **body: Any) -> Any:
    answer = server.post(path, {"model": "fake", **BODIES[path], **body})
    assert answer.status == 200, answer.body
    return answer


def test_openai_usage_and_timings_say_what_it_cost(priced) -> None:
    answer = asked(priced, "/v1/chat/completions")
    usage, timings = answer.json["usage"], answer.json["timings"]
    computed = usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    charged = (100 * computed + 25 * cached + 400 * usage["completion_tokens"]) / 1e6
    assert usage["cost"] == pytest.approx(charged)
    details = usage["cost_details"]
    assert details["currency"] == "EUR"
    assert details["processor_seconds"] > 0
    assert details["energy"] == timings["energy"]
    assert timings["processor_ms"] == pytest.approx(1000 * details["processor_seconds"], abs=0.01)
    assert answer.headers["x-dure-currency"] == "EUR"
    assert float(answer.headers["x-dure-cost"]) == pytest.approx(usage["cost"], abs=1e-9)
    assert float(answer.headers["x-dure-processor-seconds"]) > 0
    assert answer.headers["x-dure-energy"] == details["energy"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/responses", "/v1/messages"])
def test_the_other_bodies_of_openai_and_anthropic_say_it_in_their_usage(priced, path) -> None:
    usage = asked(priced, path).json["usage"]
    assert usage["cost"] > 0
    assert usage["cost_details"]["processor_seconds"] > 0


def test_ollama_says_it_beside_its_durations(priced) -> None:
    for path in ("/api/chat", "/api/generate"):
        last = asked(priced, path).body.splitlines()[-1]
        for name in (b'"processor_duration":', b'"energy":', b'"cost":', b'"currency":"EUR"'):
            assert name in last


def test_streams_say_it_in_their_last_events(priced) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *_, last, done = asked(priced, "/v1/chat/completions", **options).events
    assert done == "[DONE]"
    assert last["usage"]["cost"] > 0
    events = asked(priced, "/v1/messages", stream=True).events
    assert events[-2]["usage"]["cost"] > 0


def test_without_prices_no_money_is_named(serve) -> None:
    answer = asked(serve(reply("answer")), "/v1/chat/completions")
    assert "cost" not in answer.json["usage"]
    assert "x-dure-cost" not in answer.headers
    assert answer.json["usage"]["cost_details"]["processor_seconds"] > 0


def test_models_are_listed_with_prices_as_proxies_name_them(priced) -> None:
    for found in (priced.get("/v1/models").json["data"][0], priced.get("/v1/models/fake").json):
        assert found["pricing"]["prompt"] == "0.0001"
        assert found["pricing"]["completion"] == "0.0004"
        assert found["pricing"]["input_cache_read"] == "0.000025"
        assert found["input_cost_per_token"] == pytest.approx(1e-4)
        assert found["output_cost_per_token"] == pytest.approx(4e-4)
        assert found["cache_read_input_token_cost"] == pytest.approx(2.5e-5)
        assert found["prices"]["currency"] == "EUR"


@pytest.fixture(scope="module")
def limited(serve_module):
    limits = {"poor": {"money_per_month": 0.0}, "slow": {"tokens_per_minute": 0}}
    return serve_module(reply("answer"), policies=policies(**limits, free={}))


@pytest.mark.parametrize("path", BODIES)
def test_beyond_a_limit_each_api_refuses_in_its_own_form(limited, path: str) -> None:
    for name, status, code in (
        ("slow", 429, "rate_limit_exceeded"),
        ("poor", 402, "insufficient_quota"),
    ):
        headers = {"Authorization": f"Bearer {SECRET.format(name)}"}
        body = {"model": "fake", **BODIES[path]}
        answer = limited.post(path, body, headers=headers)
        assert answer.status == status
        assert int(answer.headers["retry-after"]) >= 1
        error = answer.json["error"]
        if path.startswith("/api/"):
            assert "ends at" in error
        elif path == "/v1/messages":
            kind = "rate_limit_error" if status == 429 else "billing_error"
            assert error["type"] == kind
        else:
            assert error["code"] == code


def test_a_key_without_limits_has_none_of_the_others(limited) -> None:
    headers = {"Authorization": f"Bearer {SECRET.format('free')}"}
    body = {"messages": HELLO, "max_tokens": 9}
    assert limited.post("/v1/chat/completions", body, headers=headers).status == 200


def in_parallel(count: int, act: Any) -> list[int]:
    """What so many calls at once return."""
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(act())) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


def test_limits_hold_to_the_request_under_32_parallel_streams(serve, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.db"
    prompt = 24  # tokens of the prompt below; the answer has seven, and all of it is set aside
    each = prompt + 7
    limits = {
        "tokens": {"tokens_per_day": 9 * each + 20},
        "money": {"money_per_month": (100 * prompt + 400 * 7) / 1e6 * 5.5},
        "streams": {"streams": 3},
    }
    server = serve(reply("answer"), policies=policies(**limits), ledger=ledger, max_sequences=32)

    def ask(name: str) -> int:
        headers = {"Authorization": f"Bearer {SECRET.format(name)}"}
        body = {"messages": HELLO, "max_tokens": 7, "stream": True}
        return server.post("/v1/chat/completions", body, headers=headers).status

    counts = {name: in_parallel(32, lambda name=name: ask(name)) for name in limits}
    server.wait_until(server.is_idle)
    rows = rows_of(ledger).values()
    first = next(iter(rows))
    assert (first["prompt"], first["output"]) == (prompt, 7)
    assert sorted(counts["tokens"]) == [200] * 9 + [429] * 23
    # What is found in the cache costs less than was set aside: whoever comes later has room for it.
    spent = sum(row["money"] for row in rows if row["key"] == "money")
    assert spent <= limits["money"]["money_per_month"]
    assert counts["money"].count(200) >= 5
    assert set(counts["money"]) == {200, 402}
    assert set(counts["streams"]) <= {200, 429}
    for name in limits:
        assert sum(row["key"] == name for row in rows) == counts[name].count(200)


def exposed(server: Any) -> dict[tuple[str, str], float]:
    """Tokens by (key, kind), as /metrics has them."""
    text = server.get("/metrics").body.decode()
    form = r'^dure:key_tokens_total\{key="(\w+)",kind="(\w+)",model_name="fake"\} (\S+)$'
    return {(key, kind): float(value) for key, kind, value in re.findall(form, text, re.MULTILINE)}


def test_metrics_show_a_key_its_own_use_and_an_admin_all(serve) -> None:
    admin = SECRET.format("admin"), KeyPolicy("admin", is_admin=True)
    server = serve(reply("answer"), policies=(*policies(ada={}, bob={}), admin), keys=("12345678",))
    for name in ("ada", "bob"):
        server.key = SECRET.format(name)
        asked(server, "/v1/completions")
    whole = set()
    for key, seen in (
        (SECRET.format("ada"), {"ada"}),
        (SECRET.format("bob"), {"bob"}),
        (admin[0], {"ada", "bob"}),
        ("12345678", {"ada", "bob"}),
    ):
        server.key = key
        assert {name for name, _ in exposed(server)} == seen
        text = server.get("/metrics").body.decode()
        assert set(re.findall(r'[{,]key="(\w+)"', text)) == seen
        whole.add(re.findall(r"^dure:generation_tokens_total.* (\S+)$", text, re.MULTILINE)[0])
    assert len(whole) == 1
    assert float(whole.pop()) > 0  # what has no key is seen by all


def total(server: Any, name: str) -> float:
    text = server.get("/metrics").body.decode()
    values = re.findall(rf"^dure:{name}_total\{{[^}}]*\}} (\S+)$", text, re.MULTILINE)
    return sum(map(float, values))


def test_ledger_metrics_and_clients_agree_whoever_leaves_early(serve, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.db"
    names = {name: SECRET.format(name) for name in ("a", "b", "c", "d", "e")}
    server = serve(
        reply("x" * 80),
        policies=(
            *policies(**{name: {} for name in names}),
            (SECRET.format("admin"), KeyPolicy("admin", is_admin=True)),
        ),
        ledger=ledger,
        model_options={"context": 1024, "num_blocks": 256},
    )
    server.key = SECRET.format("admin")
    seen = Crowd(server.port, names, 80, seed=3).start().join()
    server.wait_until(lambda: all(row["end"] for row in rows_of(ledger).values()))
    rows = rows_of(ledger)
    check(seen, rows)
    listed = list(rows.values())
    assert {row["end"] for row in listed} >= {"stop", "length", "abort"} - {"stop"}
    assert exposed(server) == sums(listed)
    assert total(server, "generation_tokens") == sum(row["output"] for row in listed)
    assert total(server, "prompt_tokens") == sum(row["prompt"] - row["cached"] for row in listed)
    assert total(server, "key_requests") == len(listed)
    taken = server.llm.meter.totals().steps
    assert sum(row["cpu_s"] for row in listed) == pytest.approx(taken.cpu_s, rel=0.02)
    assert sum(row["machine_s"] for row in listed) == pytest.approx(taken.machine_s, rel=0.02)


def test_a_request_that_is_refused_leaves_no_row(serve, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.db"
    server = serve(reply("answer"), ledger=ledger)
    assert server.chat("hi", temperature=-1).status == 400
    assert server.chat("hi", max_tokens=3).status == 200
    server.wait_until(lambda: len(rows_of(ledger)) == 1)
    [row] = rows_of(ledger).values()
    assert (row["key"], row["end"], row["output"]) == ("local", "length", 3)


def test_neither_keys_nor_texts_are_in_the_ledger(serve, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.db"
    server = serve(reply("an-answer"), policies=policies(ada={}), ledger=ledger)
    server.key = SECRET.format("ada")
    assert server.chat("a-question", max_tokens=30).status == 200
    for path in tmp_path.iterdir():
        held = path.read_bytes()
        for text in (SECRET.format("ada"), "a-question", "an-answer"):
            assert text.encode() not in held
