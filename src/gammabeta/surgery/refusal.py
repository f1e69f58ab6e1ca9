"""Why a site is left alone."""


class Refusal(Exception):  # noqa: N818
    """A change cannot be made safely here; the message is the reason, for the report."""
