"""Results of whole procedures whose errors are made up."""

from gammabeta.lab.claims import group_norm_needs_no_sync
from gammabeta.lab.procedure import Chosen

WOBBLE = (0.0, 0.25, 0.5)


def chosen(error, *, moving=None, wobble=WOBBLE, **more):
    """Make an arm's results with this error in percent: one per replicate, which hardly differ."""

    def losses(more_error):
        exact, average = error + more_error, (error if moving is None else moving) + more_error
        return {"error": exact / 100, "loss": 0.5, "moving_error": average / 100, "moving_loss": 0.5}

    results = [{**losses(each), "validation": losses(0.0), **more} for each in wobble]
    return Chosen(results, [-4] * len(wobble), -4, {-4: error / 100})


def plant(monkeypatch, claim, error_of):
    """Put made-up results in place of a claim's runs; ``error_of`` gives each arm's error, or its ``Chosen``."""

    def choose_rates(experiment, arms, replicates, *_, **__):
        found = {name: error_of(name) for name in arms}
        return {name: of if isinstance(of, Chosen) else chosen(of) for name, of in found.items()}

    monkeypatch.setattr(claim, "choose_rates", choose_rates)


def independence(experiment=None):
    """Make what the processes of group_norm_needs_no_sync find where the identity holds and the controls see."""
    norms = (group_norm_needs_no_sync.CONTROL, group_norm_needs_no_sync.JUDGED)
    synced = {(index, norm): norm == norms[0] for index in range(2) for norm in norms}
    return group_norm_needs_no_sync.Independence(
        ["MLP 2 layers relu", "ResNet"],
        {cell: (4, 1000, 1) if of else (0, 0, 1) for cell, of in synced.items()},
        {cell: 0.1 if of else 0.0 for cell, of in synced.items()},
    )
