"""Worker processes that run trials, on this machine or on others; each trial is kept as it finishes."""

import contextlib
import os
import signal
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from multiprocessing import TimeoutError as ProcessTimeout
from typing import Any

import gammabeta
from gammabeta.lab.trials.parent import end_with
from gammabeta.lab.trials.store import Store
from gammabeta.lab.trials.trial import Trial, bundles, perform_together

ENGINES = ("loky", "dask", "ray")
ATTEMPTS = 3
SLOWEST_START = 180.0  # seconds until worker processes must have answered


class TrialError(Exception):
    """Trials failed every time they were tried. ``details`` is the traceback of the first, from the user's code on."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class EngineError(Exception):
    """An engine is not installed, or cannot be reached."""


@contextlib.contextmanager
def connected(engine: str, address: str | None, jobs: int) -> Iterator[int]:
    """Run trials inside on ``engine``; yields the number of jobs to ask for.

    Args:
        engine: ``"loky"`` for processes of this machine, ``"dask"`` or ``"ray"`` for a cluster's workers.
        address: of a Dask scheduler or a Ray cluster; None starts one on this machine, with ``jobs`` workers.

    Raises:
        EngineError: an unknown engine, one that is not installed, an address that does not answer, or worker
            processes that cannot start.
    """
    if engine not in ENGINES:
        raise EngineError(f"--engine {engine}: expected one of {', '.join(ENGINES)}.")
    if engine == "loky":
        if address is not None:
            raise EngineError(f"--address {address}: loky runs only on this machine. Name --engine dask or ray.")
        import joblib

        # Workers that still start watch their parent before they are given anything to do.
        in_workers = joblib.parallel_config(backend="loky", initializer=end_with, initargs=_parent())
        # The working directory is not the first place that they import from: a file of the user's there, such as
        # queue.py, would end each of them before it began. Python 3.10 does not know the variable.
        with _environment("PYTHONSAFEPATH", "1"), in_workers:
            if jobs > 1:
                _start(jobs)
            yield jobs
        return
    import joblib

    try:
        with contextlib.ExitStack() as stack:
            if engine == "dask":
                from distributed import Client, LocalCluster

                if address is None:
                    cluster = LocalCluster(
                        n_workers=jobs, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
                    )
                    stack.enter_context(cluster)
                    stack.enter_context(Client(cluster))
                else:
                    stack.enter_context(Client(address, timeout=10))
            else:
                import ray
                from ray.util.joblib import register_ray

                options: dict[str, Any] = {"address": address} if address else {"num_cpus": jobs}
                ray.init(**options, include_dashboard=False, log_to_driver=False, configure_logging=False)
                stack.callback(ray.shutdown)
                register_ray()
            stack.enter_context(joblib.parallel_config(backend=engine))
            yield -1 if engine == "dask" else jobs
    except ImportError as error:
        raise EngineError(f"--engine {engine}: {error.name} is not installed: pip install {engine}.") from error
    except (OSError, ConnectionError, TimeoutError) as error:
        if isinstance(error, OSError) and address is not None:
            raise EngineError(f"--address {address}: no {engine} answers there.") from error
        raise


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Start processes with a variable in their environment."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _start(jobs: int) -> None:
    """Start the worker processes, and wait until they answer.

    Raises:
        EngineError: they end at once, or do not answer.
    """
    import joblib

    stopped: tuple[type[BaseException], ...] = (
        *_died(), OSError, RuntimeError, TimeoutError, futures.TimeoutError, ProcessTimeout
    )  # fmt: skip
    pool = joblib.Parallel(n_jobs=jobs, batch_size=1, timeout=SLOWEST_START)
    try:
        _start_trackers()
        with _ignored("SIGINT"):
            pool([joblib.delayed(os.getpid)() for _ in range(jobs)])  # on a failure, joblib ends the workers
    except stopped as error:
        why = str(error).partition("\n")[0].partition(". ")[0] or f"no answer in {SLOWEST_START:.0f} seconds"
        raise EngineError(
            f"--jobs {jobs}: expected {jobs} worker processes to start, got none that works ({why.rstrip('.')}): look "
            "at what they print above, at a file of yours with the name of one of Python's modules, and at the memory "
            "that is left; --jobs 1 needs no workers."
        ) from error


@contextlib.contextmanager
def _ignored(*names: str) -> Iterator[None]:
    """Start processes that ignore signals, by name: on Ctrl-C only the parent decides, and workers print nothing.

    They are blocked too, for the sake of loky's thread, which is started here and keeps that: it puts other workers in
    the place of those that end, at any time.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, numbers) if hasattr(signal, "pthread_sigmask") else None
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if masked is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, masked)


def _start_trackers() -> None:
    """Start the processes that remove what processes share, after the last of them: loky's, and Python's own.

    They must outlive a terminal that closes. They would warn of each thing that they remove after a parent that was
    ended. Starting one unblocks signals, so that they are started before anything that is to keep them blocked.
    """
    from multiprocessing import resource_tracker as python

    from joblib.externals.loky.backend import resource_tracker as loky

    with _environment("PYTHONWARNINGS", "ignore"), _ignored("SIGINT", "SIGHUP"):
        loky.ensure_running()
        python.ensure_running()


Records = list[dict[str, Any]]


def _parent() -> tuple[int, bool]:
    """Return this process's id, and whether the thread that will start workers lasts as long as the process."""
    return os.getpid(), threading.current_thread() is threading.main_thread()


def _numbered(
    index: int, run: str, several: Sequence[Mapping[str, Any]], parent: tuple[int, bool] | None
) -> tuple[int, Records]:
    """Run one bundle in a worker process, which ends with its parent where that is on this machine."""
    if parent is not None:
        end_with(*parent)
    gammabeta.warm_allocator()
    return index, perform_together(run, several)


def _finished(parts: Sequence[Sequence[Trial]], jobs: int) -> Generator[tuple[int, Records], None, None]:
    """Yield each bundle's position and records as they finish; closing the iterator ends the workers."""
    if jobs == 1:
        for index, part in enumerate(parts):
            yield index, perform_together(part[0].run, [trial.settings for trial in part])
        return
    import joblib

    backend, _ = joblib.parallel.get_active_backend()
    parent = _parent() if isinstance(backend, joblib.parallel.BACKENDS["loky"]) else None
    calls = [
        joblib.delayed(_numbered)(index, part[0].run, [dict(trial.settings) for trial in part], parent)
        for index, part in enumerate(parts)
    ]
    if not getattr(backend, "supports_return_generator", False):
        # Such a backend returns all results at once. A few calls at a time keep results as they come.
        pool = joblib.Parallel(n_jobs=jobs, batch_size=1)
        some = 2 * max(jobs, 1)
        for start in range(0, len(calls), some):
            yield from pool(calls[start : start + some])
        return
    pool = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1, pre_dispatch="2*n_jobs")
    if parent is not None:
        _start_trackers()
    with _ignored("SIGINT"):
        outcomes = pool(calls)
    with warnings.catch_warnings():
        # loky warns when it restarts a worker that has grown; joblib warns about results left over, which is on purpose
        warnings.filterwarnings("ignore", "A worker stopped while some jobs")
        try:
            # Not `yield from`: it would close the outcomes before the warning below is silenced.
            for outcome in outcomes:  # noqa: UP028
                yield outcome
        finally:
            warnings.simplefilter("ignore")
            outcomes.close()


def _died() -> tuple[type[BaseException], ...]:
    """Return the exceptions raised when a worker process ends before its trial."""
    from joblib.externals.loky.process_executor import BrokenProcessPool, TerminatedWorkerError

    return (BrokenProcessPool, TerminatedWorkerError)


def run_trials(
    trials: Sequence[Trial],
    store: Store,
    *,
    jobs: int,
    finished: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Run the trials that the store does not hold yet, and return all records in the order of ``trials``.

    The trials of a worker that dies run again. From then on each bundle runs on its own, so that it is known which one
    kills its worker. A trial that raises, or whose worker dies, is tried three times. Where the first three failures
    are alike and nothing has succeeded, the others do not run.

    Args:
        trials: the trials; a trial that is listed twice runs once.
        store: keeps finished trials, one by one, as they finish.
        jobs: worker processes; with 1 the trials run in this process.
        finished: called after each trial that ran.

    Raises:
        TrialError: a trial failed three times, or the first three failed alike; all that finished are kept.
        KeyboardInterrupt: after the workers were ended.
    """
    running = _Running([part for part in bundles(trials) if any(trial not in store for trial in part)], store, finished)
    died = False
    while running.left and not running.is_hopeless():
        if not died:
            try:
                with contextlib.closing(_finished(running.left, jobs)) as done:
                    for index, records in done:
                        running.take(running.left[index], records)
                        if running.is_hopeless():
                            break
            except _died():
                died = True
        else:
            running.one_by_one(jobs)
        running.left = [part for part in running.left if any(running.is_open(trial) for trial in part)]
    if running.failed:
        raise running.error(trials)
    return [store[trial] for trial in trials]


@dataclass
class _Running:
    """The bundles that are left to run, and what failed so far.

    Attributes:
        tried: failures by the trial's key.
        alike: failures by their text.
        failed: by key the trial, its error and traceback.
    """

    left: list[list[Trial]]
    store: Store
    finished: Callable[[], None]
    tried: Counter[str] = field(default_factory=Counter)
    alike: Counter[str] = field(default_factory=Counter)
    failed: dict[str, tuple[Trial, str, str]] = field(default_factory=dict)
    succeeded: bool = False

    def is_hopeless(self) -> bool:
        """Whether the first failures are alike and nothing has succeeded."""
        return not self.succeeded and max(self.alike.values(), default=0) >= ATTEMPTS

    def is_open(self, trial: Trial) -> bool:
        return trial not in self.store and self.tried[trial.key] < ATTEMPTS

    def take(self, part: Sequence[Trial], records: Records) -> None:
        """Keep what a bundle returned."""
        for trial, record in zip(part, records, strict=True):
            if "error" in record:
                self._fail(trial, record["error"], record["traceback"])
                continue
            self.succeeded = True
            self.failed.pop(trial.key, None)
            if trial not in self.store:
                self.store.append(trial, record)
                self.finished()

    def one_by_one(self, jobs: int) -> None:
        """Run each bundle on its own, never in this process: of the two jobs asked for, one is used."""
        for part in self.left:
            if self.is_hopeless():
                return
            try:
                for _, records in _finished([part], max(jobs, 2)):
                    self.take(part, records)
            except _died():
                for trial in part:
                    self._fail(trial, "its worker process died", "")

    def _fail(self, trial: Trial, error: str, details: str) -> None:
        self.tried[trial.key] += 1
        self.alike[error] += 1
        self.failed[trial.key] = (trial, error, details)

    def error(self, trials: Sequence[Trial]) -> TrialError:
        trial, error, details = next(iter(self.failed.values()))
        if self.tried[trial.key] >= ATTEMPTS:
            others = f" and {len(self.failed) - 1} more" if len(self.failed) > 1 else ""
            return TrialError(f"the trial {trial}{others} failed {ATTEMPTS} times: {error}", details)
        count = len({each.key for each in trials})
        return TrialError(
            f"the trial {trial} and others failed alike, so that the rest of {count} did not run: {error}", details
        )
