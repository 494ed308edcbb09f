"""lccp-sim: long-context continual pre-training of mixture-of-experts models, measured at three levels."""

__version__ = "0.1.0"
