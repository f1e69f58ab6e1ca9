"""Trials run in worker processes, on this machine or on others, and kept as they finish."""

import contextlib
import signal
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import gammabeta
from gammabeta.lab.trials.store import Store
from gammabeta.lab.trials.trial import Trial, bundles, canonical, perform_together, plain

ENGINES = ("loky", "dask", "ray")
ATTEMPTS = 3


class TrialError(Exception):
    """Trials failed, each as often as it was tried. ``details`` is the first one's traceback as the worker saw it."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class EngineError(Exception):
    """An engine that is not installed, or cannot be reached."""


@contextlib.contextmanager
def connected(engine: str, address: str | None, jobs: int) -> Iterator[int]:
    """Inside, trials run on ``engine``; gives the number of jobs to ask for.

    Args:
        engine: ``"loky"``: processes of this machine; ``"dask"`` or ``"ray"``: a cluster's workers.
        address: of a Dask scheduler or of a Ray cluster; None starts one on this machine, of ``jobs`` workers.

    Raises:
        EngineError: an unknown engine, one that is not installed, or an address that does not answer.
    """
    if engine not in ENGINES:
        raise EngineError(f"--engine {engine}: expected one of {', '.join(ENGINES)}.")
    if engine == "loky":
        if address is not None:
            raise EngineError(f"--address {address}: loky runs on this machine alone. Name --engine dask or ray.")
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
def _interrupt_ignored() -> Iterator[None]:
    """What is started inside ignores SIGINT: on Ctrl-C the parent alone decides, and workers print nothing.

    Ignored rather than blocked: multiprocessing's resource tracker unblocks it while workers start.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


Records = list[dict[str, Any]]


def _numbered(index: int, run: str, several: Sequence[Mapping[str, Any]]) -> tuple[int, Records]:
    """One bundle in a worker process."""
    gammabeta.warm_allocator()
    return index, perform_together(run, several)


def _finished(parts: Sequence[Sequence[Trial]], jobs: int) -> Generator[tuple[int, Records], None, None]:
    """Each bundle's position and records, as they finish; closing the iterator ends the workers."""
    if jobs == 1:
        for index, part in enumerate(parts):
            yield index, perform_together(part[0].run, [trial.settings for trial in part])
        return
    import joblib

    calls = [
        joblib.delayed(_numbered)(index, part[0].run, [dict(trial.settings) for trial in part])
        for index, part in enumerate(parts)
    ]
    backend, _ = joblib.parallel.get_active_backend()
    if not getattr(backend, "supports_return_generator", False):
        # Such a backend hands results back all at once: a few at a time, so that they are kept as they come.
        pool = joblib.Parallel(n_jobs=jobs, batch_size=1)
        some = 2 * max(jobs, 1)
        for start in range(0, len(calls), some):
            yield from pool(calls[start : start + some])
        return
    pool = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1, pre_dispatch="2*n_jobs")
    with _interrupt_ignored():
        outcomes = pool(calls)
    with warnings.catch_warnings():
        # loky starts a worker anew that has grown, and says so; joblib warns that results were left: on purpose
        warnings.filterwarnings("ignore", "A worker stopped while some jobs")
        try:
            # Not `yield from`: that closes them itself, before the warning below is silenced.
            for outcome in outcomes:  # noqa: UP028
                yield outcome
        finally:
            warnings.simplefilter("ignore")
            outcomes.close()


def _died() -> tuple[type[BaseException], ...]:
    """What is raised when a worker process ends before its trial."""
    from joblib.externals.loky.process_executor import BrokenProcessPool, TerminatedWorkerError

    return (BrokenProcessPool, TerminatedWorkerError)


def run_trials(
    trials: Sequence[Trial],
    store: Store,
    *,
    jobs: int,
    finished: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Run what the store does not hold yet, and return all records in the order of ``trials``.

    A worker that dies loses the trials that it runs, which are run again; after that each bundle runs by itself, so
    that it is known which one it is that kills. A trial that raises, or whose worker dies, is tried three times.

    Args:
        trials: the trials; one that stands there twice runs once.
        store: where finished trials are kept, one by one, as they finish.
        jobs: worker processes; 1 runs in this process.
        finished: called after each trial that ran.

    Raises:
        TrialError: a trial failed three times; all the others were run and are kept.
        KeyboardInterrupt: after the workers were ended.
    """
    left = [part for part in bundles(trials) if any(trial not in store for trial in part)]
    tried: Counter[str] = Counter()
    failed: dict[str, tuple[Trial, str, str]] = {}
    died = False

    def take(part: Sequence[Trial], records: Records) -> None:
        for trial, record in zip(part, records, strict=True):
            if "error" in record:
                tried[trial.key] += 1
                failed[trial.key] = (trial, record["error"], record["traceback"])
                continue
            failed.pop(trial.key, None)
            if trial not in store:
                store.append(trial, record)
                finished()

    while left:
        if not died:
            try:
                with contextlib.closing(_finished(left, jobs)) as done:
                    for index, records in done:
                        take(left[index], records)
            except _died():
                died = True
        else:
            for part in left:
                try:
                    # Never in this process: two jobs are asked for, of which one is used.
                    for _, records in _finished([part], max(jobs, 2)):
                        take(part, records)
                except _died():
                    for trial in part:
                        tried[trial.key] += 1
                        failed[trial.key] = (trial, "its worker process died", "")
        left = [part for part in left if any(trial not in store and tried[trial.key] < ATTEMPTS for trial in part)]
    if failed:
        trial, error, details = next(iter(failed.values()))
        others = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        raise TrialError(
            f"the trial {trial.run} with {canonical(plain(trial.settings))}{others} failed {ATTEMPTS} times: {error}",
            details,
        )
    return [store[trial] for trial in trials]
