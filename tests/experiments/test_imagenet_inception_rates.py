"""What normalization gains at each rate of a sweep, paired by seed."""

from made_results import write_run

from experiments.imagenet_inception.rates import rates_text


def test_differences_are_paired_at_each_rate_and_then_between_rates(tmp_path):
    """Of 200 digits; seeds are not alike, so that unpaired intervals would be wider."""
    for rate, gain in ((0.1, -4), (0.5, 6)):
        for seed in (0, 1, 2):
            usual = 100 + 20 * seed
            for arm, right in (("inception", usual), ("bn_baseline", usual + gain + seed)):
                write_run(tmp_path, arm, seed, [20, 30, 40, 50, right], sweep_rate=rate)
    lines = rates_text(tmp_path).splitlines()
    assert lines == [
        "- BN-Baseline at 0.1 minus Inception at 0.1: -1.50 points, 95 % confidence interval "
        "-2.74 to -0.26 (3 seeds, paired).",
        "- BN-Baseline at 0.5 minus Inception at 0.5: +3.50 points, 95 % confidence interval "
        "+2.26 to +4.74 (3 seeds, paired).",
        "- This difference at 0.5 minus that at 0.1: +5.00 points, 95 % confidence interval "
        "+5.00 to +5.00 (3 seeds, paired).",
    ]
