"""Helpers that know nothing of models: checks of arguments, files, devices, extras."""
