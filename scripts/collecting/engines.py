"""Where the tasks of a collection run: on the cores of this machine, or on a Slurm or Ray cluster."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datatrove.executor.base import PipelineExecutor
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.stats import PipelineStats
from loguru import logger

from ir3de.scripts.reports.progress import Steps
from ir3de.traffic.orphans import end_with_parent

ENGINES = ("local", "slurm", "ray")
_LOOK_EVERY = 1.0  # seconds


@dataclass(frozen=True)
class Engine:
    """
    Where and how tasks run.

    Args:
        name (`str`): one of `ENGINES`.
        tasks (`int`): among which the parts of the data are shared.
        workers (`int`): tasks that run at a time.
        folder (`Path`): for logs and for marks of finished tasks; shared by all machines of a cluster.
        options (`Mapping[str, Any]`): further arguments of datatrove's executor, such as `partition`.
    """

    name: str
    tasks: int
    workers: int
    folder: Path
    options: Mapping[str, Any] = field(default_factory=dict)

    def run(self, steps: Sequence[PipelineStep], last: PipelineStep) -> bool:
        """Runs steps as tasks that share the data, and then a last step once.

        Args:
            steps (`Sequence[PipelineStep]`): of each task.
            last (`PipelineStep`): of what comes after all tasks.

        Returns:
            whether they have run; a Slurm job has only been handed in.

        Raises:
            RuntimeError: a task failed on a cluster; its log is named.
        """
        if self.name == "slurm":
            self._hand_in(steps, last)
            return False
        if self.name == "ray":
            self._run_on_ray(steps)
        else:
            self._run_here(steps)
        for _ in last.run():
            pass
        return True

    def _run_here(self, steps: Sequence[PipelineStep]) -> None:
        logger.remove()  # what datatrove says goes to the files of the tasks
        executor = _Here(list(steps), self.tasks, self.workers, str(self.folder), **self.options)
        with cores_for(self.workers), _progress(executor), _ending_together():
            executor.run()

    def _run_on_ray(self, steps: Sequence[PipelineStep]) -> None:
        try:
            import ray
            from datatrove.executor.ray import RayPipelineExecutor
        except ImportError as error:
            raise ImportError("--engine ray needs the package ray: `pip install ray`.") from error
        if not ray.is_initialized():
            ray.init(address=os.environ.get("RAY_ADDRESS"), log_to_driver=False, include_dashboard=False)
        executor = RayPipelineExecutor(
            list(steps), tasks=self.tasks, workers=self.workers, logging_dir=str(self.folder), **self.options
        )
        with _progress(executor):
            executor.run()
        failed = executor.get_incomplete_ranks()
        if failed:
            log = self.folder / "logs" / f"task_{failed[0]:05d}.log"
            raise RuntimeError(
                f"{len(failed)} of {self.tasks} tasks failed: see {log}, and run the same command again."
            )

    def _hand_in(self, steps: Sequence[PipelineStep], last: PipelineStep) -> None:
        from datatrove.executor.slurm import SlurmPipelineExecutor

        absent = [key for key in ("partition", "time") if key not in self.options]
        if absent:
            raise ValueError(f"Slurm needs --engine-option {'=... and --engine-option '.join(absent)}=...")
        if shutil.which("sbatch") is None:
            raise FileNotFoundError("There is no sbatch here: hand Slurm jobs in on a machine of the cluster.")
        options = {"qos": "", **self.options}
        each = SlurmPipelineExecutor(
            list(steps),
            tasks=self.tasks,
            workers=self.workers,
            job_name="ir3de-collect",
            logging_dir=str(self.folder),
            **options,
        )
        SlurmPipelineExecutor(
            [last], tasks=1, job_name="ir3de-unite", logging_dir=str(self.folder / "unite"), depends=each, **options
        ).run()


class _Here(LocalPipelineExecutor):  # type: ignore[misc]
    """Tasks on this machine that write their logs to files, and none to the terminal."""

    def __init__(
        self, pipeline: list[PipelineStep], tasks: int, workers: int, logging_dir: str, **options: Any
    ) -> None:
        super().__init__(pipeline, tasks=tasks, workers=workers, logging_dir=logging_dir, **options)

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> PipelineStats:
        with contextlib.redirect_stderr(io.StringIO()):
            return super()._run_for_rank(rank, local_rank, node_rank)


_ends_with_us = threading.Event()


@contextlib.contextmanager
def _ending_together() -> Iterator[None]:
    """Has processes that are forked meanwhile end with this one, however it ends. The one in which datatrove counts
    tasks would wait for a killed one's word for ever; those that do the tasks end once theirs is done.
    """
    _ends_with_us.set()
    try:
        yield
    finally:
        _ends_with_us.clear()


def _after_fork() -> None:
    if _ends_with_us.is_set():
        end_with_parent(signal.SIGKILL)


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork)


@contextlib.contextmanager
def cores_for(workers: int) -> Iterator[None]:
    """Shares this machine's cores among workers: each tokenizer takes as many threads as there are cores for it."""
    ours = {
        "RAYON_NUM_THREADS": str(max(1, cores() // workers)),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "true",
    }
    before = {key: os.environ.get(key) for key in ours}
    os.environ.update({key: value for key, value in ours.items() if before[key] is None})
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)


@contextlib.contextmanager
def _progress(executor: PipelineExecutor) -> Iterator[None]:
    """Says now and then how many tasks are done."""
    over = threading.Event()

    def watch() -> None:
        """Counts the marks of finished tasks."""
        with Steps("Collecting", "tasks", executor.world_size) as steps:
            while not over.wait(_LOOK_EVERY):
                done = executor.world_size - len(executor.get_incomplete_ranks())
                steps.update(done - steps.done)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
