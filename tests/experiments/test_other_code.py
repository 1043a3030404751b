"""A sound record of other code is kept: it is said what it has, and which commit reads it."""

import re

import pytest
from made_records import resealed

from bnjax.evidence.records import RecordError, read_record
from experiments.harness.images.evaluate import Arguments, evaluate
from experiments.harness.results import load_runs
from experiments.norms.experiment import EXPERIMENT
from experiments.results_page.groups import read_groups
from experiments.verify import verify

RUN = EXPERIMENT.results / "batch-s0"
ARM = {"arm": "batch_of_old", "settings__norm": "batch"}
CONFIG, SETTING = {"config__zip": 3}, {"settings__nrom": "batch", "settings__norm": None}
READERS = {
    "verify": verify,
    "evaluate": lambda run: evaluate(EXPERIMENT, Arguments((run,))),
    "tables": lambda run: load_runs(EXPERIMENT.arms, run.parent),
    "page": lambda run: read_groups("norms", run.parent, EXPERIMENT.arms),
}


@pytest.mark.parametrize(
    ("reader", "changes", "what"),
    [
        *(
            (reader, changes, what)
            for reader in ("verify", "evaluate")
            for changes, what in (
                (CONFIG, "it has fields of config that this code lacks: zip"),
                (ARM, "it has arms that this code lacks: batch_of_old"),
                (SETTING, "it has fields of settings that this code lacks: nrom"),
                ({"config__centre": 3.0}, "centre must be in (0, 1], got 3.0"),
            )
        ),
        ("tables", SETTING, "it has settings that this code lacks: nrom"),
        ("page", SETTING, "it has settings that this code lacks: nrom"),
    ],
)
def test_a_sound_record_of_other_code_is_not_called_damaged(tmp_path, reader, changes, what):
    run = resealed(RUN, tmp_path / f"{changes.get('arm', 'batch')}-s0", **changes)
    with pytest.raises(RecordError) as caught:
        READERS[reader](run)
    made_by = read_record(RUN)["environment"]
    said = f"record.json is sound, but of other code than this .*{re.escape(what)}.*made by bnjax "
    said += f"{made_by['versions']['bnjax']} at commit {made_by['git']['commit']}; keep it, and "
    assert re.search(said, str(caught.value))
    assert "remove" not in str(caught.value)
    assert "damaged" not in str(caught.value)
