"""Deep state-space models in Pyro."""

__version__ = "0.1.0"
