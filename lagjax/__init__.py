"""lagjax: grow a trained model in every way worth trying, and keep the way that wins after a small lag."""

__version__ = "0.1.0"
