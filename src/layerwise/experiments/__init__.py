"""Experiments: settings, recipes, suites; planned, trained, evaluated and tuned."""
