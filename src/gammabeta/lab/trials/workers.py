"""Worker processes that run trials, on this machine or on others; each trial is kept as it finishes."""

import contextlib
import os
import signal
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import gammabeta
from gammabeta.lab.trials.parent import end_with
from gammabeta.lab.trials.store import Store
from gammabeta.lab.trials.trial import Trial, bundles, canonical, perform_together, plain

ENGINES = ("loky", "dask", "ray")
ATTEMPTS = 3


class TrialError(Exception):
    """Trials failed every time they were tried. ``details`` is the traceback of the first, from its worker."""

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
        EngineError: an unknown engine, one that is not installed, or an address that does not answer.
    """
    if engine not in ENGINES:
        raise EngineError(f"--engine {engine}: expected one of {', '.join(ENGINES)}.")
    if engine == "loky":
        if address is not None:
            raise EngineError(f"--address {address}: loky runs only on this machine. Name --engine dask or ray.")
        import joblib

        # Workers that still start watch their parent before they are given anything to do.
        with joblib.parallel_config(backend="loky", initializer=end_with, initargs=_parent()):
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
def _ignored(*names: str) -> Iterator[None]:
    """Start processes that ignore signals, by name: on Ctrl-C only the parent decides, and workers print nothing.

    Signals are ignored rather than blocked, because multiprocessing's resource tracker unblocks them while workers
    start.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start_tracker() -> None:
    """Start the process that removes what loky's processes share, after the last of them.

    It must outlive a terminal that closes. It would warn of each thing that it removes after a parent that was ended.
    """
    from joblib.externals.loky.backend import resource_tracker

    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = "ignore"
    try:
        with _ignored("SIGINT", "SIGHUP"):
            resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before


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
        _start_tracker()
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
    kills its worker. A trial that raises, or whose worker dies, is tried three times.

    Args:
        trials: the trials; a trial that is listed twice runs once.
        store: keeps finished trials, one by one, as they finish.
        jobs: worker processes; with 1 the trials run in this process.
        finished: called after each trial that ran.

    Raises:
        TrialError: a trial failed three times; all others ran and are kept.
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
                    # Never in this process: of the two jobs asked for, one is used.
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
