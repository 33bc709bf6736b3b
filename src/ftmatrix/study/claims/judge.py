"""Reads a study's claims and has the runs answer them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import yaml

import ftmatrix.study.claims
from ftmatrix.errors import ConfigError, nearest
from ftmatrix.statistics import holm
from ftmatrix.study.answers import Results
from ftmatrix.study.claims.base import Answer, Claim, Evidence, OpenQuestionError
from ftmatrix.study.comparison import Curve, by_context


@cache
def statistics() -> dict[str, type[Claim]]:
    """Every kind of claim that a module beside this one defines, by its name in snake case."""
    found: dict[str, type[Claim]] = {}
    for module in iter_modules(ftmatrix.study.claims.__path__):
        for kind in vars(import_module(f"ftmatrix.study.claims.{module.name}")).values():
            if isinstance(kind, type) and issubclass(kind, Claim) and kind is not Claim:
                found[re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()] = kind
    return found


@dataclass(frozen=True)
class Finding:
    """A claim, where it was asked, and what the runs answered."""

    claim: str
    statement: str
    context: str
    answer: Answer
    because: str
    numbers: dict[str, float | None]
    p: float | None = None
    p_adjusted: float | None = None
    """By Holm, for all tests of the study's claims."""


def read_claims(path: Path) -> dict[str, Claim]:
    """The claims of a YAML file, by their names.

    Raises:
        ConfigError: the file is no mapping of claims, or one of them is wrong.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must map each claim's name to its statement, statistic and cells")
    claims = {str(name): _claim(f"{path.parent.name}/{path.name}: {name}", entry) for name, entry in content.items()}
    names = list(claims)
    for place, (name, claim) in enumerate(claims.items()):
        if claim.requires is not None and claim.requires not in names[:place]:
            before = nearest(claim.requires, names[:place]) if claim.requires not in names else "put that one first"
            raise ConfigError(f"{path}: {name} requires {claim.requires}; {before}")
    return claims


def judge(claims: dict[str, Claim], arms: Sequence[Curve], results: Results) -> list[Finding]:
    """Ask every claim of every context that it matches, and adjust the tests for their number."""
    weighed: list[tuple[str, str, Evidence | OpenQuestionError]] = []
    for name, claim in claims.items():
        matching = {
            context: members
            for context, members in by_context(arms).items()
            if any(claim.cells.matches(arm) for arm in members)
        }
        for context, members in matching.items():
            weighed.append((name, context.title, _weigh(claim, members, results)))
        if not matching:
            weighed.append((name, "no run yet", OpenQuestionError(f"the study has no run with {claim.cells} yet")))
    tests = {
        index: found.p
        for index, (_, _, found) in enumerate(weighed)
        if isinstance(found, Evidence) and found.p is not None
    }
    adjusted = dict(zip(tests, holm(list(tests.values())), strict=True))
    findings: list[Finding] = []
    for index, (name, where, found) in enumerate(weighed):
        earlier = {finding.claim: finding.answer for finding in findings if finding.context == where}
        findings.append(_finding(name, claims[name], where, found, adjusted.get(index), earlier))
    return findings


def _weigh(claim: Claim, arms: Sequence[Curve], results: Results) -> Evidence | OpenQuestionError:
    try:
        return claim.weigh(arms, results)
    except OpenQuestionError as question:
        return question


def _finding(
    name: str,
    claim: Claim,
    context: str,
    found: Evidence | OpenQuestionError,
    p_adjusted: float | None,
    earlier: dict[str, Answer],
) -> Finding:
    if isinstance(found, OpenQuestionError):
        return Finding(name, claim.statement, context, Answer.INCONCLUSIVE, str(found), found.numbers)
    answer, but = _answer(claim, found, p_adjusted, earlier)
    because = found.says + (f"; {but}" if but else "")
    return Finding(name, claim.statement, context, answer, because, found.numbers, found.p, p_adjusted)


def _answer(
    claim: Claim, found: Evidence, p_adjusted: float | None, earlier: dict[str, Answer]
) -> tuple[Answer, str | None]:
    """The answer, and what keeps it from being clear."""
    if found.contradicts:
        return Answer.CONTRADICTED, None
    if not found.supports:
        return Answer.INCONCLUSIVE, None
    if claim.requires and earlier.get(claim.requires) is not Answer.SUPPORTED:
        return Answer.INCONCLUSIVE, f"it needs {claim.requires} to be supported"
    if p_adjusted is not None and p_adjusted >= claim.p_below:
        return Answer.INCONCLUSIVE, f"p={p_adjusted:.3g} after Holm isn't below {claim.p_below:g}"
    return Answer.SUPPORTED, None


def _claim(named: str, entry: Any) -> Claim:
    from pydantic import TypeAdapter, ValidationError

    if not isinstance(entry, dict) or "statistic" not in entry:
        raise ConfigError(f"{named}: needs a statistic; {nearest('', statistics())}")
    statistic = str(entry["statistic"])
    if statistic not in statistics():
        raise ConfigError(f"{named}: statistic={statistic}: no such statistic; {nearest(statistic, statistics())}")
    kind = statistics()[statistic]
    fields = {key: value for key, value in entry.items() if key != "statistic"}
    if unknown := sorted(set(fields) - set(kind.__dataclass_fields__)):
        raise ConfigError(f"{named}: {unknown[0]}: no such entry; {nearest(unknown[0], kind.__dataclass_fields__)}")
    try:
        return TypeAdapter(kind).validate_python(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{named}: {where}: {first['msg']}") from error
