"""A run on one page of HTML, which needs nothing beside itself."""

from collections.abc import Callable
from html import escape
from importlib.resources import files
from typing import Any

from .._solution import counted
from .._spectrum import NO_FACTOR
from . import _iterates as iterates, _levels as levels
from ._drawing import Drawing, short


_WIDE, _NARROW = 720, 340
_UNREACHED = "These iterations did not reach the answer, so that nothing is gained."
_NEEDED = ("num_steps", "levels", "history", "residuals", "depth", "depth_by_level", "speedup_on")


def page(run: dict[str, Any]) -> str:
    """The HTML of a report on a run: one page, for screens of any width, dark and light, without scripts or a network.

    - `run`: of `gritax.reporting.figures`, or what `gritax solve … --json` wrote.

    Raises `ValueError` for anything else.

    >>> import gritax
    >>> solution = gritax.solve(lambda u, start, stride: u / (1 + 0.01 * stride), 1.0, 1000, profile=True)
    >>> gritax.reporting.page(gritax.reporting.figures(solution))[:15]
    '<!doctype html>'
    """
    if missing := [name for name in _NEEDED if not isinstance(run, dict) or name not in run]:
        raise ValueError(
            f"run has no {missing[0]!r}: it must be what gritax.reporting.figures gives, or what gritax solve and gritax train "
            "write with --json."
        )
    try:
        # Names of files need be no UTF-8, and Python keeps their bytes as halves of surrogate pairs.
        return _page(run).encode("utf-8", "backslashreplace").decode()
    except (KeyError, TypeError, IndexError, AttributeError, ArithmeticError, ValueError) as error:
        raise ValueError(
            f"run is not as gritax.reporting.figures gives it ({type(error).__name__}: {error}): pass that, or what gritax "
            "solve and gritax train write with --json."
        ) from error


def _page(run: dict[str, Any]) -> str:
    problem = run.get("settings", {}).get("problem")
    title = f"{problem}: " * bool(problem) + f"{run['num_steps']:,} training steps, {counted(run['iterations'], 'iteration')}"
    body = [
        f"<header><h1>{escape(title)}</h1>",
        *(f"<p class='answer'>{escape(_sentence(each))}</p>" for each in (run.get("sentence"), run["reason"]) if each),
        "</header>",
        _section("Figures", "", _table(_rows(run))),
        *_pictures(run),
        _section("Levels", "", _levels(run)),
        _made_by(run),
    ]
    style = files("gritax.reporting").joinpath("style.css").read_text(encoding="utf-8")
    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body><main>"
    )
    return "\n".join([head, *body, "</main></body></html>\n"])


def _pictures(run: dict[str, Any]) -> list[str]:
    """Those that there is something to see in."""
    found = []
    if run["iterations"]:
        found.append(
            _section(
                "Convergence",
                "Residuals of each iterate, and below them the exactness front: how many of the first steps have the states of "
                "serial training by construction.",
                _legend(("a", "residual"), ("b", "relative residual")) + _picture(iterates.history, run),
            )
        )
    if run["iterations"] and run.get("profile"):
        found.append(
            _section(
                "Where residuals are left",
                "The residual at each part of the run, iteration by iteration from the top. Where the shade fades into the "
                "page, a state follows from the one before it: it is that of serial training where all is faded to the left "
                "of it as well. Left of the line it is so by construction.",
                _picture(iterates.heat_map, run) + _picture(iterates.shades_of, run),
            )
        )
    if run.get("cycle") and len(run["levels"]) > 1:
        found.append(
            _section(
                f"One {run['cycle']}-cycle",
                "The way of an iteration through the levels. The stronger the shade, the more of "
                + (
                    "the time is spent there, as one more iteration took it, program by program."
                    if run.get("level_seconds")
                    else "the evaluations in sequence are made there."
                ),
                _picture(levels.cycle_diagram, run),
            )
        )
    if len(run["speedup_on"]) > 1:
        found.append(
            _section(
                "Potential speedup",
                "Training steps divided by the evaluations in sequence that remain on so many devices, an interval of a level "
                "each. It is no prediction of time." + ("" if run["converged"] else f" {_UNREACHED}"),
                _picture(levels.speedup, run),
            )
        )
    if predicted := run.get("spectrum"):
        unsettled = predicted["factor"] is None or predicted["factor"] >= 1
        found.append(
            _section(
                "Predicted convergence",
                f"The factor of an iteration by curvature at step {predicted['step']:,}, where the run is stiffest. "
                f"Predicted: {levels.said(predicted['factor'])}; bound: {levels.said(predicted['bound'])}."
                + (f" {NO_FACTOR}" if unsettled else ""),
                _legend(("a", "cycle"), ("b", "bound"), ("thin", "two levels")) + _picture(levels.spectrum, run),
            )
        )
    return found


def _rows(run: dict[str, Any]) -> list[tuple[str, str]]:
    first, last = run["residuals"][0], run["residuals"][-1]
    rows = [
        ("training steps", f"{run['num_steps']:,} on {counted(len(run['levels']), 'level')}"),
        ("result", "converged" if run["converged"] else "not converged"),
        ("iterations", f"{run['iterations']:,}"),
        ("residual", f"{_science(first)} → {_science(last)}"),
        ("relative residual", f"{_science(run['relative_residuals'][-1])} of the distance travelled"),
        ("exact by construction", counted(run["exact_steps"], "step")),
        ("depth", f"{run['depth']:,} evaluations in sequence"),
        ("work", f"{run['work']:,} evaluations in all"),
        ("potential speedup", f"{run['potential_speedup']:.2f}" + ("" if run["converged"] else f". {_UNREACHED}")),
    ]
    if run.get("coarse_steps"):
        rows.append(("coarse steps", run["coarse_steps"]))
    rows += [("started again", reason) for reason in run.get("restarts", ())]
    if "relative_distance" in run:
        rows += [
            ("distance from serial", f"{_science(run['relative_distance'])} of the distance travelled"),
            ("loss", f"{_science(run['loss'])} (serial {_science(run['serial_loss'])})"),
            *(
                (name, f"{_short(value)} (serial {_short(run['serial_metrics'][name])})")
                for name, value in run["metrics"].items()
            ),
            ("seconds", f"{run['seconds']:.3f} parallel, {run['serial_seconds']:.3f} serial, both compiled before"),
            ("first solve", f"{run['first_seconds']:.2f} s with its compilation"),
        ]
    return rows


def _levels(run: dict[str, Any]) -> str:
    rows: list[tuple] = [("level", "steps", "stride", "factor", "relaxation", "depth a step", "depth", "ms")]
    for index, level in enumerate(run["levels"]):
        coarsest = index == len(run["levels"]) - 1
        relaxation = "serial" if coarsest else "FC" * level["sweeps"] + "F"
        factor = "" if coarsest else level["factor"]
        costs = [each[index] if each else "" for each in (run["level_depths"], run["depth_by_level"])]
        seconds = run.get("level_seconds")
        costs.append(f"{1e3 * seconds[index]:.3g}" if seconds else "")
        rows.append((index, level["size"], level["stride"], factor, relaxation, *costs))
    written = lambda cell: cell if isinstance(cell, str) else f"{cell:,}"
    return "".join(
        [
            "<div class='scroll'><table class='levels'>",
            *(f"<tr>{''.join(f'<td>{escape(written(cell))}</td>' for cell in row)}</tr>" for row in rows),
            "</table></div>",
        ]
    )


def _made_by(run: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in run.get("versions", {}).items())
    known = [run.get("command"), run.get("machine"), versions]
    return "<footer>" + "".join(f"<p>{escape(each)}</p>" for each in known if each) + "</footer>"


def _section(title: str, words: str, content: str) -> str:
    told = f"<p>{escape(words)}</p>" if words else ""
    return f"<section><h2>{escape(title)}</h2>{told}{content}</section>"


def _table(rows: list[tuple[str, str]]) -> str:
    return f"<table>{''.join(f'<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in rows)}</table>"


def _picture(draw: Callable[[dict[str, Any], int], Drawing], run: dict[str, Any]) -> str:
    """Twice, so that its text can be read on a small screen: the style sheet shows one of them."""
    return f"<div class='wide'>{draw(run, _WIDE)}</div><div class='narrow'>{draw(run, _NARROW)}</div>"


def _legend(*entries: tuple[str, str]) -> str:
    return (
        "<p class='legend'>" + "".join(f"<span class='key {style}'></span>{escape(name)} " for style, name in entries) + "</p>"
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _science(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3e}" if value else "0"


def _short(value: float | None) -> str:
    return "not finite" if value is None else short(value)
