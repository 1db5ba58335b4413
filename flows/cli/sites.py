"""Other sites: `wbc onboard` and `calibrate`."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.command import DATA_FORMS, Json, app, emit, follow, here, rows_used, scores_text
from wbc_model.core.errors import counted


@app.command("calibrate")
def calibrate_command(
    model: Annotated[Path, typer.Option(metavar="DIR", help="A model directory; it is not changed.")],
    data: Annotated[
        str, typer.Option(metavar="DATA", help=f"Labelled cells of the site that the model has not learned from. {DATA_FORMS}")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write the calibrated model directory.")],
    json_: Json = False,
) -> None:
    """Calibrate a model for a site: temperature, prediction sets, out-of-distribution scores, confusion."""
    from flows.sites.calibration import calibrate
    from wbc_model.cells.rejections import Rejection, not_used_lines
    from wbc_model.sources.opened import open_source

    follow(model)
    with open_source(data) as origin:
        result = calibrate(model, origin, out)
    coverage, size = result["coverage"], result["classes_in_a_set"]
    cells = counted(result["cells"], "cell")
    text = (
        rows_used(result["split"], result["cells"]) + "\n"
        f"{cells}: prediction sets stated at {coverage['stated']:.0%} held {coverage['before']:.1%} of the "
        f"labels (classes in a set {size['before']:.2f}), now {coverage['after']:.1%} ({size['after']:.2f})\n"
        + "".join(f"{line}\n" for line in not_used_lines(Rejection(sha256="", **one) for one in result["rejections"]))
        + (f"no cell of {', '.join(result['without'])}: how the model errs there is not known\n" if result["without"] else "")
        + ("" if result["knows_the_site"] else "too few nuclei were found to know the site by its cells\n")
        + "".join(f"{line}\n" for line in result["seen_before"]["warnings"])
        + f"wrote {out}, version {result['version']}\nnext: `{shlex.join(['wbc', 'serve', '--model', str(out)])}` serves it"
    )
    emit({**result, "wrote": [str(out)]}, json_, text)


@app.command("onboard")
def onboard_command(
    data: Annotated[str, typer.Argument(metavar="SITE_DATA", help=f"The new site's cells. {DATA_FORMS}")],
    labels: Annotated[int | None, typer.Option(min=0, help="Cells to ask for; default: onboard.labels.")] = None,
    answers: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Labels that people gave: CSV (sha256, label) or Label Studio's JSON."),
    ] = None,
    model: Annotated[Path | None, typer.Option(metavar="DIR", help="The model to adapt; default: the champion.")] = None,
    commit: Annotated[bool, typer.Option("--commit", help="Commit and tag the version of the site's pools.")] = False,
    json_: Json = False,
) -> None:
    """Adapt the champion to a new site with the few labels that help most.

    The site is a workspace of its own, sites/NAME: every command typed in there acts on it.
    """
    from flows.progress import Progress
    from flows.sites.onboard import onboard
    from wbc_model.sources.opened import open_source

    with open_source(data) as origin:
        result = onboard(here(of_sites=True), origin, labels, answers, model, Progress(), commit)
    given = {"--labels": labels, "--model": model}
    again = ["wbc", "onboard", data, *(str(x) for name, value in given.items() if value is not None for x in (name, value))]
    again += ["--commit"] if commit else []
    if result["status"] == "waiting":
        text = (
            f"{counted(result['awaited'], 'cell waits', 'cells wait')} for a label: {result['queue']}\n"
            f"fill in its column label, as far as you can, and run `{shlex.join([*again, '--answers', result['queue']])}`"
        )
    else:
        stages = [when for when in ("before", "statistics", "after") if when in result]
        both = [(when, place, scores) for when in stages for place, scores in result[when].items()]
        lines = [f"{when}, {place}: {scores_text(scores)}" for when, place, scores in both]
        lines += [f"{place}: {line}" for place, seen in result["seen_before"].items() for line in seen["warnings"]]
        known = result["registered"]
        lines += [
            f"registered as version {known['version']} of {known['model']}" + ("" if known["champion"] else ", no champion")
        ]
        lines += [known["reason"]] if "reason" in known else []
        which = "it" if known["champion"] else "the site's champion, not this one"
        text = "\n".join([*lines, f"wrote {result['model']}", f"next: `wbc serve` in {result['workspace']} serves {which}"])
    emit(result, json_, text)
