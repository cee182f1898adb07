"""dure plan: what a model needs and does on this machine, before it is downloaded."""

# ruff: noqa: PLC0415 - families and kernels are loaded when the verb runs, not for its --help

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dure.cli import console
from dure.cli.plan_picture import draw

if TYPE_CHECKING:
    from dure.planning.machine import Machine
    from dure.planning.plan import ModelPlan, Wish
    from dure.planning.vendor_prices import VendorPrice


def command(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            show_default=False,
            help="Short names, hub ids, files or folders; without one, the whole catalogue.",
        ),
    ] = None,
    *,
    memory: console.Memory = None,
    context: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of each conversation [default: what fits, up to 32768]."),
    ] = None,
    users: Annotated[int, typer.Option(min=1, max=1024, help="Conversations at once.")] = 1,
    replicas: Annotated[
        int,
        typer.Option(
            min=1,
            max=64,
            metavar="N",
            help="Engines over the same weights, as `dure serve --replicas`: each has a cache for "
            "its part of the users.",
        ),
    ] = 1,
    quantize: console.Quantize = None,
    currency: Annotated[
        str | None,
        typer.Option(metavar="USD|CNY", help="Show vendors' prices in this currency."),
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Yuan for a dollar [default: 7.0510, of 2024-09-24].")
    ] = None,
    watts: console.WattsOption = None,
    price: console.Price = None,
    machine: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Plan for the machine that --save-machine wrote."),
    ] = None,
    save_machine: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write what this machine can do.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw speed against depth and users: an .svg or .png, or - for the terminal.",
        ),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, or a list of them.")
    ] = False,
) -> None:
    """Plan models: whether they fit, with which context and how many users, memory part by part,
    how fast they are, and what vendors charge. Of a model that is not here only the headers are
    fetched, some MB of it; of the catalogue's models nothing. The machine is measured once, in
    some 20 s.
    """
    from dure.errors import InvalidRequestError
    from dure.planning.machine import write_machine
    from dure.planning.plan import Wish
    from dure.planning.vendor_prices import check_currency, check_rate

    if currency is not None:
        currency = check_currency(currency.upper())
    if rate is not None:
        check_rate(rate)
        if currency is None:
            raise InvalidRequestError(
                "--rate converts vendors' prices, and nothing says into which currency.",
                hint="add --currency USD or --currency CNY",
            )
    measured = _machine(machine)
    if save_machine is not None:
        write_machine(measured, save_machine)
        console.note(f"{save_machine}: {measured.processor}, {measured.threads} threads")
        if not models:
            return
    wish = Wish(
        context=context,
        users=users,
        replicas=replicas,
        budget=console.memory_budget(memory),
        available=None if machine is None else measured.memory_bytes,
        quantize=quantize,
        prices=console.prices(price),
        watts=console.watts(watts),
    )
    found, problems = _plans(models or [], wish, measured)
    unit = "" if wish.prices is None else wish.prices.currency
    told = [{**_described(plan, currency, rate), "currency": unit} for plan in found]
    if json:
        whole: list[dict[str, Any]] = [*told, *problems]
        console.print_json(whole[0] if models is not None and len(models) == 1 else whole)
    elif models is not None and len(models) == 1 and not problems:
        _print_page(told[0])
    else:
        _print_table(told, problems)
    if plot is not None:
        draw(found, plot)


def _machine(path: Path | None) -> Machine:
    """Return the machine of a file, or this one, which is measured if it was not before."""
    from dure.planning.machine import read_machine
    from dure.planning.measure import this_machine

    if path is not None:
        return read_machine(path)
    return this_machine(progress=lambda what: console.note(f"measuring this machine: {what}"))


def _plans(
    models: list[str], wish: Wish, machine: Machine
) -> tuple[list[ModelPlan], list[dict[str, Any]]]:
    """Return the plans in order, and what could not be planned of several models, with why.

    Raises the error of a model that is the only one.
    """
    from dure import hub
    from dure.cli.progress import PullReport
    from dure.errors import DureError
    from dure.planning.plan import plan_model, ranked

    names = models or [entry.name for entry in hub.load_catalogue().entries if entry.is_known]
    found: list[ModelPlan] = []
    problems: list[dict[str, Any]] = []
    for name in names:
        try:
            with PullReport() as report:
                found.append(plan_model(name, wish, machine=machine, progress=report))
        except DureError as error:
            if len(models) == 1:
                raise
            problems.append({"name": name, "problem": error.message, "hint": error.hint})
    return (found if models else ranked(found)), problems


def _described(plan: ModelPlan, currency: str | None, rate: float | None) -> dict[str, Any]:
    memory, work = plan.memory, plan.work
    return {
        "name": plan.name,
        "family": work.family,
        "parameters": plan.parameters,
        "active_bytes": work.active_bytes,
        "layers": work.layers,
        "context_limit": work.context,
        "origin": asdict(plan.origin),
        "fits": memory.fits,
        "streams": memory.streams,
        "memory": {
            **asdict(memory),
            "weight_bytes": memory.weight_bytes,
            "peak_bytes": memory.peak_bytes,
        },
        "speed": None if plan.speeds is None else asdict(plan.speeds),
        "cost": None
        if plan.costs is None
        else {**asdict(plan.costs), "energy": plan.costs.energy_source},
        "vendor": _priced(plan, currency, rate),
    }


def _priced(plan: ModelPlan, currency: str | None, rate: float | None) -> dict[str, Any] | None:
    from dure.planning.vendor_prices import RATE_DATE, YUAN_PER_DOLLAR

    price = plan.vendor
    if price is None:
        return None
    used = YUAN_PER_DOLLAR if rate is None else rate
    shown: VendorPrice = price.in_currency(currency or price.currency, used)
    converted = shown.currency != price.currency
    said = {"yuan_per_dollar": used, "rate_date": RATE_DATE if rate is None else None}
    return {**asdict(shown), "same_model": plan.vendor_is_same, **(said if converted else {})}


def _print_page(plan: dict[str, Any]) -> None:
    from dure.hub import human_bytes
    from dure.weights.quantize import integers_said

    memory = plan["memory"]
    for label, text in [
        ("model", plan["name"]),
        ("family", f"{plan['family']}, {_billions(plan['parameters'])} parameters"),
        ("headers", _origin(plan["origin"])),
        ("runs", _runs(memory)),
        ("context", _context(memory, plan["context_limit"])),
        ("weights", _weights(memory["weights"])),
        ("computed", integers_said({*memory["weights"], *memory["experts"]})),
        ("experts", _experts(memory)),
        ("cache", _cache(memory)),
        ("states", human_bytes(memory["state_bytes"]) if memory["state_bytes"] else ""),
        ("buffers", human_bytes(memory["buffer_bytes"])),
        ("process", f"{human_bytes(memory['process_bytes'])}: interpreter, vocabulary, texts"),
        ("in all", _in_all(memory)),
        *_speeds(plan["speed"]),
        *_costs(plan["cost"], plan["currency"]),
        ("vendors", _vendor(plan["vendor"])),
    ]:
        if text:
            console.write(f"{label:<11}{_plain(text)}\n")


def _print_table(plans: list[dict[str, Any]], problems: list[dict[str, Any]]) -> None:
    from dure.hub import human_bytes

    table: list[tuple[str, ...]] = [
        (
            *("MODEL", "PARAMETERS", "FILES", "MEMORY", "RUNS", "CONTEXT", "USERS"),
            *("PROMPT", "1 STREAM", "8", "32", "VENDORS, OUT"),
        )
    ]
    for plan in plans:
        memory, price = plan["memory"], plan["vendor"]
        runs = "from disk" if plan["streams"] else "yes" if plan["fits"] else "no"
        about = "" if price is None or price["same_model"] else "~"
        table.append(
            (
                _plain(plan["name"]),
                _billions(plan["parameters"]),
                human_bytes(plan["origin"]["model_bytes"]),
                human_bytes(memory["peak_bytes"]),
                runs,
                f"{memory['context']:,}",
                f"{memory['most_users']:,}",
                *_cells(plan["speed"]),
                "-" if price is None else f"{about}{price['output']:.2f} {price['currency']}",
            )
        )
    for line in console.aligned(table):
        console.write(line + "\n")
    for problem in problems:
        console.write(f"{_plain(problem['name'])}: {_plain(problem['problem'])}\n")
    console.note(
        "(MEMORY: of one process at its peak. USERS: conversations of that context that fit. "
        "PROMPT and STREAMS: tokens a second. VENDORS: a million tokens of answers; ~: of the "
        "nearest model)"
    )


def _cells(speed: dict[str, Any] | None) -> tuple[str, ...]:
    """Return tokens a second of a short prompt, and of 1, 8 and 32 streams that begin."""
    from dure.planning.figures import significant

    if speed is None:
        return ("-",) * 4
    decode = (by_depth[0] for by_depth in speed["decode"].values())
    return tuple(significant(tps) for tps in (next(iter(speed["prefill"].values())), *decode))


def _origin(origin: dict[str, Any]) -> str:
    from dure.hub import human_bytes

    size = human_bytes(origin["model_bytes"])
    if origin["kind"] == "file":
        return f"{origin['where']}, {size}"
    if origin["kind"] == "catalogue":
        return f"known to the catalogue; {size} to download"
    fetched = human_bytes(origin["fetched_bytes"])
    return f"{fetched} fetched from {origin['where']}; {size} to download"


def _runs(memory: dict[str, Any]) -> str:
    from dure.hub import human_bytes

    if memory["problem"]:
        return f"no: {memory['problem']} {memory['hint']}".strip()
    there = "the budget" if memory["budget"] else "what is free"
    used, room = human_bytes(memory["peak_bytes"]), human_bytes(memory["available_bytes"])
    kept = memory["experts_kept"] < sum(memory["experts"].values())
    how = "yes, with experts on disk" if kept else "yes"
    return f"{how}: {used} of {room}, {there}"


def _context(memory: dict[str, Any], limit: int) -> str:
    users = "1 user" if memory["users"] == 1 else f"{memory['users']:,} users"
    said = f"{memory['context']:,} tokens for {users}"
    return (
        f"{said}; {memory['most_context']:,} would fit (the model's limit is {limit:,}), "
        f"or {memory['most_users']:,} users of {memory['context']:,}"
    )


def _weights(weights: dict[str, int]) -> str:
    from dure.hub import human_bytes

    parts = ", ".join(f"{name} {human_bytes(size)}" for name, size in weights.items())
    return f"{human_bytes(sum(weights.values()))}: {parts}"


def _experts(memory: dict[str, Any]) -> str:
    from dure.hub import human_bytes

    whole = sum(memory["experts"].values())
    if not whole:
        return ""
    kinds = ", ".join(f"{name} {human_bytes(size)}" for name, size in memory["experts"].items())
    kept = memory["experts_kept"]
    if kept == whole:
        return f"{human_bytes(whole)}: {kinds}"
    share = 100 * kept // whole
    return f"{human_bytes(kept)} ({share} %) of {human_bytes(whole)} in memory, the rest on disk"


def _cache(memory: dict[str, Any]) -> str:
    from dure.hub import human_bytes

    if not memory["cache_bytes"]:
        return ""
    each = human_bytes(memory["token_bytes"])
    caches = f" in {memory['replicas']} replicas" if memory["replicas"] > 1 else ""
    return f"{human_bytes(memory['cache_bytes'])}{caches}: {each} a token"


def _in_all(memory: dict[str, Any]) -> str:
    from dure.hub import human_bytes

    said = f"{human_bytes(memory['peak_bytes'])} at the peak"
    reserved = memory["reserved_bytes"]
    return f"{said}; loading sets {human_bytes(reserved)} aside" if reserved else said


def _speeds(speed: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Return the lines of speeds: prompts, then one for each number of streams."""
    from dure.planning.figures import significant

    if speed is None:
        return []
    lines = [
        (
            "prompts",
            ", ".join(
                f"{significant(tps)} tokens/s of {tokens:,} (first token after "
                f"{significant(speed['first_token_s'][tokens])} s)"
                for tokens, tps in speed["prefill"].items()
            ),
        )
    ]
    for streams, by_depth in speed["decode"].items():
        of = "1 stream" if streams == 1 else f"{streams} streams"
        each = ", ".join(
            f"{significant(tps)} at depth {depth:,}" for depth, tps in by_depth.items()
        )
        lines.append((of, f"{each} (tokens/s of all)"))
    lines += [("assumed", text) for text in speed["assumed"]]
    return lines


def _costs(cost: dict[str, Any] | None, currency: str) -> list[tuple[str, str]]:
    """Return the lines of what a million tokens take and cost: in, then out by streams."""
    from dure.planning.figures import kilowatt_hours, significant

    if cost is None:
        return []
    kinds = {"in": cost["input"]}
    kinds |= {f"out of {streams}": each for streams, each in cost["output"].items()}
    lines = []
    if cost["input"]["joules"] is None:
        lines.append(("energy", "unknown: name the machine's watts by --watts IDLE,BUSY"))
    else:
        each = ", ".join(f"{kilowatt_hours(of['joules'])} {kind}" for kind, of in kinds.items())
        lines.append(("energy", f"{each} (a million tokens, {cost['energy']})"))
    if cost["input"]["money"] is not None:
        each = ", ".join(f"{significant(of['money'])} {kind}" for kind, of in kinds.items())
        lines.append(("money", f"{currency} {each} (a million tokens)"))
    return lines


def _vendor(price: dict[str, Any] | None) -> str:
    if price is None:
        return "no price known"
    cached = "" if price["cached_input"] is None else f", {price['cached_input']:.3g} cached"
    whose = price["model"] if price["same_model"] else f"{price['model']}, the nearest"
    said = (
        f"{price['vendor']} asks {price['input']:.3g} {price['currency']} in{cached}, "
        f"{price['output']:.3g} out, for a million tokens of {whose} "
        f"({price['as_of']}, {price['source']})"
    )
    if "yuan_per_dollar" in price:
        of = "" if price["rate_date"] is None else f", of {price['rate_date']}"
        said += f"; at {price['yuan_per_dollar']:g} yuan a dollar{of}"
    return said


def _billions(parameters: int) -> str:
    from dure.cli.show import count_of

    return count_of(parameters)


def _plain(text: str) -> str:
    """Return a line without what a terminal would take for commands."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable())
