"""A claim: a module whose docstring says what is asked and how it is judged, and whose ``measure`` measures it."""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from gammabeta.lab.experiment import Experiment
from gammabeta.lab.outcome import Outcome

HEADINGS = ("Question", "Claim", "Criterion", "Room", "Method", "Settings", "Sources", "Known")


@dataclass(frozen=True)
class Claim:
    """What a claim's module says, by the headings of its docstring, and its ``measure``.

    ``kind`` is the kind of data that the claim is about, or ``"any"``. ``exact`` is whether it is an identity, which
    holds or does not, rather than an effect with an interval.
    """

    name: str
    title: str
    exact: bool
    kind: str
    sections: dict[str, str]
    measure: Callable[[Experiment], Outcome]

    @classmethod
    def of(cls, module: ModuleType) -> "Claim":
        """Read a module of ``claims/``, which must have all headings, in order."""
        text = inspect.cleandoc(module.__doc__ or "")
        title, _, rest = text.partition("\n")
        parts = re.split(rf"^({'|'.join(HEADINGS)}):\s*", rest, flags=re.MULTILINE)
        names = tuple(parts[1::2])
        assert names == HEADINGS, f"{module.__name__}: expected the headings {HEADINGS}, got {names}"
        sections = {name: inspect.cleandoc(body).strip() for name, body in zip(names, parts[2::2], strict=True)}
        return cls(
            module.__name__.rpartition(".")[2], title.rstrip("."), module.EXACT, module.KIND, sections, module.measure
        )

    def line(self, heading: str) -> str:
        """Return a section as one line of text."""
        return " ".join(self.sections[heading].split())

    @property
    def sources(self) -> list[str]:
        return [source.strip().rstrip(".") for source in self.line("Sources").split(";")]
