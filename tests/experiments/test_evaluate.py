"""Crops, ensembles and statistics against NumPy float64; a small network stands in for Inception,
whose compilation takes minutes."""

import json
import shutil
from dataclasses import replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
from runs import inception_task

from bnjax.data import ArraySplit, DataError, open_data
from bnjax.data.data_set import Example
from bnjax.data.views.augmentation import evaluation_views
from bnjax.evidence.records import RecordError, read_record
from bnjax.linen import BatchNorm
from bnjax.models import load_safetensors, save_safetensors
from experiments.harness.experiment import Outcome
from experiments.harness.images import evaluate as command
from experiments.harness.images import evaluation_table
from experiments.harness.images.blacklist import Blacklisted, read_blacklist
from experiments.harness.images.compute import ImageCompute
from experiments.harness.images.ensembles import plan
from experiments.harness.images.evaluate import Arguments
from experiments.harness.runs import complete
from experiments.harness.weights import FILE, digests
from experiments.imagenet_inception import __main__ as experiment
from experiments.imagenet_inception.arms import InceptionArm
from experiments.imagenet_inception.config import PRESETS
from experiments.imagenet_inception.experiment import EXPERIMENT
from experiments.imagenet_inception.page import PUBLISHED

CONFIG = PRESETS["quick"]
EPSILON, CLASSES, IMAGES = 1e-3, 10, 21
evaluate = partial(command.evaluate, EXPERIMENT)
main = command.subcommand(EXPERIMENT, PUBLISHED)
table = partial(evaluation_table.table, arms=EXPERIMENT.arms, published=PUBLISHED)
RUNS = (("bn_x30", 0), ("bn_x30", 1), ("inception", 0))


class Small(nn.Module):
    """Means of 8x8 pixels, dense, normalization, ReLU, dense."""

    norm: Any

    def check_size(self, height, width):
        """Takes images of any."""

    @nn.compact
    def __call__(self, images, *, train):
        x = images.reshape(-1, 4, 8, 4, 8, 3).mean((2, 4)).reshape(-1, 48)
        x = nn.Dense(16, use_bias=False, name="hidden")(x)
        if self.norm is not None:
            x = self.norm(use_running_average=not train, epsilon=EPSILON, name="norm")(x)
        return nn.Dense(CLASSES, use_bias=False, name="logits")(nn.relu(x))


def small_model(arm, config, *, classes):
    assert classes in (2, CLASSES)  # 2 where its size alone is asked
    return Small(BatchNorm if arm.normalized else None)


def small_weights(task):
    """Random, and such that statistics, views and networks matter to what is predicted."""
    rng = np.random.default_rng([task.seed, task.arm.name == "inception"])

    def draw(*shape, scale):
        return rng.normal(0, scale, shape).astype(np.float32)

    params = {
        "hidden": {"kernel": draw(48, 16, scale=0.4)},
        "logits": {"kernel": draw(16, CLASSES, scale=2)},
    }
    if task.arm.name == "inception":
        return {"params": params, "batch_stats": {}}
    params["norm"] = {"scale": np.ones(16, np.float32), "bias": draw(16, scale=0.3)}

    def stats():
        mean, var = draw(16, scale=0.3), (1 + rng.random(16)).astype(np.float32)
        return {"norm": {"mean": mean, "var": var, "count": np.int32(5)}}

    return {"params": params, "batch_stats": stats(), "population_stats": stats()}


def probabilities(weights, statistics, views):
    """Float64 `[crops, classes]` of uint8 `[crops, 32, 32, 3]`."""
    params = weights["params"]
    x = views.astype(np.float64) / 127.5 - 1
    x = x.reshape(-1, 4, 8, 4, 8, 3).mean((2, 4)).reshape(-1, 48) @ params["hidden"]["kernel"]
    if "norm" in params:
        name = {"running": "batch_stats", "population": "population_stats"}[statistics]
        stats = {key: value.astype(np.float64) for key, value in weights[name]["norm"].items()}
        x = (x - stats["mean"]) / np.sqrt(stats["var"] + EPSILON)
        x = x * params["norm"]["scale"] + params["norm"]["bias"]
    logits = np.maximum(x, 0) @ params["logits"]["kernel"].astype(np.float64)
    exp = np.exp(logits - logits.max(1, keepdims=True))
    return exp / exp.sum(1, keepdims=True)


def few_images(*args, **options):
    """The packaged digits, with few to measure on: no multiple of any batch."""
    data = open_data(*args, **options)
    split = data.test
    chosen = slice(0, IMAGES * 47, 47)  # of all classes, which are stored one after another
    few = ArraySplit(split.images[chosen], split.labels[chosen], "test")
    return data._replace(test=few)


def outcome_of(task, *args, **options):
    """What training returns, without training."""
    weights = small_weights(task)
    metrics = {"loss": 1.0, "correct": 1, "examples": 1000}
    final = {"test": metrics, "test_population": metrics, **digests(weights), "diverged": None}
    return [Outcome(final, {"timing": None, "memory": {"host": [], "arrays": []}}, weights)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Finished runs, in the order of RUNS."""
    out = tmp_path_factory.mktemp("runs")
    untrained, data = replace(EXPERIMENT, train=outcome_of), open_data("mnist5k")
    for arm, seed in RUNS:
        task = inception_task(CONFIG, arm, seed)
        complete(untrained, task, data, ImageCompute(device_count=1), out)
    return [out / f"{arm}-s{seed}" for arm, seed in RUNS]


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(InceptionArm, "model", small_model)
    monkeypatch.setattr(InceptionArm, "check_size", lambda arm, config: None)  # of any
    monkeypatch.setattr(command, "open_data", few_images)


@pytest.fixture(scope="module")
def expected():
    """Errors by crops, statistics and runs, from float64."""
    split = few_images("mnist5k").test
    weights = [small_weights(inception_task(CONFIG, arm, seed)) for arm, seed in RUNS]
    errors = {}
    for crops, fraction in ((1, 1.0), (10, 0.875), (144, 1.0)):
        views = [evaluation_views(image, 32, crops, fraction=fraction) for image in split.images]
        for statistics in ("running", "population"):
            means = np.array(
                [[probabilities(w, statistics, v).mean(0) for v in views] for w in weights]
            )
            for group in ((0,), (1,), (2,), (0, 1), (0, 1, 2)):
                rank = np.argsort(np.argsort(-means[list(group)].mean(0), 1), 1)
                rank = rank[np.arange(IMAGES), split.labels]
                kind = None if group == (2,) else statistics
                errors[crops, kind, group] = ((rank >= 1).sum(), (rank >= 5).sum(), IMAGES)
    return errors


def counted(result):
    return {
        (each["crops"], each["statistics"], tuple(each["runs"])): tuple(
            each[name] for name in ("top_1", "top_5", "examples")
        )
        for each in json.loads(json.dumps(result))["evaluations"]
    }


@pytest.mark.parametrize(
    ("how", "crops", "views"),
    [
        ("jit", (1, 10), 256),
        pytest.param("shard_map", (1, 10), 24, marks=pytest.mark.slow),
        pytest.param("pmap", (10, 144), 256, marks=pytest.mark.slow),
    ],
)
def test_errors_are_those_of_float64(small, folders, expected, how, crops, views):
    """On eight devices. Red for a mean of logits, for padding that counts, for running statistics
    in the place of Algorithm 2's, for a network counted twice."""
    result = evaluate(Arguments(tuple(folders), crops=crops, parallel=how, views=views))
    wanted = {key: value for key, value in expected.items() if key[0] in crops}
    wanted = {key: value for key, value in wanted.items() if key[2] != (0, 1)}
    assert counted(result) == wanted
    assert len({value for key, value in wanted.items() if key[0] == 10}) > 3  # they differ


def test_each_arms_runs_make_an_ensemble(small, folders, expected):
    chosen = Arguments(tuple(folders), statistics=("population",), ensemble="arm")
    kinds = ((0,), "population"), ((1,), "population"), ((2,), None), ((0, 1), "population")
    wanted = {(1, kind, group): expected[1, kind, group] for group, kind in kinds}
    assert counted(evaluate(chosen)) == wanted
    alone = counted(evaluate(replace(chosen, ensemble="none")))
    assert set(wanted) - set(alone) == {(1, "population", (0, 1))}


def test_listed_images_do_not_count(small, folders, monkeypatch, tmp_path):
    """As if the data had not had them; red if they count, or if their label is a class."""
    listed, chosen = tmp_path / "blacklist.txt", Arguments((folders[0],), crops=(1, 12))
    listed.write_text("test image 0\n  test image 20.JPEG\n\n")
    some = evaluate(replace(chosen, blacklist=listed))
    split = few_images("mnist5k").test
    rest = ArraySplit(split.images[1:-1], split.labels[1:-1], "test")
    others = open_data("mnist5k")._replace(test=rest)
    monkeypatch.setattr(command, "open_data", lambda *args, **options: others)
    assert counted(some) == counted(evaluate(chosen))
    assert "Of them 2 do not count" in table(some)
    monkeypatch.setattr(command, "measure", lambda *_, **options: pytest.fail("computed"))
    listed.write_text("7\ntest image 3\n")  # the first is ILSVRC2012_val_00000007
    with pytest.raises(DataError, match="of its 2 images 1 are among the 19 validation images"):
        evaluate(replace(chosen, blacklist=listed))


@pytest.mark.parametrize("text", ["", "a.JPEG\na.JPEG\n", None])
def test_a_list_that_is_none_is_refused(folders, tmp_path, text):
    listed = tmp_path / "blacklist.txt"
    if text is not None:
        listed.write_text(text)
    with pytest.raises(ValueError, match=r"blacklist: .*(one or more images|cannot be read)"):
        evaluate(Arguments((folders[0],), blacklist=listed))


def test_numbers_are_those_of_imagenet_s_files(tmp_path):
    (tmp_path / "numbers").write_text("36\n50000\n")
    names = {"ILSVRC2012_val_00000036", "ILSVRC2012_val_00050000"}
    assert read_blacklist(tmp_path / "numbers") == names
    split = [Example(b"", 5, f"folder/part-1, record 2, {name}.JPEG") for name in sorted(names)]
    marked = Blacklisted(split, frozenset({"ILSVRC2012_val_00000036"}))
    assert [marked[0].label, marked[1].label] == [-1, 5]


def test_one_run_is_no_ensemble(small, folders):
    assert set(counted(evaluate(Arguments((folders[2],))))) == {(1, None, (0,))}


def test_what_is_written(small, folders, tmp_path, capsys):
    arguments = [str(folder) for folder in folders[:2]]
    main([*arguments, "--crops", "1", "10", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert (tmp_path / "evaluation.md").read_text() == printed
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert table(result) + "\n" == printed
    assert [run["seed"] for run in result["runs"]] == [0, 1]
    for folder, run in zip(folders, result["runs"], strict=False):
        assert run["state_sha256"] == read_record(folder)["final"]["state_sha256"]
    assert result["environment"]["versions"]["jax"] == jax.__version__
    assert result["data"]["sha256"] == open_data("mnist5k").sha256
    text = json.dumps(result)
    assert str(tmp_path) not in text
    assert str(folders[0].parent) not in text


def test_the_table():
    """Mean and standard deviation over an arm's runs; the paper's rows; notes."""
    runs_of = [("bn_x30", None), ("bn_x30", {"step": 1200}), ("ensemble_4", None)]
    result = {
        "image_size": 32,
        "data": {"name": "cifar10", "classes": 10, "validation": 10_000},
        "runs": [
            {"arm": arm, "seed": seed, "diverged": diverged}
            for seed, (arm, diverged) in enumerate(runs_of)
        ],
        "evaluations": [
            {"crops": 10, "statistics": "population", "runs": group, "examples": 200} | errors
            for group, errors in (
                ([0], {"top_1": 40, "top_5": 2}),
                ([1], {"top_1": 44, "top_5": 4}),
                ([2], {"top_1": 50, "top_5": 3}),
                ([0, 1, 2], {"top_1": 30, "top_5": 1}),
            )
        ],
    }
    lines = table(result).splitlines()
    assert lines[2:6] == [
        "| BN-x30, mean of 2 seeds | Algorithm 2 | 32 | 10 | 1 | 21.00 ± 1.41 | 1.50 ± 0.71 |",
        "| ensemble, network 4 | Algorithm 2 | 32 | 10 | 1 | 25.00 | 1.50 |",
        "| ensemble of BN-x30, network 4 | Algorithm 2 | 32 | 10 | 3 | 15.00 | 0.50 |",
        "| paper, ImageNet: BN-Inception single crop |  | 224 | 1 | 1 | 25.2 | 7.82 |",
    ]
    assert "BN-x30, seed 1, diverged at step 1,200" in lines[-1]
    assert "other images" in lines[-2]


def test_batches_are_bounded():
    """About so many views; where one image has more, parts of its crops."""
    assert plan(1, devices=1, views=256) == (256, 1)
    assert plan(10, devices=8, views=256) == (24, 10)
    assert plan(144, devices=1, views=256) == (1, 144)
    assert plan(144, devices=8, views=256) == (8, 24)
    assert plan(144, devices=8, views=1) == (8, 1)
    with pytest.raises(ValueError, match="views must be >= 1, got 0"):
        plan(10, devices=1, views=0)


def changed_weights(folder):
    weights = load_safetensors(folder / FILE).variables
    weights["params"]["hidden"]["kernel"][0, 0] += 1
    save_safetensors(weights, folder / FILE)


def changed_statistics(folder):
    weights = load_safetensors(folder / FILE).variables
    weights["population_stats"]["norm"]["mean"][0] += 1
    save_safetensors(weights, folder / FILE)


def cut(folder):
    (folder / FILE).write_bytes((folder / FILE).read_bytes()[:100])


def edited(folder, **changes):
    """Changed as only a record of schema 1 can be, which has no digest."""
    record = json.loads((folder / "record.json").read_text()) | {"schema": 1}
    del record["sha256"]
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = record
        for parent in parents:
            place = place[parent]
        place[last] = value
    (folder / "record.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "record.json").unlink(), "holds no run"),
        (
            partial(edited, finished=False, final=None),
            "is not finished: complete it first, with --resume",
        ),
        (partial(edited, experiment="mnist_lenet"), "holds a run of mnist_lenet"),
        (lambda folder: (folder / FILE).unlink(), "weights.safetensors is missing: git does not"),
        (cut, "is damaged"),
        (changed_weights, "not what the run wrote: state_sha256 in record.json"),
        (changed_statistics, "not what the run wrote: population_sha256 in record.json"),
        (partial(edited, data__sha256="0" * 64), "is of data 0000.* evaluate them in two commands"),
        (partial(edited, identity__config__image_size=28), "is of image_size 28"),
        (partial(edited, identity__config__centre=0.5), "is of centre 0.5"),
        (partial(edited, identity__config__width=0.5), "another seed .config.width.*two commands"),
    ],
)
def test_runs_that_do_not_fit(folders, tmp_path, damage, message):
    bad = shutil.copytree(folders[1], tmp_path / "bad")
    damage(bad)
    with pytest.raises(RecordError, match=message):
        evaluate(Arguments((folders[0], bad)))


def test_a_run_counts_once(folders, tmp_path):
    """A copy or a link is no other seed, and no ensemble with what it is of."""
    copy, link = shutil.copytree(folders[1], tmp_path / "copy"), tmp_path / "link"
    link.symlink_to(folders[1])
    for again in (copy, link):
        words = f"{again} and {folders[1]} are both of bn_x30, seed 1, which would count twice"
        with pytest.raises(RecordError, match=words):
            evaluate(Arguments((*folders, again)))


def test_a_diverged_run_has_running_statistics_alone(small, folders, tmp_path):
    bad = shutil.copytree(folders[0], tmp_path / "bad")
    weights = load_safetensors(bad / FILE).variables
    del weights["population_stats"]
    save_safetensors(weights, bad / FILE)
    diverged = {"step": 7, "layer": "logits", "leaf": "kernel", "what": "gradient"}
    edited(bad, final__population_sha256=None, final__diverged=diverged)
    with pytest.raises(RecordError, match="no statistics of Algorithm 2: choose --statistics"):
        evaluate(Arguments((bad,)))
    result = evaluate(Arguments((bad,), statistics=("running",)))
    assert "diverged at step 7" in table(result)


def test_other_data_is_refused(monkeypatch, folders):
    other = open_data("mnist5k")._replace(sha256="f" * 64)
    monkeypatch.setattr(command, "open_data", lambda *args, **options: other)
    with pytest.raises(RecordError, match=r"has SHA-256 ffff.*point --data-dir or --data"):
        evaluate(Arguments((folders[0],)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runs": ()}, "runs must name one or more, each once, got nothing"),
        ({"runs": ("a", "a")}, "runs must name one or more, each once, got a, a"),
        ({"crops": ()}, "crops must name one or more"),
        ({"statistics": ("running", "running")}, "statistics must name one or more"),
        ({"fraction": 0.0}, r"fraction must be in \(0, 1\], got 0.0"),
        ({"views": 0}, "views must be >= 1, got 0"),
        ({"workers": -1}, "workers must be >= 0, got -1"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(Arguments(**{"runs": ("a",)} | options))


def test_the_command_refuses_in_a_line(monkeypatch, tmp_path):
    """By the first word of the experiment's command."""
    monkeypatch.setattr("sys.argv", ["imagenet_inception", "evaluate", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"^error: .* holds no run: there is no record.json"):
        experiment.main()


def test_what_cannot_be_written_is_refused_before_any_compute(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "evaluate", lambda *_: pytest.fail("computed"))
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=r"error: --out .*file cannot be written \(File exists\)"):
        main([str(folders[0]), "--out", str(tmp_path / "file")])
    with pytest.raises(SystemExit, match="error: --out must be a local folder, got 'gs:/b/c'"):
        main([str(folders[0]), "--out", "gs://b/c"])
