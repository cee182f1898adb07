"""A part of speculation.py: dure with one setting of speculation, in a process of its own.

Each line in is a JSON object {"work", "turn", "size", "warm"}, each line out what the answer took.
The first line out says what the process is.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import os
import sys
import time
from typing import Any

from speculation_work import HOSTILE_SYMBOLS, WORDS, WORK, Work, drawn_prompt

from dure import LLM, SamplingParams
from dure.chat.prompt import PreparedRequest
from dure.chat.request import ChatRequest, Format
from dure.chat.usage import Usage

NEUTRAL: dict[str, Any] = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}


class Side:
    """One LLM, and what it is asked."""

    def __init__(self, model: str, speculate: str, **more: Any) -> None:
        self.notes: list[str] = []
        if "speculate" in inspect.signature(LLM.__init__).parameters:
            more["speculate"] = speculate
        elif speculate != "off":
            self.notes.append("this build has no `speculate`: it drafts nothing")
        self.llm = LLM(model, **more)
        known = {field.name for field in dataclasses.fields(PreparedRequest)}
        self.knows_predictions = "prediction_ids" in known
        if speculate != "off" and not self.knows_predictions:
            self.notes.append("this build has no `prediction_ids`: the prediction is left out")

    def answer(self, work: Work, turn: int, size: int, warm: bool) -> dict[str, Any]:
        """Do the work once; return tokens, seconds and counts."""
        prepared = self.requests(work, turn, size, warm)
        begun, cpu = time.perf_counter(), time.process_time()
        completions = self.llm.driver.answer(prepared)
        total, cpu = time.perf_counter() - begun, time.process_time() - cpu
        usage = Usage.of_prompts(each.usage for each in completions)
        decoded = usage.output_tokens - len(completions)  # after the first of each
        return {
            "answers": [each.token_ids for each in completions],
            "text": completions[0].text,
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.cached_tokens,
            "output_tokens": usage.output_tokens,
            "prefill_s": usage.prefill_s,
            "total_s": total,
            "cpu_s": cpu,
            "decode_tps": decoded / usage.decode_s,
            "drafted": usage.drafted_tokens,
            "accepted": usage.accepted_tokens,
        }

    def requests(self, work: Work, turn: int, size: int, warm: bool) -> list[PreparedRequest]:
        """Prepare the work's requests.

        Each round has a salt of its own, so that it finds neither the prompt nor the answer of the
        round before. A warm one finds the prompt, and so does a prompt of drawn tokens, which is
        long; its last tokens differ from round to round.
        """
        salt = work.name if warm or work.drawn else f"{work.name} {turn}"
        if work.drawn:
            return [self.drawn(work, turn, size, salt)]
        form = None if work.schema is None else Format("json_schema", work.schema)
        prepared = []
        for number, said in enumerate(work.chats):
            chat = ChatRequest([{"role": "user", "content": said}], format=form)
            params = SamplingParams(
                max_tokens=work.tokens, seed=work.seed(turn, number), **NEUTRAL, **work.sampling
            )
            prepared.append(self.llm.prepare(chat, params, cache_salt=salt))
        if work.prediction and self.knows_predictions:
            ids = self.llm.tokenizer.encode(work.prediction, add_special=False, parse_special=False)
            brought: dict[str, Any] = {"prediction_ids": tuple(ids)}
            prepared = [dataclasses.replace(each, **brought) for each in prepared]
        return prepared

    def drawn(self, work: Work, turn: int, size: int, salt: str) -> PreparedRequest:
        """Prepare a prompt of drawn tokens; an answer of symbols takes no others."""
        symbols = self.symbols(work)
        params: dict[str, Any] = {**NEUTRAL, **work.sampling}
        if work.drawn == "symbols":
            params["logit_bias"] = dict.fromkeys(symbols[:HOSTILE_SYMBOLS], 100.0)
            params["top_k"] = HOSTILE_SYMBOLS
        ids = drawn_prompt(work.drawn, symbols, size, turn)
        sampling = SamplingParams(max_tokens=work.tokens, seed=work.seed(turn, 0), **params)
        return self.llm.prepare(ids, sampling, cache_salt=salt)

    def symbols(self, work: Work) -> list[int]:
        """Return the tokens that the prompt is drawn from: words, or those of a made cycle."""
        if work.drawn == "cycle":
            return list(range(1, self.llm.model.vocab_size))
        encode = self.llm.tokenizer.encode
        words = [
            encode(f" {word}", add_special=False, parse_special=False) for word in WORDS.split()
        ]
        symbols = [ids[0] for ids in words if len(ids) == 1]
        if len(symbols) < HOSTILE_SYMBOLS:
            raise SystemExit("The vocabulary has too few of the words that prompts are drawn from.")
        return symbols


def main() -> None:
    """Load, say what this is, then do one piece of work a line until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model")
    parser.add_argument("--speculate", default="off")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--quantize")
    options = parser.parse_args()
    # What is printed on the way must not end up among the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    side = Side(**vars(options))
    side.llm.generate(["One, two,"], SamplingParams(max_tokens=32, temperature=0, ignore_eos=True))
    facts = {"notes": side.notes, "threads": side.llm.threads, "context": side.llm.context}
    print(json.dumps(facts), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        done = side.answer(WORK[asked.pop("work")], **asked)
        print(json.dumps(done), file=answers, flush=True)


if __name__ == "__main__":
    main()
