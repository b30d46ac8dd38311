"""Search for better settings of a recipe: successive halving over its ranges, evaluated on the validation split alone."""
