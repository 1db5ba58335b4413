"""`model.json`: what was written before is read, and is the same model."""

import json
from pathlib import Path

from flows.tracking import packaged_digest
from wbc_model.core.model_card import CARD, ModelCard, read_card
from wbc_model.network.card_page import write_card

# As `wbc train` wrote it when the out-of-distribution scores were called `doubt`, with two of its numbers.
BEFORE = """{
  "name": "wbc", "version": "0123456789ab", "created_at": "2026-11-20T10:00:00+00:00",
  "classes": ["Basophil", "Eosinophil", "Lymphocyte", "Monocyte", "Neutrophil"], "input_size": 64, "view": "canonical",
  "normalisation": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
  "architecture": {"network": "AttentionResNet18", "attention": "cbam", "lossnet": true, "norm": "batch"},
  "temperature": 1.25, "uncalibrated": "", "conformal_coverage": 0.95, "conformal_threshold": 0.125, "calibrated_on": "",
  "doubt": {
    "cell": [{"mean": [0.5, 1e-7], "precision": [[1.0, 0.0], [0.0, 2.0]]}], "cell_threshold": 30.5,
    "site": {"mean": [0.25], "precision": [[4.0]]}, "site_threshold": 20.0,
    "predicted_loss_threshold": null, "false_alarms": 0.02
  },
  "pool_version": "v3", "sha256": {"weights.safetensors": "ab", "model.onnx": "cd"}
}"""
DIGEST = "9e5be229dacab2de"  # what the registry noted of it: `wbc.packaged`


def test_a_card_of_before_is_read_and_written_with_the_new_key(tmp_path: Path) -> None:
    (tmp_path / CARD).write_text(BEFORE)
    card = read_card(tmp_path, verify=False)
    assert card.out_of_distribution is not None
    assert (card.out_of_distribution.cell_threshold, card.out_of_distribution.site.mean) == (30.5, [0.25])
    write_card(tmp_path, card)
    written = json.loads((tmp_path / CARD).read_text())
    assert "doubt" not in written
    assert written["out_of_distribution"] == json.loads(BEFORE)["doubt"]
    assert read_card(tmp_path, verify=False) == card


def test_a_model_keeps_the_digest_that_it_was_registered_with(tmp_path: Path) -> None:
    old = ModelCard.model_validate_json(BEFORE)
    new = ModelCard.model_validate_json(old.model_dump_json())
    assert packaged_digest(old) == packaged_digest(new) == DIGEST
