"""The `wbc` command: what all of its files share, and its entry.

Results go to stdout (with `--json` nothing but JSON), progress and logs to stderr. Exit codes: 0 is done. With 1, one clear line
on stderr says why not. 2 is wrong usage. With 3, `wbc ingest` took in what it could, and some rows were unusable. Ctrl-C is 130,
and SIGTERM, which is obeyed in the same way, 143.
"""

import contextlib
import gc
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Final, NoReturn

import typer

from flows.workspace import bypass_proxies
from wbc_model.core.errors import WbcError, counted

app = typer.Typer(
    name="wbc",
    help="Leukocyte classification that learns from few labels. Commands act on the workspace they are run in.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
labels_app = typer.Typer(help="The label store: what was labelled, what is awaited.", no_args_is_help=True)
app.add_typer(labels_app, name="labels")
keys_app = typer.Typer(help="The service's API keys; a running service takes changes over at once.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")
audit_app = typer.Typer()  # what it does by itself is its help: flows/cli/loop.py
app.add_typer(audit_app, name="audit")
reports_app = typer.Typer(help="The reports in the service's store.", no_args_is_help=True)
app.add_typer(reports_app, name="reports")


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(version("wbc"))
        raise typer.Exit


@app.callback()
def _whole(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """What is said before a command."""


INTERRUPTED: Final = 130  # exit code after Ctrl-C, as of a shell
ENDED: Final = 143  # and after SIGTERM
# What any command takes cells from (wbc_model/sources).
DATA_FORMS = "A manifest CSV, a folder per class, an archive (ZIP, tar, WebDataset, Parquet), or one of these at s3://BUCKET."
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else, to stdout.")]


def main() -> None:
    """Entry point of the `wbc` command."""
    gc.set_threshold(100_000)  # a tenth of a command's start was a search for garbage among modules just loaded
    bypass_proxies()
    ended = _obey_sigterm()
    try:
        app()
    except SystemExit as end:
        if end.code == INTERRUPTED:  # Typer says nothing of Ctrl-C
            _interrupted(ENDED if ended else INTERRUPTED)
        raise
    except Exception as error:  # noqa: BLE001 - the one place where whatever it was becomes a line
        if _after_ctrl_c(error):
            _interrupted(ENDED if ended else INTERRUPTED)
        from flows.complaints import FULL, line_of

        line = line_of(error, _workspace_or_none())
        _complain(line, final=isinstance(error, WbcError) or line == FULL)


def _obey_sigterm() -> list[int]:
    """Have SIGTERM, as of a machine that shuts down, obeyed as Ctrl-C is: what was begun is cleaned up, and one line says how it
    goes on. Returns a list that is empty until one came."""
    came, process = [], os.getpid()

    def end(number: int, _: FrameType | None) -> None:
        if os.getpid() != process:  # a fork of this one, which has nothing to clean up
            os._exit(ENDED)
        came.append(number)
        raise KeyboardInterrupt

    with contextlib.suppress(ValueError):  # in a test's thread
        signal.signal(signal.SIGTERM, end)
    return came


def _after_ctrl_c(error: BaseException | None) -> bool:
    """Whether this went wrong because Ctrl-C was being obeyed, as when a server no longer answers: it is no news then."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__context__ or error.__cause__
    return False


def _interrupted(code: int) -> NoReturn:
    print("wbc: interrupted; finished work is kept, and the same command continues", file=sys.stderr)
    raise SystemExit(code) from None


def _workspace_or_none() -> Path | None:
    """Where a log may go: found without writing anything, as the disk may take nothing."""
    from flows.workspace import find_workspace

    try:
        return find_workspace()
    except (WbcError, OSError):
        return None


def _complain(line: str, final: bool) -> NoReturn:
    """Print the line and end; `final`: another attempt would say the same."""
    print(f"wbc: error: {line}", file=sys.stderr)
    complaint = os.environ.get("WBC_ERROR_FILE")
    if complaint and final:  # a stage of a flow: DVC would bury the line
        with contextlib.suppress(OSError):  # of a full disk: the line has been printed
            Path(complaint).write_text(line, encoding="utf-8")
    raise SystemExit(1) from None


def emit(result: Mapping[str, Any], as_json: bool, text: str, workspace: Path | None = None) -> None:
    """Print the result; of a `workspace` also what to do there next."""
    print(json.dumps(result, indent=2, default=str) if as_json else text)
    if workspace is not None and not as_json:
        from flows.cli.status import next_command

        following = next_command(workspace)
        print(f"next: {following}") if following else None


def here(of_sites: bool = False) -> Path:
    """The workspace that we stand in; `of_sites`: the one that takes sites in, which is the parent where we stand in a site."""
    from flows.identity import identify
    from flows.pipeline.installed import relink
    from flows.site import parent_workspace
    from flows.workspace import find_workspace

    workspace = parent_workspace() if of_sites else find_workspace()
    relink(workspace)
    _, moved = identify(workspace)
    if moved:
        print(moved, file=sys.stderr)
    return workspace


def run_stage(name: str, body: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Run a stage in the workspace, on one version of the pools; it ends with the flow that started it, and waits for no other:
    where a retraining or a stage is at work, it is refused."""
    from flows.guard import watch_flow
    from flows.shards.cluster import spread
    from flows.state import one_version, stage_lock
    from wbc_model.params import read_params

    watch_flow()
    workspace = here()
    os.chdir(workspace)  # what params.yaml names is relative to it
    with stage_lock(workspace, name), one_version(workspace, name), spread(read_params(workspace / "params.yaml").retrain):
        return body(workspace)


def writing_here(workspace: Path, command: str) -> contextlib.AbstractContextManager[None]:
    """Have the workspace for a change of its data, when nobody works on them as they are; says on stderr who is waited for."""
    from flows.labels import check_known
    from flows.state import writing

    check_known(workspace)
    return writing(workspace, f"`wbc {command}`", lambda line: print(f"wbc: {line}", file=sys.stderr))


def follow(model: Path) -> None:
    """Where a model is a workspace's champion: have it the one that the registry names. Says on stderr that it was another."""
    from flows.registry.champion import followed_for

    if line := followed_for(model):
        print(f"wbc: {line}", file=sys.stderr)


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def scores_text(metrics: Mapping[str, Any]) -> str:
    interval = metrics.get("intervals", {}).get("accuracy")
    around = f" (95 % interval {interval[0]:.2%} to {interval[1]:.2%})" if interval else ""
    rows = [
        f"  {name:<11} recall {percent(one['recall']):>8}  precision {percent(one['precision']):>8}  {one['support']:>6} cells"
        for name, one in metrics["per_class"].items()
    ]
    head = f"{counted(metrics['n'], 'cell')}: accuracy {metrics['accuracy']:.2%}{around}, macro-F1 {metrics['macro_f1']:.2%}, "
    return "\n".join([f"{head}balanced accuracy {metrics['balanced_accuracy']:.2%}, ECE {metrics['ece']:.3f}", *rows])


def rows_used(split: str, cells: int) -> str:
    return f"used {counted(cells, 'cell')}, " + ("all rows" if split == "all" else f"the rows of split {split} only")
