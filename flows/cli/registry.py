"""The models that were made: `wbc champion` and `gc`."""

from typing import Annotated

import typer

from flows.cli.command import Json, app, emit, here


@app.command("champion")
def champion_command(
    steps: Annotated[
        int | None, typer.Argument(metavar="[N]", help="With --rollback: how many champions are taken back; default: 1.")
    ] = None,
    promote: Annotated[str | None, typer.Option(metavar="VERSION", help="Make this registered version the champion.")] = None,
    reject: Annotated[str | None, typer.Option(metavar="VERSION", help="This version must not become champion.")] = None,
    rescore: Annotated[
        bool, typer.Option("--rescore", help="Make the champion's numbers again that rest on labels corrected since.")
    ] = False,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Withdraw the champion, or the last N; back comes the one before, if any.")
    ] = False,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; needed with each of the three.")] = "",
    by: Annotated[str | None, typer.Option(metavar="NAME", help="Who decides; default: the user's name.")] = None,
    json_: Json = False,
) -> None:
    """List the registered models, or decide on the champion: a decision binds the gate until a person decides otherwise."""
    from flows.registry import champion
    from flows.registry.verdicts import person

    wanted = [name for name, value in (("--promote", promote), ("--reject", reject), ("--rollback", rollback)) if value]
    if len(wanted) + rescore > 1:
        raise typer.BadParameter(f"{' and '.join([*wanted, *['--rescore'] * rescore])} are different things: give one")
    if bool(wanted) != bool(reason.strip()):
        raise typer.BadParameter(f"{wanted[0]} needs --reason TEXT" if wanted else "--reason belongs to a decision")
    if steps is not None and not rollback:
        raise typer.BadParameter(f"{steps} belongs to --rollback: `wbc champion --rollback {steps} --reason TEXT`")
    who, workspace = by if by is not None else person(), here()
    if promote:
        result = champion.promote(workspace, promote, reason, who)
    elif reject:
        result = champion.reject(workspace, reject, reason, who)
    elif rescore:
        result = champion.rescore(workspace)
    elif rollback:
        result = champion.roll_back(workspace, reason, who, 1 if steps is None else steps)
    else:
        result = champion.champions(workspace)
    emit(result, json_, champion.champions_text(result), workspace)


@app.command("gc")
def gc_command(
    keep: Annotated[int, typer.Option(metavar="N", min=1, help="Keep the last N models and trainings.")] = 5,
    champions: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Keep the last N of those that were champion; default: all.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it only say what would be deleted.")] = False,
    json_: Json = False,
) -> None:
    """Give disk back: models that no alias, tag or branch names and that are not among the last. Caches that nothing reads go,
    too. Never images or pools."""
    from flows.registry.disk import collect

    result = collect(here(), keep, champions, yes)
    text = ["no longer kept:", *(f"  {line}" for line in result["lines"]), f"{result['frees'] / 1e6:.1f} MB"]
    if not result["lines"]:
        text = ["all is kept"]
    elif yes:
        back = "`git checkout pools-vN`, `dvc checkout data/pools.dvc data/images.dvc`, `dvc repro`"
        text += ["deleted; images, pools and labels stay", f"a model comes back from its pools: {back}"]
    else:
        same = f"wbc gc --keep {keep}" + (f" --champions {champions}" if champions is not None else "")
        text += ["nothing was deleted", f"next: `{same} --yes` deletes this"]
    emit(result, json_, "\n".join(text))
