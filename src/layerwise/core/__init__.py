"""The core: sites on any module, passes that perturb and record, ascent rules, the driver. It knows torch only."""
