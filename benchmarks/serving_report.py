"""The results of `benchmarks/serving.py` as tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Result = dict[str, Any]

SERVICES = {
    "small": "12,000 items, 128 wide, 2 layers, made up",
    "model": "the trained model",
    "million": "1 million items, 64 wide, 2 layers, made up",
}


def number(value: float | None, digits: int = 2) -> str:
    """
    >>> number(1234.5), number(0.1234), number(None), number(12.34)
    ('1,234', '0.12', '–', '12.3')
    """
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.{digits}f}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    aligned = [":--", *["--:"] * (len(head) - 1)]
    return [f"| {' | '.join(row)} |" for row in (head, aligned, *rows)]


def get(result: Result, *names: str) -> Any:
    """A nested value; None where a part was not measured, or failed."""
    for name in names:
        if not isinstance(result, dict) or name not in result:
            return None
        result = result[name]
    return result


def aims(results: Result) -> list[str]:
    """What is aimed for, and what was reached."""
    parts, rows = results["parts"], []
    most = 0.8 if results["machine"]["avx512"] else 1.2

    def row(what: str, aim: str, value: float | None, digits: int, holds: bool | None) -> None:
        rows.append((what, aim, number(value, digits), "–" if holds is None else "yes" if holds else "**no**"))

    def below(what: str, limit: float, value: float | None, unit: str) -> None:
        row(what, f"below {limit:g} {unit}", value, 2, None if value is None else value < limit)

    def above(what: str, limit: float, value: float | None, unit: str) -> None:
        row(what, f"at least {limit:,g} {unit}", value, 1, None if value is None else value >= limit)

    rectools = get(parts, "references", "recommend", "p50_ms")
    for name in ("small", "model"):
        if name in parts:
            one = get(parts, name, "one connection", "p50_ms")
            below(f"{SERVICES[name]}: 1 connection, p50", most, one, "ms")
            below("… p99", 3, get(parts, name, "one connection", "p99_ms"), "ms")
            above("… RecTools' call, times as long", 25, rectools / one if rectools and one else None, "times")
            fast = get(parts, name, "open", "2000 a second")
            good = None if fast is None else set(fast["statuses"]) == {"200"}
            p99 = get(parts, name, "open", "2000 a second", "p99_ms")
            row(
                "… 2,000 requests a second, p99",
                "below 10 ms, all 200",
                p99,
                2,
                None if p99 is None else p99 < 10 and good,
            )
            below("… start to ready", 2, get(parts, name, "start", "ready_seconds"), "s")
            below("… memory at ready", 250, get(parts, name, "start", "at_ready", "resident"), "MiB")
    below(
        "1 million items: 50 requests a second, p99", 15, get(parts, "million", "open", "50 a second", "p99_ms"), "ms"
    )
    loads = [load for load in (parts.get("events") or {}).values() if isinstance(load, dict)]
    best = max((load["events_per_second"] for load in loads), default=None)
    above("events that are durable, in batches", 3000, best, "a second")
    below("counting an event, which changes the next answer", 1000, get(parts, "in-process", "count", "p50_us"), "µs")
    ours, theirs = get(parts, "scoring", "users_per_second"), get(parts, "references", "users_per_second")
    above("batch scoring, times RecTools' users a second", 10, ours / theirs if ours and theirs else None, "times")
    return table(("what", "aim", "reached", "holds"), rows)


def service(title: str, found: Result) -> list[str]:
    loads = {"1 connection, closed loop": found["one connection"], "32 connections, closed loop": found["capacity"]}
    loads |= {f"open loop, {name}": load for name, load in found["open"].items()}
    rows = []
    for name, load in loads.items():
        statuses = ", ".join(f"{count:,} × {status}" for status, count in load["statuses"].items() if status != "200")
        latencies = [number(load.get(f"p{each}_ms")) for each in ("50", "95", "99", "99.9")]
        rows.append((name, number(load["good_per_second"]), *latencies, statuses or "none", number(load["late_ms"])))
    start, memory, alone = found["start"], found["start"]["at_ready"], found["in_process"]
    head = ("load", "answers/s", "p50 ms", "p95 ms", "p99 ms", "p99.9 ms", "not 200", "sent late, p99 ms")
    return [
        f"### {title[:1].upper()}{title[1:]}",
        "",
        *table(head, rows),
        "",
        f"Start to ready {number(start['ready_seconds'])} s. Memory at ready {number(memory['resident'])} MiB, "
        f"{number(memory['anonymous'])} of it without mapped files; after the load "
        f"{number(found['after_load']['resident'])} and {number(found['after_load']['anonymous'])} MiB. "
        f"In process, an answer takes {number(alone['answer']['p50_us'])} µs; numpy's product of its table of "
        f"{alone['items']:,} items with one vector {number(alone['floor']['p50_us'])} µs (p50).",
        "",
    ]


def events(found: Result) -> list[str]:
    loads = {name: load for name, load in found.items() if isinstance(load, dict)}
    rows = [
        (
            name,
            number(load["events_per_second"]),
            number(load["counted_per_second"]),
            number(load["p50_ms"]),
            number(load["p99_ms"]),
        )
        for name, load in loads.items()
    ]
    head = ("callers x events of a request", "events/s durable", "events/s counted, too", "p50 ms", "p99 ms")
    return ["### Events", "", *table(head, rows), ""]


def in_process(found: Result) -> list[str]:
    names = {"answer": "an answer", "count": "counting an event", "answer_after_count": "an answer right after that"}
    names |= {"pipeline": "the pipeline's answer", "floor": "floor: the item table times one vector"}
    rows = [(what, number(found[name]["p50_us"]), number(found[name]["p99_us"])) for name, what in names.items()]
    return ["### In process", "", *table(("12,000 items, 50 events", "p50 µs", "p99 µs"), rows), ""]


def peers(found: Result) -> list[str]:
    rows, failed = [], []
    for name, each in found.items():
        if not isinstance(each, dict):
            continue
        if "failed" in each:
            failed.append(f"{name}: {each['failed'][:300]}")
            continue
        one, share = each["one connection"], each["80% of capacity"]
        rows.append((
            name,
            *(number(one[f"p{p}_ms"]) for p in (50, 99)),
            number(each["capacity"]["good_per_second"]),
            *(number(share[f"p{p}_ms"]) for p in (50, 99)),
            number(each["at_ready"]["resident"]),
            number(each["ready_seconds"]),
        ))  # fmt: skip
    head = ("server", "1 connection, p50 ms", "p99 ms", "answers/s", "80 % of that: p50 ms", "p99 ms", "MiB", "start s")
    notes = [
        "LibRecommender's server answers for users of its log alone: their vectors are computed beforehand, and it "
        "searches an approximate index. It reads no history.",
        *failed,
    ]
    return ["### Other servers", "", *table(head, rows), "", *notes, ""]


def report(results: Result) -> str:
    """Everything that was measured; parts that were not are left out."""
    host, parts = results["machine"], results["parts"]
    failed = {name: part for name, part in parts.items() if "failed" in part}
    good = {name: part for name, part in parts.items() if name not in failed}
    vector = "with AVX-512" + (" VNNI" if host["avx512_vnni"] else "") if host["avx512"] else "without AVX-512"
    lines = [
        "# Serving, measured",
        "",
        "By `make bench-serving` (benchmarks/serving.py). "
        f"{host['cpu']}, {host['cores']} cores, {vector}; "
        + ("one core for the service, one for the client. " if host["pinned"] else "nothing pinned to a core. ")
        + f"Python {host['python']}, "
        + ", ".join(f"{name} {version}" for name, version in host["versions"].items())
        + f"; commit {host['commit']}.",
        "",
        "Histories of 50 events, the ten best items, HTTP on the loopback interface. In an open loop requests come as "
        "those of independent users, and latency counts from when each was to be sent.",
        "",
        *aims({"machine": host, "parts": good}),
        "",
    ]
    if "references" in good:
        found = good["references"]
        lines += [
            f"RecTools {found['version']}, SASRec ({found['what']}), {found['items']:,} items, on the same core: "
            f"recommend() for one user with {found['events']} events takes {number(found['recommend']['p50_ms'])} ms, "
            f"{number(found['recommend_dataset_made_before']['p50_ms'])} ms where its dataset was made before; for all "
            f"{found['users']:,} users it answers {number(found['users_per_second'])} users a second.",
            "",
        ]
    for name, title in SERVICES.items():
        if name in good:
            lines += service(title, good[name])
    for name, section in (("events", events), ("in-process", in_process), ("peers", peers)):
        if name in good:
            lines += section(good[name])
    if "scoring" in good:
        found = good["scoring"]
        lines += [
            "### Batch scoring",
            "",
            f"Top 10 of {found['items']:,} items for {found['users']:,} users of {found['log']}: "
            f"{number(found['users_per_second'])} users a second; the pipeline, one user after the other, "
            f"{number(found['pipeline_users_per_second'])}.",
            "",
        ]
    if "imports" in good:
        lines += [f"Importing what the service needs takes {number(good['imports']['seconds'])} s.", ""]
    lines += ["### Runs", ""]
    head = ("part", "date, UTC", "load average before", "repeats", "s a load", "minutes")
    rows = [
        (name, part["date"], number(part["load_average_before"]), str(part["repeats"]), f"{part['seconds']:g}",
         number(part["minutes"], 1))
        for name, part in parts.items()
    ]  # fmt: skip
    lines += [*table(head, rows), ""]
    lines += [f"Failed: {name}: {part['failed'][:400]}" for name, part in failed.items()]
    return "\n".join(lines).rstrip() + "\n"
