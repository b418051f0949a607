"""nanoGPT Scaling, the engine: trains one model from one config. Importing it loads no torch."""

__version__ = "0.1.0"
