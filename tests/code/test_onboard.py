"""`wbc onboard` on a tiny workspace, mostly in this process, which spares its start: it asks, it learns, it forgets nothing that
was answered."""

import hashlib
import json
import shlex
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.labels import status
from flows.pipeline.stages import train
from flows.progress import Progress
from flows.registry.champion import champions, roll_back
from flows.site import site_of
from flows.sites import onboard
from flows.sites.onboard import (
    BY_CLASS,
    SHIFT_CELLS,
    Onboarding,
    _is_adapted,
    _said,
    _share_of_updates,
    adaptation_params,
    champion_of,
    of_all_kinds,
    refuse_another_site,
    start_key,
)
from flows.state import label_cycle
from flows.tracking import open_tracker
from flows.workspace import find_workspace, init_workspace, set_params
from tests.code.test_flow import IDENTITY, TINY
from tests.pools import ingest
from wbc_model.cells.pools import COLUMNS, Pools
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError
from wbc_model.core.model_card import read_card
from wbc_model.network.card_page import write_card
from wbc_model.params import read_params
from wbc_model.rendering.cells import write_cells

pytestmark = pytest.mark.usefixtures("narrow")

SMALL = TINY | {
    "presets.small.updates": 8,
    "presets.small.batch_size": 16,
    "data.initial_share": 1.0,
    "onboard.labels": 8,
    "onboard.train.updates": 4,
}


def here(workspace: Path, *arguments: str) -> dict[str, Any]:
    """The command's answer, without a process of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        answer = CliRunner().invoke(app, ["onboard", *arguments, "--json"], catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    return dict(json.loads(answer.stdout))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a trained candidate, and beside it a site's cells: `site/manifest.csv`."""
    folder = tmp_path_factory.mktemp("onboard")
    workspace = folder / "home"
    init_workspace(workspace)
    set_params(workspace, SMALL)
    ingest(write_cells(folder / "cells", 150, seed=1), workspace / "data", read_params(workspace / "params.yaml"))
    write_cells(folder / "site", 40, seed=2)
    train(workspace)
    return workspace


@pytest.fixture
def workspace(home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(home, tmp_path / "home"))


def test_the_start_depends_on_which_cells_a_site_has_not_on_how_many() -> None:
    def site(*cells: str) -> Pools:
        rows = [{"path": cell, "label": "", "sha256": cell * 64, "cycle": None} for cell in cells]
        return Pools.empty().plus({"unlabelled": pd.DataFrame(rows).reindex(columns=COLUMNS, fill_value="")})

    keys = {start_key("v1", site("a", "b"), 0), start_key("v1", site("a", "c"), 0), start_key("v1", site("a", "b"), 1)}
    assert len(keys | {start_key("v2", site("a", "b"), 0)}) == 4
    assert start_key("v1", site("b", "a"), 0) in keys


def site_data(home: Path) -> str:
    return str(home.parent / "site" / "manifest.csv")


def test_with_known_labels_it_uses_those_it_asked_for_and_tests_on_the_rest(home: Path, workspace: Path) -> None:
    before = Pools.read(workspace / "data/pools").version()
    result = here(workspace, site_data(home))
    assert result["status"] == "adapted"
    assert result["labels"] == 8
    site = workspace / "sites/manifest"
    pools = Pools.read(site / "data/pools")
    labelled, rest = pools.frames["labelled"], pools.frames["unlabelled"]
    assert len(labelled) == 8
    assert sorted(labelled["cycle"].astype(int).value_counts()) == [4, 4]  # two rounds
    assert set(labelled["labelled_by"]) == {"oracle"}
    assert set(labelled["sha256"]) == set(pd.read_csv(site / "data/labels.csv")["sha256"])
    for when in ("before", "after"):
        assert result[when]["site"]["n"] == len(rest)
        assert result[when]["home"]["n"] == len(Pools.read(workspace / "data/pools").frames["test"])
        low, high = result[when]["site"]["intervals"]["balanced_accuracy"]
        assert low <= result[when]["site"]["balanced_accuracy"] <= high
    assert Pools.read(workspace / "data/pools").version() == before  # home's pools are as they were
    seen = {place: (one["trained_on"], one["chosen_by"]) for place, one in result["seen_before"].items()}
    assert seen == {"home": (0, 0), "site": (0, 0)}
    assert 0 <= result["shift"]["far"] <= 1
    assert 0 <= result["shift"]["separability"] <= 1
    assert set(result["shift"]["recoloured"]) == {"home", "site"}
    assert all(0 <= share <= 1 for share in result["shift"]["recoloured"].values())
    adapted = read_card(site / "models/adapted")
    assert adapted.version != read_card(workspace / "models/candidate").version
    assert "8 labelled cells of manifest" in adapted.data_source
    assert adapted.parameters["size"]["updates"] == 4  # the model that asked for the second half had half of them


@pytest.mark.slow
def test_what_was_onboarded_is_taken_as_it_is_and_what_is_stale_is_made_again(
    home: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = here(workspace, site_data(home))
    site = workspace / "sites/manifest"
    adapted = read_card(site / "models/adapted")
    packed = shutil.make_archive(str(workspace.parent / "manifest"), "zip", home.parent / "site")
    with monkeypatch.context() as patch:
        patch.setattr(onboard, "_shift", None)  # who brings answers does not wait for it again
        assert here(workspace, packed) == result  # nothing is asked, labelled or trained a second time, however it is packed
    (site / ".wbc/shift.json").write_text('{"measured_for": "')  # damaged: it is measured again

    # As if killed after the labels of the last round and before its training: the model is of other labels, and is made again.
    stale = adapted.model_copy(update={"pool_version": "of the first round", "data_source": "4 labelled cells of manifest"})
    write_card(site / "models/adapted", stale)
    assert here(workspace, site_data(home)) == result
    assert read_card(site / "models/adapted").data_source == adapted.data_source

    # A model that only asked had half of the updates: it is no adapted one when its labels are all that are asked for.
    ctx = Onboarding(workspace, site, champion_of(workspace), read_params(workspace / "params.yaml"), Progress())
    with monkeypatch.context() as patch:  # another release may measure otherwise
        patch.setattr(onboard, "code_version", lambda function: "changed")
        patch.setattr(onboard, "_shift", lambda ctx: {"far": 1.0})
        assert onboard._known_shift(ctx) == {"far": 1.0}
    assert _is_adapted(ctx, 8)
    less_sure = {**adapted.parameters, "adaptation": {BY_CLASS: False}}  # not as a model with labels learns
    write_card(site / "models/adapted", adapted.model_copy(update={"parameters": less_sure}))
    assert not _is_adapted(ctx, 8)
    short = {**adapted.parameters, "size": {**adapted.parameters["size"], "updates": 2}}
    write_card(site / "models/adapted", adapted.model_copy(update={"parameters": short}))
    assert not _is_adapted(ctx, 8)
    assert _is_adapted(ctx, 16)  # more are asked for


def test_how_long_a_model_learns() -> None:
    assert [_share_of_updates(labels, 25) for labels in (0, 13, 25, 30)] == [1.0, 0.5, 1.0, 1.0]
    assert _share_of_updates(0, 0) == 1.0


def test_a_person_is_told_once_when_the_next_question_comes(capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []
    ctx: Any = SimpleNamespace(
        params=SimpleNamespace(onboard=SimpleNamespace(rounds=2)), progress=SimpleNamespace(say=lines.append)
    )
    for labels, asked, then in ((13, 25, "asks for 12 more"), (5, 25, "asks for 13 more"), (25, 25, "is measured")):
        _, updated = _said(ctx, labels, asked, 200)
        for update in range(41, 60):  # one that was killed goes on in the middle
            updated(update)
        first, second = lines[-2:]
        assert first == f"{labels} of {asked} labels: learns for 200 updates, then {then}"
        assert second.startswith("in about ")
        assert second.endswith(f" it {then}")
    assert len(lines) == 6
    assert "update    41 of 200" in capsys.readouterr().err


def printed(workspace: Path, *arguments: str) -> list[str]:
    """The arguments of the command that it prints for the next step, as a shell reads them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        answer = CliRunner().invoke(app, ["onboard", *arguments], catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    return shlex.split(answer.stdout.split("`")[1])


@pytest.mark.slow
def test_without_labels_it_asks_people_and_goes_on_with_their_answers(home: Path, workspace: Path, tmp_path: Path):
    manifest = pd.read_csv(site_data(home))
    labels = dict(zip(manifest["path"], manifest["label"], strict=True))
    data = tmp_path / "the ward"
    shutil.copytree(home.parent / "site", data)
    manifest[["path"]].to_csv(data / "manifest.csv", index=False)  # no column label at all
    command, asked = printed(workspace, str(data / "manifest.csv"), "--labels", "7"), []
    site, result = workspace / "sites/manifest", {}
    for answered, others in ((2, "unsure"), (4, ""), (1, "")):  # of four; what is left out, in either way, is passed over
        assert command[:5] == ["wbc", "onboard", str(data / "manifest.csv"), "--labels", "7"]
        sheet = Path(command[command.index("--answers") + 1])
        queue = pd.read_csv(sheet, dtype=str, keep_default_na=False)
        assert "reason" not in queue, "people are asked blind"
        assert not set(queue["sha256"]) & set(asked), "what was left out is not asked again while there are others"
        asked += queue["sha256"].tolist()
        queue["label"] = [labels[path] if row < answered else others for row, path in enumerate(queue["path"])]
        queue.to_csv(sheet, index=False)
        filled = sheet.read_bytes()
        if len(asked) < 9:
            command = printed(workspace, *command[2:])
        else:
            result = here(workspace, *command[2:])
        assert sheet.read_bytes() == filled
    assert result["status"] == "adapted"
    assert result["labels"] == 7
    assert set(result["after"]) == {"home"}  # nobody knows the labels of the rest
    assert set(Pools.read(site / "data/pools").frames["labelled"]["labelled_by"]) == {"people"}
    assert status(site)["awaited"] == 0


def test_a_wrong_answer_is_refused_in_one_line_and_nothing_is_taken_in(home: Path, workspace: Path, tmp_path: Path):
    wrong = tmp_path / "wrong.csv"
    wrong.write_text(f"sha256,label\n{'0' * 64},Neutrolyt\n")
    with pytest.raises(WbcError, match=r"^[^\n]*line 2: 'Neutrolyt' is not one of[^\n]*nothing was taken in$"):
        here(workspace, site_data(home), "--answers", str(wrong))
    assert Pools.read(workspace / "sites/manifest/data/pools").frames["labelled"].empty


def test_more_labels_than_the_site_has_cells_are_refused_before_anybody_is_asked(home: Path, workspace: Path) -> None:
    with pytest.raises(WbcError, match="500 labels were asked for, it has only 40 cells: `--labels 40` asks for all"):
        here(workspace, site_data(home), "--labels", "500")
    site = workspace / "sites/manifest"
    assert Pools.read(site / "data/pools").frames["labelled"].empty
    assert not (site / "models").exists(), "nothing was measured either"


def test_a_home_without_test_cells_is_refused_before_anybody_waits(home: Path, workspace: Path) -> None:
    path = workspace / "data/pools/test.csv"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    with pytest.raises(WbcError, match="test pool is empty, and onboarding needs it: `wbc labels test --draw N` draws cells"):
        here(workspace, site_data(home), "--labels", "0")
    assert not (workspace / "sites").exists()


def test_a_site_without_a_usable_cell_is_refused_with_what_to_do(workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "moved.csv").write_text("path,label\nmoved/away.png,Monocyte\n")
    for labels in ("0", "1"):
        with pytest.raises(WbcError, match=r"has no cell that can be used: \S*data/rejected.csv says why"):
            here(workspace, str(tmp_path / "moved.csv"), "--labels", labels)
    assert "missing" in (workspace / "sites/moved/data/rejected.csv").read_text()


@pytest.mark.parametrize("cells", [31, 32])
def test_a_site_too_small_for_statistics_of_its_own_is_told_so(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shift = {"far": 0.0, "confidence": {"site": 0.9, "home": 0.9}, "recoloured": None}
    monkeypatch.setattr(onboard, "_start", lambda ctx: None)
    monkeypatch.setattr(onboard, "_known_shift", lambda ctx: shift)
    said: list[str] = []
    table = pd.DataFrame({"sha256": [str(number) for number in range(cells)]})
    ctx: Any = SimpleNamespace(pools=lambda: SimpleNamespace(table=lambda: table), progress=SimpleNamespace(say=said.append))
    assert onboard._look(ctx) == shift
    few = "31 cells are too few to measure the site's statistics, 32 are needed: the model keeps home's"
    assert said[:-1] == ([few] if cells < 32 else [])


def test_who_asks_for_fewer_labels_than_there_are_is_told_that_all_are_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    frames = {"labelled": pd.DataFrame({"sha256": ["a", "b"]})}
    ctx: Any = SimpleNamespace(pools=lambda: SimpleNamespace(frames=frames), progress=SimpleNamespace(say=said.append))
    monkeypatch.setattr(onboard, "_is_adapted", lambda ctx, asked: True)
    assert onboard._learn(ctx, 2) == 2
    assert said == []
    assert onboard._learn(ctx, 0) == 2
    assert "has 2 labels already, more than the 0 asked for: the model learns from all of them" in said[0]


@pytest.mark.parametrize(("champion", "served"), [(True, "it"), (False, "the site's champion, not this one")])
def test_the_next_command_is_said_to_serve_what_it_serves(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, champion: bool, served: str
) -> None:
    registered = {"model": "wbc-moved", "version": "2", "champion": champion, "reason": "version 2 was withdrawn by Ada"}
    result = {"status": "adapted", "model": "sites/moved/models/adapted", "workspace": "sites/moved", "registered": registered}
    result["seen_before"] = {"home": {"warnings": []}, "site": {"warnings": ["warning: the model was trained on them"]}}
    monkeypatch.setattr(onboard, "onboard", lambda *arguments: result)
    monkeypatch.chdir(workspace)
    (workspace.parent / "moved").mkdir()
    text = CliRunner().invoke(app, ["onboard", "../moved"]).stdout
    assert "site: warning: the model was trained on them" in text.splitlines()
    assert text.splitlines()[-1] == f"next: `wbc serve` in sites/moved serves {served}"


def test_two_sites_of_one_name_are_not_taken_for_one(home: Path, tmp_path: Path):
    site = tmp_path / "sites/manifest"
    refuse_another_site(site, Path(site_data(home)))  # nothing is known yet
    ingest(Path(site_data(home)), site / "data", read_params(home / "params.yaml"), "manifest", reveal_labels=False)
    refuse_another_site(site, Path(site_data(home)))
    elsewhere = write_cells(tmp_path / "elsewhere", 40, seed=3)
    with pytest.raises(WbcError, match="site manifest has cells already, none of them in"):
        refuse_another_site(site, elsewhere)


def test_the_shift_is_measured_on_cells_of_all_classes_though_the_manifest_goes_class_by_class():
    labels = [name for name in CLASSES for _ in range(2 * SHIFT_CELLS)]
    pool = pd.DataFrame({"sha256": [hashlib.sha256(str(i).encode()).hexdigest() for i in range(len(labels))], "label": labels})
    some = of_all_kinds(pool)
    assert len(some) == SHIFT_CELLS
    assert some["label"].value_counts().reindex(CLASSES).min() > SHIFT_CELLS / len(CLASSES) / 2


def test_a_workspace_without_a_model_says_what_to_do(tmp_path: Path):
    with pytest.raises(WbcError, match="`wbc retrain` makes one"):
        champion_of(tmp_path)


def test_the_adapted_network_is_the_champions_whatever_params_say_now(home: Path):
    params = read_params(home / "params.yaml")
    card = read_card(home / "models/candidate")
    by_groups = card.architecture.model_copy(update={"norm": "group"})
    card = card.model_copy(update={"view": "whole", "input_size": 96, "architecture": by_groups})
    how = adaptation_params(params, card, 8, 8)
    assert (how.model.view, how.model.norm, how.size.image_size, how.size.updates) == ("whole", "group", 96, 4)
    without = adaptation_params(params, card, 0, 8)
    batches = [(of.size.batch_size, of.train.unlabelled_ratio * of.size.batch_size) for of in (how, without)]
    assert batches == [(16, 8), (16, 8)]
    assert how.train.hard_share == 0.0, "what is drawn again are the site's cells"
    frozen = card.model_copy(update={"architecture": card.architecture.model_copy(update={"norm": "frozen"})})
    with pytest.raises(WbcError, match=r"model\.norm: frozen, which went"):
        adaptation_params(params, frozen, 8, 8)


@pytest.mark.slow
def test_without_any_label_the_statistics_and_pseudo_labels_adapt(home: Path, workspace: Path):
    result = here(workspace, site_data(home), "--labels", "0")
    assert (result["status"], result["labels"]) == ("adapted", 0)
    assert result["after"]["site"]["n"] == result["statistics"]["site"]["n"] == 40
    assert Pools.read(workspace / "sites/manifest/data/pools").frames["labelled"].empty
    start, adapted, old = (read_card(workspace / "sites/manifest/models" / name) for name in ("start", "adapted", "home"))
    assert adapted.parameters["size"]["updates"] == 4  # with pseudo-labels from the first
    assert len({start.version, adapted.version, old.version, read_card(workspace / "models/candidate").version}) == 4


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True).stdout


def typed(folder: Path, *arguments: str) -> str:
    """What a command says that is typed in a folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        answer = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    return answer.stdout


def older(parent: Path, data: Path, name: str = "manifest") -> Path:
    """A site as it was onboarded when sites were no workspaces: data without workspace files, hidden from git."""
    with (parent / ".gitignore").open("a") as file:
        file.write("# sites that the champion was adapted to\n/sites/\n# my own\n*.bak\n")
    site = parent / "sites" / name
    ingest(data, site / "data", read_params(parent / "params.yaml"), name, reveal_labels=False)
    return site


@pytest.mark.slow
def test_an_onboarded_site_is_versioned_registered_and_acted_on_from_within(
    home: Path,
    workspace: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    for name, value in IDENTITY.items():
        monkeypatch.setenv(name, value)
    manifest = pd.read_csv(site_data(home))
    labels = dict(zip(manifest["path"], manifest["label"], strict=True))
    data = Path(shutil.copytree(home.parent / "site", tmp_path / "ward"))
    manifest[["path"]].to_csv(data / "manifest.csv", index=False)
    site = older(workspace, data / "manifest.csv")
    with pytest.raises(WbcError, match=r"onboarded when sites were no workspaces: `wbc onboard`"):
        find_workspace(site / "data")  # never the parent's instead

    waiting = here(workspace, str(data / "manifest.csv"), "--labels", "2", "--commit")
    assert waiting["workspace"] == str(site)
    assert find_workspace(site / "data") == site
    assert label_cycle(site) == 1
    typed(site, "labels", "export", str(tmp_path / "queue.csv"), "--images", str(tmp_path / "shown"))
    queue = pd.read_csv(tmp_path / "queue.csv", dtype=str)
    assert set(queue["sha256"]) <= set(Pools.read(site / "data/pools").table()["sha256"])
    assert len(list((tmp_path / "shown").iterdir())) == len(queue) == waiting["awaited"] == 1

    while waiting["status"] == "waiting":
        queue = pd.read_csv(waiting["queue"], dtype=str)
        answered = tmp_path / "answered.csv"
        queue.assign(label=queue["path"].map(labels))[["sha256", "label"]].to_csv(answered, index=False)
        typed(site, "labels", "import", str(answered))
        waiting = here(site, str(data / "manifest.csv"), "--labels", "2", "--commit")  # typed in the site it means the parent
    assert not (site / "sites").exists()
    assert sorted(Pools.read(site / "data/pools").frames["labelled"]["cycle"].astype(int)) == [1, 2]

    assert {name for name in git(workspace, "tag").split() if name.startswith("manifest-pools-v")} >= {waiting["pools"]}
    tracked = git(workspace, "ls-files", "sites").split()
    assert {f"sites/manifest/{name}" for name in ("dvc.yaml", "parent.yaml", "report.json", "data/pools.dvc")} <= set(tracked)
    assert git(workspace, "status", "--porcelain", "sites", ".gitignore") == ""
    assert "# my own\n*.bak" in (workspace / ".gitignore").read_text()
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(workspace), str(clone))
    of_clone = site_of(clone / "sites/manifest")
    assert of_clone is not None
    assert of_clone.parent == clone

    known = champions(site)
    version = waiting["registered"]["version"]
    assert known["champion"] == version
    assert waiting["registered"]["model"].endswith("-manifest")
    assert read_card(site / "models/champion").version == read_card(site / "models/adapted").version
    assert not (workspace / "models/champion").exists()  # the parent has its own
    assert "`wbc serve`" in typed(site, "status")
    typed(site, "query", "--count", "3")
    assert set(pd.read_csv(site / "data/queue.csv")["predicted"]) != {""}  # by the adapted model, not by colours
    typed(site, "labels", "test", "--draw", "5")
    assert "5 drawn" in typed(site, "labels", "test")


@pytest.mark.slow
def test_a_sites_word_about_its_model_binds_the_next_onboarding(home: Path, workspace: Path):
    first = here(workspace, site_data(home), "--labels", "0")["registered"]
    second = here(workspace, site_data(home), "--labels", "1")["registered"]
    assert first["champion"]
    assert second["champion"]
    assert second["version"] != first["version"]
    site = workspace / "sites/manifest"
    roll_back(site, "it calls everything a lymphocyte", "Ada")
    again = here(workspace, site_data(home), "--labels", "1")["registered"]
    assert (again["version"], again["champion"]) == (second["version"], False)
    assert "was withdrawn by Ada" in again["reason"]
    assert open_tracker(site, read_params(site / "params.yaml")).alias("champion") == first["version"]
