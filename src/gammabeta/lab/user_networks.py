"""The user's network for each kind of data: whose contract ``--model`` keeps, by the data of the study.

Each kind's ``user_network`` module documents what the function is given and what its model takes and returns.
"""

from collections.abc import Mapping
from typing import Any

from gammabeta.lab.images.user_network import user_network as of_images
from gammabeta.lab.sequences.user_network import user_network as of_sequences
from gammabeta.lab.sources import load, load_sequences, load_text
from gammabeta.lab.task import Kind
from gammabeta.lab.text.training import shape_for
from gammabeta.lab.text.user_network import user_network as of_text


def kind_of_model(sources: Mapping[Kind, Mapping[str, Any]]) -> Kind:
    """Return the kind of data that the user's model is for: the only one, or images where there are several."""
    return next(iter(sources)) if len(sources) == 1 else "images"


def identify(target: str, sources: Mapping[Kind, Mapping[str, Any]], *, quick: bool) -> dict[str, Any]:
    """Rehearse the user's model, and return what identifies it in a trial's settings.

    Raises:
        TaskError: the contract is not kept, or the model cannot be trained; the message says where.
    """
    wanted = kind_of_model(sources)
    if wanted == "sequences":
        return of_sequences(target, load_sequences(sources["sequences"]))
    if wanted == "text":
        data = load_text(sources["text"])
        return of_text(target, data, shape_for(data, quick=quick)["context"])
    return dict(of_images(target, load(sources["images"])))
