"""Changes to a model that has norms: in place, as transactions."""
