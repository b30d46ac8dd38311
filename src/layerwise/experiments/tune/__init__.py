"""Search for better settings of a recipe: successive halving over its ranges, judged on the validation split alone."""
