"""Trials: kept at once, never run twice, the same bit for bit wherever they run."""

import errno
import json
import os
import platform
import re
import resource
import signal
import subprocess
import sys
import warnings

import pytest

from gammabeta.lab.images import together
from gammabeta.lab.images.recipe import RECIPE
from gammabeta.lab.images.training import train
from gammabeta.lab.trials import trial as engine
from gammabeta.lab.trials import workers
from gammabeta.lab.trials.store import Store, StoreError
from gammabeta.lab.trials.trial import Trial, canonical, plain
from gammabeta.lab.trials.workers import EngineError, TrialError, connected, run_trials

HERE = "tests.trial_functions"
TRAIN = {
    "task": {"data": "digits", "fingerprint": "scikit-learn"},
    "network": {"kind": "resnet", "init": "matched"},
    "norm": "batch",
    "rate": 0.1,
    "batch_size": 8,
    "steps": 6,
    "seed": 3,
    "target": 0.99,
    "every": 3,
}


MLP = {"kind": "mlp", "depth": 2, "width": 16, "activation": "relu", "init": "matched"}


def counted(folder, *names):
    return [Trial(f"{HERE}:count", {"folder": str(folder), "name": name}) for name in names]


def runs(folder, name):
    return (folder / name).read_text().count("run")


def test_the_key_covers_settings_function_version_torch_and_kernels(monkeypatch):
    one = Trial(f"{HERE}:draw", {"seed": 1})
    assert one.key == Trial(f"{HERE}:draw", {"seed": 1}).key
    keys = {one.key, Trial(f"{HERE}:draw", {"seed": 2}).key, Trial(f"{HERE}:fail", {"seed": 1}).key}
    monkeypatch.setitem(one.function.__dict__, "trial_version", 4)
    keys.add(Trial(f"{HERE}:draw", {"seed": 1}).key)
    monkeypatch.setattr(engine.torch, "__version__", "0.0")
    keys.add(Trial(f"{HERE}:draw", {"seed": 1}).key)
    for kernels in ("AVX9", "AVX10", None):
        monkeypatch.setattr(engine, "cpu_kernels", lambda kernels=kernels: kernels)
        keys.add(Trial(f"{HERE}:draw", {"seed": 1}).key)
    assert len(keys) == (8 if engine.ops.has_kernel("cpu") else 7)


def test_the_kernels_in_the_key_are_those_that_run(monkeypatch):
    if engine.ops.has_kernel("cpu"):
        assert engine.cpu_kernels() in ("AVX-512", "AVX2", "baseline")
    monkeypatch.setattr(engine.ops, "has_kernel", lambda device: False)
    assert engine.cpu_kernels() is None


def test_workers_that_are_closed_early_end_without_a_warning(tmp_path):
    trials = [Trial(f"{HERE}:sleep", {"seconds": 0.05, "index": i}) for i in range(8)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        finished = workers._finished([[trial] for trial in trials], jobs=2)
        next(finished)
        finished.close()


def test_the_key_does_not_depend_on_the_order_of_settings():
    assert Trial(f"{HERE}:x", {"a": 1, "b": 2}).run == f"{HERE}:x"
    assert canonical({"b": 2, "a": 1}) == canonical({"a": 1, "b": 2}) == '{"a":1,"b":2}'


def test_what_json_has_no_form_for_is_null_or_refused():
    assert plain({"x": (1, float("inf"), [float("nan"), True, None])}) == {"x": [1, None, [None, True, None]]}
    with pytest.raises(TypeError, match=r"^expected a value that JSON can hold, got complex$"):
        plain({"x": 1j})


def test_a_trial_is_the_same_in_every_process_and_order(tmp_path):
    trials = [
        Trial("gammabeta.lab.images.training:train", {**TRAIN, "norm": norm}) for norm in ("batch", "none", "renorm")
    ]
    trials.append(Trial(f"{HERE}:draw", {"seed": 1}))
    stores = [Store(tmp_path / name) for name in ("here", "workers", "reversed")]
    here = run_trials(trials, stores[0], jobs=1)
    workers = run_trials(trials, stores[1], jobs=2)
    backwards = run_trials(trials[::-1], stores[2], jobs=1)[::-1]
    texts = [[canonical(record["result"]) for record in records] for records in (here, workers, backwards)]
    assert texts[0] == texts[1] == texts[2]
    # times are never the same twice, so they are kept apart from the result
    assert "clock" in here[-1]["timing"]
    assert here[-1]["result"]["nan"] is None


def trained(**changed):
    return Trial("gammabeta.lab.images.training:train", {**TRAIN, **changed})


def test_trials_that_differ_in_rate_and_seed_run_as_one():
    one = [trained(seed=seed, rate=rate) for seed in (1, 2, 3, 4) for rate in (0.1, 0.2)]
    other = [trained(norm="none", seed=1), trained(norm="none", seed=2)]
    last_alone = trained(only_last=True, seed=2)
    single = Trial(f"{HERE}:draw", {"seed": 1})
    mixed = [one[0], other[0], single, *one[1:], last_alone, other[1], one[0]]
    assert engine.bundles(mixed) == [one[:6], other, [single], one[6:], [last_alone]]


@pytest.mark.parametrize("norm", ["none", "batch", "ghost:8", "batch_plain", "layer", "group", "rms", "renorm"])
def test_networks_trained_together_are_those_trained_one_by_one(norm):
    settings = [
        {**TRAIN, "network": MLP, "norm": norm, "batch_size": 16, "steps": 12, "rate": rate, "seed": seed, "curve": 6,
         "images": 100, "label_noise": 0.2, "decay": 0.01, "schedule": "cosine",
         "momentum": momentum, "warm_up": 0.3}
        for rate, seed in ((0.05, 1), (0.1, 2), (0.02, 3))
        for momentum in (0.9,)
    ]  # fmt: skip
    for alone, member in zip([train(**s) for s in settings], together.train(settings), strict=True):
        same(member, alone)


def test_every_member_has_its_own_split():
    recipe = {**TRAIN, "network": MLP, "norm": "batch", "batch_size": 16, "steps": 12, "report": "test", **RECIPE}
    settings = [
        {**recipe, "rate": rate, "seed": seed, "task": {**TRAIN["task"], "split": seed}}
        for rate, seed in ((0.05, 1), (0.1, 1), (0.02, 2))
    ]
    alone = [train(**one) for one in settings]
    for one, member in zip(alone, together.train(settings), strict=True):
        same(member, one)
        same_errors(member["validation"], one["validation"])
    trials = [Trial("gammabeta.lab.images.training:train", one) for one in settings]
    assert engine.bundles(trials) == [trials]


def test_networks_with_dropout_drop_together_what_each_drops_alone():
    network = {**MLP, "depth": 2, "dropout": 0.4}
    settings = [
        {**TRAIN, "network": network, "norm": "batch", "batch_size": 16, "steps": 12, "rate": rate, "seed": seed}
        for rate, seed in ((0.05, 1), (0.1, 2), (0.02, 2))
    ]
    alone = [train(**s) for s in settings]
    for one, member in zip(alone, together.train(settings), strict=True):
        same(member, one)
    without = train(**{**settings[0], "network": {**network, "dropout": 0.0}})
    assert without["loss"] != pytest.approx(alone[0]["loss"], rel=1e-3)


@pytest.mark.parametrize("norm", ["none", "batch", "layer", "group", "rms", "instance"])
def test_convolutional_networks_too(norm):
    settings = [{**TRAIN, "norm": norm, "rate": 0.05, "seed": seed, "target": None} for seed in (1, 2)]
    for alone, member in zip([train(**s) for s in settings], together.train(settings), strict=True):
        same(member, alone)


def test_a_member_that_diverges_or_arrives_leaves_the_others_alone():
    base = {**TRAIN, "network": MLP, "norm": "none", "batch_size": 16, "steps": 60, "every": 5, "target": 0.6}
    settings = [{**base, "rate": rate, "seed": 1} for rate in (1e4, 0.1, 1e-3)]
    lost, fast, slow = together.train(settings)
    assert lost["diverged"] is not None
    assert (lost["error"], lost["loss"]) == (1.0, None)
    assert fast["steps"] is not None
    assert fast["accuracy"][-1][0] < 60
    assert slow["steps"] is None
    assert slow["accuracy"][-1][0] == 60
    for member, alone in zip((lost, fast, slow), (train(**s) for s in settings), strict=True):
        same(member, alone)


def same_errors(member, alone):
    for name in ("error", "moving_error"):
        assert member[name] == pytest.approx(alone[name], abs=0.011)


def same(member, alone):
    """Compare results to rounding, which stays small in a few steps; errors are counts of images."""
    assert member.keys() == alone.keys()
    assert member["diverged"] == alone["diverged"]
    for name in ("loss", "train_loss", "steps"):
        assert (member[name] is None) == (alone[name] is None)
        assert member[name] is None or member[name] == pytest.approx(alone[name], rel=2e-3)
    same_errors(member, alone)
    for name in ("accuracy", "curve"):
        for a, b in zip(member[name], alone[name], strict=True):
            assert a == pytest.approx(b, abs=0.011)


def test_a_study_that_goes_on_runs_the_same_bundles(tmp_path):
    """What is on disk already does not change which trials run together, so it changes no bit of a result."""
    trials = [trained(network=MLP, seed=seed, rate=0.1, target=None) for seed in (1, 2, 3)]
    whole, torn = Store(tmp_path / "whole"), Store(tmp_path / "torn")
    expected = run_trials(trials, whole, jobs=1)
    torn.append(trials[0], {key: expected[0][key] for key in ("result", "seconds")})
    found = run_trials(trials, torn, jobs=1)
    assert [canonical(r["result"]) for r in found] == [canonical(r["result"]) for r in expected]


def test_finished_trials_are_not_run_again_and_doubles_run_once(tmp_path):
    store = Store(tmp_path / "out")
    a, b = counted(tmp_path, "a", "b")
    records = run_trials([a, b, a], store, jobs=1)
    assert [record["result"]["name"] for record in records] == ["a", "b", "a"]
    store.close()
    again = Store(tmp_path / "out")
    run_trials([b, a], again, jobs=1)
    assert (runs(tmp_path, "a"), runs(tmp_path, "b")) == (1, 1)


def test_a_torn_last_line_is_dropped_and_its_trial_runs_again(tmp_path):
    store = Store(tmp_path / "out")
    a, b = counted(tmp_path, "a", "b")
    run_trials([a, b], store, jobs=1)
    store.close()
    whole = store.path.read_bytes()
    store.path.write_bytes(whole[:-7])
    again = Store(tmp_path / "out")
    assert a in again
    assert b not in again
    run_trials([a, b], again, jobs=1)
    assert (runs(tmp_path, "a"), runs(tmp_path, "b")) == (1, 2)
    lines = store.path.read_bytes().splitlines()
    assert [json.loads(line)["settings"]["name"] for line in lines] == ["a", "b"]


def test_a_damaged_line_in_the_middle_costs_only_its_own_trial(tmp_path):
    store = Store(tmp_path / "out")
    a, b = counted(tmp_path, "a", "b")
    run_trials([a, b], store, jobs=1)
    store.close()
    first, second = store.path.read_bytes().splitlines()
    store.path.write_bytes(b"{" + first + b"\n" + second + b"\n")
    again = Store(tmp_path / "out")
    assert a not in again
    assert b in again


def test_fresh_forgets(tmp_path):
    store = Store(tmp_path)
    run_trials([Trial(f"{HERE}:draw", {"seed": 1})], store, jobs=1)
    store.close()
    assert len(Store(tmp_path, fresh=True)) == 0


def test_a_failing_trial_is_named_and_those_before_it_are_kept(tmp_path):
    store = Store(tmp_path / "out")
    good = counted(tmp_path, "a")[0]
    bad = Trial(f"{HERE}:fail", {"reason": "no more images"})
    expected = f"the trial {HERE}:fail (reason no more images) failed 3 times: ValueError: no more images"
    with pytest.raises(TrialError, match=f"^{re.escape(expected)}$") as caught:
        run_trials([good, bad], store, jobs=1)
    assert "in fail" in caught.value.details
    assert good in store
    assert bad not in store


def test_two_studies_cannot_write_to_one_folder(tmp_path):
    pytest.importorskip("fcntl", reason="no file locks on this system")
    store = Store(tmp_path)
    with pytest.raises(StoreError) as refused:
        Store(tmp_path)
    assert re.fullmatch(
        rf"process {os.getpid()} on {re.escape(platform.node())} since 20[-0-9: +]+ \(.*\) is running in "
        rf"{re.escape(str(tmp_path))}\. Wait for it to end, or choose another folder\.",
        str(refused.value),
    ), refused.value
    store.close()
    Store(tmp_path).close()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EIO])
def test_a_folder_without_locks_is_used_with_a_word(tmp_path, monkeypatch, number):
    fcntl = pytest.importorskip("fcntl", reason="no file locks on this system")

    def flock(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    store = Store(tmp_path)
    assert store.note == (
        f"{tmp_path} cannot be locked ({os.strerror(number)}): two studies in it at once would run each other's "
        "trials; let only one write to it."
    )
    store.append(Trial("tests.trial_functions:draw", {"seed": 1}), {"result": {}, "seconds": 0.0})
    store.close()
    monkeypatch.undo()
    again = Store(tmp_path)
    assert (again.note, len(again)) == (None, 1)
    again.close()


def test_a_command_line_that_is_no_text_locks_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["gammabeta", "study", "--data", "folder:\udcff"])
    Store(tmp_path).close()
    assert "\\udcff" in (tmp_path / "study.lock").read_text(encoding="utf-8")


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    expected = f"cannot write to {tmp_path / 'file'}: File exists. Choose another folder."
    with pytest.raises(StoreError, match=f"^{re.escape(expected)}$"):
        Store(tmp_path / "file")


# --- what goes wrong ---


def test_a_line_that_was_changed_is_left_out(tmp_path):
    store = Store(tmp_path / "out")
    a, b = counted(tmp_path, "a", "b")
    run_trials([a, b], store, jobs=1)
    store.close()
    # still JSON, with another result: only the checksum shows it
    text = store.path.read_text()
    store.path.write_text(text.replace('"result":{"name":"a"}', '"result":{"name":"z"}'))
    again = Store(tmp_path / "out")
    assert a not in again
    assert b in again


def test_a_full_disk_is_said_and_nothing_is_lost(tmp_path):
    """Set a real limit on file sizes: the write fails in the middle of a line, as on a full disk."""
    store = Store(tmp_path / "out")
    a, b, c = counted(tmp_path, "a", "b", "c")
    run_trials([a], store, jobs=1)
    before = store.path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 40, hard))
    try:
        with pytest.raises(StoreError) as full:
            store.append(b, {"result": {"name": "b"}, "seconds": 0.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert str(full.value) == (
        f"cannot write to {store.path}: {os.strerror(errno.EFBIG)}. 1 finished trials are kept: make room and run the "
        "same command again."
    )
    assert store.path.read_bytes() == before
    assert b not in store
    # with room again, the same store continues
    run_trials([a, b, c], store, jobs=1)
    assert store.path.read_bytes().startswith(before)
    store.close()
    assert len(Store(tmp_path / "out")) == 3
    assert runs(tmp_path, "a") == 1


def test_a_trial_that_fails_once_is_tried_again(tmp_path):
    store = Store(tmp_path / "out")
    fickle = Trial(f"{HERE}:fail_at_first", {"folder": str(tmp_path), "times": 2})
    assert run_trials([fickle], store, jobs=1)[0]["result"] == {"attempt": 3}


def test_a_trial_that_leaves_python_fails_like_any_other(tmp_path):
    trials = [Trial("tests.trial_functions:leave", {"code": 0}), Trial("tests.trial_functions:draw", {"seed": 1})]
    store = Store(tmp_path)
    with pytest.raises(TrialError, match=r"failed 3 times: SystemExit: 0$"):
        run_trials(trials, store, jobs=2)
    assert trials[1] in store
    store.close()


def test_what_fails_three_times_stops_nothing_else(tmp_path):
    store = Store(tmp_path / "out")
    bad = Trial(f"{HERE}:fail_at_first", {"folder": str(tmp_path), "times": 9})
    a, b = counted(tmp_path, "a", "b")
    with pytest.raises(TrialError, match="failed 3 times: ValueError: attempt 3"):
        run_trials([a, bad, b], store, jobs=1)
    assert a in store
    assert b in store


def test_one_that_fails_does_not_take_those_beside_it(tmp_path, monkeypatch):
    def broken(several):
        raise ValueError("as one")

    monkeypatch.setattr(together, "train", broken)
    trials = [trained(network=MLP, seed=seed, target=None) for seed in (1, 2)]
    records = run_trials(trials, Store(tmp_path), jobs=1)
    assert all(record["result"]["loss"] is not None for record in records)


def test_a_worker_that_dies_loses_only_what_it_ran(tmp_path):
    store = Store(tmp_path / "out")
    killer = Trial(f"{HERE}:die_at_first", {"folder": str(tmp_path), "times": 1})
    others = counted(tmp_path, *"abcdef")
    records = run_trials([*others[:3], killer, *others[3:]], store, jobs=2)
    assert records[3]["result"] == {"attempt": 2}
    assert [record["result"]["name"] for record in records if "name" in record["result"]] == list("abcdef")
    # nothing that was on disk ran again
    assert all(runs(tmp_path, name) <= 2 for name in "abcdef")


def test_a_trial_that_always_kills_its_worker_is_reported(tmp_path):
    store = Store(tmp_path / "out")
    killer = Trial(f"{HERE}:die_at_first", {"folder": str(tmp_path), "times": 99})
    others = counted(tmp_path, "a", "b")
    with pytest.raises(TrialError, match="failed 3 times: its worker process died"):
        run_trials([others[0], killer, others[1]], store, jobs=2)
    assert all(trial in store for trial in others)


# --- engines ---


@pytest.mark.parametrize("name", ["dask", "ray"])
def test_a_cluster_of_two_workers_gives_the_same_results(tmp_path, name):
    pytest.importorskip({"dask": "distributed", "ray": "ray"}[name], reason=f"{name} is not installed")
    trials = [trained(network=MLP, seed=seed, target=None) for seed in (1, 2, 3)]
    trials += [trained(seed=seed, steps=3) for seed in (1, 2)] + [
        Trial(f"{HERE}:where", {"index": i}) for i in range(6)
    ]
    here = run_trials(trials[:5], Store(tmp_path / "here"), jobs=1)
    store = Store(tmp_path / "cluster")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the clusters' own warnings, about this machine
        with connected(name, None, 2) as jobs:
            found = run_trials(trials, store, jobs=jobs)
    assert [canonical(r["result"]) for r in found[:5]] == [canonical(r["result"]) for r in here]
    places = {record["result"]["process"] for record in found[5:]}
    assert os.getpid() not in places
    # Ray has another pool, with its own processes, for every few trials
    assert 1 <= len(places) <= (2 if name == "dask" else 6)


@pytest.mark.parametrize(
    ("name", "address", "text"),
    [
        ("spark", None, "--engine spark: expected one of loky, dask, ray."),
        ("loky", "tcp://x:1", "--address tcp://x:1: loky runs only on this machine. Name --engine dask or ray."),
    ],
)
def test_an_engine_that_cannot_be_is_refused(name, address, text):
    with pytest.raises(EngineError, match=f"^{re.escape(text)}$"), connected(name, address, 2):
        pass


def test_an_address_that_does_not_answer_is_named():
    pytest.importorskip("distributed", reason="dask is not installed")
    expected = "^--address tcp://127.0.0.1:9: no dask answers there.$"
    with pytest.raises(EngineError, match=expected), connected("dask", "tcp://127.0.0.1:9", 2):
        pass


def test_an_engine_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    expected = "^--engine dask: distributed is not installed: pip install dask.$"
    with pytest.raises(EngineError, match=expected), connected("dask", None, 2):
        pass


# --- worker processes that are replaced ---

REPLACED = """
import sys, warnings
import joblib
from gammabeta.lab.trials.workers import connected
from tests.trial_functions import grow, hears_ctrl_c

warnings.simplefilter("ignore")  # loky says that it replaces workers
with connected("loky", None, 2):
    pool = joblib.Parallel(n_jobs=2, batch_size=1)
    before = pool(joblib.delayed(hears_ctrl_c)() for _ in range(8))
    pool(joblib.delayed(grow)() for _ in range(4))
    after = pool(joblib.delayed(hears_ctrl_c)() for _ in range(8))
print(dict(after).keys().isdisjoint(dict(before)), {hears for _, hears in before + after})
"""


@pytest.mark.skipif(os.name == "nt", reason="no signal masks on Windows")
def test_a_worker_that_takes_another_s_place_ignores_ctrl_c_too():
    pytest.importorskip("psutil", reason="psutil is not installed, by which loky sees that a worker has grown")
    places = {"PYTHONPATH": os.pathsep.join([os.path.join(os.getcwd(), "src"), os.getcwd()])}
    done = subprocess.run(
        [sys.executable, "-c", REPLACED], capture_output=True, text=True, timeout=300, env={**os.environ, **places}
    )
    assert (done.stdout, done.returncode) == ("True {False}\n", 0), done.stderr


# --- worker processes that cannot start ---

POOL = """
import os
import sys

sys.path.remove("")  # as for a console script
from gammabeta.lab.trials import workers
from gammabeta.lab.trials.store import Store
from gammabeta.lab.trials.trial import Trial

os.chdir(sys.argv[1])
if sys.argv[2] == "unprotected":
    import contextlib
    workers._environment = lambda *_: contextlib.nullcontext()
try:
    with workers.connected("loky", None, 2) as jobs:
        trials = [Trial("tests.trial_functions:where", {"index": index}) for index in range(3)]
        found = workers.run_trials(trials, Store("out"), jobs=jobs)
        print(os.getpid() not in {record["result"]["process"] for record in found}, "PYTHONSAFEPATH" in os.environ)
except workers.EngineError as error:
    print(error)
print("PYTHONSAFEPATH" in os.environ)
"""


def pool(folder, how):
    (folder / "queue.py").write_text("raise RuntimeError('the queue of the user')")
    root = os.getcwd()
    places = {"PYTHONPATH": os.pathsep.join([os.path.join(root, "src"), root])}
    environment = {**{k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}, **places}
    done = subprocess.run(
        [sys.executable, "-c", POOL, str(folder), how], capture_output=True, text=True, timeout=300, env=environment
    )
    return done.stdout.splitlines(), done.stderr


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 always imports from the working directory first")
def test_a_file_of_the_users_with_a_name_of_pythons_does_not_stop_the_workers(tmp_path):
    said, errors = pool(tmp_path, "protected")
    assert said == ["True True", "False"], errors
    assert "the queue of the user" not in errors


def test_workers_that_cannot_start_end_the_study_with_a_sentence(tmp_path):
    said, errors = pool(tmp_path, "unprotected")
    assert "the queue of the user" in errors
    assert said[0].startswith("--jobs 2: expected 2 worker processes to start, got none that works (")
    assert said[0].endswith("--jobs 1 needs no workers.")
    assert said[1:] == ["False"]


def test_the_first_three_failures_that_are_alike_end_the_others(tmp_path):
    trials = [Trial(f"{HERE}:count_and_fail", {"folder": str(tmp_path), "index": index}) for index in range(20)]
    with pytest.raises(TrialError) as failed:
        run_trials(trials, Store(tmp_path / "out"), jobs=1)
    assert len((tmp_path / "attempts").read_text()) == 3
    assert str(failed.value) == (
        f"the trial {HERE}:count_and_fail (folder {tmp_path}, index 0) and others failed alike, so that the rest of 20 "
        "did not run: ValueError: always"
    )
    # from the first frame outside gammabeta on, and no further
    assert failed.value.details.startswith('Traceback (most recent call last):\n  File "')
    assert "perform" not in failed.value.details
    assert "count_and_fail" in failed.value.details
    assert failed.value.details.endswith("ValueError: always")
