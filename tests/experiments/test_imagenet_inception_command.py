"""The command line of the ImageNet comparison: what it refuses before any compute, and its help."""

import re

import pytest
from commands import in_process

from experiments.harness import main as harness
from experiments.imagenet_inception import __main__ as command


@pytest.fixture
def cli(monkeypatch, capsys):
    return in_process(command.main, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--arms", "vgg"], "arms: unknown 'vgg'; choose from inception"),
        (["--data", "emnist"], "data: unknown 'emnist'"),
        (["--image-size", "16"], "image_size=16 of inception: .* stem_stride=4.* of 17x17"),
        (
            ["--arms", "googlenet"],
            "image_size=32 of googlenet: .* needs 9x9. Use larger images, of 33x33",
        ),
        (["--rates", "0.1", "-1"], "rates must be > 0 and finite, got -1"),
        (["--activation", "tanh"], "invalid choice 'tanh'"),
        (["--batch-size", "20", "--normalize-together", "20"], "cannot be split evenly over 8"),
        (["--batch-size", "33"], "normalize_together=32 must be 2 or more and divide the 33"),
        (["--micro-batches", "3"], "micro_batches=3 must divide batch_size=32"),
        (["--eval-batch", "100"], "eval_batch: .*cannot be split evenly over 8 devices"),
        (["--eval-every", "3", "--steps-per-dispatch", "2"], "must be a multiple of"),
        (["--dropout", "1"], r"dropout must be in \[0, 1\), .*got 1"),
        (["--epsilon", "1e-46"], "epsilon must be > 0 and finite, got 1e-46, as a float32"),
        (["--learning-rate", "1e39"], "learning_rate must be > 0 and finite, got"),
        (["--decay", "0.999999999"], r"decay must be in \[0, 1\), got 0.999999999"),
        (["--l2", "inf"], "l2 must be >= 0 and finite"),
        (["--width", "inf"], r"width must be in \(0, 64\], got inf"),
        (["--seeds", "1000000000"], "seeds must be at most 10000, got 1000000000"),
        (["--image-size", "1000000"], "image_size must be in 1 .. 8192, got 1000000"),
        (["--eval-batch", "1000000000"], "eval_batch=1000000000: .* take 3e[+]12 bytes; use fewer"),
        (["--data", "folder:gs://photos"], "must be a local folder, got 'gs://photos'; mount"),
        (["--data", "cifar10", "--data-dir", "nowhere"], "cifar10 is not in"),
        (["--data", "folder:nowhere"], "nowhere"),
        (["--batch-size", "8000", "--normalize-together", "8000"], "at most the 4,000 training"),
        (["--resume"], "holds no run to go on with"),
        (["--out", "gs://bucket/run"], "--out must be a local folder, got 'gs:/bucket/run'"),
        (["--colour", "red"], "Unrecognized"),
    ],
)
def test_bad_input_is_refused_before_any_compute(arguments, words, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(harness, "complete", lambda *a, **k: pytest.fail("computed"))
    ended = cli(*arguments)
    assert ended.code != 0
    assert re.search(words, (ended.err + ended.out).replace("\n", " ")), ended.err + ended.out
    assert not list(tmp_path.rglob("record.json"))


@pytest.mark.parametrize(
    ("word", "remedy"),
    [("evalute", "did you mean 'evaluate'?"), ("zebra", "choose from dry-run, evaluate.")],
)
def test_a_mistyped_subcommand_is_told_the_nearest(cli, word, remedy):
    ended = cli(word)
    assert ended.code == 1
    assert ended.err.strip() == f"error: there is no subcommand {word!r}: {remedy}"


def test_the_help_shows_the_names_of_arms(cli):
    ended = cli("--help")
    assert "--arms {inception,bn_baseline," in ended.out


def test_the_help_tells_of_the_other_commands(cli):
    """Red where the experiment's own words are all there is, or are indented as in its source."""
    text = cli("--help").out
    assert "`evaluate`" in text
    assert "`dry-run`" in text
    assert '\n"Stated" fields are the paper' in text
