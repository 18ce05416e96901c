"""Environments of the package verifiers: a program that runs where that is installed."""
