"""Engines, which do the slow work of stages in this process, with torchrun or on a Ray cluster."""
