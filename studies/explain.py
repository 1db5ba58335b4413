"""Which heat map knows where the network looks: a deletion test of occlusion, Grad-CAM, CBAM's spatial attention and chance.

    python studies/explain.py MODEL_DIR DATA.csv --out studies/explain [--cells 100]

The pixels of each cell are covered by empty smear, the hottest first, in twenty steps. The sooner the probability of the class
falls, the better the map (RISE, Petsiuk et al. 2018). The report has the area under that curve: its mean over the cells, and its
standard error. Cells are drawn evenly over the classes from the test split.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from flows.studies.results import claim, publishing
from flows.workspace import find_workspace
from serving.inference.engine import OpenVinoEngine
from serving.inference.heat_map import heat, heat_map
from wbc_model.core.canonical import WHITE
from wbc_model.core.errors import WbcError
from wbc_model.core.images import preprocess
from wbc_model.network.model_directory import load_model
from wbc_model.network.resnet import AttentionResNet18

STEPS = 20
SHOWN = 3  # heat maps that are kept as pictures
Map = NDArray[np.float64]


def tensor(views: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(views.copy()).permute(0, 3, 1, 2).float() / 255


def enlarged(small: torch.Tensor, size: int) -> Map:
    large: Map = F.interpolate(small[None, None], size=(size, size), mode="bilinear")[0, 0].double().numpy()
    return large


def grad_cam(network: AttentionResNet18, view: NDArray[np.uint8], label: int, stage: str) -> Map:
    """Grad-CAM (Selvaraju et al. 2017) on the output of a stage."""
    kept: list[torch.Tensor] = []
    hook = getattr(network, stage).register_forward_hook(lambda module, given, out: kept.append(out))
    logits = network(tensor(view[None])).logits
    hook.remove()
    (gradient,) = torch.autograd.grad(logits[0, label], kept[0])
    weights = gradient.mean((2, 3), keepdim=True)
    return enlarged((weights * kept[0]).sum(1)[0].clamp_min(0).detach(), len(view))


def spatial_attention(network: AttentionResNet18, view: NDArray[np.uint8], stage: str) -> Map:
    """CBAM's spatial attention in the last block of a stage."""
    kept: list[torch.Tensor] = []
    block = getattr(network, stage)[-1].attention
    module = next(child for child in block.modules() if isinstance(child, torch.nn.Conv2d) and child.in_channels == 2)
    hook = module.register_forward_hook(lambda module, given, out: kept.append(out))
    with torch.no_grad():
        network(tensor(view[None]))
    hook.remove()
    return enlarged(kept[0][0].mean(0).sigmoid(), len(view))


def deletion(network: AttentionResNet18, view: NDArray[np.uint8], label: int, hot: Map) -> float:
    """Mean probability of the class while the hottest pixels are covered step by step."""
    order = np.argsort(-hot, axis=None, kind="stable")
    views = np.repeat(view[None], STEPS + 1, axis=0)
    for step in range(1, STEPS + 1):
        views[step].reshape(-1, 3)[order[: len(order) * step // STEPS]] = WHITE
    with torch.no_grad():
        return float(network(tensor(views)).logits.softmax(1)[:, label].mean())


def maps_of(view: NDArray[np.uint8], network: AttentionResNet18, label: int, cbam: bool) -> dict[str, Map]:
    """The maps (S, S) that the network itself gives for a class of a cell, by name."""
    maps: dict[str, Map] = {}
    for stage in ("layer2", "layer3", "layer4"):
        maps[f"Grad-CAM, {stage}"] = grad_cam(network, view, label, stage)
        if cbam:
            maps[f"CBAM, {stage}"] = spatial_attention(network, view, stage)
    return maps


def run(model: Path, data: Path, cells: int, folder: Path) -> pd.DataFrame:
    """Measure all maps and write the study's files into `folder`; returns the table."""
    network, card = load_model(model)
    engine, cbam = OpenVinoEngine(model, 1), card.architecture.attention == "cbam"
    frame = pd.read_csv(data).query("split == 'test'").sample(frac=1, random_state=0)
    chosen = frame.groupby("label").head(cells // frame["label"].nunique())
    random, rows = np.random.default_rng(0), []
    for number, path in enumerate(chosen["path"]):
        view = preprocess((data.parent / path).read_bytes(), card.input_size, card.view)
        with torch.no_grad():
            label = int(network(tensor(view[None])).logits.argmax())
        maps = {"occlusion": heat(view, engine, label), "chance": random.random(view.shape[:2])}
        maps |= maps_of(view, network, label, cbam)
        rows.append({name: deletion(network, view, label, hot) for name, hot in maps.items()})
        if number < SHOWN:
            (folder / f"heat-map-{number}.png").write_bytes(heat_map(view, maps["occlusion"]))
    table = pd.DataFrame(rows)
    summary = pd.DataFrame({"deletion": table.mean(), "standard_error": table.sem()}).sort_values("deletion")
    summary.to_csv(folder / "deletion.csv", float_format="%.4f")
    lines = [f"| {name} | {row.deletion:.3f} ± {row.standard_error:.3f} |" for name, row in summary.iterrows()]
    command = f"`python studies/explain.py MODEL_DIR {data.name}`"
    head = f"# Heat maps\n\n{command}, {len(table)} test cells, model {card.version}: lower is better.\n\n"
    (folder / "README.md").write_text(head + "| map | area under the deletion curve |\n|---|---|\n" + "\n".join(lines) + "\n")
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cells", type=int, default=100)
    given = parser.parse_args()
    names = ["deletion.csv", "README.md", *(f"heat-map-{number}.png" for number in range(SHOWN))]
    try:
        claim([given.out / name for name in names], find_workspace())
        with publishing(given.out) as folder:
            summary = run(given.model, given.data, given.cells, folder)
    except WbcError as error:
        raise SystemExit(str(error)) from None
    print(summary)


if __name__ == "__main__":
    main()
