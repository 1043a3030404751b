"""python -m bnjax.doctor: what machine is this, and what will bite you here."""

from bnjax.doctor.report import check
from bnjax.outputs import quiet_outputs

with quiet_outputs():
    check()
