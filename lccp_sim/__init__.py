"""lccp-sim: long-context continual pre-training of mixture-of-experts models, watched at three levels."""

__version__ = "0.1.0"
