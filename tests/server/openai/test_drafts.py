"""Drafts in replies and metrics: how many there were, and how many were right."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from fake_model import reply

from dure.engine.request import Request
from dure.engine.spec_decode.draft import StepResult

CHAT = "/v1/chat/completions"
WORDS = "a text that is long enough to be guessed"


class Guesses:
    """Guesses the words two at a time, every second pair wrong in its second."""

    max_drafts = 2

    def __init__(self) -> None:
        self.asked = 0

    def propose(
        self, requests: Sequence[Request], limits: Sequence[int], rows: int
    ) -> list[tuple[int, ...]]:
        return [
            self.guess(len(each.output_ids), limit)
            for each, limit in zip(requests, limits, strict=True)
        ]

    def guess(self, done: int, limit: int) -> tuple[int, ...]:
        self.asked += 1
        guessed = [*WORDS[done : done + limit].encode()]
        if self.asked % 2 and len(guessed) == 2:
            guessed[1] = ord("#")
        return tuple(guessed)

    def observe(self, step: StepResult) -> None:
        pass

    def forget(self, request: Request) -> None:
        pass


@pytest.fixture
def server(serve):
    server = serve(reply(WORDS))
    engine = server.llm.engine
    engine._drafter = engine.scheduler._drafter = Guesses()
    return server


def test_a_reply_counts_its_drafts(server) -> None:
    body = server.chat("hi").json
    assert body["choices"][0]["message"]["content"] == WORDS
    drafted, accepted = body["timings"]["draft_n"], body["timings"]["draft_n_accepted"]
    assert drafted > accepted > 10
    details = body["usage"]["completion_tokens_details"]
    assert details["accepted_prediction_tokens"] == accepted
    assert details["rejected_prediction_tokens"] == drafted - accepted
    assert body["usage"]["completion_tokens"] == len(WORDS) + 1


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_a_stream_counts_its_drafts_as_it_goes(server, path) -> None:
    asked = (
        {"messages": [{"role": "user", "content": "hi"}]}
        if path == CHAT
        else {"prompt": "<|im_start|>assistant\n"}
    )
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {**asked, "max_tokens": 60, "stream": True, "timings_per_token": True}
    *events, usage, _ = server.post(path, {**body, "stream_options": options}).events
    told = [event["timings"] for event in events if "timings" in event]
    counts = [each["draft_n"] for each in told if "draft_n" in each]
    assert counts == sorted(counts)
    assert len(set(counts)) > 10  # while it is written
    assert "finish_reason" in events[-1]["choices"][0]
    last, details = told[-1], usage["usage"]["completion_tokens_details"]
    assert last["draft_n_accepted"] == details["accepted_prediction_tokens"] > 10
    assert last["draft_n"] - last["draft_n_accepted"] == details["rejected_prediction_tokens"] > 5


def test_metrics_count_drafts_of_all_requests(server) -> None:
    told = [server.chat("hi").json["timings"] for _ in range(2)]
    for _ in range(2):  # asking again adds nothing
        text = server.get("/metrics").body.decode()
        for name, field in (("draft", "draft_n"), ("accepted", "draft_n_accepted")):
            [count] = re.findall(
                rf"^dure:spec_decode_num_{name}_tokens_total\S* (\S+)$", text, re.MULTILINE
            )
            assert float(count) == sum(each[field] for each in told)


def test_where_nothing_is_drafted_none_are_counted(serve) -> None:
    server = serve(reply("ok"))
    server.llm.engine._drafter = server.llm.engine.scheduler._drafter = None
    body = server.chat("hi").json
    assert "draft_n" not in body["timings"]
    details = body["usage"]["completion_tokens_details"]
    assert details["accepted_prediction_tokens"] == details["rejected_prediction_tokens"] == 0
