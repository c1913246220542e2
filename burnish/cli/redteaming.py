"""The verb that attacks a model: ``redteam``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from burnish.cli.options import AsJson, Model, Offline, Quiet, Seed, escape, print_json
from burnish.errors import InputError

if TYPE_CHECKING:
    from burnish.protocols import Observer
    from burnish.safety.redteam.families import Attack
    from burnish.safety.redteam.measure import Answer

verbs = typer.Typer(rich_markup_mode=None)
SAMPLING: Mapping[str, Any] = {"max_new_tokens": 48, "temperature": 0.7}
"""How a model answers attacks by default."""


@verbs.command()
def redteam(
    model: Model,
    against: Annotated[str | None, typer.Option(help="A second model to compare with, shown as 'before'.")] = None,
    family: Annotated[
        list[str] | None, typer.Option("--family", help="A family of attacks; may be repeated.  [default: all]")
    ] = None,
    each: Annotated[int, typer.Option(min=2, help="Requests per family.")] = 40,
    search: Annotated[int, typer.Option(min=0, help="Further attacks that a bandit spends on what works.")] = 0,
    export: Annotated[
        Path | None, typer.Option(help="Write successful attacks and harmless prompts, as rows to train on.")
    ] = None,
    rehearse: Annotated[
        int, typer.Option(min=0, help="Headlines and conversations to export as well, with the model's answers.")
    ] = 0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = SAMPLING["max_new_tokens"],
    temperature: Annotated[float, typer.Option(min=0.0, help="Sampling temperature.")] = SAMPLING["temperature"],
    side: Annotated[
        str, typer.Option(help="Requests to draw from: all, train or held_out, as recipe safety splits them.")
    ] = "all",
    attacker: Annotated[
        str | None, typer.Option(help="A run of recipe attacker, whose attacks are reported apart from the families.")
    ] = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    json: AsJson = False,
    offline: Offline = False,
) -> None:
    """Measure how often a model complies with harmful requests.

    With --against, compare two models on the same attacks. Needs the extra 'safety'.
    """
    from burnish.reports.terminal.progress import make_observer

    if rehearse and export is None:
        raise InputError("--rehearse needs --export, which names the file that the prompts are written to")
    result = red_team(
        model, against=against, families=family, each=each, search=search, export=export, attacker=attacker, side=side,
        seed=seed, offline=offline, observer=make_observer(quiet=quiet or json), rehearse=rehearse,
        sampling={"max_new_tokens": max_new_tokens, "temperature": temperature},
    )  # fmt: skip
    if json:
        print_json(result)
    else:
        _print_result(result)
        _print_exported(result, export)


def red_team(
    model: str,
    *,
    each: int,
    side: str,
    seed: int,
    offline: bool,
    observer: Observer,
    against: str | None = None,
    families: Sequence[str] | None = None,
    search: int = 0,
    export: Path | None = None,
    rehearse: int = 0,
    attacker: str | None = None,
    sampling: Mapping[str, Any] = SAMPLING,
) -> dict[str, Any]:
    """Return the measurement of ``burnish redteam``, whose options these are, as JSON values."""
    from burnish.safety.redteam.attacker import learned_row, run_learned
    from burnish.safety.redteam.bandit import search as run_search
    from burnish.safety.redteam.export import export_found
    from burnish.safety.redteam.families import FAMILIES, check_families
    from burnish.safety.redteam.judge import answer_judge
    from burnish.safety.redteam.measure import attack_model, plan_attacks, red_team_report
    from burnish.safety.redteam.task import look_alike_prompts, rehearsal_prompts, requests_on

    families = list(dict.fromkeys(families or FAMILIES))
    check_families(families)
    requests = requests_on(side, offline=offline, observer=observer)
    attacks = plan_attacks(requests, families, each, seed)
    judge = answer_judge(offline)
    learned = None if attacker is None else _learned_attacks(attacker, attacks[:each], seed, offline)

    before, before_learned = None, []
    if against is not None:
        answer = model_answers(against, seed, offline, sampling)
        before = attack_model(attacks, answer, judge)
        before_learned = [] if learned is None else run_learned(learned, answer, judge)
    answer = model_answers(model, seed, offline, sampling)
    outcome = attack_model(attacks, answer, judge)
    result: dict[str, Any] = {"model": model, "against": against, "seed": seed, **red_team_report(outcome, before)}
    trials = list(outcome.trials)
    if learned is not None:
        own = run_learned(learned, answer, judge)
        result["rows"].append(learned_row(own, before_learned))
        trials += own
    if search:
        searched = run_search(requests, families, search, answer, judge, seed)
        trials += searched
        result["search"] = _search_rows(searched)
    if export is not None:
        successes = sum(trial.success for trial in trials)
        prompts = [*look_alike_prompts(successes, seed), *rehearsal_prompts(rehearse, seed, offline, observer)]
        answers = answer([(f"harmless/{text}", text) for text in prompts])
        result["exported"] = export_found(trials, zip(prompts, answers, strict=True), export)
    return result


def model_answers(name: str, seed: int, offline: bool, options: Mapping[str, Any]) -> Answer:
    """Return a function that answers prompts with a model, through its chat template if it has one."""
    from burnish.api import load

    model = load(name, offline=offline)
    plain = None if model.has_chat_template else True

    def answer(prompts: Sequence[tuple[str, str]]) -> list[str]:
        made = [model.prompt(text, plain=plain, name=id) for id, text in prompts]
        return [group.completions[0].text for group in model.sample(made, seed=seed, **options)]

    return answer


def _learned_attacks(name: str, attacks: Sequence[Attack], seed: int, offline: bool) -> list[Attack]:
    """Return the requests of the attacks in the words of a trained attacker."""
    from burnish.api import load
    from burnish.safety.redteam.attacker import TOKENS, TRIES, learned_attacks, rewording_messages

    model = load(name, offline=offline)
    requests = [attack.request for attack in attacks]
    prompts = [model.prompt(rewording_messages(one.text), plain=False, name=f"rewordings/{one.id}") for one in requests]
    groups = model.sample(prompts, samples=TRIES, seed=seed, max_new_tokens=TOKENS, temperature=1.0)
    return learned_attacks(requests, [[one.text for one in group.completions] for group in groups])


def _print_exported(result: dict[str, Any], export: Path | None) -> None:
    if export is not None:
        counts = result["exported"]
        written = f"{counts['attacks']} attacks and {counts['harmless']} harmless prompts"
        print(f"burnish: wrote {written} to {escape(str(export))}", file=sys.stderr)


def _search_rows(trials: Sequence[Any]) -> dict[str, dict[str, int]]:
    rows: dict[str, dict[str, int]] = {}
    for trial in trials:
        row = rows.setdefault(trial.attack.family, {"attacks": 0, "successes": 0})
        row["attacks"] += 1
        row["successes"] += trial.success
    return rows


def _print_result(result: dict[str, Any]) -> None:
    """Print one line per family, per category, for all attacks, and for the look-alikes."""
    titles = {
        "family": "attack success by family",
        "families": "by whether recipe safety trains on the family",
        "category": "by category",
        "all": "all attacks",
        "over-refusal": "refusals of harmless look-alikes",
        "learned": "attacks of the trained attacker (not among all attacks)",
    }
    for kind, title in titles.items():
        if rows := [row for row in result["rows"] if row["kind"] == kind]:
            _print_rows(title, rows)
    if "search" in result:
        print("search by a bandit (biased rates)")
        for name, row in result["search"].items():
            print(f"  {name:58s}{row['successes']:5d} of {row['attacks']}")


def _print_rows(title: str, rows: Sequence[dict[str, Any]]) -> None:
    compared = any("before" in row for row in rows)
    print(f"{title:66s}{'before  ' if compared else ''}share  95% interval      n  refused")
    for row in rows:
        before = f"{row['before']['share']:6.3f}  " if compared else ""
        line = f"  {row['name']:64s}{before}{row['share']:5.3f}  {row['low']:.3f} to {row['high']:.3f}{row['n']:5d}"
        if "refused" in row:
            line += f"    {row['refused']:.3f}"
        if "interval" in row:
            low, high = row["interval"]
            line += f"  {row['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
        print(line)
