"""How runs on images are computed: devices, hosts, workers, and what is watched besides."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Self

import jax
import tyro

from bnjax.data.stream import check_workers
from bnjax.paths import local_path
from bnjax.training.parallel import DataParallel, How, initialize_hosts
from experiments.harness.compute import Compute


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """Who shares the work on images: devices, workers and hosts."""

    parallel: How = "jit"
    """How the devices share a batch; the numbers are the same but for rounding."""
    workers: int = 0
    """Processes that make views; 0 for threads of this one."""
    coordinator: str | None = None
    """Of several hosts: host:port of process 0. Slurm and Cloud TPU tell all three by themselves.
    Each host needs a copy of what is read; the first one writes --out."""
    process_count: int | None = None
    """Of several hosts: how many processes, each started with the same flags."""
    process_index: int | None = None
    """Of several hosts: number of this process, from zero."""

    def start(self) -> None:
        """Waits for the other hosts, if there are any."""
        initialize_hosts(self.coordinator, self.process_count, self.process_index)


@dataclass(frozen=True, kw_only=True)
class ImageCompute(Sharing, Compute):
    """Devices of one or several hosts share each batch; processes or threads make views."""

    profile: Path | None = None
    """Folder for a profile of the third to fifth dispatch of each run, for Perfetto."""
    device_count: Annotated[int | None, tyro.conf.Suppress] = None
    """Devices to use; None for all."""

    @cached_property
    def devices(self) -> DataParallel:
        """The devices, and how they share a batch; one for all runs, which share programs."""
        return DataParallel(self.parallel, devices=jax.devices()[: self.device_count])

    def check(self) -> None:
        """Raises ValueError for what cannot be, before any compute."""
        super().check()
        if self.profile is not None:
            local_path("--profile", self.profile)
        check_workers(self.workers)

    def shared(self) -> dict[str, Any]:
        """Returns what all hosts of a run must agree on, when it goes on too."""
        return {"parallel": self.parallel}

    def described(self, task: Any) -> dict[str, Any]:
        """Returns what a record says."""
        return {"parallel": self.parallel}

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> Self:
        """Returns how a recorded run was computed, with as many devices."""
        return cls(parallel=record["parallel"], device_count=record["environment"]["device_count"])
