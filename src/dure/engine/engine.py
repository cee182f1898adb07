"""Engine: requests in, tokens out, one step at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from dure.batch import BLOCK_SIZE, CacheOps, PassInterruptedError, PassLostError
from dure.engine.block_pool import BlockPool, root_digest
from dure.engine.kv_manager import KVCacheManager
from dure.engine.passes import (
    Draws,
    Flight,
    Flights,
    StepOutput,
    count_experts,
    errors_of,
    lost_error,
    result_of,
)
from dure.engine.pooling import Pooler
from dure.engine.request import (
    FinishReason,
    Request,
    SamplingParams,
    TokenLogprobs,
    check_fits,
    check_ids,
    check_prompt,
    check_room,
    choices_of,
    ends_of,
    output_limit,
)
from dure.engine.roster import Roster
from dure.engine.sampler import Sampler, SamplingFunctions
from dure.engine.scheduler import Chunk, Scheduler, Stats
from dure.engine.states import StatePool
from dure.engine.windows import WindowBlocks
from dure.errors import InvalidRequestError
from dure.metering.meter import Meter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dure.engine.grammar import Grammar
    from dure.engine.passes import Runner
    from dure.engine.pooling import PoolingParams
    from dure.engine.sampler import Sampled
    from dure.engine.spec_decode.draft import Drafter
    from dure.metering.meter import Account


class Engine:
    """Runs many requests over one model and one paged cache. To be used from one thread.

    With n > 1 each choice is a Request: choice 0 has the id asked for, choice i has "id:i".
    """

    def __init__(
        self,
        runner: Runner,
        *,
        max_batch_tokens: int = 512,
        max_prefill_tokens: int = 0,
        max_sequences: int = 64,
        model_id: str = "",
        eos_ids: AbstractSet[int] = frozenset(),
        unused_ids: Sequence[int] = (),
        threads: int = 1,
        sampling: SamplingFunctions | None = None,
        drafter: Drafter | None = None,
        meter: Meter | None = None,
        row_bytes: int = 0,
    ) -> None:
        """Make an engine over a runner.

        runner: computes the batches, and owns the cache. max_prefill_tokens: of a step in which
        nobody decodes, if more than max_batch_tokens. threads: of sampling; the model has its
        own number. drafter: guesses tokens, so that a step may bring several; no output changes.
        unused_ids: rows of logits that no token has (safetensors pad the vocabulary, and tokenizers
        leave ids out): they are never drawn, though a prompt may have them. meter: of the process,
        which hands out what steps take. row_bytes: weights that one row goes through, as against
        the keys and values it reads; 0: not known.
        """
        limits = {
            "num_blocks": runner.num_blocks,
            "max_batch_tokens": max_batch_tokens,
            "max_sequences": max_sequences,
        }
        for name, value in limits.items():
            if value < 1:
                raise InvalidRequestError(f"{name} must be at least 1, but is {value}.")
        self.runner = runner
        self.model_id = model_id
        self.eos_ids = frozenset(eos_ids)
        self.pool = BlockPool(runner.num_blocks)
        self.states = StatePool(runner.num_states)
        self.windows = WindowBlocks(runner.window, runner.num_window_blocks)
        self.scheduler = Scheduler(
            KVCacheManager(self.pool, self.states, self.windows),
            max_batch_tokens=max_batch_tokens,
            max_prefill_tokens=max_prefill_tokens,
            max_sequences=max_sequences,
            drafter=drafter,
        )
        self.sampler = Sampler(sampling, threads=threads, unused_ids=unused_ids)
        self._drafter = drafter
        self.meter = meter or Meter()
        self._work = runner.step_work(row_bytes)
        self._ended: dict[Request, FinishReason] | None = None  # while tokens are drawn
        self._flights = Flights(runner, self.scheduler, self._shares)
        self._landed = 0.0  # when the last of them was finished
        self._late: list[StepOutput] = []  # of passes that were finished between two steps
        self._roster = Roster()
        self._limits = {  # of a request, in tokens
            "context_length": runner.context_length,
            "cache_tokens": runner.num_blocks * BLOCK_SIZE,
        }

    def add(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        cache_salt: str = "",
        priority: int = 0,
        grammar: Grammar | None = None,
        deferred: bool = False,
        prediction_ids: Sequence[int] = (),
    ) -> Request:
        """Queue a request and return its first choice, whose `choices` are all n of them.

        Only requests of one `cache_salt` find each other's prefixes. One of a lower `priority` goes
        first, and in the place of one of a higher if there is no room for both. Each keeps to
        `grammar`, if there is one: at once, or if `deferred` from when its state is told to begin.
        prediction_ids: what the answer may be, in whole or in parts: guesses, which change nothing.
        Raises InvalidRequestError for an empty prompt, an id outside the vocabulary or a request
        id in use; ContextLengthError if prompt and max_tokens exceed the context or the cache.
        """
        params = params.resolve({})
        prompt = check_prompt(prompt_ids, self.runner.vocab_size)
        check_ids(params, self.runner.vocab_size)
        limit = output_limit(len(prompt), params.max_tokens, **self._limits)
        choices = choices_of(
            self._roster.new_name("request") if request_id is None else request_id,
            prompt,
            params,
            max_output=limit,
            root=root_digest(cache_salt, self.model_id),
            min_tokens_banned_ids=ends_of(params, self.eos_ids, self.runner.vocab_size),
            priority=priority,
            start=partial(grammar.start, deferred=deferred) if grammar else None,
            prediction_ids=tuple(i for i in prediction_ids if 0 <= i < self.runner.vocab_size),
        )
        self._enter(choices)
        return choices[0]

    def add_pooling(
        self,
        prompt_ids: Sequence[int],
        pooling: PoolingParams,
        *,
        cache_salt: str = "",
        priority: int = 0,
    ) -> Request:
        """Queue a prompt whose hidden states are pooled: nothing is drawn, and no logits computed.

        Its only output has no tokens and the reason "stop"; `Request.pooler.result()` is then the
        vector. Raises what `add` does.
        """
        prompt = check_prompt(prompt_ids, self.runner.vocab_size)
        check_fits(len(prompt), **self._limits)
        request = Request(
            id=self._roster.new_name("pooling"),
            prompt_ids=prompt,
            params=SamplingParams().resolve({}),
            seed=0,
            max_output=0,
            # Its blocks are its own: a draft head's part of them is not computed.
            root=root_digest(cache_salt, f"{self.model_id} pooled"),
            priority=priority,
            pooler=Pooler(pooling, len(prompt)),
        )
        self._enter((request,))
        return request

    def step(self, interrupted: Callable[[], bool] | None = None) -> list[StepOutput]:
        """Begin passes as far as there may be more, and finish the oldest.

        Returns at most one output a request. interrupted: asked between two layers; if it says True
        the pass is given up with a PassInterruptedError, and the next step computes the same again.
        """
        if self._late:
            outputs, self._late = self._late, []
            return outputs
        try:
            self._fill(interrupted)
            outputs = self._finish_pass() if self._flights else self._rest()
        except PassInterruptedError:
            raise
        except PassLostError:
            outputs = self._lose()
        except Exception:
            self._start_over()
            raise
        self.check_idle()
        return outputs

    def abort(self, request_id: str) -> None:
        """End the request, by choice 0's id all its choices, and take the blocks back.

        A request that has finished, or was never there, is no error.
        """
        for request in self._roster.asked_by(request_id):
            self._end(request, "abort")
        self.check_idle()

    def finish(self, request_id: str, *, reason: FinishReason = "stop") -> None:
        """End this one choice as if a stop token had come: its text is complete.

        Whoever watches a request may say so in the midst of a step: it ends with that.
        """
        request = self._roster.get(request_id)
        if request is not None and self._ended is not None:
            self._ended[request] = reason
            return
        if request is not None:
            self._end(request, reason)
        self.check_idle()

    def force_tokens(self, request_id: str, token_ids: Sequence[int]) -> None:
        """Make these the next tokens of this one choice, whatever is drawn."""
        request = self._roster.get(request_id)
        if request is not None:
            request.forced_tokens.extend(token_ids)

    def give_up(self, request: Request) -> None:
        """Let a request go, with all of its choices, for another engine to `take_over`.

        No pass may be on its way with it. What it has so far stays with it.
        """
        for each in request.choices:
            self.scheduler.give_up(each)
        self._roster.leave_together(request.choices)
        self.check_idle()

    def take_over(self, requests: Sequence[Request]) -> None:
        """Go on with requests, and all of their choices, that another engine of the model gave up.

        Their tokens so far are computed as a prompt is, and the same bits follow. They keep their
        turn. Raises ContextLengthError, and takes none, if there is less room here.
        """
        for request in requests:
            check_room(request, **self._limits)
        for request in requests:
            self._roster.rename(request.choices)
            self._enter(request.choices)

    @property
    def has_work(self) -> bool:
        """Whether a request waits or runs, or a pass is on its way."""
        return bool(self._roster or self._flights or self._late)

    @property
    def cache_in_use(self) -> float:
        """Share of cache blocks that requests hold, 0 to 1: of layers with a window if more."""
        pools = [self.pool, self.windows.pool] if self.windows else [self.pool]
        return max(1 - pool.num_free / pool.num_blocks for pool in pools)

    @property
    def stats(self) -> Stats:
        """Counts since the engine was made; the same object all the time."""
        return self.scheduler.stats

    def check_idle(self) -> None:
        """Raise RuntimeError if no request is left but a block or a place in a queue is."""
        if self._roster:
            return
        waits = self.scheduler.waiting or self.scheduler.running
        if waits or not self._roster.is_consistent:
            raise RuntimeError("finished requests are still queued")
        self.scheduler.check()

    def _enter(self, choices: tuple[Request, ...]) -> None:
        """Queue all choices of one request; InvalidRequestError if an id is in use."""
        self._roster.enter(choices)
        for request in choices:
            self.scheduler.add(request)

    def _shares(self, chunks: Sequence[Chunk]) -> list[tuple[Account, float]]:
        """Return whose accounts pay which share of a step of these chunks."""
        shares = self._work.shares([(chunk.start, chunk.count) for chunk in chunks])
        return [(each.request.account, share) for each, share in zip(chunks, shares, strict=True)]

    def _fill(self, interrupted: Callable[[], bool] | None) -> None:
        """Begin as many passes as the runner takes and there is work for."""
        passes = self.runner.passes
        while len(self._flights) < passes and (chunks := self.scheduler.schedule(passes)):
            self._flights.begin(chunks, self.scheduler.take_cache_ops(), interrupted)

    def _finish_pass(self) -> list[StepOutput]:
        """Finish the oldest pass, and return its outputs.

        What the model raises ends requests alone. Nobody can tell whose fault it was, so each is
        computed again by itself: its bits are the same. A recurrent state that was left in the
        middle of a pass cannot be taken back; nor can a pass that others were begun behind.
        """
        flight = self._flights.pop()
        try:
            logits = self.runner.finish()
        except (PassInterruptedError, PassLostError):
            raise
        except Exception as error:
            outputs = self._computed_alone(flight.chunks, error)
        else:
            outputs = self._take(flight, logits)
        self.meter.settle(self, flight.shares, exact=any(each.finish_reason for each in outputs))
        self.stats.steps += 1
        return outputs

    def _computed_alone(self, chunks: Sequence[Chunk], error: Exception) -> list[StepOutput]:
        """Compute each chunk of a failed pass by itself, or end their requests with the error."""
        if self.runner.passes > 1:
            outputs = [
                self._fail(each.request, error) for each in chunks if each.request in self._roster
            ]
            self._start_over()  # rows that were begun behind these may have read what they left
        elif len(chunks) == 1 or self.states:
            outputs = [self._fail(chunk.request, error) for chunk in chunks]
        else:
            outputs = []
            for chunk in chunks:
                # The pass that failed has done what it was to do to the cache already.
                self._flights.begin([chunk], CacheOps())
                flight = self._flights.pop()
                try:
                    logits = self.runner.finish()
                except Exception as its_own:
                    outputs.append(self._fail(chunk.request, its_own))
                else:
                    outputs += self._take(flight, logits)
        return outputs

    def _start_over(self) -> None:
        """Let all that runs be computed again, its tokens so far as its prompt."""
        self._flights.clear()
        self.scheduler.start_over()

    def _lose(self) -> list[StepOutput]:
        """Start over after a loss; return the ends of those that are not computed again."""
        ended = self._flights.lose()
        self._start_over()
        return [self._fail(each, lost_error()) for each in ended]

    def _take(self, flight: Flight, logits: NDArray[np.float32]) -> list[StepOutput]:
        """Draw tokens from a pass's logits, and return what it brought."""
        chunks, now = flight.chunks, time.perf_counter()
        seconds = now - max(flight.began, self._landed)
        self._landed = now
        if any(chunk.request.watch is not None for chunk in chunks):
            self.meter.settle(self, flight.shares)  # who watches a token may end its answer with it
        stats = self.runner.expert_stats
        if stats is not None and flight.before is not None:
            count_experts(chunks, stats.use - flight.before)
        self._ended = {}
        try:
            draws = self._draw(chunks, logits, errors_of(chunks, self.runner.row_errors))
        finally:
            ended, self._ended = self._ended, None
        for each in draws:
            each.reason = each.reason or ended.get(each.chunk.request)
        self._pool(chunks)
        outputs = [self._conclude(each) for each in draws]
        if self._drafter is not None:
            self._drafter.observe(result_of(draws, seconds))
        return [output for output in outputs if output is not None]

    def _draw(
        self,
        chunks: Sequence[Chunk],
        logits: NDArray[np.float32],
        errors: Sequence[Exception | None],
    ) -> list[Draws]:
        """Draw from the logits what each chunk that ends in tokens gets, if it has no error."""
        draws, row = [], 0
        for chunk, error in zip(chunks, errors, strict=True):
            if chunk.num_scored and error is None:
                done = len(chunk.request.prompt_logprobs) - 1 - chunk.start
                self.sampler.score(chunk.request, logits[row + done : row + chunk.num_scored])
            draws.append(Draws(chunk, row + chunk.num_scored, error=error))
            row += len(chunk.logit_rows)
        asking = [each for each in draws if each.chunk.num_sampled and each.error is None]
        while asking:  # once, and once more for every draft that was right
            rows = [each.row for each in asking]
            chosen = logits if len(rows) == len(logits) else logits[rows]
            drawn = self.sampler.sample([each.chunk.request for each in asking], chosen)
            asking = [
                each for each, one in zip(asking, drawn, strict=True) if self._accept(each, one)
            ]
        return draws

    def _pool(self, chunks: Sequence[Chunk]) -> None:
        """Give the hidden states of the last pass to the requests that pool theirs."""
        row, hidden = 0, self.runner.pooled
        for chunk in chunks:
            if chunk.request.pooler is not None and hidden is not None:
                count = len(chunk.hidden_rows)
                chunk.request.pooler.add(chunk.start, hidden[row : row + count])
                row += count

    def _accept(self, draws: Draws, drawn: Sampled) -> bool:
        """Take what was drawn for the chunk.

        Returns whether its next draft was right, so that the row after it counts, too.
        """
        request, drafts = draws.chunk.request, draws.chunk.drafts
        if isinstance(drawn, Exception):  # a row of NaN, or a kernel that refuses it
            draws.error = drawn
            return False
        forced = request.forced_tokens
        token_id, logprobs = (forced.popleft(), None) if forced else drawn
        draws.token_ids.append(token_id)
        draws.logprobs.append(logprobs)
        draws.reason = self._append(request, token_id, logprobs)
        draws.row += 1
        depth = len(draws.token_ids)
        if draws.reason is not None or depth > len(drafts) or drafts[depth - 1] != token_id:
            return False
        return request.watch is None or request.watch(token_id, logprobs)

    def _conclude(self, draws: Draws) -> StepOutput | None:
        """Commit the chunk, and end its request if it failed or is done; None without tokens."""
        chunk, request, accepted = draws.chunk, draws.chunk.request, len(draws.token_ids)
        if self._flights.counts_early(chunk):
            return None
        if draws.error is not None and not accepted:  # behind a draft the next step will tell
            return self._fail(chunk.request, draws.error)
        self.scheduler.commit(chunk, rejected=max(0, chunk.num_sampled - accepted))
        if request.pooler is not None and request.num_uncomputed_tokens == 0:
            self._finish(request, "stop")
            return StepOutput(request, (), (), "stop")
        if not accepted:
            return None
        if draws.reason is not None:
            self._finish(request, draws.reason)
        return StepOutput(request, tuple(draws.token_ids), tuple(draws.logprobs), draws.reason)

    def _append(
        self, request: Request, token_id: int, logprobs: TokenLogprobs | None
    ) -> FinishReason | None:
        """Add one more token to the request; return why it is the last, if it is."""
        request.append(token_id)
        self.stats.output_tokens += 1
        if logprobs is not None:
            request.logprobs.append(logprobs)
        params = request.params
        ends = token_id in self.eos_ids and not params.ignore_eos
        if ends or token_id in params.stop_token_ids:
            request.stop_token_id = token_id
            return "stop"
        if request.constraint is not None and request.constraint.accept(token_id):
            return "stop"
        return "length" if len(request.output_ids) == request.max_output else None

    def _fail(self, request: Request, error: Exception) -> StepOutput:
        request.error = error
        self.stats.failed += 1
        self._finish(request, "error")
        return StepOutput(request, (), (), "error")

    def _end(self, request: Request, reason: FinishReason) -> None:
        """End a request between two steps, when no pass has it any more."""
        while request.in_flight:
            try:
                outputs = self._finish_pass()
            except PassLostError:
                outputs = self._lose()
            self._late += [each for each in outputs if each.request is not request]
        if not request.is_finished:
            self._finish(request, reason)

    def _finish(self, request: Request, reason: FinishReason) -> None:
        request.finish_reason = reason
        self.scheduler.finish(request, forget=reason == "error")
        self.stats.finished += 1
        self._roster.leave(request)

    def _rest(self) -> list[StepOutput]:
        """Return no output; RuntimeError if requests wait, so that no caller spins for ever."""
        if self._roster:
            raise RuntimeError("requests wait, but none can be scheduled")
        return []
