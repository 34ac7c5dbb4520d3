"""kedit: put new knowledge into a language model, and see what it cost."""

__version__ = "0.1.0"
