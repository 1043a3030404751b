"""What normalization gains, paired by seed, changes with the rate."""

from made_results import write_run

from experiments.harness.comparison import Comparison
from experiments.harness.results import load_sweep
from experiments.imagenet_inception.arms import ARMS
from experiments.imagenet_inception.rates import rate_text, rates_text, tuned_text


def test_gains_are_paired_at_each_rate_and_then_between_rates(tmp_path):
    """Of 200 images; seeds are not alike. Seen red with the gains of both rates exchanged."""
    pairs = {2: ("bn_x5", "recipe_x5/inception"), 6: ("bn_x30", "recipe_x30/inception")}
    for gain, (arm, other) in pairs.items():
        for seed in (0, 1, 2):
            usual, (*folder, control) = 100 + 20 * seed, other.split("/")
            write_run(tmp_path, arm, seed, [20, 30, 40, 50, usual + gain + seed])
            write_run(tmp_path.joinpath(*folder), control, seed, [20, 30, 40, 50, usual])
    report = Comparison(ARMS, reference="inception")

    def runs(name):
        path = tmp_path / name
        return report.load(path.parent)[path.name]

    assert rates_text(runs) == (
        "- The gain at x30 minus that at x5: +2.00 points (3 seeds, paired)."
    )


def test_networks_are_compared_at_each_rate_and_each_at_its_best(tmp_path):
    """Of 200 images: from 100 on. Seen red with the order of the rates reversed."""
    gains = {"bn_x5": {0.1: 10, 0.3: 20}, "recipe_x5": {0.1: 14, 0.3: 0, 1.0: 2}}
    for arm, by_rate in gains.items():
        for rate, gain in by_rate.items():
            for seed in (0, 1, 2):
                correct = [20, 30, 40, 50, 100 + 20 * seed + gain + seed * (arm == "bn_x5")]
                write_run(tmp_path, arm, seed, correct, sweep_rate=rate)
    sweep = load_sweep(ARMS, tmp_path / "sweep")
    assert tuned_text(sweep["bn_x5"], sweep["recipe_x5"]).splitlines()[2:] == [
        "| 0.1 | 65.50 ± 10.50 | 67.00 ± 10.00 | -1.50 (-2.74 to -0.26) |",
        "| 0.3 | 70.50 ± 10.50 | 60.00 ± 10.00 | +10.50 (+9.26 to +11.74) |",
        "| 1 |  | 61.00 ± 10.00 |  |",
        "| each at its best: 0.3, 0.1 | 70.50 ± 10.50 | 67.00 ± 10.00 | +3.50 (+2.26 to +4.74) |",
    ]
    assert rate_text(sweep["recipe_x5"], 0.3) == (
        "- Inception, recipe x5 at 0.1 minus at 0.3: +7.00 points (3 seeds, paired)."
    )
